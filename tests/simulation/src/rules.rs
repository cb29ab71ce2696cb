//! What is always true, checked at each revision of the coordinator; and what users were promised.
//!
//! Owns an image of its own, which sees each revision by itself, whatever befalls the others' lines. What it
//! can't know (how old the view was that a daemon decided on) it gives [`LAG`].

mod drains;
mod ports;
mod proven;
mod pruned;
mod removal;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;
use visor::{
    check::findings,
    keys::Key,
    links,
    mirror::Image,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, RevId},
    schema::{Desired, State, Status},
    snapshot::{HostView, Snapshot, Versioned},
    store::{Event, Keys, Revision, Store, WatchMessage},
};

use crate::{nodes::Nodes, world::World};
use drains::Drains;
use ports::GivenPorts;
use proven::Proven;
pub use pruned::Unneeded;
use removal::Counts;

/// A daemon's view may be this old when it acts: a lease's time and a little.
const LAG: Duration = Duration::from_secs(13);

/// An instance that drains is waited for this long at least, the lag taken off.
const DRAIN: Duration = Duration::from_secs(26);

/// In this time an instance may be started [`MOST_STARTS`] times: once, three times more at once, once after 30 s.
const STARTS_WITHIN: Duration = Duration::from_secs(50);

/// Those, and as many that came to nothing, by its host's fault or with a bazooka-pm that died.
const MOST_STARTS: usize = 10;

/// The same of an instance that has served for a while: ten a second.
const MOST_STARTS_OF_PROVEN: usize = 500;

/// How the processes of a rev behave.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// It listens after this many milliseconds at most.
    pub boots_within: u64,
    /// It listens at all.
    pub listens: bool,
    /// How often one of them crashes.
    pub crashes: f64,
}

/// By proxy, each instance that has something under way there.
type UnderWay = BTreeMap<HostName, BTreeSet<InstanceId>>;

/// The rules of one day. A clone is the same.
#[derive(Clone)]
pub struct Rules {
    world: Arc<World>,
    state: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    image: Snapshot,
    /// The same, one revision earlier.
    before: Snapshot,
    natures: BTreeMap<RevId, Nature>,
    /// Until when each process of an app crashes as soon as it has started.
    failing_until: BTreeMap<AppName, Instant>,
    /// Where each id was ever placed.
    placed: BTreeMap<InstanceId, HostName>,
    /// When each instance last served.
    served: BTreeMap<InstanceId, Instant>,
    /// Since when each that serves does so.
    serves_since: BTreeMap<InstanceId, Instant>,
    /// Procs that have failed this day: no trial waits for them.
    failing: BTreeSet<(AppName, ProcName)>,
    /// When each release was made.
    begun: BTreeMap<(AppName, ReleaseId), Instant>,
    drains: Drains,
    /// The instances that have served for a while.
    proven: Proven,
    ports: GivenPorts,
    /// The last starts of each instance.
    starts: BTreeMap<InstanceId, VecDeque<Instant>>,
    /// Since when a host takes nothing new, by an operator's word.
    closed: BTreeMap<HostName, Instant>,
    counts: Counts,
    /// Which counts a service may have, after all that users were told.
    allowed: BTreeMap<(AppName, ProcName), BTreeSet<u32>>,
    /// Releases that users were told of.
    made: BTreeMap<(AppName, ReleaseId), RevId>,
    /// Releases that were pruned.
    pruned: BTreeSet<(AppName, ReleaseId)>,
    /// The last release that a user was told is head.
    promoted: BTreeMap<AppName, ReleaseId>,
    /// True if no proxy may route to an instance that ends because it was replaced.
    ends_unrouted: bool,
    /// Who was told to end, at which revision at the latest.
    ended: Vec<(Revision, HostName, InstanceId)>,
}

impl Rules {
    /// Over an empty coordinator.
    pub fn new(world: &Arc<World>) -> Rules {
        Rules { world: world.clone(), state: Arc::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Sees each revision, for ever.
    pub async fn watch(self) {
        let mut watch = self.world.store.watch(Keys::Prefix(String::new()), 1).await.expect("it is there");
        while let Some(Ok(message)) = watch.next().await {
            let unhealthy = self.unhealthy(&message);
            let under_way = self.world.under_way();
            let mut broken = self.book().take_up(message, &under_way);
            broken.extend(unhealthy);
            broken.into_iter().for_each(|what| self.world.breach(what));
        }
        self.world.breach("the rules' own watch has ended");
    }

    /// What a host calls running though nothing of it accepts connections.
    fn unhealthy(&self, message: &WatchMessage) -> Vec<String> {
        let mut broken = Vec::new();
        for event in &message.events {
            let (Event::Put(entry), Ok(Key::Status(host, id))) = (event, event.key().parse()) else {
                continue;
            };
            let Ok(status) = Versioned::<Status>::read(entry) else { continue };
            let pid = status.pid.filter(|_| status.state == State::Running);
            let process = self.world.machine(&host, |machine| machine.processes.get(&id).cloned());
            let (Some(pid), Some(process)) = (pid, process) else { continue };
            let is_web =
                |view: &HostView| view.assigned.get(&id).is_some_and(|row| row.proc.as_str() == "web");
            let is_web = self.book().image.hosts.get(&host).is_some_and(is_web);
            if is_web && process.is(pid) && !process.listens() {
                broken.push(format!("{id} is said to run on {host}, and accepts no connections"));
            }
        }
        broken
    }

    /// A process of an instance is started.
    pub fn started(&self, id: InstanceId) {
        let many = {
            let mut book = self.book();
            let most = if book.proven.may_be(id) { MOST_STARTS_OF_PROVEN } else { MOST_STARTS };
            let starts = book.starts.entry(id).or_default();
            starts.push_back(Instant::now());
            starts.retain(|at| at.elapsed() < STARTS_WITHIN);
            starts.len() > most
        };
        if many {
            self.world.breach(format_args!("{id} is started again and again"));
        }
    }

    /// A host's bazooka-pm begins a life.
    pub fn pm_begins(&self, host: &HostName) {
        self.book().proven.begin(host);
    }

    /// A process of an instance has ended after this time.
    pub fn process_ended(&self, id: InstanceId, ran: Duration) {
        self.book().proven.ended(id, ran);
    }

    /// Looks at the image at the last revision.
    pub fn look<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(&self.book().image)
    }

    /// Says how the processes of a rev behave.
    pub fn set_nature(&self, rev: RevId, nature: Nature) {
        self.book().natures.insert(rev, nature);
    }

    /// From now on and for so long, each process of an app crashes as soon as it has started.
    pub fn fail_at_once(&self, app: &AppName, time: Duration) {
        self.book().failing_until.insert(app.clone(), Instant::now() + time);
    }

    /// Whether a process of an app that starts now crashes at once.
    pub fn fails_at_once(&self, app: &AppName) -> bool {
        self.book().failing_until.get(app).is_some_and(|until| Instant::now() < *until)
    }

    /// How the processes of a rev behave.
    pub fn nature(&self, rev: &RevId) -> Nature {
        self.book().natures[rev]
    }

    /// An instance is told to end because it isn't wanted; `answers` tells whether it answers requests.
    pub fn ended(&self, host: &HostName, id: InstanceId, answers: bool) {
        let revision = self.world.store.revision();
        self.book().ended.push((revision, host.clone(), id));
        let replaced = self.world.store.peek(&Key::Assigned(host.clone(), id).to_string()).is_none();
        if answers && replaced && self.book().ends_unrouted {
            let routes = |proxy: &String| self.world.haproxy(proxy, |haproxy| haproxy.routes_to(id));
            if let Some(proxy) = Nodes::proxies().into_iter().find(routes) {
                self.world.breach(format_args!("{id} is told to end on {host}, and {proxy} routes to it"));
            }
        }
    }

    /// From now on no proxy may route to an instance that ends because it was replaced.
    pub fn no_proxy_routes_to_what_ends(&self) {
        self.book().ends_unrouted = true;
    }

    /// A user asks for a count; it may stand from now on.
    pub fn ask(&self, app: &AppName, proc: &ProcName, count: u32) {
        self.book().allowed.entry((app.clone(), proc.clone())).or_default().insert(count);
    }

    /// A user was told that the count is this now.
    pub fn acknowledge(&self, app: &AppName, proc: &ProcName, count: u32) {
        self.book().allowed.insert((app.clone(), proc.clone()), BTreeSet::from([count]));
    }

    /// A user was told of a release.
    pub fn made(&self, app: &AppName, release: ReleaseId, rev: RevId) {
        self.book().made.insert((app.clone(), release), rev);
    }

    /// A user was told that a release is head.
    pub fn promoted(&self, app: &AppName, release: ReleaseId) {
        self.book().promoted.insert(app.clone(), release);
    }

    /// What users were promised and isn't so.
    pub fn promises(&self) -> Option<String> {
        let book = self.book();
        for ((app, proc), allowed) in &book.allowed {
            let count = book.image.apps[app].count(proc);
            if !allowed.contains(&count) {
                return Some(format!(
                    "{app}/{proc} was scaled to one of {allowed:?}, and {count} are wanted"
                ));
            }
        }
        for ((app, release), rev) in &book.made {
            let found = book.image.apps[app].releases.get(release).map(|row| &row.rev);
            let is_pruned = book.pruned.contains(&(app.clone(), *release));
            if found != Some(rev) && !(found.is_none() && is_pruned) {
                return Some(format!("{release} of {app} was of rev {rev}, and is of {found:?}"));
            }
        }
        for (app, release) in &book.promoted {
            let head = book.image.apps[app].head.as_ref().map(|head| head.release);
            if head < Some(*release) {
                return Some(format!("{release} of {app} was head, and {head:?} is"));
            }
        }
        None
    }
}

impl Book {
    fn take_up(&mut self, message: WatchMessage, under_way: &UnderWay) -> Vec<String> {
        apply(&mut self.image, &message);
        let before = std::mem::take(&mut self.before);
        let mut broken = Vec::new();
        for event in &message.events {
            if let Ok(key) = event.key().parse::<Key>() {
                self.judge(&before, &key, matches!(event, Event::Put(_)), under_way, &mut broken);
            }
        }
        self.before = before;
        apply(&mut self.before, &message);
        self.judge_ends(message.revision, &mut broken);
        // Rows always fit together, what a converger clears up in a moment left out.
        let amiss = findings(&self.image).into_iter().filter(|finding| !finding.passing);
        // An app's people may name any port in their own rows: the rule of ports is that it changes nothing.
        let amiss = amiss.filter(|finding| finding.rule != "port-otherwise");
        broken.extend(amiss.map(|finding| format!("{} ({}): {}", finding.key, finding.rule, finding.what)));
        broken
    }

    fn judge(
        &mut self,
        before: &Snapshot,
        key: &Key,
        put: bool,
        under_way: &UnderWay,
        broken: &mut Vec<String>,
    ) {
        let now = Instant::now();
        if !put {
            broken.extend(pruned::judge_deletion(before, &self.image, key));
        }
        match key {
            Key::Release(app, release) if !put => {
                self.pruned.insert((app.clone(), *release));
            }
            Key::Assigned(host, id) => {
                self.judge_assignment(before, host, *id, under_way, broken);
                self.note_service(before, host, *id, now);
            }
            Key::Status(host, id) => {
                if put {
                    self.judge_status(host, *id, broken);
                    self.judge_wait(before, host, *id, broken);
                }
                self.note_service(before, host, *id, now);
            }
            Key::Host(host) => {
                let ids: Vec<InstanceId> = before
                    .hosts
                    .get(host)
                    .into_iter()
                    .flat_map(|view| view.assigned.keys().copied())
                    .collect();
                ids.into_iter().for_each(|id| self.note_service(before, host, id, now));
            }
            Key::Formation(app, proc) => {
                let count = self.image.apps.get(app).map_or(0, |view| view.count(proc));
                let service = (app.clone(), proc.clone());
                if let Some(allowed) = self.allowed.get(&service)
                    && !allowed.contains(&count)
                {
                    broken.push(format!("{app}/{proc} is scaled to {count}, and only {allowed:?} was asked"));
                }
                let row = self.image.apps.get(app).and_then(|view| view.formation.get(proc));
                let beside = row.map(|row| row.beside.clone()).unwrap_or_default();
                self.counts.note(service, now, count, beside);
                let asked = |image: &Snapshot| {
                    image
                        .apps
                        .get(app)
                        .and_then(|view| view.formation.get(proc))
                        .and_then(|row| row.replace_before)
                };
                if asked(&self.image) < asked(before) {
                    broken.push(format!("that {app}/{proc} is to be restarted is forgotten"));
                }
            }
            Key::Schema | Key::App(_) | Key::Proc(..) | Key::Port(_) => self.ports.judge(&self.image, broken),
            Key::Proxy(proxy) => {
                if let Some(row) = self.image.proxies.get(proxy) {
                    self.drains.note(proxy, row);
                }
            }
            Key::HostMeta(host) => {
                let meta = self.image.hosts.get(host).and_then(|view| view.meta.as_ref());
                if meta.is_some_and(|meta| meta.cordoned || meta.draining) {
                    self.closed.entry(host.clone()).or_insert(now);
                } else {
                    self.closed.remove(host);
                }
            }
            Key::Instance(app, id) => {
                let row = self.image.apps.get(app).and_then(|view| view.instances.get(id));
                let host = self.placed.get(id).cloned();
                let assigned = host
                    .and_then(|host| self.image.hosts.get(&host))
                    .is_some_and(|view| view.assigned.contains_key(id));
                if row.is_some() != assigned {
                    broken.push(format!("{id} is half there: row {}, assigned {assigned}", row.is_some()));
                }
            }
            Key::Release(app, release) => {
                self.begun.entry((app.clone(), *release)).or_insert(now);
            }
            Key::Head(app) => {
                let head = |image: &Snapshot| image.apps.get(app)?.head.as_ref().map(|head| head.release);
                if head(&self.image) < head(before) {
                    broken.push(format!("head of {app} goes back to {:?}", head(&self.image)));
                }
                self.judge_head(before, app, broken);
            }
            _ => {}
        }
    }

    fn judge_assignment(
        &mut self,
        before: &Snapshot,
        host: &HostName,
        id: InstanceId,
        under_way: &UnderWay,
        broken: &mut Vec<String>,
    ) {
        let rows = |image: &Snapshot| image.hosts.get(host)?.assigned.get(&id).cloned();
        let (was, is) = (rows(before), rows(&self.image));
        if is.is_some() && was.is_none() {
            if let Some(earlier) = self.placed.insert(id, host.clone()) {
                broken.push(format!("{id} was on {earlier}, and is placed on {host}"));
            }
            if self.image.hosts[host].host.is_none() {
                broken.push(format!("{id} is placed on {host}, which isn't there"));
            }
            if self.closed.get(host).is_some_and(|since| since.elapsed() > LAG) {
                broken.push(format!("{id} is placed on {host}, which is closed"));
            }
            let placed = &self.image.hosts[host].assigned[&id];
            let linked = self.image.apps.get(&placed.app).and_then(|view| links::of(view, placed.env));
            if links::ports(&self.image, linked.into_iter().flatten()).as_ref() != Ok(&placed.links) {
                broken.push(format!("{id} is placed without the ports of what it links"));
            }
        }
        let Some(was) = was else { return };
        let desired = is.as_ref().map(|row| row.desired);
        if desired.is_some_and(|desired| desired < was.desired) {
            broken.push(format!("{id} was to {:?}, and is to {desired:?} again", was.desired));
        }
        let state = before.hosts[host].status.get(&id).map(|row| row.state);
        let serves = state == Some(State::Running) && before.hosts[host].host.is_some();
        if was.desired == Desired::Run && desired != Some(Desired::Run) {
            if let Some(row) = &is {
                self.drains.begin(id, row.mod_revision);
            }
            if serves {
                self.judge_removal(before, (&was.app, &was.proc), id, was.release, broken);
                let proxies = before.proxies.values().any(|row| row.create_revision < was.mod_revision);
                if desired != Some(Desired::Drain) && proxies {
                    broken.push(format!("{id} serves, and is stopped without a drain"));
                }
            }
        }
        if was.desired == Desired::Drain && desired == Some(Desired::Stop) && serves {
            if let Some(proxy) = self.drains.cut_short(before, id) {
                broken.push(format!("{id} is stopped while {proxy} may still send to it"));
            }
            // What they say is so: nothing is cut.
            let cut = under_way.iter().find(|(proxy, open)| {
                let row = before.proxies.get(*proxy);
                row.is_some_and(|row| self.drains.knows(row.create_revision, id)) && open.contains(&id)
            });
            if let Some((proxy, _)) = cut.filter(|_| self.drains.held_by(before, id).is_empty()) {
                broken.push(format!("{id} is stopped, and {proxy} cuts what is under way there"));
            }
        }
        let over = state.is_some_and(State::is_final);
        if is.is_none() && !over {
            broken.push(format!("{id} is archived while it is {state:?}"));
        }
    }

    /// A release becomes head only once it serves wherever the one before it has done so all the time.
    fn judge_head(&self, before: &Snapshot, app: &AppName, broken: &mut Vec<String>) {
        let (Some(was), Some(is)) = (before.apps.get(app), self.image.apps.get(app)) else { return };
        let (Some(old), Some(new)) = (&was.head, &is.head) else { return };
        let Some(begun) = self.begun.get(&(app.clone(), new.release)) else { return };
        for proc in is.formation.keys() {
            let of = |release: ReleaseId| {
                let own =
                    is.instances.iter().filter(move |(_, row)| row.proc == *proc && row.release == release);
                own.map(|(id, _)| id)
            };
            let well = |id: &InstanceId| self.serves_since.get(id).is_some_and(|since| since <= begun);
            let served = of(old.release).next().is_some() && of(old.release).all(well);
            let has_process =
                |id: &InstanceId| self.image.status(app, *id).is_some_and(|row| row.pid.is_some());
            let started = of(new.release).any(|id| self.served.contains_key(id) || has_process(id));
            let failing = self.failing.contains(&(app.clone(), proc.clone()));
            if self.counts.least(app, proc) > 0 && served && !started && !failing {
                broken
                    .push(format!("{} of {app} becomes head, and no {proc} of it has started", new.release));
            }
        }
    }

    fn judge_status(&mut self, host: &HostName, id: InstanceId, broken: &mut Vec<String>) {
        let view = &self.image.hosts[host];
        let status = &view.status[&id];
        match (&view.host, status.state) {
            (Some(_), State::Lost) => broken.push(format!("{id} is lost, and {host} is there")),
            (None, state) if state != State::Lost => {
                broken.push(format!("{host} says that {id} is {state:?}, and isn't registered"));
            }
            _ => {}
        }
        if let Some(row) = view.assigned.get(&id)
            && (matches!(status.state, State::Failed | State::Backoff) || !status.exits.is_empty())
        {
            self.failing.insert((row.app.clone(), row.proc.clone()));
        }
        if !view.assigned.contains_key(&id) {
            broken.push(format!("{host} speaks of {id}, which isn't assigned to it"));
        }
        let routed = |view: &HostView, id: &InstanceId| {
            let meant = view.assigned.get(id).is_some_and(|row| row.desired != Desired::Stop);
            view.status.get(id).filter(|row| meant && row.state == State::Running).and_then(|row| row.port)
        };
        let Some(port) = routed(view, &id) else { return };
        for other in view.status.keys().filter(|other| **other != id) {
            if routed(view, other) == Some(port) {
                broken.push(format!("{id} and {other} are both said to be at port {port} of {host}"));
            }
        }
    }

    fn judge_wait(&mut self, before: &Snapshot, host: &HostName, id: InstanceId, broken: &mut Vec<String>) {
        let view = &self.image.hosts[host];
        let Some(index) = view.assigned.get(&id).map(|row| row.index) else { return };
        let was = before.hosts.get(host).and_then(|view| view.status.get(&id));
        let was = was.map(|row| &row.value);
        broken.extend(self.proven.judge(host, id, index, was, &view.status[&id]));
    }

    /// Notes until when an instance served.
    fn note_service(&mut self, before: &Snapshot, host: &HostName, id: InstanceId, now: Instant) {
        let serves = |image: &Snapshot| {
            image.hosts.get(host).is_some_and(|view| {
                let running = view.status.get(&id).is_some_and(|row| row.state == State::Running);
                running && view.host.is_some()
            })
        };
        if serves(&self.image) {
            // It serves until something else is noted.
            self.served.insert(id, now + Duration::from_secs(1_000_000));
            self.serves_since.entry(id).or_insert(now);
        } else if serves(before) {
            self.served.insert(id, now);
            self.serves_since.remove(&id);
        }
    }

    /// Whoever was told to end wasn't meant to run any more.
    fn judge_ends(&mut self, revision: Revision, broken: &mut Vec<String>) {
        let image = &self.image;
        self.ended.retain(|(at, host, id)| {
            if *at > revision {
                return true;
            }
            let meant = image.hosts.get(host).and_then(|view| view.assigned.get(id));
            if meant.is_some_and(|row| row.desired != Desired::Stop) {
                broken.push(format!("{id} is told to end on {host}, and is meant to run"));
            }
            false
        });
    }
}

fn apply(image: &mut Snapshot, message: &WatchMessage) {
    for event in &message.events {
        match event {
            Event::Put(entry) => image.put(entry),
            Event::Delete { key, revision } => image.delete(key, *revision),
        }
    }
    image.set_revision(message.revision);
}
