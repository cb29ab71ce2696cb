//! The engine: the one task that owns the state of the instances. It observes, plans and applies.
//!
//! Owns that state and the order of events. Effects run beside the engine, on the [`Runtime`], and answer by messages;
//! only the engine changes the state. Whatever wakes it, it looks at everything: the cause of the wake-up is only a
//! hint.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant as StdInstant},
};

use bazooka_daemon::{NotReady, supervisor::Pulse};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use visor::{
    keys::Key,
    links,
    mirror::Mirror,
    names::{AppName, Digest, EnvRef, HostName, InstanceId},
    planted::{Bug, planted},
    recover::Found,
    schema::{Check, Fault, Host, Incarnation},
    snapshot::Snapshot,
    store::Revision,
    visor::Visor,
};

use super::{
    archives::Offer,
    envs::{Custody, Source, forget_unused, read_plain},
    grace::PartitionGrace,
    held,
    metrics::Metrics,
    model::{Assigned, Locals, Phase, SlugState, Tick},
    observe::{Event, enact, observe},
    plan::{Plan, Step, plan},
    ports::Ports,
    records::Note,
    register::Registered,
    reports::{ReportOutcome, Reports},
    runtime::{Answers, Booting, Given, Message, Runtime},
    trace::{log_event, log_step},
    vault::Vault,
};

/// The most messages that are processed before the next plan.
const MESSAGES_AT_ONCE: usize = 256;

/// The longest time that the last reports may take after the last instance has ended.
const LAST_REPORTS: Duration = Duration::from_secs(2);

/// The parts that the engine works with.
pub struct Parts {
    /// The coordinator.
    pub visor: Visor,
    /// This host's name.
    pub host: HostName,
    /// The row that registers this host.
    pub row: Host,
    /// The machine.
    pub runtime: Box<dyn Runtime>,
    /// The host's keys, which open its envs.
    pub vault: Vault,
    /// The channel on which effects answer.
    pub answers: Answers,
    /// The receiving end of that channel.
    pub messages: mpsc::Receiver<Message>,
    /// The reports on the instances.
    pub reports: Reports,
    /// The instances' ports.
    pub ports: Ports,
    /// The state found at start.
    pub locals: Locals,
    /// The host's metrics.
    pub metrics: Metrics,
    /// The mirror of this host's assignments.
    pub mirror: Mirror<Snapshot>,
    /// The registration of the host, as it changes.
    pub registered: watch::Receiver<Registered>,
    /// Receives a message when the registration is in doubt.
    pub doubt: mpsc::Sender<()>,
    /// Receives the slugs that this host can serve to others.
    pub archives: watch::Sender<Offer>,
    /// Dropped once the host is registered and knows its assignments.
    pub not_ready: NotReady,
    /// The loop's life sign to systemd.
    pub pulse: Pulse,
    /// True if instances end before bazooka-pm ends.
    pub stop_all_at_exit: bool,
}

/// The engine.
pub struct Engine {
    visor: Visor,
    host: HostName,
    row: Host,
    runtime: Box<dyn Runtime>,
    custody: Custody,
    answers: Answers,
    messages: mpsc::Receiver<Message>,
    reports: Reports,
    ports: Ports,
    locals: Locals,
    metrics: Metrics,
    mirror: Mirror<Snapshot>,
    registered: watch::Receiver<Registered>,
    doubt: mpsc::Sender<()>,
    archives: watch::Sender<Offer>,
    not_ready: Option<NotReady>,
    pulse: Pulse,
    stop_all_at_exit: bool,

    /// The assignments; none before the first complete list.
    assigned: Option<Assigned>,
    /// The cluster's incarnation that these come from.
    incarnation: Option<Incarnation>,
    grace: PartitionGrace,
    /// The highest revision of a list so far. A list with a lower revision is from a coordinator that went back, and
    /// is ignored.
    seen_revision: Revision,
    /// Instances that may have changed since the last report and note.
    touched: BTreeSet<InstanceId>,
    notes: Vec<Note>,
    writing: bool,
    /// Set once all instances are to end with bazooka-pm.
    stopping: bool,
    look_again_at: Option<Tick>,
}

impl Engine {
    /// Creates an engine from its parts. It does nothing before [`Engine::run`].
    pub fn new(parts: Parts) -> Engine {
        let touched = parts.locals.instances.keys().copied().collect();
        Engine {
            visor: parts.visor,
            custody: Custody::new(parts.host.clone(), parts.vault),
            host: parts.host,
            row: parts.row,
            runtime: parts.runtime,
            answers: parts.answers,
            messages: parts.messages,
            reports: parts.reports,
            ports: parts.ports,
            locals: parts.locals,
            metrics: parts.metrics,
            mirror: parts.mirror,
            registered: parts.registered,
            doubt: parts.doubt,
            archives: parts.archives,
            not_ready: Some(parts.not_ready),
            pulse: parts.pulse,
            stop_all_at_exit: parts.stop_all_at_exit,
            assigned: None,
            incarnation: None,
            grace: PartitionGrace::default(),
            seen_revision: 0,
            touched,
            notes: Vec::new(),
            writing: false,
            stopping: false,
            look_again_at: None,
        }
    }

    /// Runs until `shutdown`; then, if instances end with bazooka-pm, until all have ended. Returns early if effects
    /// don't reach the engine any more.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.converge();
        let mut last_reports = None;
        loop {
            self.pulse.beat();
            if self.stopping && self.locals.instances.values().all(|local| local.has_ended()) {
                let deadline = *last_reports.get_or_insert_with(|| Instant::now() + LAST_REPORTS);
                if (self.reports.is_done() && !self.writing) || Instant::now() >= deadline {
                    break;
                }
            }
            let wake_at = self.wake_at(last_reports);
            // The order is fixed. The last branches wait only briefly, because each of the others takes everything
            // that is there.
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !self.stopping => {
                    if !self.stop_all_at_exit {
                        break;
                    }
                    tracing::info!("ending all instances");
                    self.stopping = true;
                }
                () = self.answers.broken() => break,
                Ok(()) = self.registered.changed() => self.take_up_registration(),
                Some(message) = self.messages.recv() => self.take_up(message),
                _ = self.mirror.next() => self.take_up_assignments(),
                () = sleep_until(wake_at) => {}
            }
            // Messages that have already arrived need no plan each.
            for _ in 0..MESSAGES_AT_ONCE {
                let Ok(message) = self.messages.try_recv() else { break };
                self.take_up(message);
            }
            self.converge();
        }
        // Write the decisions down for the next bazooka-pm.
        while (!self.notes.is_empty() || self.writing) && self.answers.fault().is_none() {
            self.write_notes();
            match self.messages.recv().await {
                Some(message) => self.take_up(message),
                None => break,
            }
        }
    }

    fn wake_at(&self, also: Option<Instant>) -> Instant {
        let mut at = Instant::now() + Duration::from_secs(3_600);
        if let Some(tick) = self.look_again_at {
            let wait = tick.0.saturating_sub(self.runtime.now().tick.0);
            at = at.min(Instant::now() + Duration::from_millis(wait));
        }
        self.reports.due_at().into_iter().chain(also).chain(self.pulse.due()).fold(at, Instant::min)
    }

    /// Reads the assignments from the mirror, if that can be believed.
    fn take_up_assignments(&mut self) {
        let image = self.mirror.image();
        if !self.mirror.is_synced() {
            return;
        }
        if image.revision < self.seen_revision {
            // The store was restored or emptied. Instances that it doesn't know run on.
            tracing::error!(
                revision = image.revision,
                before = self.seen_revision,
                "the coordinator has gone back in time; nothing is ended for what it does not say"
            );
            return;
        }
        self.seen_revision = image.revision;
        let view = image.hosts.get(&self.host);
        let instances = view.into_iter().flat_map(|view| &view.assigned);
        let instances: BTreeMap<InstanceId, _> =
            instances.map(|(id, assigned)| (*id, assigned.value.clone())).collect();
        let unreadable = image.unreadable.keys().filter_map(|key| match key.parse() {
            Ok(Key::Assigned(_, id)) => Some(id),
            _ => None,
        });
        let unreadable = unreadable.collect();
        self.incarnation = image.schema.as_ref().map(|schema| schema.incarnation());
        let incarnation = self.incarnation.as_ref();
        self.touched.extend(held::note_incarnation(&mut self.locals.instances, &instances, incarnation));
        let held = held::held(&self.locals.instances, &instances, incarnation);
        self.warn_of_held(&held);
        self.assigned = Some(Assigned { instances, unreadable, held });
        self.custody.take_up(self.mirror.image(), &mut self.locals.envs);
        self.become_ready();
    }

    /// Logs the instances that run on without the coordinator's knowledge, once for each set of them.
    fn warn_of_held(&self, held: &BTreeSet<InstanceId>) {
        let before = self.assigned.as_ref().map(|assigned| &assigned.held);
        if !held.is_empty() && before != Some(held) {
            let ids: Vec<String> = held.iter().map(ToString::to_string).collect();
            tracing::error!(
                instances = ids.join(" "),
                "the coordinator has never known these instances: it was restored, or is another; they run on"
            );
        }
    }

    /// Returns what this host has, for an rm that recovers the coordinator.
    fn found(&self) -> Found {
        let image = self.mirror.image();
        let rms = image.rms.values().filter_map(|rm| rm.seal_key.as_ref());
        let held = self.assigned.as_ref().map(|assigned| &assigned.held);
        Found {
            name: self.host.clone(),
            host: self.row.clone(),
            seen: self.mirror.newest_revision().max(self.seen_revision),
            incarnation: self.incarnation.clone(),
            instances: held::found(&self.locals.instances, held, self.row.address),
            envs: self.custody.found(&self.locals.envs, rms),
        }
    }

    /// Starts reading an env: as it was handed to this host or, where no converger and rm of this version have handed
    /// it, as an earlier version left it.
    fn read_env(&mut self, app: AppName, env: EnvRef) {
        match self.custody.source(self.mirror.image(), &app, env) {
            Source::Handed(handed) => self.runtime.keep_env(app, env, handed),
            Source::Failed(cause) => self.answers.seen(Event::EnvFailed(app, env, cause)),
            Source::Coordinator(no_key) => {
                let (visor, answers) = (self.visor.clone(), self.answers.clone());
                let reading = async move { answers.seen(read_plain(visor, app, env, no_key).await) };
                self.answers.spawn("the reading of an env", reading);
            }
        }
    }

    fn take_up_registration(&mut self) {
        let registered = *self.registered.borrow_and_update();
        if registered.is_none() {
            tracing::warn!(host = %self.host, "no longer registered; instances run on");
        } else if registered != self.reports.registered() {
            tracing::info!(host = %self.host, "registered");
        }
        self.grace.note(registered.is_some(), self.runtime.now().tick);
        self.reports.register(registered, self.locals.instances.keys().copied());
        // The row of the archives may be under the lease of an earlier registration.
        self.archives.send_modify(|offer| offer.registered = registered);
        self.become_ready();
    }

    fn become_ready(&mut self) {
        if self.reports.registered().is_some() && self.assigned.is_some() {
            drop(self.not_ready.take());
        }
    }

    fn take_up(&mut self, message: Message) {
        match message {
            Message::Seen(Event::PlainEnvRead(app, env, vars)) => {
                let handed = self.custody.keep(&app, env, &vars);
                self.runtime.keep_env(app, env, handed);
            }
            // Handed envs and assignments are watched separately, so the later of two writes may be seen first.
            Message::Seen(Event::EnvMissing(app, env, _))
                if self.custody.handed(self.mirror.image(), &app, env).is_some() =>
            {
                self.read_env(app, env);
            }
            Message::Seen(Event::EnvMissing(app, env, cause)) => {
                self.take_up(Message::Seen(Event::EnvFailed(app, env, cause)));
            }
            Message::Seen(event) => {
                self.count(&event);
                log_event(&event);
                let now = self.runtime.now();
                self.touched.extend(observe(&mut self.locals, event, now));
            }
            Message::Reported(statuses, result) => {
                let assigned = self.assigned.as_ref();
                let is_assigned = |id| assigned.is_some_and(|all| all.instances.contains_key(&id));
                match self.reports.take_up(statuses, result, is_assigned) {
                    ReportOutcome::Written(stand) => self.touched.extend(stand),
                    ReportOutcome::Failed => self.metrics.report_failed(),
                    ReportOutcome::RegistrationStale(stand) => {
                        self.touched.extend(stand);
                        // If a doubt is already queued, that one is enough.
                        let _ = self.doubt.try_send(());
                    }
                }
            }
            Message::Written => self.writing = false,
            // The caller may have gone.
            Message::Asked(answer) => drop(answer.send(self.found())),
        }
    }

    fn count(&self, event: &Event) {
        match event {
            Event::Exited { exit, .. } => self.metrics.exited(exit),
            Event::Started { .. } => {}
            Event::StartFailed { .. } => self.metrics.start_failed(),
            Event::SlugFetched(_, fetched) => self.metrics.slug_came(fetched.from),
            Event::SlugReady(_) => self.metrics.slug_fetched(true),
            Event::SlugFailed(..) => self.metrics.slug_fetched(false),
            _ => {}
        }
    }

    /// Plans and applies until no step is left, then reports and notes what changed.
    fn converge(&mut self) {
        let begun = StdInstant::now();
        // Each step changes the state so that it isn't planned again. The bound guards against an error in that.
        for _ in 0..16 {
            let plan = self.plan();
            self.look_again_at = plan.look_again_at;
            if plan.steps.is_empty() {
                break;
            }
            for (step, reason) in plan.steps {
                log_step(&step, &reason);
                enact(&mut self.locals, &step, self.runtime.now());
                self.apply(step);
            }
        }
        self.show_booting();
        self.collect_slugs();
        self.show_archives();
        self.note_changes();
        self.reports.report(&self.locals.instances);
        self.write_notes();
        self.metrics.converged(begun.elapsed(), &self.locals);
        self.say_status();
    }

    /// Updates the line that `systemctl status` shows.
    fn say_status(&mut self) {
        let (host, stands) = (&self.host, self.reports.registered().is_some());
        let running = self.locals.instances.values().filter(|local| !local.has_ended()).count();
        self.pulse.status(|| match stands {
            true => format!("{host} is registered; instances: {running}"),
            false => {
                format!("{host} is not registered: the coordinator does not answer; instances: {running}")
            }
        });
    }

    fn plan(&self) -> Plan {
        let (nothing, now) = (Assigned::default(), self.runtime.now().tick);
        let assigned = if self.stopping { Some(&nothing) } else { self.assigned.as_ref() };
        let serve_until = if self.stopping { now } else { self.grace.serve_until(now) };
        let may_claim = self.reports.registered().is_some() && !self.stopping;
        let mut plan = plan(assigned, &self.locals, may_claim, serve_until, now);
        if self.stopping {
            // These instances are still assigned, and the next bazooka-pm must know that they have ended.
            plan.steps.retain(|(step, _)| !matches!(step, Step::Forget(_)));
        }
        plan
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Claim(id, _)
            | Step::Decline(id, _)
            | Step::Note(id, _)
            | Step::Retry(id)
            | Step::Pass(id)
            | Step::Finish(id) => {
                self.touched.insert(id);
            }
            Step::Fetch(digest) => self.runtime.fetch(&self.visor, digest),
            Step::ReadEnv(app, env) => self.read_env(app, env),
            Step::Start(id) => {
                self.touched.insert(id);
                self.start(id);
            }
            Step::Adopt(id) => {
                if let Some(local) = self.locals.instances.get(&id) {
                    self.runtime.adopt(id, local.run, local.started_at);
                }
            }
            Step::End(id, why) => {
                self.touched.insert(id);
                if let Some(local) = self.locals.instances.get(&id) {
                    self.runtime.end(id, why, local);
                }
            }
            Step::Force(id) => self.runtime.kill(id),
            Step::Forget(id) => {
                self.reports.forget(id);
                self.notes.push(Note::Archive(id));
                for (app, env) in forget_unused(&mut self.locals.envs, self.locals.instances.values()) {
                    self.runtime.forget_env(&app, env);
                }
            }
        }
    }

    /// Starts an instance whose slug and env are here.
    fn start(&mut self, id: InstanceId) {
        let (used_ports, used_uids) = self.in_use(id);
        let Some(local) = self.locals.instances.get_mut(&id) else { return };
        let run = local.run;
        let refused = |fault, cause: &str| Event::StartFailed { id, run, fault, cause: cause.to_owned() };
        let runtime = &mut self.runtime;
        // Keep the instance's own port, unless another process has taken it meanwhile.
        let kept = local.port.filter(|port| runtime.is_free(*port));
        let Some(port) = kept.or_else(|| self.ports.choose(&used_ports, |port| runtime.is_free(port))) else {
            return self.answers.seen(refused(Fault::NoPort, "no port is free on this host"));
        };
        local.port = Some(port);
        if local.uid.is_none_or(|uid| !runtime.keeps_user(uid)) {
            let used_uids = if planted(Bug::UserIsGivenTwice) { BTreeSet::new() } else { used_uids };
            match runtime.user(&used_uids) {
                Ok(uid) => local.uid = uid,
                Err(error) => return self.answers.seen(refused(Fault::Host, &error.to_string())),
            }
        }
        let assignment = &local.assignment;
        let (app, env) = (&assignment.app, assignment.env);
        let nothing = BTreeSet::new();
        let (vars, links) = match self.custody.vars(&self.locals.envs, app, env) {
            Ok((vars, links)) => (vars, links.unwrap_or(&nothing)),
            Err(error) => {
                let cause = format!("can't open its config vars ({env}): {error}");
                return self.answers.seen(refused(Fault::Host, &cause));
            }
        };
        let services = match links::variables(links, &assignment.links, self.row.services.as_ref()) {
            Ok(services) => services,
            Err(cause) => return self.answers.seen(refused(Fault::Host, &cause.to_string())),
        };
        self.metrics.start();
        tracing::debug!(instance = %id, app = %assignment.app, proc = %assignment.proc, port, "starting");
        self.runtime.start(id, local, Given { vars: &vars, services: &services });
    }

    /// Returns the ports and users of all instances but one. An instance has them until it ends.
    fn in_use(&self, but: InstanceId) -> (BTreeSet<u16>, BTreeSet<u32>) {
        let others = self.locals.instances.iter().filter(|(id, local)| **id != but && !local.has_ended());
        let (mut ports, mut uids) = (BTreeSet::new(), BTreeSet::new());
        for (_, local) in others {
            ports.extend(local.port);
            uids.extend(local.uid);
        }
        (ports, uids)
    }

    /// Passes the booting instances that have to pass a check to the machine.
    fn show_booting(&mut self) {
        let booting = self.locals.instances.iter().filter_map(|(id, local)| {
            let (Phase::Booting { since }, Some(port)) = (&local.phase, local.port) else { return None };
            let check = local.assignment.run.check_for(&local.assignment.proc);
            let booting = Booting { run: local.run, since: *since, port, uid: local.uid, check };
            (booting.check != Check::Started).then_some((*id, booting))
        });
        self.runtime.check(booting.collect());
    }

    /// Removes the oldest unused slugs.
    fn collect_slugs(&mut self) {
        let used: BTreeSet<&Digest> =
            self.locals.instances.values().map(|local| &local.assignment.slug.sha256).collect();
        let unused = self
            .locals
            .slugs
            .iter()
            .filter(|(digest, state)| **state == SlugState::Ready && !used.contains(digest));
        let unused: Vec<Digest> = unused.map(|(digest, _)| digest.clone()).collect();
        for digest in self.runtime.discard(unused) {
            self.locals.slugs.remove(&digest);
            self.locals.archives.remove(&digest);
        }
    }

    /// Passes the slugs that this host can serve to the task that reports them.
    fn show_archives(&self) {
        self.archives.send_if_modified(|before| {
            let differs = before.slugs != self.locals.archives;
            if differs {
                before.slugs.clone_from(&self.locals.archives);
            }
            differs
        });
    }

    /// Queues each change for the reports and the notes.
    fn note_changes(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            let Some(local) = self.locals.instances.get_mut(&id) else { continue };
            if local.incarnation.is_none() {
                local.incarnation = self.incarnation.clone();
            }
            self.reports.note(id, local);
            if local.run > 0 || local.has_ended() {
                self.notes.push(Note::Keep(id, Box::new(local.clone())));
            }
        }
    }

    fn write_notes(&mut self) {
        if self.writing || self.notes.is_empty() {
            return;
        }
        // The last note on an instance supersedes the earlier ones.
        let mut last = BTreeMap::new();
        for note in std::mem::take(&mut self.notes) {
            let (Note::Keep(id, _) | Note::Archive(id)) = &note;
            last.insert(*id, note);
        }
        self.writing = true;
        self.runtime.write(last.into_values().collect());
    }
}
