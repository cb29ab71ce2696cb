//! Requests as a visitor makes them.

use std::time::Duration;

use bazooka_daemon::{http_client, in_words};

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Asks for a page, with a Host header of one's own, on a new connection. Blocks.
///
/// # Errors
/// What went wrong below HTTP.
pub fn try_get(url: &str, host: Option<&str>) -> Result<Answer, String> {
    // On a thread of its own: the caller may be a task already, and a task can't block on another.
    let asked = std::thread::scope(|scope| {
        let asking = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(ask(url, host))
        };
        scope.spawn(asking).join().expect("asking doesn't panic")
    });
    asked.map_err(|error| in_words(&error))
}

async fn ask(url: &str, host: Option<&str>) -> Result<Answer, reqwest::Error> {
    let client = http_client(None).timeout(Duration::from_secs(10)).build()?;
    let mut request = client.get(url);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let response = request.send().await?;
    Ok(Answer { status: response.status().as_u16(), body: response.text().await? })
}

/// As [`try_get`], for what must be answered.
///
/// # Panics
/// If it isn't.
pub fn get(url: &str, host: Option<&str>) -> Answer {
    try_get(url, host).unwrap_or_else(|error| panic!("{url} (host {host:?}): {error}"))
}
