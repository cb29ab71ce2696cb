//! The users of the day: they scale, push, configure, restart and roll back, over lines of their own.
//!
//! Owns what they were told, which is what the rules hold the cluster to.

mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::SignedDuration;
use tokio::time::{sleep, timeout};
use visor::{
    keys::{self, Key},
    lease::{LeaseKeeper, LeaseTiming},
    names::{AppName, Digest, HostName, ProcName, ReleaseId, RevId},
    schema::{Extra, Proc, Promoter, Release, ReleaseStatus, Rev, Slug},
    snapshot::Versioned,
    transitions::{
        envs::{self, NewEnv},
        releases::{Begun, NewRelease},
    },
    visor::{Change, Visor},
};

use crate::{
    gate::Gate,
    line::Link,
    nodes::Nodes,
    rules::{Nature, Rules},
    world::World,
};

/// The user of an app.
pub struct User {
    world: Arc<World>,
    rules: Rules,
    visor: Visor,
    /// Who works on the same app, over another line.
    colleague: Visor,
    app: AppName,
    procs: Vec<ProcName>,
    revs: Vec<RevId>,
    asked: u32,
}

impl User {
    /// Of an app with these procs; it is registered by [`User::begin`].
    pub fn new(world: &Arc<World>, rules: &Rules, app: &str, procs: &[&str]) -> User {
        let visor = Visor::new(Link::store(world, &format!("user-{app}"), &Gate::new()));
        let colleague = Visor::new(Link::store(world, &format!("colleague-{app}"), &Gate::new()));
        User {
            world: world.clone(),
            rules: rules.clone(),
            visor,
            colleague,
            app: app.parse().expect("a valid name"),
            procs: procs.iter().map(|proc| proc.parse().expect("a valid name")).collect(),
            revs: Vec::new(),
            asked: 0,
        }
    }

    fn now(&self) -> jiff::Timestamp {
        self.world.wall(SignedDuration::ZERO)
    }

    fn token(&mut self) -> String {
        self.asked += 1;
        format!("{}-{}", self.app, self.asked)
    }

    /// Registers the app with a first release that runs once.
    ///
    /// # Panics
    /// If that fails: nothing is wrong yet.
    pub async fn begin(&mut self) {
        self.visor.set_up().await.expect("nothing is wrong yet");
        let now = self.now();
        self.visor.register_app(&self.app, "me", "token", now).await.expect("nothing is wrong yet");
        let rev = self.register_rev(false).await.expect("nothing is wrong yet");
        let new = NewRelease { rev: Some(rev), token: self.token(), ..NewRelease::default() };
        let begun = self.visor.begin_release(&self.app, &new, Promoter::Converger, None, now).await;
        assert!(matches!(begun, Ok(Begun::Released(_))), "{begun:?}");
        for proc in self.procs.clone() {
            self.scale(&proc, 2).await;
        }
    }

    async fn register_rev(&mut self, bad: bool) -> Option<RevId> {
        let number = self.world.between(0..=u64::MAX);
        let id: RevId = format!("{number:040x}").parse().expect("forty digits");
        let world = &self.world;
        let nature = match (bad, world.chance(0.2)) {
            (false, false) => Nature { boots_within: 1_500, listens: true, crashes: 0.0 },
            (false, true) => Nature { boots_within: 8_000, listens: true, crashes: 0.15 },
            (true, false) => Nature { boots_within: 500, listens: true, crashes: 1.0 },
            (true, true) => Nature { boots_within: 500, listens: false, crashes: 0.0 },
        };
        self.rules.set_nature(id.clone(), nature);
        let mut procs: BTreeMap<_, _> =
            self.procs.iter().map(|proc| (proc.clone(), "run".to_owned())).collect();
        if world.chance(0.3) {
            // Another service, of which nobody wants any: the proxies take another shape for it.
            let other = *world.pick(&["admin", "cron", "web-next"]);
            procs.insert(other.parse().expect("a valid name"), "run".to_owned());
        }
        let rev = Rev {
            slug: Slug { sha256: slug_of(&id), size_bytes: 1 },
            procs,
            kind: "procfile".into(),
            by: "me".into(),
            at: self.now(),
            subject: String::new(),
            extra: Extra::new(),
        };
        self.visor.register_rev(&self.app, &id, &rev, &BTreeSet::new()).await.ok()?;
        self.revs.push(id.clone());
        Some(id)
    }

    /// Does this and that until the day is over.
    pub async fn work(mut self) {
        loop {
            self.world.wait(100..=12_000).await;
            if self.world.is_healed() {
                return;
            }
            match self.world.between(0..=9) {
                0..=4 => {
                    let (proc, count) = (self.world.pick(&self.procs).clone(), self.world.between(0..=4));
                    if self.world.chance(0.2) {
                        self.meanwhile_restart(&proc);
                    }
                    self.scale(&proc, u32::try_from(count).expect("it is small")).await;
                }
                5..=6 if !self.world.revs_are_closed() => {
                    let bad = self.world.chance(0.3);
                    if let Some(rev) = self.register_rev(bad).await {
                        self.push(rev).await;
                    }
                }
                // It takes an rm, so that nothing is stored that nobody can read again.
                7 if self.world.revs_are_closed() => {}
                7 => self.configure().await,
                8..=9 if self.world.chance(0.5) => self.run_beside_or_go_back().await,
                8 if self.world.chance(0.3) => self.name_a_port().await,
                5..=6 | 8 => {
                    // Once there is no rm, what no host has can't be had.
                    let is_there = |rev: &&RevId| self.world.has_rm() || self.world.holds(&slug_of(rev));
                    let revs: Vec<RevId> = self.revs.iter().filter(is_there).cloned().collect();
                    let rev = self.world.pick(&revs).clone();
                    self.push(rev).await;
                }
                _ => {
                    let proc = self.world.pick(&self.procs).clone();
                    self.world.note(format_args!("{} restarts {proc}", self.app));
                    let _ = self.visor.restart(&self.app, &proc, None).await;
                }
            }
        }
    }

    async fn scale(&self, proc: &ProcName, count: u32) {
        self.world.note(format_args!("{} scales {proc} to {count}", self.app));
        self.rules.ask(&self.app, proc, count);
        if self.visor.scale(&self.app, proc, count, None, "me", self.now()).await.is_ok() {
            self.rules.acknowledge(&self.app, proc, count);
        }
    }

    /// The colleague restarts a proc in the same moment.
    fn meanwhile_restart(&self, proc: &ProcName) {
        let (world, visor) = (self.world.clone(), self.colleague.clone());
        let (app, proc) = (self.app.clone(), proc.clone());
        tokio::spawn(async move {
            world.wait(0..=5).await;
            world.note(format_args!("a colleague at {app} restarts {proc}"));
            let _ = visor.restart(&app, &proc, None).await;
        });
    }

    /// Somebody of the app writes a port into its rows: another app's, one of its own, or any.
    async fn name_a_port(&self) {
        let proc = self.world.pick(&self.procs).clone();
        let port = u16::try_from(self.world.between(8_499..=8_508)).expect("it is a port");
        let key = Key::Proc(self.app.clone(), proc.clone());
        let Ok(Some(row)) = self.visor.get::<Proc>(&key).await else { return };
        self.world.note(format_args!("{} names port {port} in the row of {proc}", self.app));
        let after = Proc { port, ..row.value.clone() };
        let _ = self.visor.commit(Change::new().as_read(&key, Some(&row)).put(&key, &after)).await;
    }

    async fn configure(&mut self) {
        let token = self.token();
        let vars = BTreeMap::from([("COLOUR".to_owned(), token.clone())]).into();
        let now = self.now();
        let mut scopes = keys::app(&self.app);
        scopes.extend(envs::recipients());
        scopes.extend(keys::wraps_of(&self.app));
        let Ok(snapshot) = self.visor.read(scopes).await else { return };
        let Some(view) = snapshot.apps.get(&self.app) else { return };
        // Both apps are there from the first to the last. By turns, so that no day depends on it.
        let linked: &[&str] = match self.asked % 3 {
            0 => &["pages:web"],
            1 => &["pages:web", "rocket:worker"],
            _ => &[],
        };
        let links = linked.iter().map(|link| link.parse().expect("a link")).collect();
        let new = (&vars, &links);
        let sealed = NewEnv::seal(&self.app, view, new, &snapshot, ("me", now), &mut self.world.random());
        let Some(config) = sealed else { return };
        let new = NewRelease { config: Some(config), token, ..NewRelease::default() };
        let begun = self.visor.begin_release(&self.app, &new, Promoter::Converger, None, now).await;
        self.world.note(format_args!("{} is configured: {begun:?}", self.app));
    }

    /// What bazooka-rm does in a push: it tries the release, under a lease of its own, and promotes it.
    async fn push(&mut self, rev: RevId) {
        let keeper = LeaseKeeper::start(self.visor.store().clone(), LeaseTiming::default());
        if let Ok(lease) = timeout(Duration::from_secs(20), keeper.wait_held()).await {
            let new = NewRelease { rev: Some(rev.clone()), token: self.token(), ..NewRelease::default() };
            let now = self.now();
            let begun = self.visor.begin_release(&self.app, &new, Promoter::Pusher, Some(lease), now).await;
            self.world.note(format_args!("{} pushes {}: {begun:?}", self.app, rev.short()));
            match begun {
                Ok(Begun::Trying(release)) => {
                    self.rules.made(&self.app, release, rev);
                    self.see_through(release).await;
                }
                Ok(Begun::Released(release)) => {
                    self.rules.made(&self.app, release, rev);
                    self.rules.promoted(&self.app, release);
                }
                _ => {}
            }
        }
        keeper.release().await;
    }

    async fn see_through(&self, release: ReleaseId) {
        let key = Key::Release(self.app.clone(), release);
        for _ in 0..300 {
            sleep(Duration::from_millis(400)).await;
            let row: Result<Option<Versioned<Release>>, _> = self.visor.get(&key).await;
            match row.ok().flatten().map(|row| row.status) {
                Some(ReleaseStatus::Verified) => {
                    if self.world.chance(0.1) {
                        return;
                    }
                    let promoted = self.visor.promote(&self.app, release).await;
                    self.world.note(format_args!("{} promotes {release}: {promoted:?}", self.app));
                    if promoted.is_ok() {
                        return self.rules.promoted(&self.app, release);
                    }
                }
                Some(ReleaseStatus::Failed | ReleaseStatus::Released | ReleaseStatus::Beside) => return,
                Some(ReleaseStatus::Trying) | None => {}
            }
        }
    }
}

/// The slug of a rev: its number, with more zeros before it.
pub fn slug_of(rev: &RevId) -> Digest {
    format!("{:0>64}", rev.as_str()).parse().expect("64 digits")
}

/// The operator, who cordons and drains hosts, and takes that back in the end.
pub async fn operate(world: Arc<World>) {
    let visor = Visor::new(Link::store(&world, "operator", &Gate::new()));
    loop {
        world.wait(1_000..=40_000).await;
        let host: HostName = world.pick(&Nodes::hosts()).clone();
        let (cordoned, draining) = (world.chance(0.3), world.chance(0.4));
        if world.is_healed() {
            break;
        }
        world.note(format_args!("{host} is marked: cordoned {cordoned}, draining {draining}"));
        let _ = visor.mark_host(&host, |meta| (meta.cordoned, meta.draining) = (cordoned, draining)).await;
    }
    for host in Nodes::hosts() {
        while visor.mark_host(&host, |meta| (meta.cordoned, meta.draining) = (false, false)).await.is_err() {
            sleep(Duration::from_secs(1)).await;
        }
    }
}
