//! Several hosts on one machine: network namespaces in two zones, each with an address. A zone's hosts are joined by a
//! bridge of its own, and the bridges by one link.
//!
//! Owns the links, and what is done to them: cut, made one-way, slowed. Nothing outside these namespaces is
//! touched. Needs root and iproute2.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::until;

/// Carries frames between two taps, late and not all of them. Kernels without netem are common in virtual machines.
const SLOW_LINK: &str = include_str!("slow_link.py");

/// A MAC address that nobody has.
const NOBODY: &str = "02:00:00:00:00:fe";

/// The first zone's end of the link between the zones.
const BETWEEN: &str = "between";

/// Hosts 1 to n at 10.77.0.1 to 10.77.0.n, each in a namespace of its own; gone when dropped.
pub struct Nets {
    prefix: String,
    hosts: u8,
    /// Those in the second zone.
    beyond: BTreeSet<u8>,
    slow: BTreeMap<u8, Child>,
}

impl Nets {
    /// Makes the namespaces; these hosts are in the second zone.
    ///
    /// # Panics
    /// If `ip` refuses: not root, or no iproute2.
    pub fn new(hosts: u8, beyond: BTreeSet<u8>) -> Nets {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let own = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let nets = Nets { prefix: format!("bz{}-{}", own.0, own.1), hosts, beyond, slow: BTreeMap::new() };
        let switch = nets.switch();
        ip(&["netns", "add", &switch]);
        let mut inside_switch = format!(
            "link add br0 type bridge\nlink set br0 up\nlink add br1 type bridge\nlink set br1 up\n\
             link add {BETWEEN} type veth peer name beyond\n\
             link set {BETWEEN} master br0 up\nlink set beyond master br1 up\n"
        );
        for host in 1..=hosts {
            let name = nets.name(host);
            ip(&["netns", "add", &name]);
            inside_switch += &format!(
                "link add p{host} type veth peer name eth0 address {} netns {name}\n\
                 link set p{host} master {} up\n",
                mac(host),
                nets.bridge(host)
            );
        }
        batch(&switch, &inside_switch);
        for host in 1..=hosts {
            let address = Nets::address(host);
            let lines = format!("addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up\n");
            batch(&nets.name(host), &lines);
        }
        nets
    }

    /// A host's address.
    pub fn address(host: u8) -> String {
        format!("10.77.0.{host}")
    }

    /// The words that run a command on a host. It becomes the command: no process stands between.
    pub fn on(&self, host: u8) -> Vec<String> {
        // Not `ip netns exec`: that hides the machine's /sys, control groups and all.
        vec!["nsenter".into(), format!("--net={}", self.path(host)), "--".into()]
    }

    /// Puts the calling thread on a host, for good, with all that it starts from now on.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn enter(&self, host: u8) {
        let namespace = File::open(self.path(host)).expect("the namespace is there");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
    }

    /// Takes a host's link down: nothing goes in or out, and nobody is told.
    pub fn cut(&self, host: u8) {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), "down"]);
    }

    /// Brings it up again, and lets everything through.
    pub fn heal(&self, host: u8) {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), "up"]);
        self.unmute(host, 1..=self.hosts);
    }

    /// Takes the link between the zones down: each still reaches its own.
    pub fn part_zones(&self) {
        ip(&["-n", &self.switch(), "link", "set", BETWEEN, "down"]);
    }

    /// Brings it up again.
    pub fn join_zones(&self) {
        ip(&["-n", &self.switch(), "link", "set", BETWEEN, "up"]);
    }

    /// Drops what a host sends; what is sent to it still arrives.
    pub fn mute(&self, host: u8) {
        self.mute_towards(host, 1..=self.hosts);
    }

    /// Drops what a host sends to these others. It is sent, and reaches nobody.
    pub fn mute_towards(&self, host: u8, others: impl IntoIterator<Item = u8>) {
        let lines = others.into_iter().filter(|other| *other != host).fold(String::new(), |lines, other| {
            lines
                + &format!("neigh replace {} lladdr {NOBODY} nud permanent dev eth0\n", Nets::address(other))
        });
        batch(&self.name(host), &lines);
    }

    /// Ends [`Nets::mute_towards`].
    pub fn unmute(&self, host: u8, others: impl IntoIterator<Item = u8>) {
        let lines = others.into_iter().filter(|other| *other != host).fold(String::new(), |lines, other| {
            let (address, mac) = (Nets::address(other), mac(other));
            lines + &format!("neigh replace {address} lladdr {mac} nud reachable dev eth0\n")
        });
        batch(&self.name(host), &lines);
    }

    /// Slows what a host sends and is sent by `latency` in all, and loses a share of it. What is under way is lost.
    ///
    /// # Panics
    /// If there is no python3, or no /dev/net/tun.
    pub fn slow(&mut self, host: u8, latency: Duration, loss: f64) {
        let (inner, outer) = (format!("i{host}"), format!("o{host}"));
        let words = [
            inner.clone(),
            outer.clone(),
            // Half each way.
            format!("{}", latency.as_secs_f64() / 2.0),
            format!("{loss}"),
        ];
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "nsenter",
            &format!("--net=/run/netns/{}", self.switch()),
            "--",
        ]);
        let child = command.args(["/usr/bin/python3", "-c", SLOW_LINK]).args(words);
        let child = child.stdin(Stdio::null()).spawn().expect("python3 can be started");
        self.slow.insert(host, child);
        let switch = self.switch();
        until("the slow link is there", crate::SOON, || {
            let seen = Command::new("ip").args(["-n", &switch, "link", "show", &inner]).output();
            let seen = seen.map_err(|error| error.to_string())?;
            if seen.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&seen.stderr).into()) }
        });
        let name = self.name(host);
        batch(&name, "link set eth0 down\nlink set eth0 name was0\naddr flush dev was0\n");
        let moved = format!(
            "link set {outer} master {} up\nlink set {inner} address {} netns {name}\n",
            self.bridge(host),
            mac(host)
        );
        batch(&switch, &moved);
        let named = format!(
            "link set {inner} name eth0\naddr add {}/24 dev eth0\nlink set eth0 up\n",
            Nets::address(host)
        );
        batch(&name, &named);
    }

    /// Gives a host its fast link again.
    pub fn quicken(&mut self, host: u8) {
        let Some(mut child) = self.slow.remove(&host) else { return };
        // Its taps go with it.
        let _ = child.kill();
        let _ = child.wait();
        let lines = format!(
            "link set was0 name eth0\naddr add {}/24 dev eth0\nlink set eth0 up\n",
            Nets::address(host)
        );
        batch(&self.name(host), &lines);
    }

    /// The processes on a host.
    pub fn processes(&self, host: u8) -> Vec<i32> {
        processes_in(&self.name(host))
    }

    fn name(&self, host: u8) -> String {
        format!("{}-h{host}", self.prefix)
    }

    /// The bridge of its zone.
    fn bridge(&self, host: u8) -> &'static str {
        if self.beyond.contains(&host) { "br1" } else { "br0" }
    }

    fn path(&self, host: u8) -> String {
        format!("/run/netns/{}", self.name(host))
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }
}

impl Drop for Nets {
    fn drop(&mut self) {
        for child in self.slow.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in (1..=self.hosts).map(|host| self.name(host)).chain([self.switch()]) {
            remove(&name);
        }
    }
}

fn mac(host: u8) -> String {
    format!("02:00:00:00:00:{host:02x}")
}

/// Removes the namespaces of runs that were killed, and ends what goes on in them: instances outlive their pm.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = name.strip_prefix("bz").and_then(|rest| rest.split('-').next());
        let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            for pid in processes_in(&name) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            remove(&name);
        }
    }
}

fn processes_in(name: &str) -> Vec<i32> {
    let listed = Command::new("ip").args(["netns", "pids", name]).output();
    let listed = listed.map(|listed| listed.stdout).unwrap_or_default();
    String::from_utf8_lossy(&listed).lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("ip can be started (Debian: iproute2)");
    assert!(done.status.success(), "ip {words:?} (needs root): {}", String::from_utf8_lossy(&done.stderr));
}

/// Many commands for `ip` in a namespace.
fn batch(namespace: &str, lines: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut ip = ip.spawn().expect("ip can be started (Debian: iproute2)");
    let mut input = ip.stdin.take().expect("it is piped");
    input.write_all(lines.as_bytes()).expect("ip reads its commands");
    drop(input);
    let done = ip.wait_with_output().expect("ip ends");
    assert!(done.status.success(), "{lines} (needs root): {}", String::from_utf8_lossy(&done.stderr));
}
