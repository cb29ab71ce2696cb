//! Builds for Node: npm installs, and runs the build script of package.json if there is one.

use std::path::Path;

use serde::Deserialize;

use super::{BuildError, Work, run::Runner};

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

/// Installs and builds.
///
/// Development dependencies are installed only if there is a build script, and removed after it.
///
/// # Errors
/// [`BuildError`].
pub async fn build(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    let text =
        std::fs::read(work.dir.join("package.json")).map_err(BuildError::disk("reading package.json"))?;
    let package: Package = serde_json::from_slice(&text)
        .map_err(|error| BuildError::Faulty(format!("package.json can't be read: {error}")))?;
    let locked = ["package-lock.json", "npm-shrinkwrap.json"]
        .iter()
        .any(|name| work.files.contains_key(Path::new(name)));
    let builds = package.scripts.contains_key("build");
    if installs(&package, locked) {
        let install = if locked { "ci" } else { "install" };
        if !locked {
            work.voice.say("there is no package-lock.json: each build takes the newest versions").await;
        }
        let which = if builds { "--include=dev" } else { "--omit=dev" };
        npm(work, runner, &[install, which, "--prefer-offline"]).await?;
    }
    if builds {
        npm(work, runner, &["run", "build"]).await?;
        if !package.dev_dependencies.is_empty() {
            npm(work, runner, &["prune", "--omit=dev"]).await?;
        }
    }
    Ok(())
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
