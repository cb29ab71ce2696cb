//! Images for tests, built in words.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use visor::{
    links,
    names::{AppName, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId},
    schema::*,
    snapshot::{AppView, Snapshot, Versioned},
    store::Revision,
    transitions::rollouts::{before, is_rolling},
};

use super::{
    memory::{Memory, Now},
    plan::plan,
    step::{Act, Plan, Step},
};

/// An image, with the memory of a converger that has watched it.
pub(crate) struct World {
    pub snapshot: Snapshot,
    pub memory: Memory,
    pub now: Now,
    app: AppName,
}

impl World {
    pub fn new() -> Self {
        let now = Now { clock: Instant::now() + Duration::from_secs(3600), wall: wall() };
        let app = "a".parse().expect("valid");
        World {
            snapshot: Snapshot { revision: 100, ..Snapshot::default() },
            memory: Memory::default(),
            now,
            app,
        }
    }

    pub fn name(&self, name: &str) -> AppName {
        name.parse().expect("an app name")
    }

    pub fn proc(&self, name: &str) -> ProcName {
        name.parse().expect("a proc name")
    }

    pub fn host(&self, name: &str) -> HostName {
        name.parse().expect("a host name")
    }

    fn next(&mut self) -> Revision {
        self.snapshot.revision += 1;
        self.snapshot.revision
    }

    pub fn row<T>(&mut self, value: T) -> Versioned<T> {
        let revision = self.next();
        Versioned { value, create_revision: revision, mod_revision: revision, lease: None }
    }

    pub fn view(&mut self) -> &mut AppView {
        self.snapshot.apps.entry(self.app.clone()).or_default()
    }

    /// Hosts host1 to hostN with room for a hundred.
    pub fn hosts(mut self, n: u32) -> Self {
        (1..=n).for_each(|n| self.register(&format!("host{n}")));
        self
    }

    pub fn register(&mut self, name: &str) {
        let host = self.row(Host {
            schema: None,
            address: "127.0.0.2".parse().expect("an address"),
            url: "http://127.0.0.2:1".into(),
            zone: "default".parse().expect("a zone"),
            version: "0".into(),
            capacity: Capacity { memory_bytes: 8 << 30, instances: 100, extra: Extra::new() },
            isolation: "none".into(),
            boot_id: "b".into(),
            seal_key: None,
            services: Some("127.0.0.1".parse().expect("an address")),
            since: wall(),
            token: "t".into(),
            extra: Extra::new(),
        });
        self.snapshot.hosts.entry(name.parse().expect("valid")).or_default().host = Some(host);
    }

    /// Writes the slugs whose archives a host has: those of these releases of the app.
    pub fn has_slugs(&mut self, host: &str, releases: &[&str]) {
        let slug = |release: &&str| {
            let rev = self.view().releases[&release.parse().expect("a release")].rev.clone();
            self.view().revs[&rev].slug.sha256.clone()
        };
        let slugs = releases.iter().map(slug).collect();
        let row = self.row(Archives { slugs, extra: Extra::new() });
        let host = self.host(host);
        self.snapshot.hosts.entry(host).or_default().archives = Some(row);
    }

    /// Carries out the steps that name sources, and those that end a service.
    pub fn name_sources(&mut self, steps: &[Step]) {
        for step in steps {
            self.app = step.app.clone();
            match &step.act {
                Act::Source { id, sources } => self.set_sources(*id, sources),
                Act::EndService { host, id } => {
                    self.view().serving.remove(&(host.clone(), *id));
                }
                _ => {}
            }
        }
    }

    /// Writes the sources of an instance's slug, and tells each.
    pub fn set_sources(&mut self, id: InstanceId, sources: &[SlugSource]) {
        let to = self.view().instances[&id].host.clone();
        let assigned = self.snapshot.hosts.get_mut(&to).and_then(|view| view.assigned.get_mut(&id));
        let assigned = assigned.expect("it is assigned");
        assigned.value.sources = sources.to_vec();
        let slug = assigned.slug.sha256.clone();
        for source in sources {
            let row = self.row(Serving { slug: slug.clone(), to: to.clone(), extra: Extra::new() });
            self.view().serving.insert((source.host.clone(), id), row);
        }
    }

    pub fn lose(&mut self, name: &str) {
        let name = self.host(name);
        if let Some(view) = self.snapshot.hosts.get_mut(&name) {
            view.host = None;
        }
    }

    /// Writes an operator's acknowledgement that these hosts are gone for good.
    pub fn unfreeze(&mut self, hosts: &[&str]) {
        let hosts = hosts.iter().map(|name| self.host(name)).collect();
        self.snapshot.unfreeze =
            Some(self.row(Unfreeze { hosts, by: "me".into(), at: wall(), extra: Extra::new() }));
    }

    pub fn edit_host(&mut self, name: &str, edit: impl FnOnce(&mut Host)) {
        let name = self.host(name);
        let host = self.snapshot.hosts.get_mut(&name).and_then(|view| view.host.as_mut());
        edit(&mut host.expect("it is registered").value);
    }

    /// Edits a host like [`World::edit_host`], as a new write of its row.
    pub fn change_host(&mut self, name: &str, edit: impl FnOnce(&mut Host)) {
        self.edit_host(name, edit);
        let revision = self.next();
        let name = self.host(name);
        let host = self.snapshot.hosts.get_mut(&name).and_then(|view| view.host.as_mut());
        host.expect("it is registered").mod_revision = revision;
    }

    pub fn mark(&mut self, name: &str, mark: impl FnOnce(&mut HostMeta)) {
        let mut meta = HostMeta::default();
        mark(&mut meta);
        let row = self.row(meta);
        self.snapshot.hosts.entry(name.parse().expect("valid")).or_default().meta = Some(row);
    }

    pub fn app(mut self, name: &str) -> Self {
        self.app = name.parse().expect("an app name");
        let app = self.row(App {
            owner: "me".into(),
            created_at: wall(),
            token: "t".into(),
            destroying: false,
            extra: Extra::new(),
        });
        self.view().app = Some(app);
        self
    }

    /// Selects an existing app for the calls that follow.
    pub fn turn_to(&mut self, name: &str) {
        self.app = name.parse().expect("an app name");
    }

    pub fn destroying(mut self) -> Self {
        if let Some(app) = &mut self.view().app {
            app.value.destroying = true;
        }
        self
    }

    /// Adds a new release of a new rev with these procs.
    fn release(&mut self, procs: &str, status: ReleaseStatus) -> ReleaseId {
        let id = ReleaseId(self.view().releases.keys().next_back().map_or(1, |last| last.0 + 1));
        let rev: RevId = format!("{:040x}", id.0).parse().expect("a rev");
        let slug = Slug { sha256: format!("{:064x}", id.0).parse().expect("a digest"), size_bytes: 1 };
        let commands: BTreeMap<ProcName, String> = procs
            .split_whitespace()
            .map(|proc| (proc.parse().expect("a proc name"), format!("run {proc}")))
            .collect();
        for proc in commands.keys() {
            let row = self.new_proc(proc);
            self.view().procs.entry(proc.clone()).or_insert(row);
        }
        let row = self.row(Rev {
            slug,
            procs: commands,
            kind: "procfile".into(),
            by: "me".into(),
            at: wall(),
            subject: String::new(),
            extra: Extra::new(),
        });
        self.view().revs.insert(rev.clone(), row);
        let env = self.newest_env();
        let row = self.row(Release {
            rev,
            env,
            by: "me".into(),
            at: wall(),
            reason: "push".into(),
            status,
            cause: None,
            token: String::new(),
            extra: Extra::new(),
        });
        self.view().releases.insert(id, row);
        id
    }

    /// Returns a proc's row with a port that no other names.
    fn new_proc(&mut self, name: &ProcName) -> Versioned<Proc> {
        let named = self.snapshot.apps.values().flat_map(|view| view.procs.values().map(|row| row.port));
        let last = named.max().unwrap_or(8500);
        self.row(Proc::new(name, last + 1))
    }

    fn newest_env(&mut self) -> EnvRef {
        self.view().envs.keys().next_back().copied().unwrap_or(EnvRef(0))
    }

    /// Adds an env with these links and no vars, for the next releases.
    pub fn link(&mut self, links: &[&str]) {
        let links = links.iter().map(|link| link.parse().expect("a link")).collect();
        let env = EnvRef(self.newest_env().0 + 1);
        let row = Env { sealed: None, vars: None, links, by: "me".into(), at: wall(), extra: Extra::new() };
        let row = self.row(row);
        self.view().envs.insert(env, row);
    }

    /// Links these services, from the app's next release on.
    pub fn linking(mut self, links: &[&str]) -> Self {
        self.link(links);
        self
    }

    /// Removes a service's row, as if it had never been registered.
    pub fn unregister(&mut self, app: &str, proc: &str) {
        let (app, proc) = (self.name(app), self.proc(proc));
        self.snapshot.apps.get_mut(&app).expect("it is there").procs.remove(&proc);
        self.next();
    }

    /// Writes a service's row again, if it is missing.
    pub fn reregister(&mut self, app: &str, proc: &str) {
        let (app, proc) = (self.name(app), self.proc(proc));
        let row = self.new_proc(&proc);
        self.snapshot.apps.get_mut(&app).expect("it is there").procs.entry(proc).or_insert(row);
    }

    /// Adds a new release that is head.
    pub fn released(mut self, procs: &str) -> Self {
        let release = self.release(procs, ReleaseStatus::Released);
        self.move_head(release);
        self
    }

    /// Adds a new release on trial.
    pub fn trying(mut self, procs: &str) -> Self {
        self.begin_trial(procs);
        self
    }

    fn begin_trial(&mut self, procs: &str) {
        let release = self.release(procs, ReleaseStatus::Trying);
        let row = self.row(Trial { release, promote: Promoter::Pusher, extra: Extra::new() });
        self.view().trial = Some(row);
    }

    fn move_head(&mut self, release: ReleaseId) {
        let row = self.row(Head { release, extra: Extra::new() });
        self.view().head = Some(row);
    }

    /// Pushes a rev: on trial if any instance is wanted, else head at once.
    pub fn push(&mut self, procs: &str) {
        let wanted = self.view().formation.values().any(|formation| formation.count > 0);
        if wanted {
            self.begin_trial(procs);
        } else {
            let release = self.release(procs, ReleaseStatus::Released);
            self.move_head(release);
        }
    }

    /// Ends the push if its trial is verified: the release becomes head.
    pub fn promote_verified(&mut self) {
        let Some(release) = self.view().trial.as_ref().map(|trial| trial.release) else { return };
        if self.view().releases[&release].status == ReleaseStatus::Verified {
            self.set_status(release, ReleaseStatus::Released);
            self.view().trial = None;
            self.move_head(release);
        }
    }

    pub fn set_status(&mut self, release: ReleaseId, status: ReleaseStatus) {
        let mut value = self.view().releases[&release].value.clone();
        value.status = status;
        let row = self.row(value);
        self.view().releases.insert(release, row);
    }

    /// Scales the newest release beside head, and makes one if there is none.
    pub fn scale_canary(&mut self, proc: &str, count: u32) {
        let beside = |(_, row): &(&ReleaseId, &Versioned<Release>)| row.status == ReleaseStatus::Beside;
        let made = self.view().releases.iter().rev().find(beside).map(|(id, _)| *id);
        let release = made.unwrap_or_else(|| self.release(proc, ReleaseStatus::Beside));
        self.formation(proc, |formation| {
            formation.beside.insert(release, count);
            formation.beside.retain(|_, count| *count > 0);
        });
    }

    /// Adds a new release that runs beside head.
    pub fn canary(mut self, procs: &str, proc: &str, count: u32) -> Self {
        let release = self.release(procs, ReleaseStatus::Beside);
        self.formation(proc, |formation| formation.beside.extend([(release, count)]));
        self
    }

    /// Pauses the app's rollouts.
    pub fn paused(mut self) -> Self {
        self.pause(true);
        self
    }

    pub fn pause(&mut self, holds: bool) {
        let row = self.row(Pause { by: "me".into(), at: wall(), extra: Extra::new() });
        self.view().pause = holds.then_some(row);
    }

    /// Aborts head's rollout, if it is still under way.
    pub fn abort(&mut self) {
        let head = self.view().head.as_ref().expect("there is a head").release;
        let to = before(self.view(), head).map(|(id, _)| id);
        let Some(to) = to.filter(|_| self.view().trial.is_none() && is_rolling(self.view())) else { return };
        let mut value = self.view().releases[&head].value.clone();
        value.cause = Some("aborted by me".into());
        let row = self.row(value);
        self.view().releases.insert(head, row);
        self.move_head(to);
        self.view().pause = None;
    }

    pub fn formation(&mut self, proc: &str, edit: impl FnOnce(&mut Formation)) {
        let proc = self.proc(proc);
        let mut formation = self.view().formation.get(&proc).map(|row| row.value.clone()).unwrap_or_default();
        edit(&mut formation);
        let row = self.row(formation);
        self.view().formation.insert(proc, row);
    }

    pub fn scaled(mut self, proc: &str, count: u32) -> Self {
        self.formation(proc, |formation| formation.count = count);
        self
    }

    pub fn settings(mut self, proc: &str, edit: impl FnOnce(&mut Proc)) -> Self {
        let proc = self.proc(proc);
        edit(&mut self.view().procs.get_mut(&proc).expect("it is registered").value);
        self
    }

    /// Adds an instance of a release's proc, as it was just placed.
    pub fn placed(mut self, id: u64, what: &str, host: &str) -> Self {
        let (proc, release) = what.split_once('@').expect("proc@vN");
        let (proc, release) = (self.proc(proc), release.parse::<ReleaseId>().expect("a release"));
        let taken: Vec<u32> = self
            .view()
            .instances
            .values()
            .filter(|row| row.proc == proc && row.release == release)
            .map(|row| row.index)
            .collect();
        let index = (0..).find(|index| !taken.contains(index)).expect("there is always one more");
        self.place(id, what, host, index);
        let id = InstanceId(id);
        self.view().instances.get_mut(&id).expect("just placed").value.placed_at -=
            jiff::SignedDuration::from_hours(1);
        self
    }

    /// Adds an instance with its index, placed just now.
    pub fn place(&mut self, id: u64, what: &str, host: &str, index: u32) {
        let (proc, release) = what.split_once('@').expect("proc@vN");
        let (proc, release) = (self.proc(proc), release.parse::<ReleaseId>().expect("a release"));
        let (id, host, app) = (InstanceId(id), self.host(host), self.app.clone());
        let rev = self.view().releases[&release].rev.clone();
        let slug = self.view().revs[&rev].slug.clone();
        let row = self.row(Instance {
            host: host.clone(),
            proc: proc.clone(),
            release,
            rev: rev.clone(),
            index,
            placed_at: self.now.wall,
            reason: "test".into(),
            extra: Extra::new(),
        });
        self.view().instances.insert(id, row);
        let run = self.view().procs[&proc].run.clone();
        let env = self.view().releases[&release].env;
        let linked = links::of(self.view(), env).cloned().unwrap_or_default();
        let ports =
            links::ports(&self.snapshot, &linked).expect("nothing is placed that links what isn't there");
        let row = self.row(Assignment {
            desired: Desired::Run,
            reason: None,
            app,
            proc,
            release,
            rev,
            env,
            slug,
            command: "run".into(),
            index,
            run,
            links: ports,
            sources: Vec::new(),
            trial: false,
            extra: Extra::new(),
        });
        self.snapshot.hosts.entry(host).or_default().assigned.insert(id, row);
    }

    /// Writes the status that an instance's host reports.
    pub fn says(mut self, id: u64, state: State) -> Self {
        self.say(id, state, |_| {});
        self
    }

    pub fn say(&mut self, id: u64, state: State, edit: impl FnOnce(&mut Status)) {
        let id = InstanceId(id);
        let host = self.view().instances[&id].host.clone();
        let mut status = Status::new(state, self.now.wall);
        edit(&mut status);
        let row = self.row(status);
        self.snapshot.hosts.entry(host).or_default().status.insert(id, row);
    }

    /// Adds an instance of the head release's web that has long been healthy.
    pub fn running(mut self, id: u64, host: &str) -> Self {
        let head = self.view().head.as_ref().expect("there is a head").release;
        self = self.placed(id, &format!("web@{head}"), host);
        self.says(id, State::Running)
    }

    pub fn meant_to(mut self, id: u64, desired: Desired) -> Self {
        self.mean(id, desired);
        self
    }

    pub fn mean(&mut self, id: u64, desired: Desired) {
        let id = InstanceId(id);
        let host = self.view().instances[&id].host.clone();
        let revision = self.next();
        let assigned = self.snapshot.hosts.get_mut(&host).and_then(|view| view.assigned.get_mut(&id));
        let assigned = assigned.expect("it is assigned");
        assigned.value.desired = desired;
        assigned.mod_revision = revision;
    }

    /// Reports that every proxy has applied everything up to this revision.
    pub fn apply_proxy(&mut self, applied: Revision) {
        let revision = self.next();
        for proxy in self.snapshot.proxies.values_mut() {
            proxy.value.applied = applied;
            proxy.mod_revision = revision;
        }
    }

    pub fn proxy(mut self, name: &str, applied: Revision, busy: &[u64]) -> Self {
        let row = self.row(Proxy {
            token: None,
            schema: None,
            url: "http://127.0.0.1:1".into(),
            public: "0.0.0.0:8080".into(),
            domain: "localhost".into(),
            zone: None,
            version: "0".into(),
            applied,
            busy: busy.iter().map(|id| InstanceId(*id)).collect(),
            refused: BTreeMap::new(),
            extra: Extra::new(),
        });
        self.snapshot.proxies.insert(name.parse().expect("valid"), row);
        self
    }

    /// Lets the converger observe the world, and time pass.
    pub fn after(mut self, time: Duration) -> Self {
        self.memory.observe(&self.snapshot, self.now);
        self.now.clock += time;
        self.now.wall += time;
        self.memory.observe(&self.snapshot, self.now);
        self
    }

    pub fn plan(&mut self) -> Plan {
        self.memory.observe(&self.snapshot, self.now);
        plan(&self.snapshot, &self.memory, self.now)
    }

    /// Returns the plan, a line for each step.
    pub fn steps(&mut self) -> Vec<String> {
        self.plan().steps.iter().map(|step| told(&step.act)).collect()
    }
}

/// Describes a step in words.
pub(crate) fn told(act: &Act) -> String {
    match act {
        Act::Place { slot, place } => {
            let trial = if slot.trial { "try" } else { "place" };
            format!("{trial} {}.{}@{} on {}", slot.proc, slot.index, slot.release, place.host)
        }
        Act::Advance { id, to: Desired::Drain } => format!("drain {id}"),
        Act::Advance { id, .. } => format!("stop {id}"),
        Act::Lose { id } => format!("lose {id}"),
        Act::Archive { id, .. } => format!("archive {id}"),
        Act::Forget { ids, .. } => format!("forget {}", ids.len()),
        Act::Hand { host, env } => format!("hand {env} to {host}"),
        Act::Keep { host, env } => format!("keep {env} at {host}"),
        Act::TakeBack { host, env } => format!("take {env} from {host}"),
        Act::Ask { by, env, host, .. } => format!("ask {by} for {env} for {host}"),
        Act::EndRequest { by, env, host } => format!("end {by}'s {env} for {host}"),
        Act::Source { id, sources } => {
            let hosts: Vec<&str> = sources.iter().map(|source| source.host.as_str()).collect();
            format!("serve {id} from {}", hosts.join(" "))
        }
        Act::EndService { host, id } => format!("end {id} from {host}"),
        Act::Verify { release, .. } => format!("verify {release}"),
        Act::Fail { release, cause } => format!("fail {release}: {cause}"),
        Act::Pend { proc, pending: Some(pending) } => {
            format!("pend {proc}: {} short of {}: {}", pending.short, pending.release, pending.reason)
        }
        Act::Pend { proc, pending: None } => format!("clear {proc}"),
    }
}

fn wall() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// An app whose head is v1 with a web, on two hosts.
pub fn app() -> World {
    World::new().hosts(2).app("a").released("web")
}

/// `n` healthy instances of v1's web, 1 to n, in turn on two hosts.
pub fn serving(n: u64) -> World {
    let mut world = app().scaled("web", u32::try_from(n).expect("small"));
    for id in 1..=n {
        world = world.running(id, if id % 2 == 1 { "host1" } else { "host2" });
    }
    world.after(seconds(100))
}
