//! The converger's loop: wait for the election, then observe, plan, apply.
//!
//! Owns who leads, and when a view is fresh enough to act on:
//!
//! ```text
//! waiting ──nobody leads──▶ leading ──lease lost, or another leads──▶ waiting
//!                              │
//!    a plan is made only on a synced view that is at least as new as the last own write and the election;
//!    after a lost reply, only once the outcome of that write is settled
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::{Duration, Instant},
};

use bazooka_daemon::{NotReady, supervisor::Pulse};
use tokio_util::sync::CancellationToken;
use visor::{
    clock::WallClock,
    deadlines::COUNTED_EVERY,
    keys::{self, Key},
    lease::{KeeperPanicked, LeaseKeeper},
    mirror::{Changes, Mirror},
    names::AppName,
    pause::Doubling,
    pause::until,
    planted::{Bug, planted},
    schema::{Extra, Frozen, Leader},
    snapshot::Snapshot,
    stats::{count, next_day},
    store::Revision,
    transitions::{
        envs::are_of_registrations,
        placement::{Outcome, Term, counting},
        presence::unfrozen,
    },
    visor::{Change, Visor, VisorError},
};

use super::{
    agenda::Agenda,
    apply::{Applied, apply},
    facts::{Instances, Reader},
    memory::{Memory, Now},
    metrics::ConvergerMetrics,
    plan::plan_apps,
    step::Plan,
    tally::Tally,
};

/// The pause after the coordinator failed.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(50), Duration::from_secs(2));

/// The longest time that resigning may take. Otherwise the lease ends by itself.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A converger at work.
pub(super) struct Lead {
    visor: Visor,
    keeper: LeaseKeeper,
    mirror: Mirror<Snapshot>,
    /// True once the mirror has the private rows too.
    reads_private: bool,
    metrics: ConvergerMetrics,
    leader: Leader,
    wall: WallClock,
    not_ready: Option<NotReady>,
    pulse: Pulse,
    memory: Memory,
    term: Option<Term>,
    /// The revision that the view must have reached before the converger acts on it.
    needs: Revision,
    doubtful: bool,
    agenda: Agenda,
    tally: Tally,
    failures: u32,
    retry_at: Option<Instant>,
    blocked: BTreeMap<AppName, String>,
    /// True if something that the days' statistics count may have changed.
    uncounted: bool,
    /// The days are not counted again before this time.
    count_at: Option<Instant>,
    /// The end of the current day, when its count starts anew.
    day_ends: Option<Instant>,
}

impl Lead {
    pub fn new(
        visor: Visor,
        keeper: LeaseKeeper,
        metrics: ConvergerMetrics,
        leader: Leader,
        wall: WallClock,
        not_ready: NotReady,
        pulse: Pulse,
    ) -> Self {
        Lead {
            mirror: Mirror::new(visor.store().clone(), keys::everything(), Snapshot::default()),
            reads_private: false,
            visor,
            keeper,
            metrics,
            leader,
            wall,
            not_ready: Some(not_ready),
            pulse,
            memory: Memory::default(),
            term: None,
            needs: 0,
            doubtful: false,
            agenda: Agenda::default(),
            tally: Tally::default(),
            failures: 0,
            retry_at: None,
            blocked: BTreeMap::new(),
            uncounted: true,
            count_at: None,
            day_ends: None,
        }
    }

    /// Waits for the election and leads until shutdown; then hands over at once.
    ///
    /// # Errors
    /// If there can be no lease any more: this process can never be elected again.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), KeeperPanicked> {
        let mut lease = self.keeper.state();
        // Where this fails, the first list tells.
        let schema = tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(None),
            schema = self.visor.get(&Key::Schema) => schema,
        };
        if let Ok(schema) = schema
            && are_of_registrations(&Snapshot { schema, ..Snapshot::default() })
        {
            self.read_private();
        }
        loop {
            self.pulse.beat();
            let elected = self.term.is_some();
            self.pulse.status(|| if elected { "elected" } else { "standing by" }.to_owned());
            let wake = self.wakes_at();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                changed = lease.changed() => changed.map_err(|_| KeeperPanicked)?,
                changes = self.mirror.next() => self.note(&changes),
                () = until(wake.map(tokio::time::Instant::from_std)) => {}
            }
            // Cancelling a round leaves a few transactions uncertain. They can't be carried out once the term has
            // ended.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.round() => {}
            }
        }
        if let Some(term) = self.term.take() {
            let left = tokio::time::timeout(LEAVE_TIMEOUT, self.visor.resign(term)).await;
            tracing::info!(in_time = left.is_ok_and(|left| left.is_ok()), "handed over");
        }
        self.metrics.leader.set(0);
        self.keeper.release().await;
        Ok(())
    }

    /// Marks what changed in the image for the agenda, the tally and the days' count.
    fn note(&mut self, changes: &Changes) {
        self.agenda.note(changes, self.mirror.image(), &self.memory);
        self.tally.note(changes, self.mirror.image());
        let (apps, counter) = (keys::apps(), Key::InstanceCounter.to_string());
        let is_counted = |key: &String| apps.contains(key) || *key == counter;
        self.uncounted |= changes.relisted || changes.keys.iter().any(is_counted);
    }

    /// Reads private rows too, from the version of the schema on in which there are some: a bazooka-rm of an earlier release
    /// gives nobody the right to.
    fn read_private(&mut self) {
        self.reads_private = true;
        let scopes = keys::everything_and_private();
        self.mirror = Mirror::new(self.visor.store().clone(), scopes, Snapshot::default());
    }

    /// Returns the revision up to which the image has every change but those of private rows, which come by a watch of
    /// their own. No step needs to see its predecessor there: each is guarded on the row itself.
    fn reached(&self) -> Revision {
        self.mirror.scope_revision(0)
    }

    fn wakes_at(&self) -> Option<Instant> {
        let count_at = self.count_at.filter(|_| self.uncounted);
        let timers = self.agenda.next_look().into_iter().chain(count_at).chain(self.day_ends).min();
        // Due work can't start before the view is fresh. That arrives as an event; a timer would only spin.
        let in_touch = self.mirror.is_synced();
        let able = self.term.is_some() && self.retry_at.is_none() && in_touch && self.reached() >= self.needs;
        let timers = timers.filter(|_| able);
        let sign = self.pulse.due().map(tokio::time::Instant::into_std);
        timers.into_iter().chain(self.retry_at.filter(|_| in_touch)).chain(sign).min()
    }

    async fn round(&mut self) {
        if self.mirror.is_synced() && !self.reads_private && are_of_registrations(self.mirror.image()) {
            self.read_private();
        }
        if !self.mirror.is_synced() {
            self.check_term();
            return;
        }
        self.not_ready = None;
        let now = Now { clock: tokio::time::Instant::now().into_std(), wall: self.wall.now() };
        if self.retry_at.is_some_and(|at| at <= now.clock) {
            self.retry_at = None;
        }
        if self.retry_at.is_some() {
            self.check_term();
            return;
        }
        match self.lead(now).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                if self.failures == 0 {
                    tracing::warn!(error, "the coordinator failed; trying again");
                }
                self.pause(now);
            }
        }
    }

    fn pause(&mut self, now: Now) {
        self.retry_at = Some(now.clock + PAUSE.after(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// Stops leading as soon as the lease has ended or the election holds another process's row.
    fn check_term(&mut self) {
        let Some(term) = self.term else { return };
        let image = self.mirror.image();
        let elected = image.leader.as_ref().map(|leader| leader.create_revision);
        let deposed = self.reached() >= term.create_revision && elected != Some(term.create_revision);
        let over = self.keeper.held() != Some(term.lease) || deposed;
        if over && !planted(Bug::DeposedConvergerGoesOn) {
            tracing::warn!("no longer elected");
            self.term = None;
            self.doubtful = false;
            self.metrics.leader.set(0);
        }
    }

    async fn lead(&mut self, now: Now) -> Result<(), VisorError> {
        self.check_term();
        if self.term.is_none() {
            self.campaign(now).await?;
        }
        self.agenda.observe_hosts(self.mirror.image(), &mut self.memory, now);
        let Some(term) = self.term else {
            // Standbys remember too, so that they know what they saw when they take over.
            observe_apps(self.mirror.image(), &self.agenda, &mut self.memory, now);
            // A newly elected converger looks at all apps.
            self.agenda = Agenda::default();
            return Ok(());
        };
        if self.reached() < self.needs {
            return Ok(());
        }
        if self.doubtful {
            return self.settle(term, now).await;
        }
        let term = self.say_frozen(term, now).await?;
        self.clear_unfreeze(term).await?;
        if self.doubtful {
            return Ok(());
        }
        self.count_days(term, now).await?;
        self.converge(term, now).await
    }

    /// Updates the days' statistics, at most once in [`COUNTED_EVERY`]. They are counted from the current rows, so the
    /// result doesn't depend on when this runs.
    async fn count_days(&mut self, term: Term, now: Now) -> Result<(), VisorError> {
        let image = self.mirror.image();
        // Count an app's revs and releases before its rows are deleted.
        let goes = || image.apps.values().any(|view| view.app.as_ref().is_some_and(|app| app.destroying));
        let has_come = |at: Option<Instant>| at.is_none_or(|at| at <= now.clock);
        let due = has_come(self.day_ends) || (self.uncounted && (has_come(self.count_at) || goes()));
        if !due {
            return Ok(());
        }
        let changes: Vec<Change> = count(image, now.wall).iter().map(counting).collect();
        let outcomes = self.visor.commit_all(term, changes).await?;
        // A count that was not written, or perhaps not, is made again from the rows of that time.
        self.uncounted = outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Done(_)));
        self.count_at = Some(now.clock + COUNTED_EVERY);
        let day = next_day(now.wall).and_then(|at| Duration::try_from(at.duration_since(now.wall)).ok());
        self.day_ends = Some(now.clock + day.unwrap_or(COUNTED_EVERY));
        Ok(())
    }

    /// Campaigns in the election if no process leads.
    async fn campaign(&mut self, now: Now) -> Result<(), VisorError> {
        let Some(lease) = self.keeper.held() else { return Ok(()) };
        let won = match &self.mirror.image().leader {
            // The reply was lost, but the election was won.
            Some(held) if held.lease == Some(lease) => Term::of(held),
            Some(_) => return Ok(()),
            None => {
                self.leader = Leader { since: now.wall, frozen: None, ..self.leader.clone() };
                self.visor.campaign(&self.leader, lease).await?
            }
        };
        match won {
            Some(term) => {
                tracing::info!(name = %self.leader.name, revision = term.create_revision, "elected");
                self.term = Some(term);
                // The previous leader's writes came before this revision.
                self.needs = term.create_revision;
                self.agenda.look_at_all();
                self.metrics.leader.set(1);
            }
            // A rival's win arrives as an event; a lost request doesn't.
            None => self.retry_at = Some(now.clock + PAUSE.longest()),
        }
        Ok(())
    }

    /// Settles the outcome of writes whose reply was lost, by a write of its own.
    async fn settle(&mut self, term: Term, now: Now) -> Result<(), VisorError> {
        match self.visor.settle(term, &self.leader).await? {
            Outcome::Done(revision) => {
                self.term = Some(Term { mod_revision: revision, ..term });
                self.needs = revision;
                self.doubtful = false;
                self.failures = 0;
            }
            Outcome::Conflict | Outcome::Unknown => self.pause(now),
        }
        Ok(())
    }

    /// Writes down that hosts are frozen, or no longer so. Returns the term with its new revision.
    async fn say_frozen(&mut self, mut term: Term, now: Now) -> Result<Term, VisorError> {
        let frozen = self.memory.hosts.frozen();
        self.metrics
            .frozen_hosts
            .set(frozen.map_or(0, |hosts| i64::try_from(hosts.len()).unwrap_or(i64::MAX)));
        if self.leader.frozen.as_ref().map(|said| &said.hosts) == frozen {
            return Ok(term);
        }
        let since = self.leader.frozen.as_ref().map_or(now.wall, |said| said.since);
        let said = frozen.map(|hosts| Frozen { since, hosts: hosts.clone(), extra: Extra::new() });
        match &said {
            Some(frozen) => tracing::error!(
                hosts = ?frozen.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "too many hosts vanished at once: none is given up until enough of them return",
            ),
            None => tracing::info!("enough hosts have returned: those still gone are given up"),
        }
        let leader = Leader { frozen: said, ..self.leader.clone() };
        match self.visor.update_leader(term, &leader).await? {
            Outcome::Done(revision) => {
                term.mod_revision = revision;
                self.term = Some(term);
                self.needs = self.needs.max(revision);
                self.leader = leader;
            }
            Outcome::Conflict => {}
            Outcome::Unknown => {
                self.leader = leader;
                self.doubtful = true;
                self.pause(now);
            }
        }
        Ok(term)
    }

    /// Deletes the `unfreeze` row once every host that it names has returned or has no instances left.
    async fn clear_unfreeze(&mut self, term: Term) -> Result<(), VisorError> {
        let Some(word) = &self.mirror.image().unfreeze else { return Ok(()) };
        if self.memory.hosts.unfreeze_is_over() {
            // The next round tries again if this write isn't carried out.
            self.visor.commit_all(term, vec![unfrozen(word)]).await?;
        }
        Ok(())
    }

    /// Plans the apps that are due and applies the plan.
    async fn converge(&mut self, term: Term, now: Now) -> Result<(), VisorError> {
        let began = Instant::now();
        let snapshot = self.mirror.image();
        let (apps, instances) = observe_apps(snapshot, &self.agenda, &mut self.memory, now);
        if apps.is_empty() {
            return Ok(());
        }
        let plan = plan_apps(snapshot, &self.tally, &self.memory, &instances, now);
        let kinds: Vec<&'static str> = plan.steps.iter().map(|step| step.act.kind()).collect();
        self.metrics.planned(began.elapsed(), kinds.iter());
        let pending: usize = snapshot.apps.values().map(|view| view.pending.len()).sum();
        self.metrics.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.agenda.planned(&apps, &plan);
        self.say_blocked(&apps, &plan);
        let visor = self.visor.clone();
        let mut applying = pin!(apply(&visor, term, self.mirror.image(), &plan, now.wall));
        // Read the watch while the plan is applied: etcd falls behind with a watch that nobody reads.
        let Applied { revision, doubtful, overtaken, error } = loop {
            tokio::select! {
                biased;
                applied = &mut applying => break applied,
                changes = self.mirror.next() => self.note(&changes),
            }
        };
        self.needs = self.needs.max(revision);
        self.doubtful |= doubtful;
        if !overtaken.is_empty() {
            self.metrics.overtaken();
            // The change that overtook the step is on its way and marks the app. This timer covers the case that it
            // does not.
            let soon = now.clock + PAUSE.longest();
            overtaken.into_iter().for_each(|app| self.agenda.look_again_at(app, soon));
        }
        if let Some(error) = error {
            self.agenda.look_at_all();
            return Err(error);
        }
        if self.doubtful {
            self.agenda.look_at_all();
            self.retry_at = Some(now.clock);
        }
        Ok(())
    }

    /// Logs once for each blocked app that it is left alone, and why.
    fn say_blocked(&mut self, planned: &BTreeSet<AppName>, plan: &Plan) {
        for (app, why) in &plan.blocked {
            if self.blocked.get(app) != Some(why) {
                tracing::error!(%app, reason = %why, "the app's rows can't be acted on; it is left alone");
            }
        }
        self.blocked.retain(|app, _| !planned.contains(app));
        self.blocked.extend(plan.blocked.clone());
        self.metrics.blocked_apps.set(i64::try_from(self.blocked.len()).unwrap_or(i64::MAX));
    }
}

/// Records in the memory what the due apps' rows show. Returns these apps with their instances.
fn observe_apps<'a>(
    snapshot: &'a Snapshot,
    agenda: &Agenda,
    memory: &mut Memory,
    now: Now,
) -> (BTreeSet<AppName>, Instances<'a>) {
    let apps = agenda.due(snapshot, now);
    if apps.is_empty() {
        return Default::default();
    }
    let instances = Reader::of(snapshot).apps(&apps);
    for app in &apps {
        let of_app = instances.get(app).map_or(&[][..], Vec::as_slice);
        memory.observe_app(snapshot, app, of_app, now);
    }
    (apps, instances)
}
