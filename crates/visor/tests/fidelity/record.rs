//! The real side: clients run concurrently on an etcd, and everything that happens is recorded.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::Rng;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use visor::{
    store::{
        Event, Keys, LeaseId, Op, Revision, SharedStore, Store, StoreError, Txn, Watch,
        etcd::{EtcdConfig, EtcdStore},
    },
    testing::{Etcd, LossyProxy, fresh_prefix, until},
};

use crate::{
    Plan,
    author::{Author, EXPIRING},
    calls::{Answer, Call, Done, Phase, Seen, carry_out},
};

/// The longest time for a call, or for the delivery of what has happened.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of revisions by which the last seen one may be behind, because leases are revoked and run out.
const AHEAD: Revision = 20;

/// The shortest lease that etcd grants.
const SHORT: Duration = Duration::from_secs(2);

/// The most watches of one phase; each needs a key in the phase's last write.
const MOST_WATCHES: usize = 100;

/// The recorder, which runs phase after phase on an etcd of its own.
pub struct Recorder {
    plan: Plan,
    etcd: Etcd,
    prefix: String,
    stores: Vec<SharedStore>,
    authors: Vec<Author>,
    loner: Author,
    /// All changes from the first revision on.
    audit: mpsc::UnboundedReceiver<Event>,
    revision: Revision,
    compacted: Revision,
    /// The lease that is left to run out.
    short: Option<LeaseId>,
}

/// A watch that is being collected: its number, its keys, and what it will have seen.
type Gathered = (usize, Keys, JoinHandle<Seen>);

/// The stores and counters of a client.
struct Desk {
    /// An undisturbed store.
    store: SharedStore,
    /// A store whose connection is cut at times.
    bad: SharedStore,
    proxy: Arc<LossyProxy>,
    /// True if some of its own calls use the bad store.
    disturbed: bool,
    watches: Watches,
    calls: usize,
    revision: Revision,
    compacted: Revision,
}

/// The watches of a phase, with what starting one needs.
#[derive(Clone)]
struct Watches {
    numbers: Arc<AtomicUsize>,
    started: mpsc::UnboundedSender<Gathered>,
    end: watch::Receiver<Revision>,
}

impl Recorder {
    pub async fn new(plan: Plan) -> Self {
        let etcd = Etcd::start().await;
        let prefix = fresh_prefix();
        let stores: Vec<SharedStore> = (0..3).map(|_| patient(etcd.endpoint(), &prefix)).collect();
        let (sees, audit) = mpsc::unbounded_channel();
        let mut everything = stores[0].watch(Keys::Prefix(String::new()), 2).await.expect("etcd is there");
        tokio::spawn(async move {
            while let Some(message) = everything.next().await {
                // An error ends this task and closes the channel, which the reader reports.
                let Ok(message) = message else { return };
                for event in message.events {
                    if sees.send(event).is_err() {
                        return;
                    }
                }
            }
        });
        Self {
            authors: (0..plan.clients).map(|who| Author::new(plan.seed, who, false)).collect(),
            loner: Author::new(plan.seed, plan.clients, true),
            plan,
            etcd,
            prefix,
            stores,
            audit,
            revision: 1,
            compacted: 0,
            short: None,
        }
    }

    /// Records a phase of all clients at once.
    pub async fn together(&mut self) -> Phase {
        let (watches, started, end) = Watches::new();
        let mut clients = JoinSet::new();
        for (who, author) in std::mem::take(&mut self.authors).into_iter().enumerate() {
            let proxy = LossyProxy::start(self.etcd.endpoint()).await;
            let desk = Desk {
                store: self.stores[who % self.stores.len()].clone(),
                bad: patient(&proxy.endpoint(), &self.prefix),
                proxy: Arc::new(proxy),
                disturbed: who % 4 == 0,
                watches: watches.clone(),
                calls: self.plan.calls,
                revision: self.revision,
                compacted: self.compacted,
            };
            clients.spawn(async move { (who, work(author, desk).await) });
        }
        drop(watches);
        let mut finished: Vec<_> = clients.join_all().await;
        finished.sort_by_key(|(who, _)| *who);
        let mut programs = Vec::new();
        for (_, (author, program)) in finished {
            self.authors.push(author);
            programs.push(program);
        }
        self.close(programs, started, end).await
    }

    /// Records a phase of one client alone, which also compacts, looks back and lets leases run out.
    pub async fn alone(&mut self) -> Phase {
        let (watches, started, end) = Watches::new();
        let store = self.stores[0].clone();
        let mut program: Vec<Done> = Vec::new();
        if self.short.is_none() {
            let granted = do_it(&*store, Call::Grant(SHORT)).await;
            if let Ok(Answer::Lease(lease)) = granted.result {
                self.short = Some(lease);
                program.push(granted);
                program.push(do_it(&*store, bind(lease)).await);
            }
        }
        let mut first_ahead = 0;
        for turn in 0..self.plan.calls {
            let oldest = self.compacted;
            let may_compact = turn < self.plan.calls / 2;
            let call = match self.loner.rng().random_range(0..100) {
                0..2 if may_compact => {
                    let asked = self.loner.rng().random_range(oldest - 1..=self.revision + 1);
                    Call::Compact(asked.max(1))
                }
                2..20 => self.loner.look_back(oldest),
                20..23 => {
                    // etcd serves lagging watches ten times a second: a watch that starts in the past may or may not
                    // have caught up when that past is compacted away.
                    let from = if may_compact { self.revision + AHEAD } else { self.loner.past(oldest) };
                    first_ahead = first_ahead.max(from);
                    let keys = self.loner.keys();
                    match watches.start(keys, from, None, store.clone(), None).await {
                        Some(call) => call,
                        None => continue,
                    }
                }
                _ => self.loner.call(),
            };
            let done = do_it(&*store, call).await;
            match (&done.call, &done.result) {
                (_, Ok(Answer::Page(page))) => self.revision = page.revision,
                (_, Ok(Answer::Txn(reply))) => self.revision = reply.revision,
                (Call::Compact(revision), Ok(_)) => self.compacted = *revision,
                _ => {}
            }
            self.loner.learn(&done);
            program.push(done);
        }
        // The random watches may all begin after the last compaction.
        if self.compacted > 1 {
            let everything = Keys::Prefix(String::new());
            let watch = watches.start(everything, self.compacted - 1, None, store.clone(), None).await;
            program.push(do_it(&*store, watch.expect("few watches are in a phase of one")).await);
        }
        // A watch that begins after the phase's end would see nothing.
        while self.revision < first_ahead {
            let later = Op::Put { key: "end".to_owned(), value: Bytes::from_static(b"later"), lease: None };
            let done = do_it(&*store, Call::Txn(Txn { then: vec![later], ..Txn::default() })).await;
            let Ok(Answer::Txn(reply)) = &done.result else { panic!("a write failed: {:?}", done.result) };
            self.revision = reply.revision;
            program.push(done);
        }
        drop(watches);
        self.close(vec![program], started, end).await
    }

    /// Waits until the lease that was left to run out has ended.
    pub async fn run_out(&mut self) -> Phase {
        let (_, started, end) = Watches::new();
        let store = self.stores[0].clone();
        let mut program = Vec::new();
        if let Some(lease) = self.short {
            until("the short lease has ended", PATIENCE, || async {
                let left = store.range(Keys::Prefix(EXPIRING.to_owned()), None).await;
                let mut left = left.expect("etcd is there").entries;
                left.retain(|entry| entry.lease == Some(lease));
                if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
            })
            .await;
            program.push(do_it(&*store, Call::KeepAlive(lease)).await);
            program.push(do_it(&*store, Call::Revoke(lease)).await);
        }
        self.close(vec![program], started, end).await
    }

    /// Ends a phase: a last write that every watch must see, and then all that they saw.
    async fn close(
        &mut self,
        mut programs: Vec<Vec<Done>>,
        mut started: mpsc::UnboundedReceiver<Gathered>,
        says_end: watch::Sender<Revision>,
    ) -> Phase {
        let mut gathering = BTreeMap::new();
        // Each phase changes something here, so that its end has a revision of its own.
        let mut last = vec!["end".to_owned()];
        while let Some((number, keys, task)) = started.recv().await {
            let (Keys::One(key) | Keys::Prefix(key)) = keys;
            // A watch of everything sees the first key.
            if !key.is_empty() && !last.contains(&key) {
                last.push(key);
            }
            gathering.insert(number, task);
        }
        let count = last.len();
        let value = Bytes::from_static(b"last");
        let put = |key| Op::Put { key, value: value.clone(), lease: None };
        let last = Call::Txn(Txn { then: last.into_iter().map(put).collect(), ..Txn::default() });
        let done = do_it(&*self.stores[0], last).await;
        let Ok(Answer::Txn(reply)) = &done.result else {
            panic!("the last write failed: {:?}", done.result);
        };
        let end = reply.revision;
        programs.push(vec![done]);
        says_end.send_replace(end);

        let mut phase = Phase { programs, end, ..Phase::default() };
        while phase.history.get(&end).is_none_or(|events| events.len() < count) {
            let event = timeout(PATIENCE, self.audit.recv()).await.expect("events come in time");
            let event = event.expect("the watch of everything is never ended");
            if let (Event::Delete { key, .. }, Some(lease)) = (&event, self.short)
                && key.starts_with(EXPIRING)
            {
                self.loner.ended(lease);
                self.short = None;
            }
            phase.history.entry(event.revision()).or_default().push(event);
        }
        for task in gathering.into_values() {
            phase.watches.push(task.await.expect("a watch's task doesn't panic"));
        }
        self.revision = end;
        phase
    }
}

/// Returns a client whose calls do not time out here, because the outcome of such a call would be unknown.
fn patient(endpoint: &str, prefix: &str) -> SharedStore {
    Arc::new(EtcdStore::new(EtcdConfig {
        connect_timeout: PATIENCE,
        call_timeout: PATIENCE,
        ..EtcdConfig::new(vec![endpoint.to_owned()], prefix)
    }))
}

async fn do_it(store: &dyn Store, call: Call) -> Done {
    let result = carry_out(store, &call).await;
    Done { call, result, disturbed: false }
}

/// Returns a put under a lease that will run out.
fn bind(lease: LeaseId) -> Call {
    let put = |key: &str| Op::Put {
        key: format!("{EXPIRING}{key}"),
        value: Bytes::from_static(b"short"),
        lease: Some(lease),
    };
    Call::Txn(Txn { then: vec![put("b"), put("a"), put("c/d")], ..Txn::default() })
}

/// Runs one client in a phase.
async fn work(mut author: Author, desk: Desk) -> (Author, Vec<Done>) {
    let mut program = Vec::new();
    for _ in 0..desk.calls {
        let call = match author.rng().random_range(0..1_000) {
            0..4 => {
                let broken_every = author.rng().random_bool(0.7).then(|| author.rng().random_range(1..40));
                let from = author.rng().random_range(desk.compacted.max(1)..=desk.revision + 3);
                let over_proxy = author.rng().random_bool(0.5);
                let (store, proxy) = match over_proxy {
                    true => (desk.bad.clone(), Some(desk.proxy.clone())),
                    false => (desk.store.clone(), None),
                };
                match desk.watches.start(author.keys(), from, broken_every, store, proxy).await {
                    Some(call) => call,
                    None => continue,
                }
            }
            4..40 if desk.disturbed => {
                if author.rng().random_bool(0.5) {
                    desk.proxy.lose_next_reply();
                } else {
                    desk.proxy.lose_next_request();
                }
                let call = Call::Txn(author.marked_txn());
                let result = carry_out(&*desk.bad, &call).await;
                program.push(Done { call, result, disturbed: true });
                continue;
            }
            40..60 => {
                let at = author.rng().random_range(desk.compacted.max(1)..=desk.revision);
                Call::Range { keys: author.keys(), at: Some(at) }
            }
            _ => author.call(),
        };
        let done = do_it(&*desk.store, call).await;
        author.learn(&done);
        program.push(done);
    }
    (author, program)
}

impl Watches {
    fn new() -> (Self, mpsc::UnboundedReceiver<Gathered>, watch::Sender<Revision>) {
        let (started, starts) = mpsc::unbounded_channel();
        let (says_end, end) = watch::channel(Revision::MAX);
        (Self { numbers: Arc::default(), started, end }, starts, says_end)
    }

    /// Starts a watch, unless there are enough.
    async fn start(
        &self,
        keys: Keys,
        from: Revision,
        broken_every: Option<usize>,
        store: SharedStore,
        proxy: Option<Arc<LossyProxy>>,
    ) -> Option<Call> {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        if number >= MOST_WATCHES {
            return None;
        }
        let seen = Seen { keys: keys.clone(), from, broken_every, events: Vec::new(), end: None };
        // It is made before the client continues, because the client's next operation must not come first.
        let watch = open(&*store, &seen).await;
        let task = tokio::spawn(gather(seen, watch, store, proxy, self.end.clone()));
        self.started.send((number, keys, task)).expect("the phase waits for all its clients");
        Some(Call::Watch(number))
    }
}

/// Opens a watch that continues from what has been seen.
async fn open(store: &dyn Store, seen: &Seen) -> Box<dyn Watch> {
    let next = seen.events.last().map_or(seen.from, |last| last.revision() + 1);
    until("a watch can be made over a line that gets cut", PATIENCE, || async {
        store.watch(seen.keys.clone(), next).await.map_err(|error| format!("{error:?}"))
    })
    .await
}

/// Collects events until the phase's end has been seen.
async fn gather(
    mut seen: Seen,
    mut watch: Box<dyn Watch>,
    store: SharedStore,
    proxy: Option<Arc<LossyProxy>>,
    mut end: watch::Receiver<Revision>,
) -> Seen {
    let mut since = 0;
    while seen.events.last().is_none_or(|last| last.revision() < *end.borrow()) {
        let message = tokio::select! {
            message = timeout(PATIENCE, watch.next()) => message,
            Ok(()) = end.changed() => continue,
        };
        match message {
            Ok(Some(Ok(message))) => {
                since += message.events.len();
                seen.events.extend(message.events);
                if seen.broken_every.is_some_and(|every| since >= every) {
                    since = 0;
                    match &proxy {
                        // The connection breaks, and the watch will report it.
                        Some(proxy) => proxy.cut(),
                        None => watch = open(&*store, &seen).await,
                    }
                }
            }
            Ok(Some(Err(StoreError::WatchEnded { .. }))) => watch = open(&*store, &seen).await,
            Ok(Some(Err(error))) => {
                seen.end = Some(error);
                return seen;
            }
            Ok(None) => panic!("a watch ended without an error"),
            Err(_) => panic!("a watch of {:?} from {} delivers nothing", seen.keys, seen.from),
        }
    }
    // A lease that ran out at that moment is in the same message, and belongs to the next phase.
    let end = *end.borrow();
    seen.events.retain(|event| event.revision() <= end);
    seen
}
