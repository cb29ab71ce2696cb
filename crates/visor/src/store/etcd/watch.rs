//! A watch on etcd, over a stream of its own.

use async_trait::async_trait;
use etcd_client::{WatchResponse, WatchStream};

use super::{
    failure::chain,
    wire::{self, Wire},
};
use crate::store::{Event, Result, Revision, StoreError, Watch, WatchMessage};

/// The parts of etcd's reason for a cancel that mean that this identity may not watch.
const REFUSALS: [&str; 3] = ["code = PermissionDenied", "code = Unauthenticated", "code = InvalidArgument"];

/// A watch, alone on its stream: when either ends, both do.
pub(super) struct EtcdWatch {
    stream: WatchStream,
    wire: Wire,
    from: Revision,
    ended: bool,
}

impl EtcdWatch {
    pub(super) fn new(stream: WatchStream, wire: Wire, from: Revision) -> Self {
        Self { stream, wire, from, ended: false }
    }

    /// Returns a cancelled watch's error; etcd reports the cancel as a message like any other.
    fn cancelled(&self, response: &WatchResponse) -> StoreError {
        let reason = response.cancel_reason();
        if response.compact_revision() > 0 {
            StoreError::Compacted { asked: self.from, oldest: response.compact_revision() }
        } else if REFUSALS.iter().any(|code| reason.contains(code)) {
            StoreError::Refused { detail: reason.to_owned() }
        } else {
            StoreError::WatchEnded {
                detail: match reason {
                    "" => "the server cancelled it".to_owned(),
                    reason => reason.to_owned(),
                },
            }
        }
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Option<Result<WatchMessage>> {
        if self.ended {
            return None;
        }
        let error = loop {
            let response = match self.stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => {
                    break StoreError::WatchEnded { detail: "the server closed the stream".to_owned() };
                }
                Err(etcd_client::Error::GRpcStatus(status)) => {
                    break StoreError::WatchEnded { detail: chain(&status) };
                }
                Err(error) => {
                    break StoreError::WatchEnded { detail: chain(&error) };
                }
            };
            if response.canceled() {
                break self.cancelled(&response);
            }
            if response.created() {
                continue;
            }
            let events: Vec<Event> =
                response.events().iter().filter_map(|event| self.wire.event(event)).collect();
            // While a watch catches up, etcd sends the store's revision with every batch, also with those before the
            // last. Only the events tell what has been delivered.
            let revision = events.last().map_or_else(|| wire::revision(response.header()), Event::revision);
            return Some(Ok(WatchMessage { revision, events }));
        };
        self.ended = true;
        Some(Err(error))
    }

    async fn request_progress(&mut self) -> Result<()> {
        let ended = |detail: String| StoreError::WatchEnded { detail };
        if self.ended {
            return Err(ended("the watch had ended".to_owned()));
        }
        self.stream.request_progress().await.map_err(|error| ended(chain(&error)))
    }
}
