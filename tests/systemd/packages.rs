//! Debian's packages: made of the programs beside the test, looked at, and installed, upgraded and taken away on a booted machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use bazooka_tests::{SOON, Systemd, program, until};

use crate::booted;

const PACKAGES: [&str; 4] = ["bazooka", "bazooka-pm", "bazooka-rm", "bazooka-proxy"];

const UNITS: [&str; 5] = ["bazooka-rm", "bazooka-converge", "bazooka-pm", "bazooka-haproxy", "bazooka-proxy"];

/// Makes the packages, and returns where they are.
pub fn make(dir: &Path) -> Vec<PathBuf> {
    let built = program("bazooka");
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debs"))
        .args(["--fast", "--built"])
        .arg(built.parent().expect("a program has a folder"))
        .arg("--output")
        .arg(dir)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let made: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
    assert_eq!(made.len(), PACKAGES.len(), "{said}");
    made
}

/// Packs a package again under a later version, in another folder.
pub fn later(package: &Path, dir: &Path) {
    std::fs::create_dir_all(dir).expect("the folder can be made");
    let tree = dir.join("tree");
    let packer = |words: &[&str], from: &Path, to: &Path| {
        let done = Command::new("dpkg-deb").args(words).arg(from).arg(to).output().expect("dpkg-deb runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    packer(&["--raw-extract"], package, &tree);
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).expect("it has one");
    let version = text.lines().find(|line| line.starts_with("Version: ")).expect("it has one");
    std::fs::write(&control, text.replace(version, &format!("{version}.1"))).expect("it can be written");
    let name = package.file_name().expect("a file has a name");
    packer(&["--build", "-Znone", "--root-owner-group"], &tree, &dir.join(name));
    std::fs::remove_dir_all(&tree).expect("it can be removed");
}

#[test]
#[ignore = "takes two minutes of a processor: to pack them, and for lintian to look at them"]
fn packages_are_found_without_fault_and_come_and_go_without_an_instance_noticing_an_upgrade() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let made = make(&first);
    made.iter().for_each(|package| later(package, &second));

    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error", "--tag-display-limit", "0"])
        .args(&made)
        .output()
        .expect("lintian is installed: apt-get install lintian");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{said}");

    let machine = Systemd::boot();
    machine.copy(&first, "/root/first");
    machine.copy(&second, "/root/second");
    machine.write("/etc/systemd/system/etcd.service", booted::ETCD);
    let said = machine.shell("dpkg --install /root/first/*.deb 2>&1");
    assert!(said.contains("systemctl enable --now bazooka-pm"), "what comes next is told: {said}");
    // Nothing runs that nobody has told anything.
    for unit in UNITS {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive", "{unit}");
        assert_eq!(machine.property(unit, "UnitFileState"), "disabled", "{unit}");
    }
    machine
        .shell("getent passwd bazooka-converge bazooka-proxy; systemctl daemon-reload; systemctl start etcd");
    for program in PACKAGES {
        machine.shell(&format!(
            "test -e /usr/share/man/man1/{program}.1.gz; test -e /usr/share/bash-completion/completions/{program}
             test -e /usr/share/doc/{program}/changelog.Debian.gz; {program} --version"
        ));
    }

    machine.write("/etc/bazooka/pm.toml", booted::PM);
    machine.shell("bazooka-pm --check; systemctl enable --now bazooka-rm bazooka-converge bazooka-pm bazooka-haproxy bazooka-proxy");
    for unit in UNITS {
        machine.until_is(unit, "active");
    }
    booted::push(&machine, 1);
    let before = booted::instances(&machine);
    assert_eq!(before.len(), 1);
    let (pm, haproxy) =
        (machine.property("bazooka-pm", "MainPID"), machine.property("bazooka-haproxy", "MainPID"));

    machine.shell("dpkg --install /root/second/*.deb");
    until("the upgraded bazooka-pm has taken over", SOON, || {
        let (now, state) =
            (machine.property("bazooka-pm", "MainPID"), machine.property("bazooka-pm", "ActiveState"));
        let status = machine.property("bazooka-pm", "StatusText");
        let ready = now != pm && state == "active" && status.ends_with("instances: 1");
        if ready { Ok(()) } else { Err(format!("{now}: {state}, {status}")) }
    });
    assert_eq!(booted::instances(&machine), before);
    assert_eq!(machine.property("bazooka-haproxy", "MainPID"), haproxy);
    assert_eq!(machine.says(&["cat", "/etc/bazooka/pm.toml"]), booted::PM, "what the operator wrote stays");

    machine.shell("dpkg --remove bazooka-pm bazooka-rm bazooka-proxy bazooka");
    until("no instance outlives the package", SOON, || {
        let left = booted::instances(&machine);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    for unit in UNITS {
        machine.until_is(unit, "inactive");
    }
    machine.shell(
        "test -e /etc/bazooka/pm.toml; test -d /var/lib/bazooka-pm; test ! -e /usr/bin/bazooka-pm
         test ! -e /etc/systemd/system/multi-user.target.wants/bazooka-pm.service",
    );
    machine.shell("dpkg --purge bazooka-pm bazooka-rm bazooka-proxy bazooka");
    let left = machine.shell(
        "for path in /etc/bazooka /var/lib/bazooka-pm /var/lib/bazooka-rm /var/lib/bazooka-proxy /usr/lib/bazooka; do
           if [ -e $path ]; then find $path; fi
         done",
    );
    assert_eq!(left, "");
}
