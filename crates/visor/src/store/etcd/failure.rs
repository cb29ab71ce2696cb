//! The meaning of a failed attempt: was it carried out, and is another endpoint worth trying?
//!
//! etcd reports the cause in words, because its codes are too coarse (a full disk and a busy server are both "resource
//! exhausted"). The words are those of its `rpctypes`, the same from 3.4 to 3.6.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

use crate::store::{LeaseId, Revision, StoreError};

/// The subject of a call, to name it in an error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    pub(super) revision: Option<Revision>,
    pub(super) lease: Option<LeaseId>,
}

/// A failed attempt at one endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The call was not carried out; another endpoint may take it.
    NotDone(String),
    /// The call was not carried out, because another change came first; the same endpoint will take it now.
    Overtaken(String),
    /// The connection or the member failed during the call: it may have been carried out.
    Broken(String),
    /// There was no answer in time: it may have been carried out.
    Silent(String),
    /// The store answered with an error, which is the call's result.
    Answered(StoreError),
}

/// The refusals that etcd gives before it proposes the call to the cluster, and that may pass.
const NEVER_PROPOSED: [&str; 4] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "raft proposal dropped",
];

/// The refusal after users or roles changed between two checks of a call.
///
/// etcd checks once more before it carries a call out, and refuses a call that was checked against older rights.
const AUTH_CHANGED: &str = "revision of auth store is old";

const LEASE_NOT_FOUND: &str = "requested lease not found";
const COMPACTED: &str = "required revision has been compacted";

impl Failure {
    pub(super) fn of(error: etcd_client::Error, asked: &Asked) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::of_status(&status, asked),
            // These are the client's own words for a keep-alive that was answered with no time left.
            etcd_client::Error::LeaseKeepAliveError(detail) if detail == "lease not found" => {
                Failure::Answered(StoreError::LeaseNotFound(asked.lease.unwrap_or(0)))
            }
            etcd_client::Error::InvalidArgs(detail) => Failure::Answered(StoreError::Refused { detail }),
            other => Failure::Broken(chain(&other)),
        }
    }

    fn of_status(status: &Status, asked: &Asked) -> Self {
        let words = status.message();
        if never_connected(status) {
            return Failure::NotDone(chain(status));
        }
        if NEVER_PROPOSED.iter().any(|known| words.contains(known)) {
            return Failure::NotDone(words.to_owned());
        }
        if words.contains(AUTH_CHANGED) {
            return Failure::Overtaken(words.to_owned());
        }
        if words.contains(LEASE_NOT_FOUND) {
            return Failure::Answered(StoreError::LeaseNotFound(asked.lease.unwrap_or(0)));
        }
        if words.contains(COMPACTED) {
            return Failure::Answered(StoreError::Compacted {
                asked: asked.revision.unwrap_or(0),
                oldest: 0,
            });
        }
        match status.code() {
            // These are the store's own answers to this very call.
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => Failure::Answered(StoreError::Refused { detail: words.to_owned() }),
            // These include "request timed out", "leader changed", "server stopped" and a broken connection.
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Failure::Broken(chain(status)),
        }
    }
}

/// Reports whether the channel could not even reconnect.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns an error with its causes, without repetitions.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let first = error
        .downcast_ref::<Status>()
        .map_or_else(|| error.to_string(), |status| status.message().to_owned());
    let mut text = first;
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, words: &str) -> Failure {
        let asked = Asked { revision: Some(7), lease: Some(4) };
        Failure::of(etcd_client::Error::GRpcStatus(Status::new(code, words)), &asked)
    }

    #[test]
    fn etcds_answers_are_told_from_its_troubles() {
        let refused = |detail: &str| Failure::Answered(StoreError::Refused { detail: detail.to_owned() });
        let not_done = |detail: &str| Failure::NotDone(detail.to_owned());
        let broken = |detail: &str| Failure::Broken(detail.to_owned());
        type Expected = fn(&str) -> Failure;
        let cases: [(Code, &str, Expected); 15] = [
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", |words| {
                Failure::Overtaken(words.to_owned())
            }),
            (Code::NotFound, "etcdserver: requested lease not found", |_| {
                Failure::Answered(StoreError::LeaseNotFound(4))
            }),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", |_| {
                Failure::Answered(StoreError::Compacted { asked: 7, oldest: 0 })
            }),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", refused),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", refused),
            (Code::PermissionDenied, "etcdserver: permission denied", refused),
            (Code::Unauthenticated, "etcdserver: invalid auth token", refused),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request", refused),
            (Code::Unavailable, "etcdserver: no leader", not_done),
            (Code::ResourceExhausted, "etcdserver: too many requests", not_done),
            (Code::Unknown, "raft proposal dropped", not_done),
            (Code::Unavailable, "etcdserver: request timed out", broken),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                broken,
            ),
            (Code::Unavailable, "etcdserver: leader changed", broken),
            (Code::Unavailable, "etcdserver: server stopped", broken),
        ];
        for (code, words, expected) in cases {
            assert_eq!(of(code, words), expected(words), "{code:?} {words}");
        }
    }

    #[test]
    fn a_connection_that_could_not_be_made_again_has_sent_nothing() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        let failure = Failure::of(etcd_client::Error::GRpcStatus(status), &Asked::default());
        assert_eq!(failure, Failure::NotDone("connection refused".to_owned()));
    }
}
