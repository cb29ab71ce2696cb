//! docs/cluster.md, and the loss of the rm's machine in docs/disaster.md, followed word for word: machines that each have a
//! systemd and an address, and what the pages have them run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use bazooka_tests::{Nets, SOON, Systemd, until};

use crate::{booted, packages};

/// The machines, in the order of their addresses.
const MACHINES: [&str; 5] = ["m1", "m2", "m3", "m4", "ops"];

/// The seconds that a block may take: a build, a drain and a rollout are among them.
const PATIENCE: &str = "120";

/// The section of docs/disaster.md that is followed, too.
const LOST_RM: &str = "The rm's machine is gone for good";

/// The command line of the first app's instances.
const SERVER: &str = "^[^ ]*bazooka-static";

/// One block of the page.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    section: String,
    machines: Vec<String>,
    script: String,
    /// What the last command is to say; `...` stands for anything in a line.
    said: Vec<String>,
}

/// The page's blocks, in order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut section, mut machines) = (String::new(), Vec::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if let Some(kind) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            match kind {
                "sh" => steps.push(Step {
                    section: section.clone(),
                    machines: std::mem::take(&mut machines),
                    script: block.join("\n"),
                    said: Vec::new(),
                }),
                "text" => {
                    let step = steps.last_mut().expect("what is said follows a block that says it");
                    step.said = block.into_iter().map(str::to_owned).collect();
                }
                other => panic!("a block of {other}"),
            }
        } else if line.contains("**") {
            machines = line.split("**").skip(1).step_by(2).map(str::to_owned).collect();
        }
    }
    steps
}

/// Whether a line is as the page has it, whatever is between its words: columns are as wide as they must be.
fn is_as(line: &str, wanted: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = words(line);
    let mut rest = line.as_str();
    wanted.split("...").map(words).all(|part| match rest.find(&part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Packages with the names, units, files and scripts of the real ones, whose programs are links to those beside the test: the
/// real ones take minutes to make.
fn stand_ins(dir: &Path, version: &str) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for (package, units, files) in [
        ("bazooka", &[][..], &["bazooka.toml"][..]),
        ("bazooka-pm", &["bazooka-pm", "bazooka-converge"], &["pm.toml", "converge.toml"]),
        ("bazooka-rm", &["bazooka-rm"], &["rm.toml"]),
        ("bazooka-proxy", &["bazooka-proxy", "bazooka-haproxy"], &["proxy.toml"]),
    ] {
        let tree = dir.join(package);
        let into = |folder: &str| {
            let folder = tree.join(folder);
            fs::create_dir_all(&folder).expect("the folder can be made");
            folder
        };
        let copy = |from: PathBuf, to: PathBuf| {
            fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        };
        std::os::unix::fs::symlink(format!("/opt/built/{package}"), into("usr/bin").join(package))
            .expect("a link can be made");
        for unit in units {
            let unit = format!("{unit}.service");
            copy(deploy.join("systemd").join(&unit), into("usr/lib/systemd/system").join(&unit));
        }
        files.iter().for_each(|file| copy(deploy.join("etc").join(file), into("etc/bazooka").join(file)));
        let control = into("DEBIAN");
        if let Ok(scripts) = fs::read_dir(deploy.join("debian").join(package)) {
            for script in scripts.map(|script| script.expect("a folder can be read").path()) {
                let to = control.join(script.file_name().expect("a file has a name"));
                copy(script, to.clone());
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("the mode can be set");
            }
        }
        let kept = files.iter().map(|file| format!("/etc/bazooka/{file}\n")).collect::<String>();
        fs::write(control.join("conffiles"), kept).expect("it can be written");
        let said = format!(
            "Package: {package}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Test <test@localhost>\n\
             Description: stands in for {package}\n"
        );
        fs::write(control.join("control"), said).expect("it can be written");
        let packed = Command::new("dpkg-deb")
            .args(["--build", "-Znone", "--root-owner-group"])
            .arg(&tree)
            .arg(dir.join(format!("{package}_{version}_amd64.deb")))
            .output()
            .expect("dpkg-deb runs");
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        fs::remove_dir_all(&tree).expect("it can be removed");
    }
}

/// Fresh machines: they have an address and a name, and ops reaches the others.
struct Site {
    machines: BTreeMap<&'static str, Systemd>,
    // Go after what is on them.
    _nets: Nets,
    _files: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let nets = Nets::new(u8::try_from(MACHINES.len()).expect("a handful"), BTreeSet::new());
        let files = tempfile::tempdir().expect("a folder");
        let booted = Systemd::boot_all(&nets, &MACHINES, files.path());
        let site = Site { machines: MACHINES.into_iter().zip(booted).collect(), _nets: nets, _files: files };
        site.ops().shell(
            "mkdir -p -m 700 .ssh
             ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519
             echo 'StrictHostKeyChecking accept-new' >.ssh/config
             git config --global user.name Ada; git config --global user.email ada@localhost",
        );
        let key = site.ops().says(&["cat", ".ssh/id_ed25519.pub"]);
        for (name, machine) in &site.machines {
            if *name != "ops" {
                machine.write("/root/.ssh/authorized_keys", &key);
                machine.shell("chmod -R go= .ssh; systemctl start ssh");
            }
        }
        site
    }

    fn ops(&self) -> &Systemd {
        self.on("ops")
    }

    fn on(&self, name: &str) -> &Systemd {
        self.machines.get(name).unwrap_or_else(|| panic!("the page names {name:?}, which is no machine"))
    }

    /// Has the machines of a block run it, and looks at what the last of them says.
    fn follow(&self, step: &Step) {
        assert!(!step.machines.is_empty(), "nobody is named before {step:#?}");
        for name in &step.machines {
            let said = self.on(name).says(&["timeout", PATIENCE, "bash", "-euc", &step.script]);
            eprintln!("--- {}: {name} says\n{said}", step.section);
            let mut lines = said.lines();
            for wanted in &step.said {
                assert!(
                    lines.any(|line| is_as(line, wanted)),
                    "{name} says {said}, not {wanted:?}: {step:#?}"
                );
            }
        }
    }
}

/// Asks the app through both proxies, one request after the other, until it is told that it is enough.
const ASK: &str = "while [ ! -e enough ]; do
    for ip in 10.77.0.1 10.77.0.3; do
        said=$(curl -sS -m 5 -f -H 'Host: hello.apps.example.org' http://$ip/ 2>&1) || echo \"$(date +%T) $ip: $said\" >>lost
        echo $ip >>asked
    done
done";

/// What the release before would have left: a schema of its own, and config vars in plain text.
const AS_BEFORE: &str = r#"export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://10.77.0.1:2379
    export ETCDCTL_CACERT=m1/rm/ca.pem ETCDCTL_CERT=m1/rm/cert.pem ETCDCTL_KEY=m1/rm/key.pem
    schema=$(etcdctl get --print-value-only /bazooka/schema | sed -E 's/"(version|min_reader|min_writer)":3/"\1":1/g')
    etcdctl put /bazooka/apps/hello/envs/e1 '{"vars":{"MOOD":"good"},"by":"ada","at":"2026-01-01T00:00:00Z"}'
    etcdctl put /bazooka/schema "$schema""#;

/// Brings etcd's members to what the page once had, as the page brings them away from it: first a member trusts both
/// authorities,
const TRUST_BOTH: &str = "cd /etc/bazooka/etcd
    cat ca.pem peers.pem >both.pem
    chown root:etcd both.pem
    sed -i 's|/peers.pem$|/both.pem|' /etc/default/etcd
    systemctl restart etcd
    export ETCDCTL_API=3 ETCDCTL_CACERT=ca.pem ETCDCTL_CERT=cert.pem ETCDCTL_KEY=key.pem
    until etcdctl --endpoints=https://127.0.0.1:2379 endpoint health; do sleep 1; done";

/// then it shows the certificate that it shows to clients,
const SHOW_OLD: &str = "cd /etc/bazooka/etcd; cp cert.pem peer-cert.pem; cp key.pem peer-key.pem";

/// and then it trusts the clients' authority alone, and nothing is left of the other.
const TRUST_OLD: &str = "cd /etc/bazooka/etcd
    sed -i 's|/both.pem$|/ca.pem|; s|/peer-|/|' /etc/default/etcd
    systemctl restart etcd
    export ETCDCTL_API=3 ETCDCTL_CACERT=ca.pem ETCDCTL_CERT=cert.pem ETCDCTL_KEY=key.pem
    until etcdctl --endpoints=https://127.0.0.1:2379 endpoint health; do sleep 1; done
    rm both.pem peer*.pem";

/// Looks at rows as etcd has them, on ops.
const ROWS: &str = "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://10.77.0.1:2379
    export ETCDCTL_CACERT=m1/rm/ca.pem ETCDCTL_CERT=m1/rm/cert.pem ETCDCTL_KEY=m1/rm/key.pem
    etcdctl get --print-value-only /bazooka/schema
    etcdctl get --print-value-only /bazooka/apps/hello/envs/e1";

/// The address of each part, with the beginning of its certificate's path on ops.
const ENDPOINTS: [(&str, &str); 12] = [
    ("10.77.0.1:2380", "m1/etcd/peer-"),
    ("10.77.0.2:2380", "m2/etcd/peer-"),
    ("10.77.0.3:2380", "m3/etcd/peer-"),
    ("10.77.0.1:2379", "m1/etcd/"),
    ("10.77.0.2:2379", "m2/etcd/"),
    ("10.77.0.3:2379", "m3/etcd/"),
    ("10.77.0.1:8081", "m1/rm/"),
    ("10.77.0.1:8100", "m1/pm/"),
    ("10.77.0.2:8100", "m2/pm/"),
    ("10.77.0.3:8100", "m3/pm/"),
    ("10.77.0.1:8101", "m1/proxy/"),
    ("10.77.0.3:8101", "m3/proxy/"),
];

/// Waits until each part shows the certificate that its file on ops has.
fn until_renewed(ops: &Systemd) {
    for (endpoint, folder) in ENDPOINTS {
        let print = "openssl x509 -noout -fingerprint -sha256";
        let wanted = ops.shell(&format!("{print} -in {folder}cert.pem"));
        until(&format!("{endpoint} shows its new certificate"), SOON, || {
            let shown = format!(
                "openssl s_client -connect {endpoint} -cert ada/cert.pem -key ada/key.pem 2>&1 </dev/null | {print}"
            );
            let shown = ops.run(&["bash", "-c", &shown]);
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            if shown == wanted { Ok(()) } else { Err(format!("{shown}, not {wanted}")) }
        });
    }
}

/// The blocks of a page below `docs`.
fn page(name: &str) -> Vec<Step> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name));
    steps(&page.expect("the page is there"))
}

/// Takes the machine of the rm away, with all that is on it, and follows docs/disaster.md.
fn lose_the_rm(site: &mut Site) {
    let steps: Vec<Step> = page("disaster.md").into_iter().filter(|step| step.section == LOST_RM).collect();
    assert_eq!(steps.len(), 5, "{steps:#?}");
    drop(site.machines.remove("m1"));
    steps.iter().for_each(|step| site.follow(step));
}

fn follow_the_page(make: impl FnOnce(&Path, &Path)) {
    let steps = page("cluster.md");
    let dir = tempfile::tempdir().expect("a folder");
    let (first, next) = (dir.path().join("first"), dir.path().join("next"));
    [&first, &next].iter().for_each(|folder| fs::create_dir(folder).expect("a folder can be made"));
    make(&first, &next);
    let mut site = Site::new();
    let ops = site.ops();
    ops.copy(&first, "/root/first");
    ops.copy(&next, "/root/next");
    ops.shell("mv first/*.deb .");
    let instances = || ["m1", "m2", "m3"].map(|name| booted::processes(site.on(name), SERVER));
    let mut serving = None;
    let mut asking = None;
    let mut sections: Vec<&str> = Vec::new();
    for step in &steps {
        if sections.last() != Some(&step.section.as_str()) {
            sections.push(&step.section);
            // What the page takes for given.
            match step.section.as_str() {
                "Adding a host" => {
                    asking = Some(ops.command(&["bash", "-c", ASK]).spawn().expect("nsenter is installed"));
                }
                "A dead member of etcd" => {
                    serving = Some(instances());
                    site.on("m2").shell("systemctl stop etcd; rm -rf /var/lib/etcd/bazooka");
                }
                "Peers without an authority of their own" => {
                    let members = ["m1", "m2", "m3"];
                    for round in [TRUST_BOTH, SHOW_OLD, TRUST_OLD] {
                        members.iter().for_each(|member| drop(site.on(member).shell(round)));
                    }
                    ops.shell("rm pki/peers.pem pki/peers-key.pem");
                    let checked = ops.run(&["bash", "-c", "bazooka check"]);
                    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
                    assert_eq!(checked.matches("peer-port-open").count(), 3, "{checked}");
                }
                "The next release" => {
                    until_renewed(ops);
                    ops.shell(AS_BEFORE);
                }
                _ => {}
            }
        }
        site.follow(step);
    }
    assert_eq!(sections.len(), 13, "{sections:?}");

    let serving = serving.expect("the section is there");
    assert_eq!(serving.iter().map(BTreeSet::len).sum::<usize>(), 6, "{serving:?}");
    assert_eq!(instances(), serving, "a dead member, new certificates and another release reach no instance");
    ops.shell("touch enough");
    assert!(asking.expect("the section is there").wait().is_ok_and(|status| status.success()));
    let asked = ops.shell("wc -l <asked");
    let lost = ops.shell("touch lost; cat lost");
    eprintln!("{} requests, lost: {lost:?}", asked.trim());
    assert!(asked.trim().parse::<u32>().is_ok_and(|asked| asked > 100), "{asked}");
    assert_eq!(lost, "", "of {asked}");
    let rows = ops.shell(ROWS);
    assert!(rows.contains(r#""version":4,"min_reader":4,"min_writer":4"#), "{rows}");
    assert!(rows.contains(r#""sealed""#) && !rows.contains("good"), "{rows}");
    lose_the_rm(&mut site);
}

#[test]
fn a_cluster_comes_up_and_lives_on_by_the_page() {
    follow_the_page(|first, next| {
        stand_ins(first, "0.1.0-1");
        stand_ins(next, "0.1.0-2");
    });
}

#[test]
#[ignore = "takes minutes of a processor: to pack the packages"]
fn a_cluster_comes_up_and_lives_on_by_the_page_with_real_packages() {
    follow_the_page(|first, next| {
        packages::make(first).iter().for_each(|package| packages::later(package, next));
    });
}

#[test]
fn lines_are_compared_as_the_page_has_them() {
    assert!(is_as("m1\ta\tup\t0.1.0\t10.77.0.1\t0", "m1    a     up  ...  10.77.0.1 ..."));
    assert!(!is_as("m1\ta\tcordoned\t0.1.0\t10.77.0.1\t0", "m1    a     up  ...  10.77.0.1 ..."));
    assert!(!is_as("hello", "hello from a cluster"));
}
