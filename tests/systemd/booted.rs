//! The units, booted: a whole cluster of one machine under a real systemd.

use std::{collections::BTreeSet, time::Duration};

use bazooka_tests::{SOON, Systemd, until};

const UNITS: [&str; 5] = ["bazooka-rm", "bazooka-converge", "bazooka-pm", "bazooka-haproxy", "bazooka-proxy"];

/// An instance of the app: it answers with its process id, and its command line is known.
const APP: &str = "import http.server, os\n\
    class Answer(http.server.BaseHTTPRequestHandler):\n\
    \x20   def do_GET(self):\n\
    \x20       self.send_response(200); self.end_headers(); self.wfile.write(b'%d' % os.getpid())\n\
    http.server.HTTPServer(('0.0.0.0', int(os.environ['PORT'])), Answer).serve_forever()\n";

/// A coordinator as a unit, which the test may end and start.
pub const ETCD: &str =
    "[Service]\nType=notify\nExecStart=/usr/bin/etcd --data-dir /run/etcd\nRestart=always\n";

/// What bazooka-pm is told here.
pub const PM: &str = "host = 'app1'\nzone = 'a'\naddress = '127.0.0.1'\n";

/// Pushes the app, as a developer of the machine does, and has some instances of it run.
pub fn push(machine: &Systemd, instances: u32) {
    machine.write("/root/app/answer.py", APP);
    machine.write("/root/app/Procfile", "web: exec python3 answer.py\n");
    // Built in a sandbox, by bazooka-rm's unit.
    machine.write("/root/app/bin/build", "#!/bin/sh\nset -e\ntest $(id -u) -ge 200000\ndate >built\n");
    machine.shell(&format!(
        "cd /root/app
         git -c init.defaultBranch=master init -q
         git config user.name Test; git config user.email test@localhost
         chmod +x bin/build
         git add -A; git commit -q -m first
         bazooka init answer >&2
         git push -q bazooka master >&2
         bazooka scale -n {instances} web"
    ));
}

/// Boots a machine with the units and their users, all of it as the packages would leave it but for the programs, which are
/// those beside the test.
fn machine() -> Systemd {
    let machine = Systemd::boot();
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for unit in UNITS {
        machine.copy(&deploy.join(format!("systemd/{unit}.service")), "/etc/systemd/system/");
    }
    machine.copy(&deploy.join("etc"), "/etc/bazooka");
    machine.write("/etc/systemd/system/etcd.service", ETCD);
    machine.shell(
        "for program in bazooka bazooka-pm bazooka-rm bazooka-proxy; do ln -sf /opt/built/$program /usr/bin/; done
         for user in bazooka-converge bazooka-proxy; do adduser --system --group --no-create-home --home /nonexistent $user; done
         systemctl daemon-reload
         systemctl start etcd",
    );
    machine
}

/// The processes of the app, by id and start.
pub fn instances(machine: &Systemd) -> BTreeSet<String> {
    processes(machine, "^python3 answer.py")
}

/// The processes whose command line is like this, by id and start.
pub fn processes(machine: &Systemd, pattern: &str) -> BTreeSet<String> {
    let found = machine.run(&["pgrep", "--full", pattern]);
    let found = String::from_utf8(found.stdout).expect("it speaks in text");
    let told = |pid: &str| {
        let stat = machine.run(&["cat", &format!("/proc/{pid}/stat")]);
        let stat = String::from_utf8_lossy(&stat.stdout).into_owned();
        stat.split(' ').nth(21).map(|start| format!("{pid} since {start}"))
    };
    found.split_whitespace().filter_map(told).collect()
}

#[test]
fn a_cluster_of_units_serves_and_no_end_of_pm_reaches_an_instance() {
    let machine = machine();
    machine.write("/etc/bazooka/pm.toml", PM);
    machine.shell("systemctl start --no-block bazooka-rm bazooka-converge bazooka-pm bazooka-proxy");
    for unit in UNITS {
        machine.until_is(unit, "active");
    }
    let status = machine.property("bazooka-pm", "StatusText");
    assert!(status.starts_with("app1 is registered; instances: 0"), "{status}");

    push(&machine, 2);
    let before = instances(&machine);
    assert_eq!(before.len(), 2, "{before:?}");
    let answer = || machine.says(&["curl", "-sf", "-H", "Host: answer.localhost", "http://127.0.0.1:8080/"]);
    assert!(answer().parse::<u32>().is_ok());
    let unnoticed = |what: &str| {
        until(&format!("{what}: pm knows of its instances"), SOON, || {
            let status = machine.property("bazooka-pm", "StatusText");
            if status == "app1 is registered; instances: 2" { Ok(()) } else { Err(status) }
        });
        assert_eq!(instances(&machine), before, "{what}");
        assert!(answer().parse::<u32>().is_ok(), "{what}");
    };
    unnoticed("scaled");

    machine.says(&["systemctl", "restart", "bazooka-pm"]);
    unnoticed("restarted");

    let killed = machine.property("bazooka-pm", "MainPID");
    machine.says(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "bazooka-pm"]);
    until("another pm runs", SOON, || {
        let now = machine.property("bazooka-pm", "MainPID");
        if now != killed && now != "0" { Ok(()) } else { Err(now) }
    });
    machine.until_is("bazooka-pm", "active");
    unnoticed("killed");

    // One that hangs gives no sign of life, and is ended for it.
    machine.write("/etc/systemd/system/bazooka-pm.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n");
    machine.shell("systemctl daemon-reload; systemctl restart bazooka-pm");
    let hung = machine.property("bazooka-pm", "MainPID");
    let times = machine.property("bazooka-pm", "NRestarts");
    let signs = || {
        let at = machine.property("bazooka-pm", "WatchdogTimestampMonotonic");
        at.parse::<u64>().map(Duration::from_micros).expect("microseconds")
    };
    let first = signs();
    until("it has given signs for three times as long as one would be missed", SOON, || {
        let last = signs();
        if last > first + Duration::from_secs(6) { Ok(()) } else { Err(format!("{first:?}, {last:?}")) }
    });
    assert_eq!(machine.property("bazooka-pm", "MainPID"), hung);
    machine.says(&["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "bazooka-pm"]);
    until("the one that hung was replaced", SOON, || {
        let now = machine.property("bazooka-pm", "NRestarts");
        if now == times { Err(machine.log("bazooka-pm")) } else { Ok(()) }
    });
    machine.until_is("bazooka-pm", "active");
    unnoticed("hung");
    let log = machine.log("bazooka-pm");
    assert!(log.contains("Watchdog timeout"), "{log}");

    // HAProxy and its connections are none of bazooka-proxy's life.
    let haproxy = machine.property("bazooka-haproxy", "MainPID");
    machine.says(&["systemctl", "restart", "bazooka-proxy"]);
    assert_eq!(machine.property("bazooka-haproxy", "MainPID"), haproxy);
    assert!(answer().parse::<u32>().is_ok());
    machine.says(&["systemctl", "restart", "bazooka-haproxy"]);
    until("HAProxy serves again", SOON, || {
        let output = machine.run(&["curl", "-sf", "-H", "Host: answer.localhost", "http://127.0.0.1:8080/"]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    });

    // Each field of a line is one of the journal's.
    let found = machine.says(&[
        "journalctl",
        "--no-pager",
        "--output=cat",
        "BAZOOKA_HOST=app1",
        "_SYSTEMD_UNIT=bazooka-pm.service",
    ]);
    assert!(found.contains("ready host=app1"), "{found}");
    // Nobody but pm and rm is root.
    for unit in ["bazooka-converge", "bazooka-proxy", "bazooka-haproxy"] {
        let pid = machine.property(unit, "MainPID");
        let owner = machine.says(&["stat", "--format=%U", &format!("/proc/{pid}")]);
        assert_ne!(owner.trim(), "root", "{unit}");
    }
}

#[test]
fn a_unit_waits_for_the_coordinator_and_one_that_is_told_wrong_stays_down() {
    let machine = machine();
    machine.write("/etc/bazooka/pm.toml", PM);
    machine.says(&["systemctl", "stop", "etcd"]);
    machine.says(&["systemctl", "start", "--no-block", "bazooka-pm"]);
    until("it says what it waits for", SOON, || {
        let (state, text) =
            (machine.property("bazooka-pm", "ActiveState"), machine.property("bazooka-pm", "StatusText"));
        let waits = state == "activating" && text.starts_with("app1 is not registered");
        if waits { Ok(()) } else { Err(format!("{state}: {text}")) }
    });
    machine.says(&["systemctl", "start", "etcd", "bazooka-rm"]);
    machine.until_is("bazooka-pm", "active");

    machine.write("/etc/bazooka/pm.toml", "host = 'app1'\nzon = 'a'\nidentity = '/etc/bazooka/pm'\n");
    assert!(!machine.run(&["systemctl", "restart", "bazooka-pm"]).status.success());
    machine.until_is("bazooka-pm", "failed");
    let log = machine.log("bazooka-pm");
    for fault in
        ["/etc/bazooka/pm.toml:2: zon: there is no such option", "/etc/bazooka/pm.toml:3: identity: "]
    {
        assert!(log.contains(fault), "{log}");
    }
    let found = machine.run(&["bazooka-pm", "--check"]);
    assert_eq!(found.status.code(), Some(1));
    // It is no use to start it over and over.
    assert_eq!(machine.property("bazooka-pm", "NRestarts"), "0");
}

#[test]
fn systemd_finds_nothing_to_say_against_the_units() {
    let machine = machine();
    let paths = UNITS.map(|unit| format!("/etc/systemd/system/{unit}.service"));
    let words: Vec<&str> = ["systemd-analyze", "verify", "--man=no"]
        .into_iter()
        .chain(paths.iter().map(String::as_str))
        .collect();
    let output = machine.run(&words);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("bazooka")).collect();
    assert!(about_ours.is_empty(), "{about_ours:?}");
}
