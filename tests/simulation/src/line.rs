//! The line between a process and the coordinator, and what can be wrong with it.
//!
//! Owns the [`Store`] that simulated processes get: the model behind a line that delays, loses and cuts in either
//! direction, and behind the gate of the process. What was sent once may arrive late, as on a real network;
//! what a watch delivers comes late or not at all, but never with a gap that isn't told. It sees as nobody else does
//! who sent what, and holds convergers and hosts to it that they write nothing once they are deposed or given up, and
//! that a write which a converger has settled is not carried out afterwards.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use visor::{
    keys::Key,
    store::{
        Keys, LeaseId, Op, Page, Result, Revision, SharedStore, Store, StoreError, Txn, TxnReply, Watch,
        WatchMessage, model::ModelStore,
    },
};

use crate::{gate::Gate, planted, world::World};

/// How long the real client waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// One process's line. A clone is the same line; it outlives the process.
#[derive(Clone, Default)]
pub struct Line {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// What is wrong with a line.
#[derive(Clone, Default)]
pub struct State {
    /// What the process sends gets lost.
    pub requests_cut: bool,
    /// What the coordinator answers gets lost.
    pub replies_cut: bool,
    /// Nobody listens at the other end.
    pub refused: bool,
    /// The coordinator takes no writes.
    pub full: bool,
    /// How often a write's reply or request is lost, or the request comes late.
    pub lossy: f64,
    /// How many milliseconds each way takes at most.
    pub latency: u64,
    /// How many milliseconds a watch lags at most.
    pub lag: u64,
    /// Watches are numbered; those below `ended_before` have ended with this.
    next_watch: u64,
    ended_before: u64,
    end: Option<StoreError>,
    silent_before: u64,
}

impl Line {
    /// What is wrong with it now.
    pub fn now(&self) -> State {
        self.state.lock().expect("nobody panics with it").clone()
    }

    /// Makes something wrong, or right.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("nobody panics with it"));
        self.changed.notify_waiters();
    }

    /// Ends every watch that is open.
    pub fn end_watches(&self, error: StoreError) {
        self.change(|state| {
            state.ended_before = state.next_watch;
            state.end = Some(error);
        });
    }

    /// Every watch that is open delivers nothing any more, and doesn't end.
    pub fn silence_watches(&self) {
        self.change(|state| state.silent_before = state.next_watch);
    }

    /// Nothing is wrong any more. What was cut may have been broken by it.
    pub fn mend(&self, breaks: bool) {
        self.change(|state| {
            let (next_watch, silent_before) = (state.next_watch, state.silent_before);
            let (ended_before, end) = match breaks {
                true => (next_watch, Some(ended("the connection was reset"))),
                false => (state.ended_before, state.end.take()),
            };
            *state = State { next_watch, silent_before, ended_before, end, ..State::default() };
        });
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds(&self.now()) {
                return;
            }
            changed.await;
        }
    }
}

fn ended(detail: &str) -> StoreError {
    StoreError::WatchEnded { detail: detail.to_owned() }
}

fn unreachable(detail: &str) -> StoreError {
    StoreError::Unreachable { endpoints: vec!["simulated".to_owned()], detail: detail.to_owned() }
}

fn unknown(detail: &str) -> StoreError {
    StoreError::OutcomeUnknown { detail: detail.to_owned() }
}

/// The coordinator as one process sees it.
#[derive(Clone)]
pub struct Link {
    world: Arc<World>,
    name: String,
    line: Line,
    gate: Gate,
    model: ModelStore,
    /// Those that this life of the process was ever granted.
    leases: Arc<Mutex<BTreeSet<LeaseId>>>,
}

impl Link {
    /// The store of a process.
    pub fn store(world: &Arc<World>, name: &str, gate: &Gate) -> SharedStore {
        let link = Link {
            world: world.clone(),
            name: name.to_owned(),
            line: world.line(name),
            gate: gate.clone(),
            model: world.store.client(),
            leases: Arc::default(),
        };
        Arc::new(link)
    }

    /// What must be so when a transaction is carried out.
    fn fence(&self, txn: &Txn) -> Option<Fence> {
        let written = txn.then.iter().filter_map(|op| match op {
            Op::Put { key, .. } | Op::Delete(Keys::One(key)) => key.parse::<Key>().ok(),
            _ => None,
        });
        let told = |key: &Key| match key {
            Key::Assigned(host, _) | Key::Status(host, _) => Some(host.clone()),
            _ => None,
        };
        let host = written.into_iter().find_map(|key| told(&key))?;
        if host.as_str() == self.name {
            let key = Key::Host(host).to_string();
            let created_at = self.model.peek(&key).map(|row| row.create_revision);
            return Some(Fence::Registered { key, created_at });
        }
        let sent_under = self.model.peek(&Key::Leader.to_string()).map(|row| row.mod_revision);
        Some(Fence::Elected { leases: self.leases.clone(), sent_under })
    }

    async fn travel(&self) {
        let latency = self.line.now().latency;
        self.world.wait(0..=latency.max(2)).await;
        self.gate.pass().await;
    }

    /// What the process hears in the end when nothing comes back.
    async fn no_answer<T>(&self, writes: bool, since: Instant) -> Result<T> {
        sleep_until(since + CALL_TIMEOUT).await;
        self.gate.pass().await;
        Err(if writes { unknown("no answer") } else { unreachable("no answer") })
    }

    /// Carries a call there and its answer back.
    async fn call<T, F>(
        &self,
        what: String,
        writes: bool,
        call: impl FnOnce(ModelStore) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (world, since) = (&self.world, Instant::now());
        world.count_call();
        self.gate.step().await;
        self.travel().await;
        let line = self.line.now();
        if line.refused {
            return Err(unreachable("connection refused"));
        }
        let stray = writes && world.chance(line.lossy);
        let (lost, late) = match (line.requests_cut, stray) {
            (true, _) => (true, writes && world.chance(0.3)),
            (false, true) => (world.chance(0.6), world.chance(0.5)),
            (false, false) => (false, false),
        };
        if lost {
            if late {
                self.arrive_late(what, call);
            }
            return self.no_answer(writes, since).await;
        }
        if writes && line.full {
            return Err(StoreError::Refused {
                detail: "etcdserver: mvcc: database space exceeded".to_owned(),
            });
        }
        let answer = call(self.model.clone()).await;
        if writes {
            world.note(format_args!("{}: {what}{}", self.name, came(&answer)));
        }
        self.gate.step().await;
        if self.line.now().replies_cut || stray {
            return self.no_answer(writes, since).await;
        }
        self.travel().await;
        if since.elapsed() > CALL_TIMEOUT && world.chance(0.5) {
            // It was paused for longer than the client waits.
            return self.no_answer(writes, since).await;
        }
        answer
    }

    /// What is on its way arrives, whatever has become of the sender.
    fn arrive_late<T, F>(&self, what: String, call: impl FnOnce(ModelStore) -> F + Send + 'static)
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (world, line, name, model) =
            (self.world.clone(), self.line.clone(), self.name.clone(), self.model.clone());
        tokio::spawn(async move {
            line.until(|state| !state.requests_cut && !state.refused).await;
            world.wait(0..=4_000).await;
            if line.now().full {
                return;
            }
            let answer = call(model).await;
            world.note(format_args!("{name}: late {what}{}", came(&answer)));
        });
    }
}

/// What keeps a process from writing when it is no longer who it was.
enum Fence {
    /// A host's registration is still the one of the moment in which it spoke.
    Registered { key: String, created_at: Option<Revision> },
    /// The election is held by a lease of this process, whose last write of the election key is still the one of the
    /// moment in which it sent the transaction.
    Elected { leases: Arc<Mutex<BTreeSet<LeaseId>>>, sent_under: Option<Revision> },
}

impl Fence {
    /// What is wrong, in the moment in which the transaction was carried out.
    fn broken(&self, model: &ModelStore) -> Option<&'static str> {
        match self {
            Fence::Registered { key, created_at } => {
                let now = model.peek(key).map(|row| row.create_revision);
                (now.is_none() || now != *created_at).then_some("speaks under a registration that is over")
            }
            Fence::Elected { leases, sent_under } => {
                let leader = model.peek(&Key::Leader.to_string());
                let holder = leader.as_ref().and_then(|row| row.lease);
                let leases = leases.lock().expect("nobody panics with it");
                if holder.is_none_or(|lease| !leases.contains(&lease)) {
                    return Some("writes, and isn't elected");
                }
                let is_late = leader.map(|row| row.mod_revision) != *sent_under;
                (is_late && !planted::late_writes_come_along())
                    .then_some("writes what it sent before it settled")
            }
        }
    }
}

fn came<T>(answer: &Result<T>) -> String {
    answer.as_ref().err().map(|error| format!(" FAILED: {error}")).unwrap_or_default()
}

/// What a transaction writes, in short.
fn written(txn: &Txn) -> String {
    let key = |op: &Op| match op {
        Op::Put { key, .. } => Some(key.clone()),
        Op::Delete(Keys::One(key)) => Some(format!("-{key}")),
        Op::Delete(Keys::Prefix(prefix)) => Some(format!("-{prefix}*")),
        Op::Get(_) | Op::GetFirst(..) => None,
    };
    txn.then.iter().filter_map(key).collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Store for Link {
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page> {
        self.call(String::new(), false, move |model| async move { model.range(keys, at).await }).await
    }

    fn first_page(&self) -> usize {
        self.world.first_page
    }

    async fn page(&self, keys: Keys, after: String, most: usize, at: Revision) -> Result<Page> {
        let call = move |model: ModelStore| async move { model.page(keys, after, most, at).await };
        self.call(String::new(), false, call).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply> {
        let writes = !txn.is_read_only();
        let what = if writes { written(&txn) } else { String::new() };
        let name = self.name.clone();
        let world = self.world.clone();
        let fence = self.fence(&txn);
        self.call(what, writes, move |model| async move {
            let reply = model.txn(txn).await?;
            if writes && !reply.succeeded {
                world.note(format_args!("{name}: the next one is refused"));
            }
            if let Some(broken) = fence.filter(|_| reply.succeeded).and_then(|fence| fence.broken(&model)) {
                world.breach(format_args!("{name} {broken}"));
            }
            Ok(reply)
        })
        .await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Box<dyn Watch>> {
        let call = move |model: ModelStore| async move { model.watch(keys, from).await };
        let inner = self.call(String::new(), false, call).await?;
        let mut number = 0;
        self.line.change(|state| {
            number = state.next_watch;
            state.next_watch += 1;
        });
        let link = self.clone();
        Ok(Box::new(LinkWatch { link, inner, number, queue: VecDeque::new(), over: false }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let leases = self.leases.clone();
        let call = move |model: ModelStore| async move {
            let granted = model.grant(ttl).await?;
            leases.lock().expect("nobody panics with it").insert(granted);
            Ok(granted)
        };
        self.call("grant".to_owned(), true, call).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        self.call(String::new(), false, move |model| async move { model.keep_alive(lease).await }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let call = move |model: ModelStore| async move { model.revoke(lease).await };
        self.call(format!("revoke {lease}"), true, call).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.call(String::new(), true, move |model| async move { model.compact(revision).await }).await
    }
}

/// A watch over a line.
struct LinkWatch {
    link: Link,
    inner: Box<dyn Watch>,
    number: u64,
    /// What is on its way, with the time of its arrival.
    queue: VecDeque<(Instant, Option<Result<WatchMessage>>)>,
    over: bool,
}

impl LinkWatch {
    fn send(&mut self, message: Option<Result<WatchMessage>>) {
        let lag = self.link.line.now().lag;
        let due = Instant::now() + Duration::from_millis(self.link.world.between(0..=lag.max(2)));
        let due = self.queue.back().map_or(due, |(before, _)| due.max(*before));
        self.queue.push_back((due, message));
    }
}

#[async_trait]
impl Watch for LinkWatch {
    async fn next(&mut self) -> Option<Result<WatchMessage>> {
        loop {
            if self.over {
                return None;
            }
            let line = self.link.line.clone();
            let changed = line.changed.notified();
            let state = line.now();
            if self.number < state.ended_before {
                self.link.gate.pass().await;
                self.over = true;
                return state.end.map(Err);
            }
            let passes = !state.replies_cut && !state.refused && self.number >= state.silent_before;
            let open = !matches!(self.queue.back(), Some((_, None | Some(Err(_)))));
            let due = self.queue.front().map(|(due, _)| *due).filter(|_| passes);
            tokio::select! {
                biased;
                () = changed => {}
                message = self.inner.next(), if open => self.send(message),
                () = async {
                    match due {
                        Some(due) => sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                    self.link.gate.pass().await;
                } => {
                    let message = self.queue.pop_front().and_then(|(_, message)| message);
                    self.over = !matches!(message, Some(Ok(_)));
                    return message;
                }
            }
        }
    }

    async fn request_progress(&mut self) -> Result<()> {
        self.link.gate.step().await;
        let state = self.link.line.now();
        if state.requests_cut || state.refused {
            // It looks sent.
            return Ok(());
        }
        sleep(Duration::from_millis(1)).await;
        self.inner.request_progress().await
    }
}
