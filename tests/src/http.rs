//! Requests as a visitor makes them.

use std::time::Duration;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Asks for a page, with a Host header of one's own, on a new connection.
///
/// # Errors
/// What went wrong below HTTP.
pub fn try_get(url: &str, host: Option<&str>) -> Result<Answer, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .build()
        .into();
    let mut request = agent.get(url);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    let body = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
    Ok(Answer { status: response.status().as_u16(), body })
}

/// As [`try_get`], for what must be answered.
///
/// # Panics
/// If it isn't.
pub fn get(url: &str, host: Option<&str>) -> Answer {
    try_get(url, host).unwrap_or_else(|error| panic!("{url} (host {host:?}): {error}"))
}
