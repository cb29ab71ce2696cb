//! The store on a real etcd.
//!
//! Owns what etcd's client leaves to its user: a deadline for each call, leaving a failing endpoint, repeating only
//! calls that are safe to repeat, and telling a call that was never sent from one whose outcome is unknown. It holds no
//! state of the cluster and starts no task of its own.
//!
//! ```text
//! call ─▶ endpoints (which one, connected?) ─▶ etcd-client ─▶ failure (never sent | unknown | answered)
//! ```

mod endpoints;
mod failure;
mod members;
mod pages;
mod users;
mod watch;
mod wire;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{CompactionOptions, GetOptions, LeaseKeepAliveStream, LeaseKeeper, WatchOptions};
use tokio::time::{Instant, timeout};

use super::{Keys, LeaseId, Op, Page, Result, Revision, Store, StoreError, Txn, TxnReply, Watch};
use endpoints::{Connection, Endpoints};
use failure::{Asked, Failure, chain};
pub use members::EtcdMember;
pub use users::holes_closed_in;
use watch::EtcdWatch;
use wire::Wire;

use crate::identity::Credentials;

/// The configuration of a client: where the etcd is, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The URL of each member: `http://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// The prefix of every key, without a slash at its end: `/bazooka`.
    pub prefix: String,
    /// The client's identity, where the cluster tells users apart.
    pub credentials: Option<Credentials>,
    /// The longest time for connecting to one endpoint.
    pub connect_timeout: Duration,
    /// The longest time for a call with all its attempts.
    pub call_timeout: Duration,
}

impl EtcdConfig {
    /// Returns a configuration with the usual time limits.
    ///
    /// They are 1 s to connect and 2 s for a call, so that with a paused member no call takes more than 2.5 s.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>) -> Self {
        Self {
            endpoints,
            prefix: prefix.into(),
            credentials: None,
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(2),
        }
    }
}

/// A client of an etcd cluster, which connects when it is first used.
///
/// Its connections belong to the tokio runtime that made them: do not share a client between runtimes.
pub struct EtcdStore {
    endpoints: Endpoints,
    wire: Wire,
    call_timeout: Duration,
    /// The open keep-alive stream of each lease that was renewed through this store.
    renewals: Mutex<BTreeMap<LeaseId, Renewal>>,
}

/// An open keep-alive stream without an outstanding answer.
struct Renewal {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

/// The harm of carrying a call out twice: none, or some.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Safe,
    Never,
}

impl EtcdStore {
    /// Returns a client that is not connected yet.
    pub fn new(config: EtcdConfig) -> Self {
        Self {
            endpoints: Endpoints::new(&config.endpoints, config.connect_timeout, config.credentials),
            wire: Wire::new(&config.prefix),
            call_timeout: config.call_timeout,
            renewals: Mutex::default(),
        }
    }

    /// Returns the URLs at which it asks the members.
    pub fn urls(&self) -> Vec<String> {
        self.endpoints.urls()
    }

    /// Runs `attempt` at one endpoint after the other, within the time of a call.
    async fn call<T, F>(&self, repeat: Repeat, asked: &Asked, attempt: impl Fn(Connection) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_until(Instant::now() + self.call_timeout, repeat, asked, attempt).await
    }

    /// Runs `attempt` at one endpoint after the other, until a deadline.
    ///
    /// A call that is not safe to repeat moves to the next endpoint only while it has provably not been sent. A call
    /// that is safe to repeat may spend half of the remaining time at each endpoint, and gets a second chance where its
    /// connection broke: a restarted member answers again at once.
    async fn call_until<T, F>(
        &self,
        deadline: Instant,
        repeat: Repeat,
        asked: &Asked,
        attempt: impl Fn(Connection) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut left_to_try: VecDeque<(usize, bool)> =
            self.endpoints.order().into_iter().map(|at| (at, true)).collect();
        let mut last = "no endpoint is configured".to_owned();
        while let Some((at, again)) = left_to_try.pop_front() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let share = if left_to_try.is_empty() { left } else { left / 2 };
            let connection = match self.endpoints.connect(at, share).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = chain(&error);
                    continue;
                }
            };
            let generation = connection.generation;
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = match repeat {
                Repeat::Safe => share.min(left),
                Repeat::Never => left,
            };
            let failure = match timeout(limit, attempt(connection)).await {
                Ok(Ok(answer)) => {
                    self.endpoints.prefer(at);
                    return Ok(answer);
                }
                Ok(Err(error)) => Failure::of(error, asked),
                Err(_) => Failure::Silent(format!("no answer within {} ms", limit.as_millis())),
            };
            if let Failure::Answered(error) = failure {
                self.endpoints.prefer(at);
                return Err(error);
            }
            if let Failure::Overtaken(detail) = failure {
                last = detail;
                left_to_try.push_front((at, again));
                continue;
            }
            self.endpoints.leave(at, generation);
            match failure {
                Failure::Answered(error) => return Err(error),
                Failure::Overtaken(_) => {}
                Failure::NotDone(detail) => last = detail,
                Failure::Broken(detail) | Failure::Silent(detail) if repeat == Repeat::Never => {
                    let url = self.endpoints.url(at);
                    return Err(StoreError::OutcomeUnknown { detail: format!("{url}: {detail}") });
                }
                Failure::Broken(detail) => {
                    last = detail;
                    if again {
                        left_to_try.push_back((at, false));
                    }
                }
                Failure::Silent(detail) => last = detail,
            }
        }
        Err(StoreError::Unreachable { endpoints: self.endpoints.urls(), detail: last })
    }

    /// Renews over the stream that is open from the last renewal, if there is one.
    async fn renew_over_open_stream(&self, lease: LeaseId) -> Option<Result<Duration>> {
        let mut renewal = self.renewals().remove(&lease)?;
        // Removed from the map while it is used: a dropped call drops its stream too, so that no later call reads its
        // answer.
        let answer = timeout(self.call_timeout / 2, renewal.renew()).await.ok()?.ok()?;
        if answer.is_zero() {
            return Some(Err(StoreError::LeaseNotFound(lease)));
        }
        self.renewals().insert(lease, renewal);
        Some(Ok(answer))
    }

    fn renewals(&self) -> std::sync::MutexGuard<'_, BTreeMap<LeaseId, Renewal>> {
        self.renewals.lock().expect("no panic happens while the renewals are locked")
    }
}

impl Renewal {
    /// Renews once and returns the remaining time; zero means that the lease has ended.
    async fn renew(&mut self) -> Result<Duration, etcd_client::Error> {
        self.keeper.keep_alive().await?;
        let answer = self.answers.message().await?;
        let answer = answer.ok_or_else(|| {
            etcd_client::Error::LeaseKeepAliveError("the keep-alive stream ended".to_owned())
        })?;
        Ok(Duration::from_secs(answer.ttl().max(0).unsigned_abs()))
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page> {
        let (start, is_prefix) = self.wire.start(&keys);
        let mut options = GetOptions::new().with_revision(at.unwrap_or(0));
        if is_prefix {
            options = options.with_prefix();
        }
        let asked = Asked { revision: at, lease: None };
        let mut reply = self
            .call(Repeat::Safe, &asked, |mut connection| {
                let (start, options) = (start.clone(), options.clone());
                async move { connection.kv.get(start, Some(options)).await }
            })
            .await?;
        Ok(Page { revision: wire::revision(reply.header()), entries: self.wire.entries(reply.take_kvs()) })
    }

    async fn page(&self, keys: Keys, after: String, most: usize, at: Revision) -> Result<Page> {
        let (mut start, mut ranges) = self.wire.ranges(&keys, &after);
        let asked = Asked { revision: Some(at), lease: None };
        let (mut page, mut next) = (Page { revision: at, entries: Vec::new() }, Some(ranges.first()));
        while let Some(end) = next {
            let lacking = most - page.entries.len();
            let options = GetOptions::new().with_revision(at).with_range(end.clone());
            let options = options.with_limit(wire::limit(lacking));
            let mut reply = self
                .call(Repeat::Safe, &asked, |mut connection| {
                    let (start, options) = (start.clone(), options.clone());
                    async move { connection.kv.get(start, Some(options)).await }
                })
                .await?;
            page.revision = wire::revision(reply.header());
            let found = reply.take_kvs();
            let got = found.len();
            page.entries.extend(self.wire.entries(found));
            if got >= lacking {
                break;
            }
            (start, next) = (end, ranges.next(got, lacking - got));
        }
        Ok(page)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply> {
        let repeat = if txn.is_read_only() { Repeat::Safe } else { Repeat::Never };
        let mut puts = txn.then.iter().chain(&txn.otherwise);
        let asked = Asked {
            revision: None,
            lease: puts.find_map(|op| match op {
                Op::Put { lease, .. } => *lease,
                _ => None,
            }),
        };
        let request = self.wire.txn(txn);
        let reply = self
            .call(repeat, &asked, |mut connection| {
                let request = request.clone();
                async move { connection.kv.txn(request).await }
            })
            .await?;
        Ok(self.wire.txn_reply(&reply))
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Box<dyn Watch>> {
        let (start, is_prefix) = self.wire.start(&keys);
        // Without `fragment`, etcd sends each batch of whole revisions as one message, however large.
        let mut options = WatchOptions::new().with_start_revision(from);
        if is_prefix {
            options = options.with_prefix();
        }
        let stream = self
            .call(Repeat::Safe, &Asked::default(), |mut connection| {
                let (start, options) = (start.clone(), options.clone());
                async move { connection.watch.watch(start, Some(options)).await }
            })
            .await?;
        Ok(Box::new(EtcdWatch::new(stream, self.wire.clone(), from)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        // Safe to repeat: a lease whose grant was lost has no keys and ends by itself.
        let reply = self
            .call(Repeat::Safe, &Asked::default(), |mut connection| async move {
                connection.lease.grant(seconds, None).await
            })
            .await?;
        Ok(reply.id())
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        let deadline = Instant::now() + self.call_timeout;
        if let Some(answer) = self.renew_over_open_stream(lease).await {
            return answer;
        }
        let asked = Asked { revision: None, lease: Some(lease) };
        let (left, renewal) = self
            .call_until(deadline, Repeat::Safe, &asked, |mut connection| async move {
                let (keeper, answers) = connection.lease.keep_alive(lease).await?;
                let mut renewal = Renewal { keeper, answers };
                // The client does not return its first answer, and so hides the remaining time.
                let left = renewal.renew().await?;
                Ok((left, renewal))
            })
            .await?;
        if left.is_zero() {
            return Err(StoreError::LeaseNotFound(lease));
        }
        self.renewals().insert(lease, renewal);
        Ok(left)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.renewals().remove(&lease);
        let asked = Asked { revision: None, lease: Some(lease) };
        self.call(
            Repeat::Never,
            &asked,
            |mut connection| async move { connection.lease.revoke(lease).await },
        )
        .await?;
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let asked = Asked { revision: Some(revision), lease: None };
        self.call(Repeat::Never, &asked, |mut connection| async move {
            // Physical compaction returns only once the history is really deleted.
            let options = CompactionOptions::new().with_physical();
            connection.kv.compact(revision, Some(options)).await
        })
        .await?;
        Ok(())
    }
}
