//! What a fuzzer is to try: each kind of input that comes from outside, and what must hold whatever it is.
//!
//! Owns the promises, one function each; it panics where one is broken. `libfuzzer/` drives them with new inputs,
//! the test `replay` with those that are kept in `corpus/`.

use std::{
    collections::BTreeSet,
    fmt::{Debug, Display},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use bazooka_pm::converge::{
    memory::{Memory, Now},
    plan::plan as converger_plan,
    step::Act,
};
use bazooka_proxy::{
    config::{Settings, hosts, render, render_map},
    plan::{InForce, Wanted, plan},
    routes::{leaving, routes},
};
use bazooka_sandbox::unpack::unpack;
use visor::{
    mirror::Image,
    names::{AppName, Digest, Domain, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId, ZoneName},
    snapshot::Snapshot,
    store::Entry,
};

/// Something to try, by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All that there is to try.
pub const TARGETS: [Target; 7] = [
    ("names", names),
    ("procfile", procfile),
    ("slug", slug),
    ("schema", schema),
    ("converger", converger),
    ("host", host),
    ("haproxy", haproxy),
];

/// A name that is taken has one spelling, and nothing in it that means anything where names end up: a key, a path, an
/// argument, a line of a configuration.
pub fn names(data: &[u8]) {
    fn one<T: FromStr + Display + PartialEq + Debug>(text: &str)
    where
        T::Err: Display,
    {
        match text.parse::<T>() {
            Ok(name) => {
                assert_eq!(name.to_string(), text, "it has one spelling");
                assert!((1..=253).contains(&text.len()), "{text:?} is no name's length");
                assert!(!text.starts_with(['-', '.']), "{text:?} looks like an option or a hidden file");
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
                assert!(text.chars().all(plain) && !text.contains(".."), "{text:?} is taken");
            }
            Err(error) => drop(error.to_string()),
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    one::<AppName>(text);
    one::<ProcName>(text);
    one::<HostName>(text);
    one::<ZoneName>(text);
    one::<Domain>(text);
    one::<RevId>(text);
    one::<Digest>(text);
    one::<InstanceId>(text);
    one::<ReleaseId>(text);
    one::<EnvRef>(text);
    if let Ok(key) = text.parse::<visor::keys::Key>() {
        assert_eq!(key.to_string(), text, "a key has one spelling");
    }
}

/// What is taken of a Procfile is a command a proc, each on one line; what isn't is told in one line.
pub fn procfile(data: &[u8]) {
    match bazooka_rm::procfile::parse(data) {
        Ok(procs) => {
            assert!(!procs.procs.is_empty() || procs.release.is_some(), "{procs:?}");
            assert!(procs.procs.len() <= bazooka_rm::procfile::MAX_PROCS, "{procs:?}");
            for command in procs.procs.values().chain(&procs.release) {
                assert!(!command.trim().is_empty(), "{procs:?}");
                assert!(!command.chars().any(|c| c.is_control() && c != '\t'), "{command:?}");
            }
        }
        Err(fault) => {
            let words = fault.to_string();
            assert!(!words.chars().any(char::is_control), "{words:?}");
        }
    }
}

/// Whatever an archive holds, nothing is written outside, and what is inside are files, folders and links without
/// any right that they were not to have; each link leads to something inside, to the system's programs, or nowhere.
pub fn slug(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder can be made");
    // As it comes; and as an archive, so that most of it isn't refused for its compression alone.
    let packed = zstd::encode_all(data, 1).expect("it is in memory");
    for (number, archive) in [data, &packed].into_iter().enumerate() {
        let into = dir.path().join(number.to_string());
        fs::create_dir(&into).expect("a folder can be made");
        let taken = unpack(archive, &into).is_ok();
        for path in all_below(&into) {
            let known = fs::symlink_metadata(&path).expect("it was listed");
            assert!(
                known.is_file() || known.is_dir() || known.is_symlink(),
                "{} is {known:?}",
                path.display()
            );
            if known.is_symlink() {
                let Ok(leads) = fs::canonicalize(&path) else { continue };
                let places = [fs::canonicalize(&into).expect("it is there"), "/usr".into(), "/bin".into()];
                assert!(
                    !taken || places.iter().any(|place| leads.starts_with(place)),
                    "{} leads to {}",
                    path.display(),
                    leads.display()
                );
            } else {
                assert_eq!(known.permissions().mode() & 0o7000, 0, "{} has special rights", path.display());
            }
        }
        open(&into);
    }
    let beside: BTreeSet<_> = fs::read_dir(dir.path())
        .expect("it is there")
        .map(|entry| entry.expect("it is there").path())
        .collect();
    assert_eq!(beside, ["0", "1"].map(|name| dir.path().join(name)).into(), "nothing is written beside");
}

fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}

/// Unpacked folders are read-only, and couldn't be removed.
fn open(folder: &Path) {
    for path in all_below(folder) {
        if fs::symlink_metadata(&path).is_ok_and(|known| known.is_dir()) {
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
        }
    }
}

/// Rows out of the coordinator: a line each, key and value with a space between.
fn rows(data: &[u8]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (line, revision) in data.split(|byte| *byte == b'\n').zip(1..) {
        let at = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        let Ok(key) = std::str::from_utf8(&line[..at]) else { continue };
        snapshot.put(&Entry {
            key: key.to_owned(),
            value: line[at..].to_vec().into(),
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        });
        snapshot.set_revision(revision);
    }
    snapshot
}

fn settings() -> Settings {
    Settings {
        public: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
        git: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8081))),
        git_tls: None,
        bind: IpAddr::from(Ipv4Addr::LOCALHOST),
        domain: "localhost".parse().expect("a valid name"),
        folder: PathBuf::from("/var/lib/bazooka-proxy"),
        run_as: None,
        exporter: true,
        lua: true,
    }
}

/// Whatever stands in the coordinator can be read or is told as unreadable, and what it means can be planned.
pub fn schema(data: &[u8]) {
    let snapshot = rows(data);
    for (key, why) in &snapshot.unreadable {
        assert!(!format!("{key}: {why}").is_empty());
    }
    let wanted = Wanted { routes: routes(&snapshot, None), settings: settings() };
    let _ = leaving(&snapshot);
    let mut in_force = InForce::of(&Wanted { routes: Default::default(), settings: settings() }, 1, 2);
    for step in plan(&in_force, &wanted).steps {
        in_force.note(&step);
    }
    let taken = InForce::of(&wanted, 1, 2);
    assert_eq!(plan(&taken, &wanted).steps, [], "what runs as it is wanted is left alone");
}

/// Whatever stands in the coordinator, the converger's plan places no more instances than there are free slots, has no
/// more other steps than there are rows, and of an app with an unreadable row it has none.
pub fn converger(data: &[u8]) {
    let snapshot = rows(data);
    let now = Now { clock: Instant::now(), wall: jiff::Timestamp::UNIX_EPOCH };
    let mut memory = Memory::default();
    memory.observe_hosts(&snapshot, now);
    let plan = converger_plan(&snapshot, &memory, now);
    let (places, others): (Vec<_>, Vec<_>) =
        plan.steps.iter().partition(|step| matches!(step.act, Act::Place { .. }));
    let slots = snapshot.hosts.values().filter_map(|view| view.host.as_ref());
    let slots: u64 = slots.map(|host| u64::from(host.capacity.instances)).sum();
    assert!(u64::try_from(places.len()).is_ok_and(|places| places <= slots), "{} of {slots}", places.len());
    let lines = data.split(|byte| *byte == b'\n').count();
    assert!(others.len() <= 3 * lines, "{} steps of {lines} rows", others.len());
    for step in &plan.steps {
        assert_eq!(snapshot.unreadable_below(&step.app), None, "{step:?}");
    }
}

/// A request's Host header leads to the app whose name it is, however it is written; and each line of the map is a
/// host and a backend.
pub fn host(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let snapshot = rows(data.get(at + 1..).unwrap_or_default());
    let hosts = hosts(&routes(&snapshot, None), &settings());
    let map = render_map(&hosts);
    assert_eq!(map.lines().count(), hosts.len(), "a line each");
    for line in map.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words.len() == 2 && !line.starts_with('#'), "{line:?} is no line of the map");
        // As HAProxy looks it up: in lower case, without a port and a last dot.
        let looked_up = words[0].to_lowercase();
        let looked_up = looked_up.split(':').next().unwrap_or_default().trim_end_matches('.');
        assert_eq!(looked_up, words[0], "nobody finds {line:?}");
    }
    // An app's own name leads to it, whoever claims it as a domain.
    for app in snapshot.apps.keys() {
        if let Some(backend) = hosts.get(&format!("{app}.localhost")) {
            assert_eq!(*backend, format!("{app}.web"));
        }
    }
}

/// Words that lines of the configuration begin with. What a name could bring in would begin with another, or be
/// a line too many.
const WORDS: [&str; 32] = [
    "#",
    "backend",
    "balance",
    "bind",
    "default_backend",
    "defaults",
    "description",
    "frontend",
    "global",
    "group",
    "hard-stop-after",
    "hash-type",
    "http-error",
    "http-request",
    "lua-load",
    "maxconn",
    "mode",
    "option",
    "retries",
    "retry-on",
    "server",
    "srvtcpka-cnt",
    "srvtcpka-idle",
    "srvtcpka-intvl",
    "stats",
    "stick-table",
    "tcp-check",
    "tcp-request",
    "tcp-response",
    "timeout",
    "use_backend",
    "user",
];

/// Whatever stands in the coordinator, the configuration has the lines that it is to have, and no other.
pub fn haproxy(data: &[u8]) {
    let snapshot = rows(data);
    let routes = routes(&snapshot, None);
    let text = render(&routes, &settings());
    let count = |word: &str| text.lines().filter(|line| line.split(' ').next() == Some(word)).count();
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let word = line.trim_start().split(' ').next().unwrap_or_default();
        assert!(WORDS.contains(&word), "{line:?} is no line of ours");
    }
    let open = routes.services.values().filter(|service| service.port.is_some()).count();
    let empty = render(&Default::default(), &settings());
    let of_empty = |word: &str| empty.lines().filter(|line| line.split(' ').next() == Some(word)).count();
    assert_eq!(count("frontend"), of_empty("frontend") + open);
    assert_eq!(count("backend"), of_empty("backend") + routes.services.len());
}
