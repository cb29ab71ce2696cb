//! Which crate depends on which: arrows go downwards only.
//!
//! ```text
//! bazooka-cli  bazooka-rm  bazooka-proxy  bazooka-pm
//!      └───────────┴── bazooka-daemon ──┴──────┘
//!                      bazooka-sandbox ◀ pm, rm
//!                      visor
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde::Deserialize;

/// What each crate may depend on, of ours. A crate that isn't here may not be below `crates`.
const BENEATH: [(&str, &[&str]); 7] = [
    ("visor", &[]),
    ("bazooka-sandbox", &["visor"]),
    ("bazooka-daemon", &["visor"]),
    ("bazooka-cli", &["visor", "bazooka-daemon"]),
    ("bazooka-proxy", &["visor", "bazooka-daemon"]),
    ("bazooka-pm", &["visor", "bazooka-daemon", "bazooka-sandbox"]),
    ("bazooka-rm", &["visor", "bazooka-daemon", "bazooka-sandbox"]),
];

/// Libraries that visor is to do without: they are for a program's outside.
const NOT_OF_VISOR: [&str; 10] = [
    "axum",
    "clap",
    "clap_complete",
    "clap_mangen",
    "prometheus-client",
    "reqwest",
    "sd-notify",
    "tokio-rustls",
    "toml",
    "tracing-subscriber",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// None: a normal one.
    kind: Option<String>,
    features: Vec<String>,
}

impl Package {
    fn is_a_programs(&self) -> bool {
        self.manifest_path.contains("/crates/")
    }

    /// What it is built of; not what only its tests are.
    fn built_of(&self) -> impl Iterator<Item = &str> {
        let built_of = self.dependencies.iter().filter(|known| known.kind.as_deref() != Some("dev"));
        built_of.map(|known| known.name.as_str())
    }
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .args(["--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo has built this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn packages() -> Vec<Package> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str::<Metadata>(&text).expect("metadata").packages
}

#[test]
fn arrows_between_crates_go_downwards_only() {
    let allowed = BTreeMap::from(BENEATH);
    let packages = packages();
    let own: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|package| package.is_a_programs()) {
        let Some(beneath) = allowed.get(package.name.as_str()) else {
            wrong.push(format!(
                "{} has no place: give it one in this test and in docs/architecture.md",
                package.name
            ));
            continue;
        };
        let above = package.dependencies.iter().map(|known| known.name.as_str());
        // A crate's own tests may turn its own features on.
        let above =
            above.filter(|name| own.contains(name) && *name != package.name && !beneath.contains(name));
        wrong.extend(above.map(|name| format!("{} depends on {name}", package.name)));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn nothing_depends_on_a_package_of_tests() {
    let packages = packages();
    let of_tests = |name: &str| packages.iter().any(|own| own.name == name && !own.is_a_programs());
    let depend = packages.iter().flat_map(|package| {
        let known = package.dependencies.iter().filter(|known| of_tests(&known.name));
        known.map(|known| format!("{} depends on {}", package.name, known.name))
    });
    assert_eq!(depend.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn only_a_feature_of_the_simulation_turns_planted_faults_on() {
    let mut on = Vec::new();
    for package in packages() {
        let known = package.dependencies.iter();
        let always = known.filter(|known| known.features.iter().any(|feature| feature == "planted"));
        on.extend(always.map(|known| format!("{} by {}", package.name, known.name)));
        for (feature, turned_on) in &package.features {
            if turned_on.iter().any(|other| other.ends_with("planted")) {
                on.push(format!("{} by {feature}", package.name));
            }
        }
    }
    assert_eq!(on, ["bazooka-simulation by planted"]);
}

#[test]
fn a_change_in_the_converger_builds_neither_the_sandbox_nor_bazooka_rm_anew() {
    let packages = packages();
    let built_of: BTreeMap<&str, BTreeSet<&str>> =
        packages.iter().map(|package| (package.name.as_str(), package.built_of().collect())).collect();
    let mut anew = BTreeSet::from(["bazooka-pm"]);
    loop {
        let more = built_of.iter().filter(|(_, of)| of.iter().any(|name| anew.contains(name)));
        let more: Vec<&str> = more.map(|(name, _)| *name).filter(|name| !anew.contains(name)).collect();
        if more.is_empty() {
            break;
        }
        anew.extend(more);
    }
    for package in packages.iter().filter(|package| package.is_a_programs() && package.name != "bazooka-pm") {
        assert!(!anew.contains(package.name.as_str()), "{} is built anew", package.name);
    }
}

#[test]
fn visor_has_no_outside_and_the_command_line_no_server() {
    let packages = packages();
    let visor = packages.iter().find(|package| package.name == "visor").expect("it is there");
    let outside: Vec<&str> = visor.built_of().filter(|name| NOT_OF_VISOR.contains(name)).collect();
    assert_eq!(outside, Vec::<&str>::new());
    let tree = cargo(&["tree", "-p", "bazooka-cli", "-e", "normal", "--prefix", "none"]);
    // axum itself is there by etcd-client, whose tonic has it.
    for daemons in ["prometheus-client ", "git2 ", "object_store "] {
        assert!(!tree.lines().any(|line| line.starts_with(daemons)), "bazooka-cli is built with {daemons}");
    }
}
