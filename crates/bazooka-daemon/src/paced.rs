//! The body of a request, in time.
//!
//! Owns how long a client may take to send a body: in all, and for each piece. A handler that reads a body too slow for
//! that gets an error in its place.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::header,
};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// The time for a body, but git's; those have some hundred bytes.
const USUAL: Pace = Pace { whole: Duration::from_secs(30), each: Duration::from_secs(30) };

/// The time for git's body. Git may count objects for a while between two pieces; 2 GiB in six hours are 100 KB/s.
const PACK: Pace = Pace { whole: Duration::from_secs(6 * 3600), each: Duration::from_secs(120) };

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    whole: Duration,
    each: Duration,
}

/// The client took too long.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request didn't come in time")]
struct TooSlow;

/// Gives a request's body its time.
pub fn paced(request: Request) -> Request {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_gits = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-git-"));
    let pace = if is_gits { PACK } else { USUAL };
    request.map(|body| if body.is_end_stream() { body } else { Body::new(Paced::new(body, pace)) })
}

struct Paced {
    body: Body,
    pace: Pace,
    until: Instant,
    /// Runs only while the reader waits for the client: a reader that takes its time is no fault of the client's.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(body: Body, pace: Pace) -> Paced {
        Paced { body, pace, until: Instant::now() + pace.whole, wait: None }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.wait = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let next = (Instant::now() + self.pace.each).min(self.until);
        let wait = self.wait.get_or_insert_with(|| Box::pin(sleep_until(next)));
        match wait.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(TooSlow.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use tokio::sync::mpsc;

    use super::*;

    fn request(kind: &str) -> (mpsc::Sender<Result<Bytes, BoxError>>, Request) {
        let (send, pieces) = mpsc::channel(1);
        let body = Body::from_stream(futures::stream::unfold(pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (piece, pieces))
        }));
        let request = Request::post("/").header("content-type", kind).body(body).expect("a request");
        (send, paced(request))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_too_slowly_is_an_error() {
        for (kind, each, pieces, comes) in [
            ("application/json", 5, 5, true),
            ("application/json", 5, 7, false),
            ("application/json", 31, 1, false),
            ("application/x-git-receive-pack-request", 100, 50, true),
            ("application/x-git-receive-pack-request", 121, 1, false),
            ("application/x-git-receive-pack-request", 100, 220, false),
        ] {
            let (send, request) = request(kind);
            let sending = async move {
                for _ in 0..pieces {
                    tokio::time::sleep(Duration::from_secs(each)).await;
                    if send.send(Ok(Bytes::from_static(b"x"))).await.is_err() {
                        return;
                    }
                }
            };
            let (read, ()) = tokio::join!(to_bytes(request.into_body(), 1_000), sending);
            assert_eq!(read.is_ok(), comes, "{kind}: {pieces} pieces, one each {each} s: {read:?}");
        }
    }
}
