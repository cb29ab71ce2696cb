//! The fences of a daemon's running instances or builds.
//!
//! Owns which control group has which fence, and brings each up to date when the surroundings change. What it remembers
//! it finds again after a restart, in the files of the starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    fence::{self, FenceError},
    in_one_line, loopback,
    protocol::{Closed, Fence, Rules, Span},
    surroundings::{Finder, Named, Surroundings, UnresolvedError, every_port},
    targets::Target,
};

/// The time within which a group is made for a fence that was begun; a build's steps make one after the other.
const BEGUN_WITHIN: Duration = Duration::from_secs(3_600);

/// The fences of a daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Fences(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    has_six: bool,
    /// The address at which instances are reached.
    host: IpAddr,
    surroundings: Arc<Surroundings>,
    members: BTreeMap<PathBuf, Member>,
}

/// One control group.
#[derive(Debug)]
struct Member {
    uid: u32,
    port: u16,
    links: Vec<u16>,
    begun: Instant,
    /// The rules that its shim attaches.
    told: Attached,
    /// The group that the last look found. A build makes a new one of the same name for each step.
    seen: Option<u64>,
    /// The rules that were attached since, and to which group.
    renewed: Option<(u64, Attached)>,
}

/// The rules of a member. A daemon has thousands of members over an hour, so they share what they have in common.
#[derive(Clone, Debug)]
enum Attached {
    /// Those that follow from these surroundings.
    Of(Arc<Surroundings>),
    /// Those that an earlier daemon wrote down.
    Written(Box<Rules>),
}

impl Member {
    fn new(uid: u32, port: u16, links: Vec<u16>, told: Attached) -> Member {
        Member { uid, port, links, begun: Instant::now(), told, seen: None, renewed: None }
    }

    /// Returns what is in force in a group of its name.
    fn in_force(&self, group: u64) -> &Attached {
        match &self.renewed {
            Some((renewed, attached)) if *renewed == group => attached,
            _ => &self.told,
        }
    }
}

impl Fences {
    /// Creates the fences of a daemon, with no member.
    pub fn new(host: IpAddr, surroundings: Surroundings) -> Fences {
        let (has_six, surroundings) = (loopback::has_six(), Arc::new(surroundings));
        Fences(Arc::new(Mutex::new(State { has_six, host, surroundings, members: BTreeMap::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Returns the fence for the processes of a user in a control group, and remembers it. `port` is the one that is
    /// reached from outside, 0 for none; `links` are the ports of linked services.
    pub fn begin(&self, group: &Path, uid: u32, port: u16, links: &[u16]) -> Fence {
        let mut state = self.state();
        let rules = state.rules(uid, links);
        let told = Attached::Of(state.surroundings.clone());
        state.members.insert(group.to_owned(), Member::new(uid, port, links.to_vec(), told));
        Fence { port, closed: for_older_shims(&rules.closed), links: links.to_vec(), rules: Some(rules) }
    }

    /// Remembers a fence that an earlier daemon began.
    pub fn adopt(&self, group: &Path, uid: u32, fence: &Fence) {
        let Some(rules) = fence.rules.clone() else { return };
        let told = Attached::Written(Box::new(rules));
        let member = Member::new(uid, fence.port, fence.links.clone(), told);
        self.state().members.entry(group.to_owned()).or_insert(member);
    }

    /// Brings all fences up to date. Blocks. Returns the groups whose fences are as before, with the reasons; they are
    /// tried again the next time.
    pub fn renew(&self, surroundings: Surroundings) -> Vec<FenceError> {
        let mut state = self.state();
        if *state.surroundings != surroundings {
            state.surroundings = Arc::new(surroundings);
        }
        state.members.retain(|group, member| group.exists() || member.begun.elapsed() < BEGUN_WITHIN);
        let present = state.surroundings.clone();
        let groups: Vec<PathBuf> = state.members.keys().cloned().collect();
        drop(state);
        let mut failed = Vec::new();
        for group in groups {
            let Ok(inode) = fs::metadata(&group).map(|known| known.ino()) else { continue };
            let Some((port, rules)) = self.state().outdated(&group, inode) else { continue };
            if let Err(error) = fence::renew(&group, &rules, port) {
                // The group may have gone meanwhile.
                if group.exists() {
                    failed.push(error);
                }
                continue;
            }
            if let Some(member) = self.state().members.get_mut(&group) {
                // A shim that has just made the group may still attach what it was told.
                if member.seen == Some(inode) {
                    member.renewed = Some((inode, Attached::Of(present.clone())));
                }
                member.seen = Some(inode);
            }
        }
        failed
    }

    /// Returns a fence for a trial: of no user, and not remembered.
    pub fn of_trial(&self, port: u16) -> Fence {
        let rules = self.state().rules(loopback::OF_TRIALS, &[]);
        Fence { port, closed: for_older_shims(&rules.closed), links: Vec::new(), rules: Some(rules) }
    }

    /// Returns the users whose groups still exist, whatever became of their instances: their addresses are in use.
    pub fn users(&self) -> BTreeSet<u32> {
        let state = self.state();
        state.members.iter().filter(|(group, _)| group.exists()).map(|(_, member)| member.uid).collect()
    }
}

/// Keeps the fences of a daemon up to date.
#[derive(Debug)]
pub struct Keeper {
    fences: Fences,
    finder: Finder,
    named: Named,
    /// The last known peer URLs of the coordinator's members.
    peers: BTreeSet<Target>,
}

impl Keeper {
    /// Finds the surroundings for the first time. Blocks while names are resolved.
    ///
    /// # Errors
    /// [`UnresolvedError`]: the first name without an address.
    pub fn begin(host: IpAddr, named: Named) -> Result<Keeper, UnresolvedError> {
        let (finder, surroundings) = Finder::first(&named)?;
        let fences = Fences::new(host, surroundings);
        Ok(Keeper { fences, finder, named, peers: BTreeSet::new() })
    }

    /// Returns the fences.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }

    /// Looks at the surroundings, and brings all fences up to date. `peers` are the URLs at which the coordinator's
    /// members reach each other, if these could be asked for. What fails is logged, and tried again the next time.
    /// Blocks.
    pub fn look(&mut self, peers: Option<Vec<String>>) {
        if let Some(peers) = peers {
            self.peers = peers.iter().filter_map(|url| Target::of_url(url).ok()).collect();
        }
        let mut named = self.named.clone();
        named.closed.extend(self.peers.iter().cloned());
        // Somebody else may have emptied the machine's table of routes.
        if let Err(error) = loopback::prepare() {
            tracing::warn!(error = in_one_line(&error), "instances' own loopbacks may not work");
        }
        for error in self.fences.renew(self.finder.again(&named)) {
            tracing::warn!(error = in_one_line(&error), "can't bring a fence up to date; trying again");
        }
    }
}

impl State {
    /// Returns the port and the present rules of a member, if others are in force in its group.
    fn outdated(&self, group: &Path, inode: u64) -> Option<(u16, Rules)> {
        let member = self.members.get(group)?;
        let rules = || self.rules(member.uid, &member.links);
        let is_in_force = match member.in_force(inode) {
            Attached::Of(surroundings) => **surroundings == *self.surroundings,
            Attached::Written(written) => **written == rules(),
        };
        (!is_in_force).then(|| (member.port, rules()))
    }

    fn rules(&self, uid: u32, links: &[u16]) -> Rules {
        let Surroundings { closed, open, machine, services, reserved } = &*self.surroundings;
        let linked = services.iter().flat_map(|address| {
            links.iter().map(|port| Span { first: *port, last: *port, ..every_port(*address) })
        });
        Rules {
            host: self.host,
            loopback: loopback::of(uid, self.has_six),
            closed: closed.clone(),
            open: open.iter().copied().chain(linked).collect(),
            machine: machine.clone(),
            reserved: reserved.clone(),
        }
    }
}

/// Returns what shims before version 4 of the protocol can read: single ports.
fn for_older_shims(closed: &[Span]) -> Vec<Closed> {
    let single = closed.iter().filter(|span| span.first == span.last);
    single.map(|span| Closed { address: span.address, bits: span.bits, port: span.first }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cgroups::{Cgroups, GroupLimits},
        groups,
    };

    #[test]
    fn an_instance_reaches_the_services_that_it_links_and_no_others() {
        let services: Vec<IpAddr> = vec!["10.0.0.7".parse().expect("valid")];
        let surroundings = Surroundings { services, ..Surroundings::default() };
        let fences = Fences::new("10.0.0.5".parse().expect("valid"), surroundings);
        let fence = fences.begin(Path::new("/nowhere/7"), 7, 21_000, &[8_501]);
        let open = fence.rules.expect("it has rules").open;
        assert_eq!(open.len(), 1);
        assert_eq!(
            (open[0].address.to_string(), open[0].first, open[0].last),
            ("10.0.0.7".into(), 8_501, 8_501)
        );
        assert!(
            fences.begin(Path::new("/nowhere/8"), 8, 0, &[]).rules.expect("it has rules").open.is_empty()
        );
        assert!(fences.users().is_empty(), "no group of theirs exists");
    }

    /// Tries to connect from within a control group, and says how it went.
    fn connects(group: &Path, port: u16) -> String {
        let script = "echo $$ >\"$0/cgroup.procs\" && exec /usr/bin/python3 -c \"import errno, socket\n\
            try: socket.create_connection(('127.0.0.1', $1), 5); print('done')\n\
            except OSError as error: print(errno.errorcode[error.errno])\"";
        let mut command = std::process::Command::new("/bin/sh");
        let output = command.args(["-c", script]).arg(group).arg(port.to_string()).output();
        String::from_utf8_lossy(&output.expect("sh is there").stdout).trim().to_owned()
    }

    #[test]
    fn a_running_fence_follows_what_is_open() {
        let limits = GroupLimits { memory_bytes: None, cpu_millis: None, processes: 100 };
        let name = format!("test-{}", std::process::id());
        let found = nix::unistd::geteuid().is_root().then(|| Cgroups::find(&name)).and_then(Result::ok);
        let Some(cgroups) = found.filter(Cgroups::can_fence) else {
            eprintln!("not tried: it takes root and control groups of version 2");
            return;
        };
        let own = cgroups.of("7", limits, true);
        groups::make(&own).expect("it can be made");
        let group = own.iter().find(|group| group.version == 2).expect("it was asked for").folder.clone();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let at = listener.local_addr().expect("it listens");
        let span = Span { first: at.port(), last: at.port(), ..every_port(at.ip()) };
        let open = Surroundings { open: vec![span], ..Surroundings::default() };
        let closed = Surroundings { closed: vec![span], ..open.clone() };

        // No test has this user; each run has its own.
        let uid = 1_630_000_000 + std::process::id() % 1_000_000;
        let fences = Fences::new(IpAddr::from([10, 0, 0, 5]), Surroundings::default());
        let fence = fences.begin(&group, uid, 0, &[]);
        fence::enclose(&group, &fence, uid).expect("the kernel takes it");
        let mut said = vec![connects(&group, at.port())];
        // Each step twice: a renewal is made again at the next look, in case a shim was about to attach its fence.
        for surroundings in [&open, &open, &closed, &closed, &open, &Surroundings::default()] {
            assert!(fences.renew(surroundings.clone()).is_empty(), "the kernel takes it");
            said.push(connects(&group, at.port()));
        }
        // As after a restart, from what was written down.
        let later = Fences::new(IpAddr::from([10, 0, 0, 5]), Surroundings::default());
        later.adopt(&group, uid, &fence);
        assert!(later.renew(open).is_empty(), "the kernel takes it");
        said.push(connects(&group, at.port()));
        let users = later.users();
        fence::release(&fence);
        groups::remove(&own);
        cgroups.leave();
        assert_eq!((users, later.users()), (BTreeSet::from([uid]), BTreeSet::new()));
        let (no, yes) = ("ECONNREFUSED", "done");
        assert_eq!(said, [no, yes, yes, no, no, yes, no, yes]);
    }
}
