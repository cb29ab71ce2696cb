//! The hosts that URLs and requests name.

/// Returns a URL's host in lower case, without its port; `None` if it has none.
pub fn host_of_url(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    url.authority().and_then(|authority| host_of(authority.as_str()))
}

/// Returns the host of `HOST[:PORT]` in lower case; none if it has another form.
pub(crate) fn host_of(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    // A name may end in a dot, which changes nothing.
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    (!host.is_empty() && !authority.as_str().contains('@')).then_some(host)
}
