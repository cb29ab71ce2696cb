//! Random days of a small cluster: what is wanted runs in the end, and no serving instance is stopped on the way.
//!
//! The test works on images alone: it writes each planned step at once, and hosts and proxies do their part or don't.
//! Each plan is made twice, over all apps and over those that the agenda names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use visor::{
    keys::Key,
    links,
    mirror::Changes,
    names::{AppName, HostName, InstanceId, ReleaseId},
    rules::zones::Places,
    schema::{Desired, Ended, Fault, Pending, ReleaseStatus, State},
    snapshot::{Snapshot, Stamp},
};

use super::{
    agenda::Agenda,
    facts::{Facts, Reader},
    fixture::{World, told},
    memory::Memory,
    plan::{plan, plan_apps},
    step::{Act, Plan, Step},
    tally::Tally,
};

const APPS: [&str; 2] = ["a", "b"];
const HOSTS: u32 = 4;

/// The app whose web the others link.
const LINKED: &str = "linked";

/// The first half of the hosts is in the first zone, the rest in the second.
const ZONES: [&str; 2] = ["north", "south"];

/// An event of a day.
#[derive(Clone, Debug)]
enum Event {
    Scale {
        app: usize,
        count: u32,
    },
    ScaleZone {
        app: usize,
        zone: usize,
        count: u32,
    },
    Push {
        app: usize,
    },
    Promote {
        app: usize,
    },
    PushEnds {
        app: usize,
    },
    Canary {
        app: usize,
        count: u32,
    },
    Restart {
        app: usize,
    },
    Pause {
        app: usize,
        holds: bool,
    },
    Abort {
        app: usize,
    },
    /// The app links the service, from its next release on.
    Link {
        app: usize,
        links: bool,
    },
    /// The linked service is registered, or not.
    Service {
        is_there: bool,
    },
    /// A host's pm gets the services' address, or loses it.
    HostTold {
        host: u32,
        is_told: bool,
    },
    HostDies {
        host: u32,
    },
    HostReturns {
        host: u32,
    },
    HostDrains {
        host: u32,
        drains: bool,
    },
    Crash {
        nth: usize,
    },
    Fail {
        nth: usize,
        fault: Fault,
    },
    Recover,
    ProxyCatchesUp,
    Time {
        millis: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let app = 0..APPS.len();
    let fault = prop_oneof![Just(Fault::App), Just(Fault::Host), Just(Fault::OutOfMemory)];
    prop_oneof![
        3 => (app.clone(), 0_u32..6).prop_map(|(app, count)| Event::Scale { app, count }),
        1 => (app.clone(), 0..ZONES.len(), 0_u32..4)
            .prop_map(|(app, zone, count)| Event::ScaleZone { app, zone, count }),
        3 => app.clone().prop_map(|app| Event::Push { app }),
        4 => app.clone().prop_map(|app| Event::Promote { app }),
        1 => app.clone().prop_map(|app| Event::PushEnds { app }),
        1 => (app.clone(), 0_u32..3).prop_map(|(app, count)| Event::Canary { app, count }),
        1 => app.clone().prop_map(|app| Event::Restart { app }),
        2 => (app.clone(), any::<bool>()).prop_map(|(app, holds)| Event::Pause { app, holds }),
        1 => app.clone().prop_map(|app| Event::Abort { app }),
        2 => (app, any::<bool>()).prop_map(|(app, links)| Event::Link { app, links }),
        1 => any::<bool>().prop_map(|is_there| Event::Service { is_there }),
        1 => (1..=HOSTS, any::<bool>()).prop_map(|(host, is_told)| Event::HostTold { host, is_told }),
        1 => (1..=HOSTS).prop_map(|host| Event::HostDies { host }),
        2 => (1..=HOSTS).prop_map(|host| Event::HostReturns { host }),
        1 => (1..=HOSTS, any::<bool>()).prop_map(|(host, drains)| Event::HostDrains { host, drains }),
        2 => (0_usize..20).prop_map(|nth| Event::Crash { nth }),
        1 => (0_usize..20, fault).prop_map(|(nth, fault)| Event::Fail { nth, fault }),
        3 => Just(Event::Recover),
        4 => Just(Event::ProxyCatchesUp),
        8 => (0_u64..4_000).prop_map(|millis| Event::Time { millis }),
    ]
}

/// Puts a host into its zone.
fn stand(world: &mut World, host: u32) {
    let zone = ZONES[usize::from(host > HOSTS / 2)].parse().expect("valid");
    world.edit_host(&format!("host{host}"), |host| host.zone = zone);
}

/// A cluster under observation.
struct Day {
    world: World,
    agenda: Agenda,
    /// The memory that goes with the agenda.
    noted: Memory,
    tally: Tally,
    last_id: u64,
    before: Snapshot,
}

impl Day {
    fn begin() -> Self {
        let mut world = World::new().hosts(HOSTS).proxy("p", 1, &[]);
        for app in APPS {
            world = world.app(app).released("web").scaled("web", 1);
        }
        // No instance of the linked app is wanted; only its row has to exist.
        world = world.app(LINKED).released("web").scaled("web", 0);
        (1..=HOSTS).for_each(|host| stand(&mut world, host));
        let mut agenda = Agenda::default();
        agenda.look_at_all();
        let before = world.snapshot.clone();
        Day { world, agenda, noted: Memory::default(), tally: Tally::default(), last_id: 0, before }
    }

    fn turn_to(&mut self, app: usize) {
        self.world.turn_to(APPS[app]);
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Scale { app, count } => {
                self.turn_to(*app);
                self.world.formation("web", |formation| formation.count = *count);
            }
            Event::ScaleZone { app, zone, count } => {
                self.turn_to(*app);
                self.world.formation("web", |formation| {
                    let before = formation.zones.insert(ZONES[*zone].parse().expect("valid"), *count);
                    formation.count = formation.count.saturating_sub(before.unwrap_or(0)) + count;
                });
            }
            Event::Push { app } => {
                self.turn_to(*app);
                if self.world.view().trial.is_none() {
                    self.world.push("web");
                }
            }
            Event::Promote { app } => {
                self.turn_to(*app);
                self.world.promote_verified();
            }
            Event::PushEnds { app } => {
                self.turn_to(*app);
                self.world.view().trial = None;
            }
            Event::Canary { app, count } => {
                self.turn_to(*app);
                self.world.scale_canary("web", *count);
            }
            Event::Restart { app } => {
                self.turn_to(*app);
                let before = InstanceId(self.last_id + 1);
                self.world.formation("web", |formation| formation.replace_before = Some(before));
            }
            Event::Pause { app, holds } => {
                self.turn_to(*app);
                self.world.pause(*holds);
            }
            Event::Abort { app } => {
                self.turn_to(*app);
                self.world.abort();
            }
            Event::Link { app, links } => {
                self.turn_to(*app);
                self.world.link(if *links { &["linked:web"] } else { &[] });
            }
            Event::Service { is_there: false } => self.world.unregister(LINKED, "web"),
            Event::Service { is_there: true } => self.world.reregister(LINKED, "web"),
            Event::HostTold { host, is_told } => {
                let name = format!("host{host}");
                if self.world.snapshot.hosts[&self.world.host(&name)].host.is_some() {
                    let address = is_told.then(|| "127.0.0.1".parse().expect("an address"));
                    self.world.change_host(&name, |host| host.services = address);
                }
            }
            Event::HostDies { host } => self.world.lose(&format!("host{host}")),
            Event::HostReturns { host } => {
                let name = format!("host{host}");
                if self.world.snapshot.hosts[&self.world.host(&name)].host.is_none() {
                    self.world.register(&name);
                    stand(&mut self.world, *host);
                    self.report_anew(&name);
                }
            }
            Event::HostDrains { host, drains } => {
                self.world.mark(&format!("host{host}"), |meta| meta.draining = *drains);
            }
            Event::Crash { nth } => self.strike(*nth, State::Backoff, None),
            Event::Fail { nth, fault } => self.strike(*nth, State::Failed, Some(*fault)),
            Event::Recover => self.hosts_work(),
            Event::ProxyCatchesUp => {
                let applied = self.world.snapshot.revision;
                self.world.apply_proxy(applied);
            }
            Event::Time { millis } => {
                let time = Duration::from_millis(*millis);
                self.world.now.clock += time;
                self.world.now.wall += time;
            }
        }
    }

    /// Returns every instance with its app and host.
    fn everyone(&self) -> Vec<(AppName, InstanceId, HostName)> {
        let apps = self.world.snapshot.apps.iter();
        apps.flat_map(|(app, view)| {
            view.instances.iter().map(move |(id, row)| (app.clone(), *id, row.host.clone()))
        })
        .collect()
    }

    fn say(&mut self, app: &AppName, id: InstanceId, state: State, fault: Option<Fault>) {
        self.world.turn_to(app.as_str());
        let restarts = self.world.snapshot.status(app, id).map_or(0, |status| status.restarts);
        self.world.say(id.0, state, |status| {
            status.fault = fault;
            status.restarts = restarts + u32::from(state == State::Backoff);
        });
    }

    /// Crashes or fails one of the instances on a registered host.
    fn strike(&mut self, nth: usize, state: State, fault: Option<Fault>) {
        let struck: Vec<_> = self
            .everyone()
            .into_iter()
            .filter(|(app, id, host)| {
                let before = self.world.snapshot.status(app, *id).map(|status| status.state);
                self.world.snapshot.hosts[host].host.is_some() && !before.is_some_and(State::is_final)
            })
            .collect();
        if let Some((app, id, _)) = struck.get(nth % struck.len().max(1)) {
            self.say(app, *id, state, fault);
        }
    }

    /// Lets each host advance its instances: those that should run run, those that should stop end.
    fn hosts_work(&mut self) {
        for (app, id, host) in self.everyone() {
            let view = &self.world.snapshot.hosts[&host];
            let Some(assigned) = view.assigned.get(&id).filter(|_| view.host.is_some()) else { continue };
            let state = view.status.get(&id).map(|status| status.state);
            match (assigned.desired, state) {
                (_, Some(State::Exited | State::Failed)) => {}
                (Desired::Stop, _) => self.say(&app, id, State::Exited, None),
                (_, Some(State::Running)) => {}
                _ => self.say(&app, id, State::Running, None),
            }
        }
    }

    /// Reports the state of each instance of a host that registers again.
    fn report_anew(&mut self, name: &str) {
        let host = self.world.host(name);
        for (app, id, at) in self.everyone() {
            let lost = self.world.snapshot.status(&app, id).is_some_and(|s| s.state == State::Lost);
            if at == host && lost {
                self.say(&app, id, State::Running, None);
            }
        }
    }

    /// Plans twice, compares the plans and writes the steps.
    fn converge(&mut self) -> Result<Plan, TestCaseError> {
        let changes = Changes { keys: changed(&self.before, &self.world.snapshot), relisted: false };
        self.before = self.world.snapshot.clone();
        let (snapshot, now) = (&self.world.snapshot, self.world.now);
        self.agenda.note(&changes, snapshot, &self.noted);
        self.tally.note(&changes, snapshot);
        prop_assert_eq!(&self.tally, &Tally::of(snapshot), "the tally differs from one made anew");
        self.agenda.observe_hosts(snapshot, &mut self.noted, now);
        let due = self.agenda.due(snapshot, now);
        let instances = Reader::of(snapshot).apps(&due);
        for app in &due {
            let instances = instances.get(app).map_or(&[][..], Vec::as_slice);
            self.noted.observe_app(snapshot, app, instances, now);
        }
        let some = plan_apps(snapshot, &self.tally, &self.noted, &instances, now);
        self.agenda.planned(&due, &some);
        self.world.memory.observe(snapshot, now);
        let all = plan(snapshot, &self.world.memory, now);
        prop_assert_eq!(&some.steps, &all.steps, "the plan over what is due differs from the plan over all");
        prop_assert!(all.blocked.is_empty(), "{:?}", all.blocked);

        let before = self.serving();
        for step in &all.steps {
            self.leads_somewhere(step)?;
            self.write(step);
        }
        self.nothing_is_lost(&before)?;
        self.nothing_is_there_twice()?;
        Ok(all)
    }

    /// Checks that an app with links is placed only while the service exists, on a host that knows the services'
    /// address.
    fn leads_somewhere(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Act::Place { slot, place } = &step.act else { return Ok(()) };
        let view = &self.world.snapshot.apps[&step.app];
        if links::of(view, view.releases[&slot.release].env).is_some() {
            let service = &self.world.snapshot.apps[&self.world.name(LINKED)].procs;
            prop_assert!(!service.is_empty(), "{} is placed, and what it links isn't there", step.app);
            let host = self.world.snapshot.hosts[&place.host].host.as_ref().expect("it is registered");
            prop_assert!(host.services.is_some(), "{} wasn't told where services are", place.host);
        }
        Ok(())
    }

    /// Returns how many instances serve for each app's head.
    fn serving(&self) -> BTreeMap<AppName, usize> {
        let of = |(name, view): (&AppName, &visor::snapshot::AppView)| {
            let head = view.head.as_ref().expect("it was released").release;
            let serves = |facts: &Facts<'_>| {
                let release = facts.row.release;
                let beside = view.formation.values().any(|row| row.beside.contains_key(&release));
                let released = view.releases[&release].status == ReleaseStatus::Released;
                facts.runs() && facts.desired() == Desired::Run && (release == head || (released && !beside))
            };
            let all = Reader::of(&self.world.snapshot).instances(name);
            (name.clone(), all.iter().filter(|facts| serves(facts)).count())
        };
        self.world.snapshot.apps.iter().map(of).collect()
    }

    /// Checks that no plan takes the number of serving instances below what is wanted, or lower still if it was below
    /// already.
    fn nothing_is_lost(&self, before: &BTreeMap<AppName, usize>) -> Result<(), TestCaseError> {
        for (name, now) in self.serving() {
            let view = &self.world.snapshot.apps[&name];
            let count = view.count(&self.world.proc("web")) as usize;
            prop_assert!(
                now >= before[&name].min(count),
                "{name}: {} served, now {now} of {count}",
                before[&name]
            );
        }
        Ok(())
    }

    /// Checks that no more instances of a release should run than are wanted, apart from those that are to be
    /// replaced.
    fn nothing_is_there_twice(&self) -> Result<(), TestCaseError> {
        for (name, view) in &self.world.snapshot.apps {
            let wanted = visor::rules::wanted::Wanted::of(view).of_proc(&self.world.proc("web"));
            let formation = view.formation.values().next().expect("it was scaled");
            let mut there: BTreeMap<ReleaseId, u32> = BTreeMap::new();
            let all = Reader::of(&self.world.snapshot).instances(name);
            let is_to_go = |facts: &Facts<'_>| {
                formation.replace_before.is_some_and(|b| facts.id < b) || facts.host_drains
            };
            let head = view.head.as_ref().map(|head| head.release);
            let of_head = all.iter().filter(|facts| {
                let meant = facts.desired() == Desired::Run && !facts.is_over();
                meant && Some(facts.row.release) == head && !is_to_go(facts)
            });
            let misplaced = Places::of(formation.count, &formation.zones)
                .seat(of_head.map(|facts| (facts.id, facts.zone)));
            for facts in all {
                let replaced = is_to_go(&facts) || misplaced.contains(&facts.id);
                if facts.desired() == Desired::Run && !facts.is_over() && !replaced {
                    *there.entry(facts.row.release).or_default() += 1;
                }
            }
            for (release, there) in there {
                if let Some(wanted) = wanted.get(&release) {
                    prop_assert!(there <= *wanted, "{name}: {there} of {release}, {wanted} wanted");
                }
            }
        }
        Ok(())
    }

    /// Writes a step as its transaction would.
    fn write(&mut self, step: &Step) {
        self.world.turn_to(step.app.as_str());
        let web = self.world.proc("web");
        match &step.act {
            Act::Place { slot, place } => {
                self.last_id += 1;
                let what = format!("{}@{}", slot.proc, slot.release);
                self.world.place(self.last_id, &what, place.host.as_str(), slot.index);
            }
            Act::Advance { id, to } => self.world.mean(id.0, *to),
            Act::Lose { id } => self.say(&step.app, *id, State::Lost, None),
            Act::Archive { id, oldest } => {
                let row = self.world.view().instances.remove(id).expect("it is there");
                let host = self.world.snapshot.hosts.get_mut(&row.host).expect("it was placed there");
                host.assigned.remove(id);
                let status = host.status.remove(id).map(|row| row.value);
                let at = self.world.now.wall;
                let ended =
                    Ended { instance: row.value, status, reason: None, at, extra: Default::default() };
                let ended = self.world.row(ended);
                self.world.view().history.insert((web.clone(), *id), ended);
                for id in oldest {
                    self.world.view().history.remove(&(web.clone(), *id));
                }
            }
            Act::Forget { ids, .. } => {
                ids.iter().for_each(|id| drop(self.world.view().history.remove(&(web.clone(), *id))));
            }
            // These tests make no envs, and their hosts have no archives.
            Act::Hand { .. }
            | Act::Keep { .. }
            | Act::TakeBack { .. }
            | Act::Ask { .. }
            | Act::EndRequest { .. }
            | Act::Source { .. }
            | Act::EndService { .. } => {}
            Act::Verify { release, .. } => self.world.set_status(*release, ReleaseStatus::Verified),
            Act::Fail { release, .. } => {
                self.world.set_status(*release, ReleaseStatus::Failed);
                let view = self.world.view();
                if view.trial.as_ref().is_some_and(|trial| trial.release == *release) {
                    view.trial = None;
                }
            }
            Act::Pend { proc, pending } => {
                let row = pending.as_ref().map(|hindrance| Pending {
                    release: hindrance.release,
                    short: hindrance.short,
                    reason: hindrance.reason.clone(),
                    refusals: hindrance.refusals(),
                    reasons: hindrance.reasons.clone(),
                    since: self.world.now.wall,
                    extra: Default::default(),
                });
                match row.map(|row| self.world.row(row)) {
                    Some(row) => drop(self.world.view().pending.insert(proc.clone(), row)),
                    None => drop(self.world.view().pending.remove(proc)),
                }
            }
        }
    }

    /// Repairs everything but a host that is gone for good, and lets time pass until nothing is left to do.
    fn settle(&mut self, gone_for_good: Option<u32>) -> Result<(), TestCaseError> {
        for host in (1..=HOSTS).filter(|host| Some(*host) != gone_for_good) {
            self.happens(&Event::HostReturns { host });
            self.happens(&Event::HostDrains { host, drains: false });
            self.happens(&Event::HostTold { host, is_told: true });
        }
        self.happens(&Event::Service { is_there: true });
        for _ in 0..1_000 {
            self.hosts_work();
            self.happens(&Event::ProxyCatchesUp);
            (0..APPS.len()).for_each(|app| self.happens(&Event::Promote { app }));
            let plan = self.converge()?;
            if plan.steps.is_empty() && plan.look_again.is_empty() {
                return Ok(());
            }
            self.happens(&Event::Time { millis: 1_000 });
        }
        let steps: Vec<String> = self.converge()?.steps.iter().map(|step| told(&step.act)).collect();
        prop_assert!(false, "it never came to rest: {steps:?}\n{:#?}", self.world.snapshot.apps);
        Ok(())
    }

    /// Checks that as many instances serve as are wanted, of whichever release a pause holds.
    fn enough_serve(&self) -> Result<(), TestCaseError> {
        for (name, serving) in self.serving() {
            let count = self.world.snapshot.apps[&name].count(&self.world.proc("web")) as usize;
            prop_assert_eq!(serving, count, "{}", name);
        }
        Ok(())
    }

    /// Checks that exactly what is wanted runs, and no other instance exists.
    fn is_as_wanted(&self) -> Result<(), TestCaseError> {
        for (name, view) in &self.world.snapshot.apps {
            let wanted = view.wanted(&self.world.proc("web"));
            let mut there: BTreeMap<ReleaseId, u32> = BTreeMap::new();
            for facts in Reader::of(&self.world.snapshot).instances(name) {
                prop_assert!(facts.runs(), "{name}: {} is {:?}", facts.id, facts.state());
                *there.entry(facts.row.release).or_default() += 1;
            }
            prop_assert_eq!(&there, &wanted, "{}", name);
            let formation = view.formation.values().next().expect("it was scaled");
            let all = Reader::of(&self.world.snapshot).instances(name);
            let head = view.head.as_ref().map(|head| head.release);
            let of_head = all.iter().filter(|facts| Some(facts.row.release) == head);
            let misplaced = Places::of(formation.count, &formation.zones)
                .seat(of_head.map(|facts| (facts.id, facts.zone)));
            prop_assert!(misplaced.is_empty(), "{name}: {misplaced:?} stand in the wrong zone");
            prop_assert!(view.pending.is_empty() && view.trial.is_none(), "{:?}", view.pending);
            prop_assert!(view.history.len() <= 20, "{}", view.history.len());
        }
        Ok(())
    }
}

/// Returns the keys in which two images differ.
fn changed(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let rows = |of: &Snapshot| -> BTreeMap<Key, Stamp> { of.rows(|_| true).into_iter().collect() };
    let (before, after) = (rows(before), rows(after));
    let keys: BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
    keys.into_iter().filter(|key| before.get(key) != after.get(key)).map(ToString::to_string).collect()
}

/// Lives through a day, then repairs everything but a host that is gone for good.
fn live_through(events: &[Event], gone_for_good: Option<u32>) -> Result<(), TestCaseError> {
    let mut day = Day::begin();
    for event in events {
        day.happens(event);
        day.converge()?;
    }
    if let Some(host) = gone_for_good {
        day.happens(&Event::HostDies { host });
    }
    day.settle(gone_for_good)?;
    day.enough_serve()?;
    (0..APPS.len()).for_each(|app| day.happens(&Event::Pause { app, holds: false }));
    day.settle(gone_for_good)?;
    day.is_as_wanted()
}

/// A paused old release's instance that didn't run once took the place of the new release's only instance, which ran
/// and was to be restarted.
#[test]
fn a_restart_while_paused_leaves_what_serves_until_another_does() {
    let day = [
        Event::Pause { app: 0, holds: true },
        Event::Restart { app: 0 },
        Event::Push { app: 0 },
        Event::Recover,
        Event::Time { millis: 1_000 },
        Event::Restart { app: 0 },
        Event::Crash { nth: 9 },
        Event::Promote { app: 0 },
    ];
    live_through(&day, None).expect("it goes well");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_should_run_runs_in_the_end(
        events in prop::collection::vec(event(), 1..80),
        gone_for_good in prop::option::of(1..=HOSTS),
    ) {
        live_through(&events, gone_for_good)?;
    }
}
