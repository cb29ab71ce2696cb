//! A host whose processes are simulated: the rules hold for random events in random order.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use visor::{
    names::{EnvRef, InstanceId, ReleaseId},
    schema::{Assignment, Desired, Exit, Extra, Fault, RunSettings, Slug},
};

use super::{
    model::{Assigned, Locals, Now, Phase, SlugState, Tick},
    observe::{Event, enact, observe},
    plan::{Step, plan},
};

/// Returns an assignment of a proc of this name.
pub fn assignment(proc: &str) -> Assignment {
    Assignment {
        desired: Desired::Run,
        reason: None,
        app: "rocket".parse().expect("valid"),
        proc: proc.parse().expect("valid"),
        release: ReleaseId(1),
        rev: "16f7cbf0123456789012345678901234567890ab".parse().expect("valid"),
        env: EnvRef(0),
        slug: Slug { sha256: "ab".repeat(32).parse().expect("valid"), size_bytes: 1 },
        command: "run".into(),
        index: 0,
        run: RunSettings::default(),
        links: Default::default(),
        sources: Vec::new(),
        trial: false,
        extra: Extra::new(),
    }
}

/// Returns both clocks, `millis` after they began.
pub fn at(millis: u64) -> Now {
    let at = Timestamp::from_millisecond(1_700_000_000_000 + millis as i64).expect("in range");
    Now { tick: Tick(millis), at }
}

/// A random event.
#[derive(Clone, Debug)]
enum Happening {
    Assign(u64, bool),
    Want(u64, Desired),
    Unassign(u64),
    /// The n-th answer under way arrives.
    Answer(usize),
    /// A process ends by itself, after so many ms.
    Crash(u64, u64),
    Healthy(u64),
    PortTaken(u64),
    /// Time passes, in ms.
    Pass(u64),
    /// bazooka-pm dies and the next one takes over. The notes may lag behind.
    Die(bool),
    SlugFails,
}

/// The simulated machine, as it really is.
#[derive(Default)]
struct Machine {
    assigned: Assigned,
    locals: Locals,
    noted: Locals,
    /// The live processes, and whether each has been told to end.
    processes: BTreeMap<(InstanceId, u32), bool>,
    /// The last start of each instance that ever was, as the folders show it.
    runs: BTreeMap<InstanceId, u32>,
    answers: Vec<Event>,
    now: u64,
}

impl Machine {
    fn exited(id: InstanceId, run: u32, ran_ms: u64, now: u64) -> Event {
        let exit = Exit {
            at: at(now).at,
            code: Some(1),
            signal: None,
            out_of_memory: false,
            ran_ms,
            extra: Extra::new(),
        };
        Event::Exited { id, run, exit, words: "exited with status 1".into(), last_output: Vec::new() }
    }

    fn started(&self, id: InstanceId, run: u32) -> Event {
        Event::Started { id, run, pid: 1, started_at: at(self.now).at, since: Tick(self.now) }
    }

    fn process_of(&self, id: InstanceId) -> Option<(InstanceId, u32)> {
        self.processes.keys().find(|(of, _)| *of == id).copied()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Assign(id, trial) => {
                // Ids are never reused.
                if !self.runs.contains_key(&InstanceId(id)) {
                    let proc = if id % 2 == 0 { "web" } else { "job" };
                    let assignment = Assignment { trial, ..assignment(proc) };
                    self.assigned.instances.entry(InstanceId(id)).or_insert(assignment);
                }
            }
            Happening::Want(id, desired) => {
                if let Some(assigned) = self.assigned.instances.get_mut(&InstanceId(id)) {
                    assigned.desired = assigned.desired.max(desired);
                }
            }
            Happening::Unassign(id) => {
                if self.assigned.instances.remove(&InstanceId(id)).is_some() {
                    self.runs.entry(InstanceId(id)).or_insert(0);
                }
            }
            Happening::Answer(n) => {
                if !self.answers.is_empty() {
                    let event = self.answers.remove(n % self.answers.len());
                    observe(&mut self.locals, event, at(self.now));
                }
            }
            Happening::Crash(id, ran) => {
                if let Some((id, run)) = self.process_of(InstanceId(id)) {
                    self.processes.remove(&(id, run));
                    self.answers.push(Machine::exited(id, run, ran, self.now));
                }
            }
            Happening::Healthy(id) => {
                if let Some((id, run)) = self.process_of(InstanceId(id)) {
                    self.answers.push(Event::Healthy { id, run, how: "listens".into() });
                }
            }
            Happening::PortTaken(id) => {
                if let Some((id, run)) = self.process_of(InstanceId(id)) {
                    self.answers.push(Event::PortTaken { id, run, by: "somebody listens".into() });
                }
            }
            Happening::Pass(ms) => self.now += ms,
            Happening::Die(lagging) => self.die(lagging),
            Happening::SlugFails => {
                let digest = assignment("web").slug.sha256;
                if self.locals.slugs.get(&digest) == Some(&SlugState::Fetching) {
                    self.answers.retain(|event| !matches!(event, Event::SlugReady(_)));
                    self.answers.push(Event::SlugFailed(digest, "it is broken".into()));
                }
            }
        }
        self.converge();
        if self.now % 3 == 0 {
            self.noted = self.locals.clone();
        }
    }

    /// Restarts bazooka-pm from its notes and the starts' folders, as `records::recover` does.
    fn die(&mut self, lagging: bool) {
        let noted = if lagging { self.noted.clone() } else { self.locals.clone() };
        self.answers.clear();
        let mut instances = noted.instances;
        // A forgotten instance has no folder any more.
        instances.retain(|id, _| self.locals.instances.contains_key(id));
        for (id, local) in &self.locals.instances {
            // The spec of a start tells of an instance on which no note was written.
            if self.runs.get(id).is_some_and(|run| *run > 0) {
                instances.entry(*id).or_insert_with(|| local.clone());
            }
        }
        for (id, local) in &mut instances {
            let last = self.runs.get(id).copied().unwrap_or(0);
            let newer = last > local.run;
            local.run = local.run.max(last);
            if newer || local.may_run() || self.processes.contains_key(&(*id, last)) {
                local.phase = Phase::Found;
            }
        }
        self.locals = Locals { instances, ..Locals::default() };
    }

    fn converge(&mut self) {
        for round in 0.. {
            assert!(round < 20, "it never comes to rest: {:#?}", self.locals);
            let plan = plan(Some(&self.assigned), &self.locals, true, Tick(0), Tick(self.now));
            if plan.steps.is_empty() {
                return;
            }
            for (step, _) in plan.steps {
                enact(&mut self.locals, &step, at(self.now));
                self.apply(step);
            }
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Fetch(digest) => self.answers.push(Event::SlugReady(digest)),
            Step::Start(id) => {
                let run = self.locals.instances[&id].run;
                assert!(self.process_of(id).is_none(), "{id} is started a second time");
                assert!(self.runs.get(&id).is_none_or(|last| *last < run), "start {run} of {id} was before");
                self.runs.insert(id, run);
                self.processes.insert((id, run), false);
                self.answers.push(self.started(id, run));
            }
            Step::Adopt(id) => {
                let run = self.locals.instances[&id].run;
                let event = if self.processes.contains_key(&(id, run)) {
                    self.started(id, run)
                } else if run % 2 == 0 {
                    Event::NotStarted { id, run, words: "cut short".into() }
                } else {
                    Machine::exited(id, run, 1, self.now)
                };
                self.answers.push(event);
            }
            Step::End(id, _) | Step::Force(id) => {
                if let Some(process) = self.process_of(id) {
                    self.processes.remove(&process);
                    self.answers.push(Machine::exited(process.0, process.1, 5, self.now));
                }
            }
            Step::Forget(id) => assert!(self.process_of(id).is_none(), "{id} is forgotten while it runs"),
            Step::ReadEnv(..)
            | Step::Claim(..)
            | Step::Note(..)
            | Step::Retry(_)
            | Step::Pass(_)
            | Step::Finish(_)
            | Step::Decline(..) => {}
        }
    }

    fn check(&self) {
        let mut seen = BTreeSet::new();
        for (id, _) in self.processes.keys() {
            assert!(seen.insert(*id), "two processes of {id}");
        }
    }

    /// Delivers every answer under way and lets time pass without crashes.
    fn settle(&mut self) {
        for _ in 0..60 {
            while !self.answers.is_empty() {
                self.happen(Happening::Answer(0));
            }
            for id in self.assigned.instances.keys().copied().collect::<Vec<_>>() {
                self.happen(Happening::Healthy(id.0));
            }
            self.happen(Happening::Pass(40_000));
        }
    }
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let id = 0..4_u64;
    let desired = prop_oneof![Just(Desired::Drain), Just(Desired::Stop)];
    let one = prop_oneof![
        3 => (id.clone(), any::<bool>()).prop_map(|(id, trial)| Happening::Assign(id, trial)),
        1 => (id.clone(), desired).prop_map(|(id, desired)| Happening::Want(id, desired)),
        1 => id.clone().prop_map(Happening::Unassign),
        8 => (0..8_usize).prop_map(Happening::Answer),
        3 => (id.clone(), prop_oneof![Just(10), Just(700_000)]).prop_map(|(id, ran)| Happening::Crash(id, ran)),
        3 => id.clone().prop_map(Happening::Healthy),
        1 => id.prop_map(Happening::PortTaken),
        3 => prop_oneof![Just(1), Just(150), Just(61_000)].prop_map(Happening::Pass),
        1 => any::<bool>().prop_map(Happening::Die),
        1 => Just(Happening::SlugFails),
    ];
    prop::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_there_is_one_process_at_most_and_in_the_end_what_is_wanted_runs(happenings in happenings()) {
        let mut machine = Machine::default();
        for happening in happenings {
            machine.happen(happening);
            machine.check();
        }
        machine.settle();
        for (id, assigned) in &machine.assigned.instances {
            let phase = &machine.locals.instances[id].phase;
            let has_process = machine.process_of(*id).is_some();
            match assigned.desired {
                Desired::Run => {
                    let failed = matches!(phase, Phase::Ended { fault: Some(Fault::App | Fault::Host) });
                    prop_assert!((*phase == Phase::Running && has_process) || (failed && !has_process), "{id}: {phase:?}");
                }
                Desired::Drain => {
                    let ended = matches!(phase, Phase::Ended { .. });
                    prop_assert!((*phase == Phase::Running) == has_process && (has_process || ended), "{id}: {phase:?}");
                }
                Desired::Stop => prop_assert!(matches!(phase, Phase::Ended { .. }) && !has_process, "{id}: {phase:?}"),
            }
        }
        for id in machine.locals.instances.keys() {
            prop_assert!(machine.assigned.instances.contains_key(id), "{id} is not forgotten");
        }
        for (id, _) in machine.processes.keys() {
            prop_assert!(machine.assigned.instances.contains_key(id), "{id} still runs");
        }
    }
}
