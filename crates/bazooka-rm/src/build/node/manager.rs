//! The package manager of an app for Node: chosen by package.json's `packageManager`, else by the lock file.
//!
//! Owns the choice, and the commands of each manager. Each manager reads its own lock file.

use std::path::{Path, PathBuf};

use super::super::{BuildError, buildpack::Tree, tools};

/// Lock files with the managers that write them. A manager's first one is the one that it writes today.
const LOCKS: [(&str, &str); 6] = [
    ("package-lock.json", "npm"),
    ("npm-shrinkwrap.json", "npm"),
    ("yarn.lock", "yarn"),
    ("pnpm-lock.yaml", "pnpm"),
    ("bun.lock", "bun"),
    ("bun.lockb", "bun"),
];

/// The beginning of a yarn.lock of Yarn 2 or later.
const BERRY: &str = "__metadata:";

/// A kind of package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Npm,
    /// Yarn 1.
    Yarn,
    /// Yarn 2 and later.
    Berry,
    Pnpm,
    Bun,
}

impl Kind {
    /// Returns the name of the program.
    pub(super) fn program(self) -> &'static str {
        match self {
            Kind::Npm => "npm",
            Kind::Yarn | Kind::Berry => "yarn",
            Kind::Pnpm => "pnpm",
            Kind::Bun => "bun",
        }
    }

    /// Returns the package of the registry that is the manager.
    fn package(self) -> String {
        match self {
            Kind::Npm => "npm".into(),
            Kind::Yarn => "yarn".into(),
            Kind::Berry => "@yarnpkg/cli-dist".into(),
            Kind::Pnpm => "pnpm".into(),
            Kind::Bun => format!("@oven/bun-linux-{}", arch()),
        }
    }
}

/// Returns the name that registries give to this machine's architecture.
fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "aarch64" } else { "x64" }
}

/// The chosen manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    /// The kind.
    pub(super) kind: Kind,
    /// The version, whole or its beginning. None is the machine's own.
    pub(super) version: Option<String>,
    /// The lock file to obey.
    pub(super) lock: Option<&'static str>,
    /// Notes for the pusher.
    pub(super) notes: Vec<String>,
}

/// Chooses the manager of a tree. `named` is package.json's `packageManager`.
///
/// # Errors
/// [`BuildError::Faulty`], if there are lock files of several managers and `named` names none of them, or names no
/// manager and version.
pub(super) fn choose(tree: Tree<'_>, named: Option<&str>) -> Result<Manager, BuildError> {
    let locks: Vec<(&'static str, &str)> = LOCKS.into_iter().filter(|(lock, _)| tree.has(lock)).collect();
    let named = named.map(parse).transpose()?;
    let of_one = locks.iter().all(|(_, manager)| Some(manager) == locks.first().map(|(_, first)| first));
    let name = match (&named, locks.first()) {
        (Some((name, _)), _) => *name,
        (None, Some(_)) if !of_one => return Err(several(&locks)),
        (None, Some((_, manager))) => manager,
        (None, None) => "npm",
    };
    let lock = locks.iter().find(|(_, manager)| *manager == name).map(|(lock, _)| *lock);
    let mut notes: Vec<String> = locks
        .iter()
        .filter(|(_, manager)| *manager != name)
        .map(|(other, _)| format!("{other} is not read: package.json's packageManager is {name}"))
        .collect();
    if lock.is_none() {
        let (usual, _) = LOCKS.iter().find(|(_, manager)| *manager == name).expect("each has one");
        notes.push(format!("there is no {usual}: each build takes the newest versions"));
    }
    let text = match lock {
        Some(lock @ ("yarn.lock" | "pnpm-lock.yaml")) => {
            String::from_utf8_lossy(&tree.read(lock)?).into_owned()
        }
        _ => String::new(),
    };
    let version = named.map(|(_, version)| version);
    let kind = match name {
        "npm" => Kind::Npm,
        "pnpm" => Kind::Pnpm,
        "bun" => Kind::Bun,
        _ => match &version {
            Some(version) if !version.starts_with("1.") => Kind::Berry,
            Some(_) => Kind::Yarn,
            None if text.contains(BERRY) => Kind::Berry,
            None => Kind::Yarn,
        },
    };
    Ok(Manager { kind, version: version.or_else(|| usual(kind, &text)), lock, notes })
}

/// Splits `pnpm@9.1.0+sha512.abc` into its name and version.
fn parse(named: &str) -> Result<(&'static str, String), BuildError> {
    let faulty = || {
        BuildError::Faulty(format!(
            "package.json: packageManager is {named:?}; it must be npm, yarn, pnpm or bun with a whole version, such as \
             pnpm@10.0.0"
        ))
    };
    let (name, version) = named.split_once('@').ok_or_else(faulty)?;
    let version = version.split('+').next().unwrap_or_default();
    let name = ["npm", "yarn", "pnpm", "bun"].into_iter().find(|known| *known == name).ok_or_else(faulty)?;
    // The version becomes part of a path and of a command.
    let is_safe = version.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-');
    let is_whole = version.starts_with(|c: char| c.is_ascii_digit()) && version.split('.').count() >= 3;
    if is_safe && is_whole { Ok((name, version.to_owned())) } else { Err(faulty()) }
}

fn several(locks: &[(&str, &str)]) -> BuildError {
    let names: Vec<&str> = locks.iter().map(|(lock, _)| *lock).collect();
    let keep = |kept: &str| {
        let others = locks.iter().filter(|(_, manager)| *manager != kept).map(|(lock, _)| *lock);
        format!("`git rm {}` to keep {kept}", others.collect::<Vec<_>>().join(" "))
    };
    let mut managers: Vec<&str> = locks.iter().map(|(_, manager)| *manager).collect();
    managers.dedup();
    let advice: Vec<String> = managers.into_iter().map(keep).collect();
    BuildError::Faulty(format!(
        "{} are of different package managers: {}; or name the manager in package.json's packageManager",
        names.join(" and "),
        advice.join(", or ")
    ))
}

/// Returns the beginning of the version that a lock file's format takes.
fn usual(kind: Kind, lock: &str) -> Option<String> {
    let number_after = |key: &str| {
        let line = lock.lines().find_map(|line| line.trim().strip_prefix(key))?;
        line.trim().trim_matches(['\'', '"']).split('.').next()?.parse::<u32>().ok()
    };
    let version = match kind {
        Kind::Npm => return None,
        Kind::Yarn => "1",
        Kind::Berry => match number_after("version:") {
            Some(0..=4) => "2",
            Some(5..=7) => "3",
            _ => "4",
        },
        Kind::Pnpm => match number_after("lockfileVersion:") {
            Some(0..=5) => "7",
            Some(6..=8) => "8",
            _ => "10",
        },
        Kind::Bun => "1",
    };
    Some(version.to_owned())
}

impl Manager {
    /// Returns the name of the tool's folder; none if the machine's own is used.
    pub(super) fn tool(&self) -> Option<String> {
        self.version.as_ref().map(|version| format!("{}-{version}", self.kind.program()))
    }

    /// Returns the commands that make the tool in a folder.
    pub(super) fn commands(&self, folder: &str) -> Vec<Vec<String>> {
        let package = format!("{}@{}", self.kind.package(), self.version.as_deref().unwrap_or("latest"));
        let words = ["npm", "install", "--global", "--prefix", folder, "--ignore-scripts", &package];
        vec![tools::words(&words)]
    }

    /// Returns the part of the tool's folder that has a `bin` with the program.
    pub(super) fn home(&self, tool: &Path) -> PathBuf {
        match self.kind {
            Kind::Bun => tool.join("lib/node_modules").join(self.kind.package()),
            _ => tool.to_owned(),
        }
    }

    /// Returns the words that install all dependencies.
    pub(super) fn install(&self) -> &'static [&'static str] {
        let frozen = self.lock.is_some();
        match (self.kind, frozen) {
            (Kind::Npm, true) => &["ci", "--include=dev", "--prefer-offline"],
            (Kind::Npm, false) => &["install", "--include=dev", "--prefer-offline"],
            (Kind::Yarn, true) => {
                &["install", "--frozen-lockfile", "--production=false", "--non-interactive"]
            }
            (Kind::Yarn, false) => &["install", "--production=false", "--non-interactive"],
            (Kind::Berry, true) => &["install", "--immutable"],
            (Kind::Berry, false) => &["install", "--no-immutable"],
            (Kind::Pnpm, true) => &["install", "--frozen-lockfile", "--prod=false", "--reporter=append-only"],
            (Kind::Pnpm, false) => &["install", "--prod=false", "--reporter=append-only"],
            (Kind::Bun, true) => &["install", "--frozen-lockfile"],
            (Kind::Bun, false) => &["install"],
        }
    }

    /// Returns the words that remove development dependencies; none if this version has none. Bun only installs anew.
    pub(super) fn prune(&self) -> Option<&'static [&'static str]> {
        let is_old = self.version.as_ref().is_some_and(|version| version.starts_with(['2', '3']));
        match self.kind {
            Kind::Npm => Some(&["prune", "--omit=dev", "--ignore-scripts"]),
            Kind::Yarn => Some(&[
                "install",
                "--production",
                "--frozen-lockfile",
                "--ignore-scripts",
                "--prefer-offline",
                "--non-interactive",
            ]),
            Kind::Berry if is_old => None,
            Kind::Berry => Some(&["workspaces", "focus", "--all", "--production"]),
            // `pnpm prune` takes the packages of a workspace's other members away.
            Kind::Pnpm => Some(&[
                "install",
                "--prod",
                "--frozen-lockfile",
                "--offline",
                "--ignore-scripts",
                "--reporter=append-only",
                "--config.confirmModulesPurge=false",
            ]),
            Kind::Bun => Some(&["install", "--production", "--frozen-lockfile", "--ignore-scripts"]),
        }
    }

    /// Returns the manager's variables: its caches are in the app's cache, and packages go to `node_modules`, where Node
    /// itself finds them when an instance starts.
    pub(super) fn variables(&self, cache: &Path) -> Vec<(&'static str, String)> {
        let below = |name: &str| cache.join(name).display().to_string();
        match self.kind {
            Kind::Npm => Vec::new(),
            Kind::Yarn => vec![("YARN_CACHE_FOLDER", below("yarn"))],
            Kind::Berry => vec![
                ("YARN_GLOBAL_FOLDER", below("yarn-berry")),
                ("YARN_NODE_LINKER", "node-modules".into()),
                ("YARN_ENABLE_TELEMETRY", "0".into()),
                ("YARN_ENABLE_PROGRESS_BARS", "0".into()),
            ],
            Kind::Pnpm => vec![
                ("npm_config_store_dir", below("pnpm")),
                ("npm_config_manage_package_manager_versions", "false".into()),
            ],
            Kind::Bun => vec![("BUN_INSTALL_CACHE_DIR", below("bun")), ("DO_NOT_TRACK", "1".into())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{File, Files};

    fn chosen(named: Option<&str>, files: &[(&str, &str)]) -> Result<Manager, BuildError> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut names = Files::new();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
            names.insert(name.into(), File::Regular { executable: false });
        }
        choose(Tree { dir: dir.path(), files: &names }, named)
    }

    #[test]
    fn the_manager_is_that_of_package_json_or_of_the_lock_file() {
        let berry = "__metadata:\n  version: 8\n";
        let berry3 = "# x\n\n__metadata:\n  version: 6\n  cacheKey: 8\n";
        let (npm, yarn, pnpm) = ("package-lock.json", "yarn.lock", "pnpm-lock.yaml");
        for (named, files, wanted) in [
            (None, &[][..], (Kind::Npm, None, None)),
            (None, &[(npm, "{}")], (Kind::Npm, None, Some(npm))),
            (None, &[("npm-shrinkwrap.json", "{}")], (Kind::Npm, None, Some("npm-shrinkwrap.json"))),
            (None, &[(yarn, "# yarn lockfile v1\n")], (Kind::Yarn, Some("1"), Some(yarn))),
            (None, &[(yarn, berry)], (Kind::Berry, Some("4"), Some(yarn))),
            (None, &[(yarn, berry3)], (Kind::Berry, Some("3"), Some(yarn))),
            (None, &[(pnpm, "lockfileVersion: '9.0'\n")], (Kind::Pnpm, Some("10"), Some(pnpm))),
            (None, &[(pnpm, "lockfileVersion: 5.4\n")], (Kind::Pnpm, Some("7"), Some(pnpm))),
            (None, &[("bun.lock", "")], (Kind::Bun, Some("1"), Some("bun.lock"))),
            (Some("pnpm@9.1.0+sha512.ab"), &[], (Kind::Pnpm, Some("9.1.0"), None)),
            (Some("yarn@1.22.22"), &[(yarn, "")], (Kind::Yarn, Some("1.22.22"), Some(yarn))),
            (Some("yarn@4.5.0"), &[(yarn, berry)], (Kind::Berry, Some("4.5.0"), Some(yarn))),
            (Some("npm@10.2.0"), &[(npm, ""), (yarn, "")], (Kind::Npm, Some("10.2.0"), Some(npm))),
        ] {
            let got = chosen(named, files).expect("it is clear");
            let (kind, version, lock) = wanted;
            assert_eq!(
                (got.kind, got.version.as_deref(), got.lock),
                (kind, version, lock),
                "{named:?} {files:?}"
            );
        }
    }

    #[test]
    fn lock_files_of_several_managers_are_refused_with_what_to_do() {
        let files = [("package-lock.json", ""), ("npm-shrinkwrap.json", ""), ("yarn.lock", "")];
        let said = chosen(None, &files).expect_err("it isn't clear").to_string();
        for words in [
            "package-lock.json and npm-shrinkwrap.json and yarn.lock are of different package managers",
            "`git rm yarn.lock` to keep npm, or `git rm package-lock.json npm-shrinkwrap.json` to keep yarn",
            "packageManager",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        for named in ["pnpm", "pnpm@latest", "pnpm@9", "vlt@1.0.0", "npm@1.0.0/../..", "yarn@$(id).0.0"] {
            let said = chosen(Some(named), &[]).expect_err(named).to_string();
            assert!(said.contains("with a whole version"), "{said}");
        }
    }

    #[test]
    fn what_is_not_read_or_missing_is_told() {
        let notes = |named, files: &[(&str, &str)]| chosen(named, files).expect("it is clear").notes;
        assert_eq!(notes(None, &[("yarn.lock", "")]), Vec::<String>::new());
        assert_eq!(notes(None, &[]), ["there is no package-lock.json: each build takes the newest versions"]);
        assert_eq!(
            notes(Some("pnpm@9.1.0"), &[("yarn.lock", "")]),
            [
                "yarn.lock is not read: package.json's packageManager is pnpm",
                "there is no pnpm-lock.yaml: each build takes the newest versions"
            ]
        );
    }
}
