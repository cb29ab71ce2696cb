//! Requests that a web page in somebody's browser may have sent.
//!
//! Owns the rules by which an endpoint refuses them. A browser sends requests for any page to any address that its machine
//! reaches: to the daemons of a laptop's cluster, too. The clients of a cluster are no browsers, except for the page
//! that bazooka-rm itself serves. The rules:
//!
//! 1. `Origin`, which a browser adds to whatever a page may do, must be the endpoint's own.
//! 2. `Sec-Fetch-Site`, where a browser sends it, must be `same-origin`, or `none` (an address that a person typed).
//! 3. Without identities, `Host` must be an IP address, `localhost`, or a name that the daemon's settings say. Any other
//!    name may be an attacker's, who has it lead to this machine ("DNS rebinding"); then page and endpoint have the same
//!    origin. An IP address and `localhost` can't be made to lead elsewhere. With identities no browser gets that far:
//!    the certificate isn't one for the attacker's name.
//! 4. A body must be of the type that the endpoint takes. A page can't say such a type without asking first, which rules 1
//!    and 2 refuse.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::hosts::{host_of, host_of_url};

/// The type of all bodies but git's.
const JSON: &str = "application/json";

/// The names of an endpoint that its settings say. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts(Arc<BTreeSet<String>>);

impl KnownHosts {
    /// Returns the hosts of URLs.
    pub fn of<'a>(urls: impl IntoIterator<Item = &'a str>) -> KnownHosts {
        let hosts = urls.into_iter().filter_map(host_of_url);
        KnownHosts(Arc::new(hosts.collect()))
    }

    fn has(&self, host: &str) -> bool {
        host == "localhost" || is_address(host) || self.0.contains(host)
    }
}

fn is_address(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(host).parse::<IpAddr>().is_ok()
}

/// The reason why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// A page of another origin sent it.
    #[error(
        "a web page of {0:?} may not call this; open the address in a tab of its own, or use `bazooka`, git or curl"
    )]
    Origin(String),
    /// A page of another site sent it, or a link there.
    #[error("another site's page may not call or link this ({0:?}); open the address in a tab of its own")]
    Site(String),
    /// The request is for a name that may be an attacker's.
    #[error(
        "{0:?} may be anybody's name: use the IP address, or a name in the `url` or `git-url` of bazooka-rm's settings"
    )]
    Host(String),
    /// The body isn't of the type that is taken here.
    #[error("this takes a body of type {wanted}, and this one is {given:?}")]
    Type {
        /// The type of its body.
        given: String,
        /// The type that is taken.
        wanted: String,
    },
}

impl Foreign {
    /// Returns the word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Foreign::Origin(_) => "origin",
            Foreign::Site(_) => "site",
            Foreign::Host(_) => "host",
            Foreign::Type { .. } => "type",
        }
    }
}

impl IntoResponse for Foreign {
    fn into_response(self) -> Response {
        let status = match self {
            Foreign::Origin(_) | Foreign::Site(_) => StatusCode::FORBIDDEN,
            Foreign::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            Foreign::Type { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{self}\n")).into_response()
    }
}

/// Decides on a request. `known` has the endpoint's own names; `None` where callers have identities.
///
/// # Errors
/// [`Foreign`].
pub fn look(request: &Request, known: Option<&KnownHosts>) -> Result<(), Foreign> {
    let headers = request.headers();
    let hosts = hosts(request);
    for origin in headers.get_all(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
        let of = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let is_own = of.is_some_and(|of| !hosts.is_empty() && hosts.iter().all(|host| same(host, of)));
        if !is_own {
            return Err(Foreign::Origin(shown(origin)));
        }
    }
    for site in headers.get_all("sec-fetch-site") {
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return Err(Foreign::Site(shown(String::from_utf8_lossy(site.as_bytes()).into_owned())));
        }
    }
    if let Some(known) = known {
        // A client without a `Host` is no browser.
        let unknown = |host: &&String| !host_of(host).is_some_and(|host| known.has(&host));
        if let Some(unknown) = hosts.iter().find(unknown) {
            return Err(Foreign::Host(shown(unknown.clone())));
        }
    }
    has_its_type(request)
}

/// Returns each `HOST[:PORT]` that a request names: in its headers, or in place of its path.
fn hosts(request: &Request) -> Vec<String> {
    let said = request.headers().get_all(header::HOST).into_iter();
    let said = said.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    said.chain(request.uri().authority().map(|authority| authority.as_str().to_owned())).collect()
}

fn same(host: &str, other: &str) -> bool {
    host.eq_ignore_ascii_case(other)
}

/// Looks at the type of a request that has a body, or changes something.
fn has_its_type(request: &Request) -> Result<(), Foreign> {
    let headers = request.headers();
    if !has_body(headers) && !matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        return Ok(());
    }
    let last = request.uri().path().rsplit('/').next().unwrap_or_default();
    let wanted = match last {
        "git-upload-pack" | "git-receive-pack" => format!("application/x-{last}-request"),
        _ => JSON.to_owned(),
    };
    let mut given = headers.get_all(header::CONTENT_TYPE).into_iter();
    let (given, more) = (given.next(), given.next());
    let given = given.map(|given| String::from_utf8_lossy(given.as_bytes()).into_owned()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if more.is_none() && essence.eq_ignore_ascii_case(&wanted) {
        return Ok(());
    }
    Err(Foreign::Type { given: shown(given), wanted })
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// Cuts a text of a stranger's to what an answer may hold.
fn shown(text: String) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn asked(method: &str, path: &str, headers: &[(&'static str, &str)]) -> Result<(), &'static str> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let known = KnownHosts::of(["http://rm.example.org:8081", "not a url", "https://Git.example.org/x"]);
        let request = request.body(Body::empty()).expect("a request");
        look(&request, Some(&known)).map_err(|foreign| foreign.reason())
    }

    const HERE: (&str, &str) = ("host", "127.0.0.1:8081");

    #[test]
    fn clients_of_a_cluster_pass() {
        for host in
            ["127.0.0.1:8081", "10.0.0.1", "[::1]:8081", "localhost:8081", "LOCALHOST", "rm.example.org:8081"]
        {
            assert_eq!(asked("GET", "/", &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(asked("GET", "/", &[("host", "git.example.org.:443")]), Ok(()));
        assert_eq!(asked("GET", "/healthz", &[]), Ok(()), "HTTP/1.0 of a load balancer");
        let json = ("content-type", "application/json");
        assert_eq!(asked("POST", "/apps", &[HERE, json, ("content-length", "2")]), Ok(()));
        let with_charset = ("content-type", "application/json; charset=utf-8");
        assert_eq!(asked("POST", "/keys", &[HERE, with_charset, ("content-length", "2")]), Ok(()));
        for service in ["git-receive-pack", "git-upload-pack"] {
            let kind = format!("application/x-{service}-request");
            let headers = [HERE, ("content-type", kind.as_str()), ("transfer-encoding", "chunked")];
            assert_eq!(asked("POST", &format!("/a.git/{service}"), &headers), Ok(()));
        }
        assert_eq!(asked("DELETE", "/apps/a", &[HERE]), Ok(()));
        assert_eq!(asked("DELETE", "/apps/a", &[HERE, ("content-length", "0")]), Ok(()));
        // The page itself, and what it loads.
        assert_eq!(asked("GET", "/", &[HERE, ("sec-fetch-site", "none")]), Ok(()));
        let own = [HERE, ("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:8081")];
        assert_eq!(asked("GET", "/live", &own), Ok(()));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let json = ("content-type", "application/json");
        for origin in [
            "https://evil.example",
            "http://127.0.0.1:8080",
            "http://127.0.0.1",
            "null",
            "",
            "file://",
            "http://127.0.0.1:8081.evil.example",
            "http://evil@127.0.0.1:8081",
        ] {
            let headers = [HERE, json, ("origin", origin)];
            assert_eq!(asked("POST", "/apps", &headers), Err("origin"), "{origin}");
            assert_eq!(asked("OPTIONS", "/apps", &[HERE, ("origin", origin)]), Err("origin"), "{origin}");
            assert_eq!(asked("GET", "/live", &[HERE, ("origin", origin)]), Err("origin"), "{origin}");
        }
        let two = [HERE, ("origin", "http://127.0.0.1:8081"), ("origin", "https://evil.example")];
        assert_eq!(asked("GET", "/live", &two), Err("origin"));
        for site in ["cross-site", "same-site", "", "NONE"] {
            assert_eq!(asked("GET", "/", &[HERE, ("sec-fetch-site", site)]), Err("site"), "{site}");
        }
    }

    #[test]
    fn names_that_may_be_an_attackers_are_refused() {
        for host in [
            "evil.example",
            "evil.example:8081",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "app.localhost",
            "rm.example.org.evil.example",
            "127.0.0.1@evil.example",
            "evil.example/127.0.0.1",
            "",
            "2130706433",
        ] {
            assert_eq!(asked("GET", "/", &[("host", host)]), Err("host"), "{host:?}");
        }
        assert_eq!(asked("GET", "http://evil.example/", &[HERE]), Err("host"), "in place of the path");
        assert_eq!(asked("GET", "/", &[HERE, ("host", "evil.example")]), Err("host"), "a second one");
        // After a rebinding, the page's own origin is that name.
        let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
        assert_eq!(asked("GET", "/live", &rebound), Err("host"));
    }

    #[test]
    fn with_identities_the_certificate_says_the_name() {
        let request = Request::get("/").header("host", "any.example").body(Body::empty()).expect("valid");
        assert_eq!(look(&request, None), Ok(()));
    }

    #[test]
    fn bodies_of_other_types_are_refused() {
        let length = ("content-length", "2");
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "",
            "application/jsonx",
            "text/plain, application/json",
        ] {
            let headers = [HERE, length, ("content-type", kind)];
            assert_eq!(asked("POST", "/apps", &headers), Err("type"), "{kind}");
            assert_eq!(asked("POST", "/a.git/git-receive-pack", &headers), Err("type"), "{kind}");
        }
        assert_eq!(asked("POST", "/apps", &[HERE]), Err("type"), "a page can send an empty body");
        let two = [HERE, length, ("content-type", "text/plain"), ("content-type", "application/json")];
        assert_eq!(asked("POST", "/apps", &two), Err("type"));
        let json = ("content-type", "application/json");
        assert_eq!(asked("POST", "/a.git/git-receive-pack", &[HERE, json]), Err("type"));
        let push = ("content-type", "application/x-git-receive-pack-request");
        assert_eq!(asked("POST", "/a.git/git-upload-pack", &[HERE, push]), Err("type"));
        assert_eq!(asked("POST", "/apps", &[HERE, push]), Err("type"));
        assert_eq!(asked("DELETE", "/apps/a", &[HERE, length]), Err("type"));
    }
}
