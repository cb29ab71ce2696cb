//! Builds for Node: npm installs, and runs the build script of package.json if there is one.

use std::path::Path;

use async_trait::async_trait;
use serde::Deserialize;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Tool, Tree, web},
    profile,
    run::Runner,
    statics,
};

/// The file that `npm start` runs if package.json doesn't say what.
const SERVER: &str = "server.js";

/// Lock files of other package managers.
const OTHER_LOCKS: [&str; 4] = ["yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb"];

/// An app with a package.json.
#[derive(Clone, Copy, Debug)]
pub struct Node;

/// The fields of package.json that decide the build.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Package {
    scripts: serde_json::Map<String, serde_json::Value>,
    dependencies: serde_json::Map<String, serde_json::Value>,
    dev_dependencies: serde_json::Map<String, serde_json::Value>,
    optional_dependencies: serde_json::Map<String, serde_json::Value>,
    peer_dependencies: serde_json::Map<String, serde_json::Value>,
    workspaces: serde_json::Value,
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
        let runs = installs(&package, is_locked(tree)) || package.scripts.contains_key("build");
        runs.then_some(Tool { program: "npm", package: "npm" })
    }

    /// Installs and builds. Development dependencies are there meanwhile, because scripts that run with an install may
    /// need them, and removed at the end.
    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
        let tree = work.tree();
        let package = package(tree)?;
        let locked = is_locked(tree);
        if !tree.has("Procfile") && starts(tree, &package).is_none() {
            // It may turn out to have pages. Now, because a script of the app could make a link of the folder.
            statics::add_server(work)?;
        }
        if installs(&package, locked) {
            let install = if locked { "ci" } else { "install" };
            if !locked {
                work.voice.say(without_lock(tree)).await;
            }
            npm(work, runner, &[install, "--include=dev", "--prefer-offline"]).await?;
        }
        if package.scripts.contains_key("build") {
            npm(work, runner, &["run", "build"]).await?;
        }
        if !package.dev_dependencies.is_empty() {
            npm(work, runner, &["prune", "--omit=dev", "--ignore-scripts"]).await?;
        }
        Ok(())
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
    serde_json::from_slice(&tree.read("package.json")?)
        .map_err(|error| BuildError::Faulty(format!("package.json can't be read: {error}")))
}

fn is_locked(tree: Tree<'_>) -> bool {
    ["package-lock.json", "npm-shrinkwrap.json"].into_iter().any(|name| tree.has(name))
}

/// Returns the words for the pusher of an app without a lock file that npm reads.
fn without_lock(tree: Tree<'_>) -> String {
    match OTHER_LOCKS.into_iter().find(|name| tree.has(name)) {
        Some(other) => format!(
            "{other} is not read: npm installs from package.json; commit a package-lock.json, or build with a bin/build"
        ),
        None => "there is no package-lock.json: each build takes the newest versions".to_owned(),
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

/// True if npm has anything to install: dependencies, or scripts of the app's own that run with an install.
fn installs(package: &Package, locked: bool) -> bool {
    let scripts = ["preinstall", "install", "postinstall", "prepare"];
    locked
        || !package.dependencies.is_empty()
        || !package.dev_dependencies.is_empty()
        || !package.optional_dependencies.is_empty()
        || !package.peer_dependencies.is_empty()
        || !package.workspaces.is_null()
        || scripts.iter().any(|name| package.scripts.contains_key(*name))
}

async fn npm(work: &Work<'_>, runner: &Runner<'_>, args: &[&str]) -> Result<(), BuildError> {
    work.voice.say(format!("$ npm {}", args.join(" "))).await;
    runner.run(Path::new("npm"), args).await
}

#[cfg(test)]
mod tests {
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
}
