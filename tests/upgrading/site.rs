//! The cluster that is upgraded: its machines, its apps, the load on them, and what must hold at each moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use bazooka_tests::{
    Fleet, Kind, Load,
    Machine::{self, Converger, Proxy},
    Repo, SOON, Setting,
    shop::{Running, alive, told},
    until, use_programs,
};
use visor::{
    names::InstanceId,
    schema::{Desired, State},
    snapshot::Snapshot,
};

use crate::apps::{self, Change, FRONT, SHOP, STEADY};

/// When an answer counts as lost. The point is what is refused or cut, not how busy this machine is.
const DEADLINE: Duration = Duration::from_secs(10);

/// The apps under load, each with requests a second: GET and POST, over kept and new connections, through both proxies.
const LOADS: [(&str, u32); 3] = [(SHOP, 60), (STEADY, 60), (FRONT, 40)];

/// How many instances [`SHOP`] has at first; a scale makes it one more, or as many again.
const FEW: usize = 4;

/// How many the other two have together.
const STEADY_ONES: usize = 7;

/// The cluster, half of one build and half of another.
pub struct Site {
    fleet: Fleet,
    from: PathBuf,
    to: PathBuf,
    shop: Repo,
    steady: Repo,
    loads: Vec<(&'static str, Load)>,
    /// The processes that must stay as they are.
    before: BTreeMap<InstanceId, Running>,
    /// The releases of [`SHOP`], oldest first: its version and its config var.
    releases: Vec<(String, String)>,
    instances: usize,
    upgraded: BTreeSet<Machine>,
    reloads: usize,
}

impl Site {
    /// Starts a cluster of the first build, with the apps and the load.
    pub fn start(from: &Path, to: &Path) -> Site {
        // What isn't told otherwise is of the old build: the command line, too.
        use_programs(Some(from));
        let fleet = Fleet::start_of(Setting { lasting: true, ..Setting::default() }, from);
        let (steady, shop) = (apps::steady(&fleet), apps::shop(&fleet));
        apps::front(&fleet);
        shop.bazooka(&["config", "set", "MOOD=m2"]).ok();
        let loads =
            LOADS.map(|(app, rate)| (app, fleet.load_of(app, rate, rate.div_ceil(16), &Kind::ALL, DEADLINE)));
        let mut site = Site {
            fleet,
            from: from.to_owned(),
            to: to.to_owned(),
            shop,
            steady,
            loads: loads.into(),
            before: BTreeMap::new(),
            releases: vec![("v1".into(), "-".into()), ("v1".into(), "m2".into())],
            instances: FEW,
            upgraded: BTreeSet::new(),
            reloads: 0,
        };
        site.before = until("the apps run", SOON, || {
            let before = steady_ones(&site.fleet.snapshot());
            if before.len() == STEADY_ONES { Ok(before) } else { Err(format!("{before:?}")) }
        });
        site.settles();
        site
    }

    /// Ends a machine's part and starts it with the second build's programs. HAProxy stays, and is reloaded once at most:
    /// where the new build writes another configuration.
    pub fn upgrade(&mut self, machine: Machine) {
        eprintln!("upgrading {machine:?}");
        let haproxies = self.haproxies(machine);
        self.fleet.upgrade(machine, &self.to);
        self.upgraded.insert(machine);
        if let Proxy(_) = machine {
            // The proxy is ready once its configuration is in force.
            let after = self.haproxies(machine);
            assert!(
                after.first() == haproxies.first(),
                "{machine:?} has another HAProxy: {haproxies:?}, {after:?}"
            );
            let new = after.iter().filter(|pid| !haproxies.contains(pid)).count();
            assert!(new <= 1, "{machine:?} reloaded HAProxy {new} times: {haproxies:?}, {after:?}");
            self.reloads += new;
        }
    }

    /// HAProxy's processes on a machine, its master first.
    fn haproxies(&self, machine: Machine) -> Vec<i32> {
        let mut pids = self.fleet.processes(machine, "haproxy");
        pids.sort_unstable();
        pids
    }

    /// Has the converger lead that doesn't: the one that does is started again, as the build that it was.
    pub fn have_the_other_lead(&mut self) {
        let leads = self.fleet.elected();
        self.fleet.stop(leads);
        let other = if leads == Converger(1) { Converger(2) } else { Converger(1) };
        until("the other converger leads", SOON, || {
            let elected = self.fleet.elected();
            if elected == other { Ok(()) } else { Err(format!("{elected:?}")) }
        });
        self.fleet.restart(leads);
        eprintln!("{other:?} leads now");
    }

    /// Does something with one build's command line, and waits until visitors see it.
    pub fn change(&mut self, change: Change, new: bool) {
        let build = if new { self.to.clone() } else { self.from.clone() };
        let leads = self.fleet.elected();
        let leader = if self.upgraded.contains(&leads) { "new" } else { "old" };
        eprintln!(
            "  {change:?}, command line {}, leading converger {leader}",
            if new { "new" } else { "old" }
        );
        let next = self.releases.len() + 1;
        let (version, mood) = self.releases.last().cloned().expect("there is one");
        match change {
            Change::Push => {
                let version = format!("v{next}");
                apps::version(&self.shop, &version);
                self.shop.git(&["push", "bazooka", "master"]).ok();
                self.releases.push((version, mood));
            }
            Change::Config => {
                let mood = format!("m{next}");
                self.shop.bazooka_of(&build, &["config", "set", &format!("MOOD={mood}")]).ok();
                self.releases.push((version, mood));
            }
            Change::Rollback => {
                self.shop.bazooka_of(&build, &["rollback", &format!("v{}", next - 2)]).ok();
                self.releases.push(self.releases[next - 3].clone());
            }
            Change::Scale => {
                self.instances = if self.instances == FEW { FEW + 1 } else { FEW };
                self.shop.bazooka_of(&build, &["scale", "-n", &self.instances.to_string(), "web"]).ok();
            }
        }
        self.settles();
    }

    /// Waits until the changing app answers as its last release does, through either proxy, and nothing else is left of it.
    fn settles(&self) {
        let (version, mood) = self.releases.last().expect("there is one");
        let wanted = format!("{version} {mood}\n");
        for proxy in [Proxy(1), Proxy(2)] {
            until(&format!("every answer of {proxy:?} is {wanted:?}"), SOON, || {
                for _ in 0..2 * self.instances {
                    let answer = self.fleet.ask(proxy, SHOP)?;
                    if answer.status != 200 || answer.body != wanted {
                        return Err(format!("{answer:?}"));
                    }
                }
                Ok(())
            });
        }
        until("as many instances as were asked for", SOON, || {
            let snapshot = self.fleet.snapshot();
            let rows: usize = snapshot.apps.values().map(|view| view.instances.len()).sum();
            let wanted = STEADY_ONES + self.instances;
            if rows == wanted { Ok(()) } else { Err(format!("{rows} of {wanted}: {}", told(&snapshot))) }
        });
    }

    /// Fails unless the steady apps' processes are those that they were, no request was lost, and both builds read each row
    /// and find nothing wrong with any.
    pub fn shows_nothing_amiss(&self) {
        let snapshot = self.fleet.snapshot();
        assert!(snapshot.unreadable.is_empty(), "rows that can't be read: {:?}", snapshot.unreadable);
        assert_eq!(steady_ones(&snapshot), self.before, "the same processes, started when they were");
        assert!(self.before.values().all(|one| alive(one.pid)), "each of them runs");
        for (app, load) in &self.loads {
            let so_far = load.so_far();
            assert_eq!(so_far.lost(), 0, "requests to {app} were lost: {:?}", so_far.first_lost);
        }
        for build in [&self.from, &self.to] {
            // A plan may be under way: what lasts is amiss.
            until("bazooka check finds nothing", SOON, || {
                let checked = self.shop.bazooka_of(build, &["check"]);
                if checked.code == 0 { Ok(()) } else { Err(format!("{}: {checked:?}", build.display())) }
            });
            let (_, mood) = self.releases.last().expect("there is one");
            let said = self.shop.bazooka_of(build, &["config", "get", "MOOD"]);
            let wanted = if mood == "-" { String::new() } else { format!("{mood}\n") };
            assert_eq!(said.stdout, wanted, "{said:?}");
            let releases = self.shop.bazooka_of(build, &["releases"]).ok().stdout;
            assert_eq!(releases.lines().count(), 1 + self.releases.len(), "{releases}");
            for command in [&["ps"][..], &["procs"], &["hosts"], &["rollout", "status"]] {
                self.shop.bazooka_of(build, command).ok();
            }
        }
    }

    /// Goes over to the new build's schema, if it has another; nothing is left to do then.
    pub fn migrate(&mut self) {
        for _ in 0..2 {
            until("the cluster is migrated", SOON, || {
                let migrated = self.shop.bazooka_of(&self.to, &["migrate"]);
                if migrated.code == 0 { Ok(()) } else { Err(format!("{migrated:?}")) }
            });
        }
        // From here on the build before may be shut out.
        self.from = self.to.clone();
    }

    /// Ends the load, and tells what was shown.
    pub fn end(self) {
        let programs: BTreeSet<PathBuf> = self.before.values().filter_map(|one| shim_of(one.pid)).collect();
        assert!(!programs.is_empty(), "each instance has a shim");
        let workers = workers(&self.fleet.snapshot());
        for (app, load) in self.loads {
            eprint!("{app}: ");
            let report = load.stop().none_lost();
            assert!(report.sent() > 100, "{app} was asked {} times", report.sent());
        }
        let (mut lines, mut gaps) = (0, 0);
        for id in workers {
            let logs = self.steady.bazooka_of(&self.to, &["logs", "-n", "10000", "-i", &id.to_string()]).ok();
            let numbers: Vec<u64> =
                logs.stdout.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            lines += numbers.len();
            gaps += numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        }
        assert!(lines > 100 && gaps == 0, "{gaps} gaps in {lines} numbered lines of the worker's output");
        eprintln!(
            "{} instances kept their processes, in shims of {programs:?}; {gaps} gaps in {lines} lines; HAProxy reloaded \
             {} times in two upgrades of a proxy; {} releases of {SHOP}",
            self.before.len(),
            self.reloads,
            self.releases.len()
        );
    }
}

/// What runs of the apps that stay as they are.
fn steady_ones(snapshot: &Snapshot) -> BTreeMap<InstanceId, Running> {
    let is_steady = |app: &str| [STEADY, FRONT].contains(&app);
    let mut running = BTreeMap::new();
    for (host, view) in &snapshot.hosts {
        let rows = view
            .assigned
            .iter()
            .filter(|(_, row)| is_steady(row.app.as_str()) && row.desired == Desired::Run);
        for (id, row) in rows {
            let Some(status) = view.status.get(id).filter(|status| status.state == State::Running) else {
                continue;
            };
            let one = Running {
                id: *id,
                host: host.clone(),
                release: row.release,
                pid: status.pid.expect("what runs has a process"),
                started_at: status.started_at,
                restarts: status.restarts,
            };
            running.insert(*id, one);
        }
    }
    running
}

/// The instances of [`STEADY`]'s worker.
fn workers(snapshot: &Snapshot) -> Vec<InstanceId> {
    let rows = snapshot.hosts.values().flat_map(|view| &view.assigned);
    let rows = rows.filter(|(_, row)| row.app.as_str() == STEADY && row.proc.as_str() == "ticker");
    rows.map(|(id, _)| *id).collect()
}

/// The program of the shim that a process is below.
fn shim_of(pid: u32) -> Option<PathBuf> {
    let mut pid = pid;
    while pid > 1 {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if comm.trim() == "bazooka-shim" {
            return std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        pid = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    }
    None
}
