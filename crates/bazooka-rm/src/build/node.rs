//! Builds for Node: the app's package manager installs, and runs the build script of package.json if there is one.
//!
//! Owns `node_modules`. The packages that were installed for one lock file are kept for the next push with the same file,
//! unless scripts of the app's own run with an install.

mod manager;

use std::{ffi::OsStr, os::unix::fs::MetadataExt, path::PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::manager::{Kind, Manager};
use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Carried, Kit, Tool, Tree, web},
    kept::Kept,
    profile,
    run::Runner,
    statics,
    toolchains::{self, Chosen},
    tools,
    versions::Language,
};

/// The file that `npm start` runs if package.json doesn't say what.
const SERVER: &str = "server.js";

/// The tool that installs packages, and other managers.
pub(super) const NPM: Tool = Tool { program: "npm", package: "npm" };

/// The folder of installed packages.
const MODULES: &str = "node_modules";

/// pnpm's file that names the members of a workspace.
const PNPM_WORKSPACE: &str = "pnpm-workspace.yaml";

/// The scripts of an app that run with an install.
const OF_INSTALLS: [&str; 4] = ["preinstall", "install", "postinstall", "prepare"];

/// The scripts that build an app; the first that is there is run, as with Heroku.
const BUILDS: [&str; 2] = ["heroku-postbuild", "build"];

/// Settings of package managers, which may change what is installed.
const SETTINGS: [&str; 4] = [".npmrc", ".yarnrc", ".yarnrc.yml", "bunfig.toml"];

/// The fields of package.json that may change what is installed.
const FIELDS: [&str; 13] = [
    "dependencies",
    "devDependencies",
    "optionalDependencies",
    "peerDependencies",
    "peerDependenciesMeta",
    "dependenciesMeta",
    "bundleDependencies",
    "bundledDependencies",
    "trustedDependencies",
    "overrides",
    "resolutions",
    "pnpm",
    "engines",
];

/// An app with a package.json.
#[derive(Clone, Copy, Debug)]
pub struct Node;

/// The fields of package.json that decide the build.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Package {
    scripts: Map<String, Value>,
    dependencies: Map<String, Value>,
    dev_dependencies: Map<String, Value>,
    optional_dependencies: Map<String, Value>,
    peer_dependencies: Map<String, Value>,
    workspaces: Value,
    package_manager: Option<String>,
}

#[async_trait]
impl Buildpack for Node {
    fn name(&self) -> &'static str {
        "node"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        tree.has("package.json")
    }

    fn tool(&self, tree: Tree<'_>) -> Option<Tool> {
        let package = package(tree).ok()?;
        let manager = manager::choose(tree, package.package_manager.as_deref()).ok()?;
        needs(&package, &manager).then_some(NPM)
    }

    async fn prepare(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &mut Kit) -> Result<(), BuildError> {
        let tree = work.tree();
        let package = package(tree)?;
        let manager = manager::choose(tree, package.package_manager.as_deref())?;
        if !tree.has("Procfile") && starts(tree, &package).is_none() {
            // The tree may turn out to have pages.
            statics::add_server(work)?;
        }
        if let Chosen::Folder { path, .. } = toolchains::choose(work, runner, Language::Node).await? {
            kit.path.push(path.join("bin"));
            kit.carried.push(Carried { name: "node", from: path });
        }
        let Some(name) = manager.tool().filter(|_| needs(&package, &manager)) else { return Ok(()) };
        let tool = tools::make(work, runner, &name, NPM, |folder| manager.commands(folder)).await?;
        let home = manager.home(&tool);
        kit.path.push(home.join("bin"));
        if is_needed_at_start(tree, &package, manager.kind)? {
            kit.carried.push(Carried { name: manager.kind.program(), from: home });
        }
        Ok(())
    }

    /// Installs and builds. Development dependencies are there meanwhile, because scripts that run with an install may
    /// need them, and removed at the end.
    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        let tree = work.tree();
        let package = package(tree)?;
        let manager = manager::choose(tree, package.package_manager.as_deref())?;
        if !needs(&package, &manager) {
            return Ok(());
        }
        let mut place = work.place.clone();
        for (name, value) in manager.variables(work.cache) {
            place = place.with(name, value);
        }
        Build { work, runner: &runner.at(&place), package, manager }.run().await
    }

    fn may_release(&self) -> bool {
        true
    }

    fn defaults(&self) -> &'static [profile::Default] {
        &[("NODE_ENV", "production")]
    }

    /// Returns `npm start` as `web` if npm knows what to start, else the pages that were pushed or built.
    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        let start = starts(tree, &package(tree)?);
        let serve = || pages(tree).map(statics::serve);
        Ok(start.or_else(serve).map(web).unwrap_or_default())
    }
}

fn package(tree: Tree<'_>) -> Result<Package, BuildError> {
    let mut package: Package = serde_json::from_slice(&tree.read("package.json")?)
        .map_err(|error| BuildError::Faulty(format!("package.json can't be read: {error}")))?;
    if package.workspaces.is_null() && tree.has(PNPM_WORKSPACE) {
        package.workspaces = Value::from(PNPM_WORKSPACE);
    }
    Ok(package)
}

/// Reports whether a build of the app runs its package manager.
fn needs(package: &Package, manager: &Manager) -> bool {
    installs(package, manager.lock.is_some()) || build_script(package).is_some()
}

fn build_script(package: &Package) -> Option<&'static str> {
    BUILDS.into_iter().find(|name| package.scripts.contains_key(*name))
}

/// Reports whether a command of the app names its package manager, which an instance then needs.
fn is_needed_at_start(tree: Tree<'_>, package: &Package, kind: Kind) -> Result<bool, BuildError> {
    let procfile = if tree.has("Procfile") { tree.read("Procfile")? } else { Vec::new() };
    let procfile = String::from_utf8_lossy(&procfile);
    let scripts = package.scripts.values().filter_map(Value::as_str);
    let names: &[&str] = match kind {
        Kind::Npm => &[],
        Kind::Yarn | Kind::Berry => &["yarn"],
        Kind::Pnpm => &["pnpm", "pnpx"],
        Kind::Bun => &["bun", "bunx"],
    };
    let is_sign = |c: char| !c.is_alphanumeric() && !"-_./@".contains(c);
    let mut words = scripts.chain([&*procfile]).flat_map(|text| text.split(is_sign));
    Ok(words.any(|word| names.contains(&word)))
}

/// The build of one tree.
struct Build<'a> {
    work: &'a Work<'a>,
    runner: &'a Runner<'a>,
    package: Package,
    manager: Manager,
}

impl Build<'_> {
    async fn run(&self) -> Result<(), BuildError> {
        let builds = build_script(&self.package);
        let prunes = !self.package.workspaces.is_null() || !self.package.dev_dependencies.is_empty();
        if installs(&self.package, self.manager.lock.is_some()) {
            for note in &self.manager.notes {
                self.work.voice.say(note).await;
            }
            let kept = self.kept(builds.is_some() || !prunes)?;
            let is_pruned = prunes && builds.is_none();
            match kept {
                Some(kept) if kept.is_there() => self.take(&kept, is_pruned).await?,
                kept => self.install(kept.as_ref(), is_pruned).await?,
            }
            if is_pruned {
                return Ok(());
            }
        }
        if let Some(script) = builds {
            self.step(&["run", script]).await?;
        }
        if prunes { self.prune().await } else { Ok(()) }
    }

    /// Takes the packages that an earlier build has installed.
    async fn take(&self, kept: &Kept, is_pruned: bool) -> Result<(), BuildError> {
        let lock = self.manager.lock.unwrap_or("package.json");
        let less = if is_pruned { ", without those for development" } else { "" };
        let words = format!("{lock} is as it was: its packages are kept from an earlier build{less}");
        self.work.voice.say(words).await;
        self.remove().await?;
        kept.take(self.runner, &self.modules()).await
    }

    /// Installs, prunes if no script needs development dependencies, and keeps the packages.
    async fn install(&self, kept: Option<&Kept>, is_pruned: bool) -> Result<(), BuildError> {
        self.step(self.manager.install()).await?;
        if is_pruned {
            self.prune().await?;
        }
        match kept {
            // An app may have a lock file and no package.
            Some(kept) if self.work.dir.join(MODULES).is_dir() => {
                kept.keep(self.runner, &self.modules()).await
            }
            _ => Ok(()),
        }
    }

    async fn prune(&self) -> Result<(), BuildError> {
        let Some(words) = self.manager.prune() else {
            let words = "this version of yarn removes no development dependencies; they are in the slug";
            self.work.voice.say(words).await;
            return Ok(());
        };
        if self.manager.kind == Kind::Bun {
            self.remove().await?;
        }
        self.step(words).await
    }

    fn modules(&self) -> PathBuf {
        self.work.place.seen().join(MODULES)
    }

    async fn remove(&self) -> Result<(), BuildError> {
        let words = [OsStr::new("remove"), self.modules().into_os_string().as_os_str()].map(OsStr::to_owned);
        self.runner.files("removing node_modules", &words).await
    }

    /// Runs the package manager, and tells its command to the pusher.
    async fn step(&self, words: &[&str]) -> Result<(), BuildError> {
        let program = self.manager.kind.program();
        self.runner.step(program, words).await
    }

    /// Returns the packages that an unchanged lock file and manifest determine, all of them or without those for
    /// development; `None` if more than those files does.
    fn kept(&self, all: bool) -> Result<Option<Kept>, BuildError> {
        let tree = self.work.tree();
        let Some(lock) = self.manager.lock else { return Ok(None) };
        let manifest = tree.read("package.json")?;
        let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let of_yarn = tree.files.keys().any(|path| {
            path.starts_with("patches") || (path.starts_with(".yarn") && !path.starts_with(".yarn/releases"))
        });
        if tree.has(".pnpmfile.cjs") || of_yarn || !is_whole(&self.package, &manifest) {
            return Ok(None);
        }
        let fields: Vec<Value> = FIELDS.iter().map(|field| manifest[field].clone()).collect();
        let mut parts = vec![
            Value::from(fields).to_string().into_bytes(),
            tree.read(lock)?,
            identity(self.work.place.find("node")).into_bytes(),
            identity(self.work.place.find(self.manager.kind.program())).into_bytes(),
            vec![u8::from(all)],
        ];
        for name in SETTINGS {
            parts.push(if tree.has(name) { tree.read(name)? } else { Vec::new() });
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        Ok(Some(Kept::of(self.work, MODULES, &parts)))
    }
}

/// Reports whether the lock file and the manifest determine the installed packages: no script of the app runs with an
/// install, and no package lies in the app's tree.
fn is_whole(package: &Package, manifest: &Value) -> bool {
    let local = ["file:", "link:", "portal:", "workspace:", "patch:", ".", "/", "~"];
    let is_local = |version: &Value| {
        version.as_str().is_some_and(|version| local.iter().any(|begin| version.starts_with(begin)))
    };
    let all = [&package.dependencies, &package.dev_dependencies, &package.optional_dependencies];
    let patches =
        manifest["pnpm"]["patchedDependencies"].is_object() || manifest["patchedDependencies"].is_object();
    package.workspaces.is_null()
        && !patches
        && !OF_INSTALLS.iter().any(|name| package.scripts.contains_key(*name))
        && !all.into_iter().flat_map(Map::values).any(is_local)
}

/// Returns a name for this version of a program: where it lies, its length and its time.
fn identity(program: Option<PathBuf>) -> String {
    let real = program.and_then(|program| program.canonicalize().ok());
    let known = real.as_ref().and_then(|program| program.metadata().ok());
    match (real, known) {
        (Some(path), Some(known)) => format!("{} {} {}", path.display(), known.len(), known.mtime()),
        _ => String::new(),
    }
}

/// Returns the command of the app's server, if npm knows one.
fn starts(tree: Tree<'_>, package: &Package) -> Option<String> {
    (package.scripts.contains_key("start") || tree.has(SERVER)).then(|| "npm start".to_owned())
}

/// Returns the folder of the app's pages: where tools build them, or the top.
fn pages(tree: Tree<'_>) -> Option<&'static str> {
    let has = |folder: &&str| tree.dir.join(folder).join(statics::PAGE).is_file();
    ["dist", "build", "out", "public", "."].into_iter().find(has)
}

/// Reports whether there is anything to install: dependencies, or scripts of the app's own that run with an install.
fn installs(package: &Package, locked: bool) -> bool {
    locked
        || !package.dependencies.is_empty()
        || !package.dev_dependencies.is_empty()
        || !package.optional_dependencies.is_empty()
        || !package.peer_dependencies.is_empty()
        || !package.workspaces.is_null()
        || OF_INSTALLS.iter().any(|name| package.scripts.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn npm_is_asked_only_where_there_is_something_to_install() {
        for (package, locked, wanted) in [
            (r#"{}"#, false, false),
            (r#"{"name":"x","scripts":{"start":"node ."}}"#, false, false),
            (r#"{}"#, true, true),
            (r#"{"dependencies":{"a":"1"}}"#, false, true),
            (r#"{"devDependencies":{"a":"1"}}"#, false, true),
            (r#"{"workspaces":["a"]}"#, false, true),
            (r#"{"scripts":{"postinstall":"x"}}"#, false, true),
        ] {
            let package: Package = serde_json::from_str(package).expect(package);
            assert_eq!(installs(&package, locked), wanted, "{package:?}");
        }
    }

    #[test]
    fn packages_are_kept_only_if_files_say_it_all() {
        for (package, wanted) in [
            (r#"{"dependencies":{"a":"1"},"scripts":{"start":"x","build":"x"}}"#, true),
            (r#"{"dependencies":{"a":"file:a"}}"#, false),
            (r#"{"devDependencies":{"a":"../a"}}"#, false),
            (r#"{"dependencies":{"a":"workspace:*"}}"#, false),
            (r#"{"workspaces":["a"]}"#, false),
            (r#"{"pnpm":{"patchedDependencies":{"a":"a.patch"}}}"#, false),
            (r#"{"scripts":{"postinstall":"x"}}"#, false),
            (r#"{"scripts":{"prepare":"x"}}"#, false),
        ] {
            let manifest: Value = serde_json::from_str(package).expect(package);
            let package: Package = serde_json::from_value(manifest.clone()).expect("it is one");
            assert_eq!(is_whole(&package, &manifest), wanted, "{package:?}");
        }
    }

    #[test]
    fn a_manager_travels_only_with_an_app_that_names_it() {
        for (scripts, kind, wanted) in [
            (r#"{"start":"node ."}"#, Kind::Yarn, false),
            (r#"{"start":"yarn serve"}"#, Kind::Yarn, true),
            (r#"{"start":"NODE_ENV=x yarn serve"}"#, Kind::Pnpm, false),
            (r#"{"start":"bun index.ts"}"#, Kind::Bun, true),
            (r#"{"start":"node ./yarn.js"}"#, Kind::Berry, false),
            (r#"{"start":"npm run x"}"#, Kind::Npm, false),
        ] {
            let package =
                Package { scripts: serde_json::from_str(scripts).expect(scripts), ..Package::default() };
            let files = crate::tree::Files::new();
            let tree = Tree { dir: Path::new("/nowhere"), files: &files };
            assert_eq!(
                is_needed_at_start(tree, &package, kind).expect("nothing is read"),
                wanted,
                "{scripts}"
            );
        }
    }
}
