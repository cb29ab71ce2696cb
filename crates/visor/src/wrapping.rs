//! The loop in which an rm wraps the keys of envs for every host and rm that may open the envs.
//!
//! Owns the time of each check; [`mending`] decides the changes. Several rms may run the loop at once: each write is
//! guarded on the rows that it was decided from, so one rm succeeds and the others find the wraps there. No rm needs to
//! run while no rm joins, is renamed or replaces its key: a host that has an env wraps its key for other hosts as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    clock::WallClock,
    keys::{self, Key},
    mirror::{Changes, Mirror},
    names::{AppName, EnvRef, HostName},
    pause::until,
    rows::RowKind,
    seal::{Keyring, OpenError, PublicKey, Random},
    snapshot::Snapshot,
    transitions::envs::{Recipients, Rm, mending, recipients},
    visor::{Committed, Visor, VisorError},
};

/// The pause before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest time between two looks while an app waits for a time, because the wall clock may jump.
const LOOK: Duration = Duration::from_secs(60);

/// An rm's keyring, shared by the tasks that read and replace it. A clone shares the same keyring.
#[derive(Clone, Debug)]
pub struct SharedRing(Arc<watch::Sender<Keyring>>);

impl SharedRing {
    /// Returns a shared ring with these keys.
    pub fn new(ring: Keyring) -> SharedRing {
        SharedRing(Arc::new(watch::Sender::new(ring)))
    }

    /// Returns the present keys.
    pub fn get(&self) -> Keyring {
        self.0.borrow().clone()
    }

    /// Returns a receiver of each change.
    pub fn changes(&self) -> watch::Receiver<Keyring> {
        self.0.subscribe()
    }
}

/// The inputs of the loop.
pub struct Wrapping {
    /// The cluster's state.
    pub visor: Visor,
    /// The name of this rm.
    pub own: HostName,
    /// The keys of this rm.
    pub ring: SharedRing,
    /// The source of randomness.
    pub random: Box<dyn Random + Send>,
    /// The clock by which the hosts' wraps of a new env end.
    pub clock: WallClock,
    /// Writes the keyring to disk without its replaced keys. Returns true if the write succeeded.
    pub store: Box<dyn Fn(&Keyring) -> bool + Send>,
}

impl Wrapping {
    /// Runs the loop for ever.
    pub async fn run(mut self) {
        let mut scopes = recipients();
        scopes.push(keys::apps());
        scopes.extend(keys::wraps());
        let mut mirror = Mirror::new(self.visor.store().clone(), scopes, Snapshot::default());
        let mut due = Due::default();
        let mut closed = BTreeMap::new();
        let (mut again, mut failed): (Option<Instant>, bool) = (None, false);
        loop {
            tokio::select! {
                biased;
                changes = mirror.next() => due.note(&changes),
                () = until(again) => (again, failed) = (None, false),
            }
            if !mirror.is_synced() || failed {
                continue;
            }
            due.pass(self.clock.now());
            match self.mend(mirror.image(), &mut due, &mut closed).await {
                Ok(()) => {
                    self.retire(mirror.image());
                    again = (!due.later.is_empty()).then(|| Instant::now() + LOOK);
                }
                Err(error) => {
                    tracing::warn!(error = %error, "can't wrap config vars; trying again");
                    (again, failed) = (Some(Instant::now() + AGAIN), true);
                }
            }
        }
    }

    /// Commits the changes for the apps that are due.
    async fn mend(
        &mut self,
        image: &Snapshot,
        due: &mut Due,
        closed: &mut BTreeMap<(AppName, EnvRef), OpenError>,
    ) -> Result<(), VisorError> {
        let (to, ring, now) = (Recipients::of(image), self.ring.get(), self.clock.now());
        let rm = Rm { snapshot: image, to: &to, ring: &ring, now };
        for app in due.apps(image) {
            let Some(view) = image.apps.get(&app) else { continue };
            let mending = mending(rm, &app, view, self.random.as_mut());
            due.later.extend(mending.look_again.map(|at| (app.clone(), at)));
            for (env, change) in mending.changes {
                // If another rm was first, its write will arrive in the image and make the app due again.
                if let Committed::Done(_) = self.visor.commit(change).await? {
                    tracing::info!(%app, %env, rms = to.rms.len(), action = "wrap", "wrapped config vars");
                }
            }
            for (env, error) in mending.closed {
                if closed.insert((app.clone(), env), error).is_none() {
                    tracing::error!(%app, %env, error = %error, "can't wrap config vars that it can't open; another bazooka-rm must");
                }
            }
        }
        due.done();
        Ok(())
    }

    /// Deletes this rm's replaced keys once no env is wrapped for any of them.
    ///
    /// No later env can need a replaced key: this rm's row in the image names the current key, and the write of each
    /// new env is guarded on that row.
    fn retire(&self, image: &Snapshot) {
        let ring = self.ring.get();
        let retired: BTreeSet<PublicKey> = ring.retired().into_iter().collect();
        let said = image.rms.get(&self.own).and_then(|row| row.seal_key.as_ref());
        if retired.is_empty() || said != Some(&ring.current()) {
            return;
        }
        let mut wraps =
            image.apps.values().flat_map(|view| view.wraps.values().chain(view.earlier_wraps.values()));
        if wraps.any(|wraps| wraps.rms.keys().any(|key| retired.contains(key))) {
            return;
        }
        let after = ring.without_retired();
        if (self.store)(&after) {
            tracing::info!(
                keys = retired.len(),
                "nothing is sealed to earlier keys any more; they are deleted"
            );
            self.ring.0.send_replace(after);
        }
    }
}

/// The apps that are to be checked.
#[derive(Default)]
struct Due {
    all: bool,
    apps: BTreeSet<AppName>,
    /// The apps to look at again at a time, even if nothing happens.
    later: BTreeMap<AppName, Timestamp>,
}

impl Due {
    fn note(&mut self, changes: &Changes) {
        self.all |= changes.relisted;
        for key in changes.keys.iter().filter_map(|key| key.parse::<Key>().ok()) {
            match key.kind() {
                RowKind::Host | RowKind::Rm | RowKind::Schema => self.all = true,
                RowKind::App
                | RowKind::Env
                | RowKind::Wraps
                | RowKind::EarlierWraps
                | RowKind::WrapRequest
                | RowKind::Release
                | RowKind::Head
                | RowKind::Trial
                | RowKind::Formation => self.apps.extend(key.app().cloned()),
                _ => {}
            }
        }
    }

    fn apps(&self, image: &Snapshot) -> Vec<AppName> {
        if self.all { image.apps.keys().cloned().collect() } else { self.apps.iter().cloned().collect() }
    }

    /// Takes up the apps whose time has come.
    fn pass(&mut self, now: Timestamp) {
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(_, at)| *at <= now);
        let due: BTreeMap<AppName, Timestamp> = due;
        self.apps.extend(due.into_keys());
        self.later = later;
    }

    fn done(&mut self) {
        (self.all, self.apps) = Default::default();
    }
}
