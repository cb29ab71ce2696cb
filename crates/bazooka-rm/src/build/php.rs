//! Builds for PHP: composer installs what composer.lock says, and PHP's own server serves `public` or the top.

use std::path::Path;

use async_trait::async_trait;
use serde_json::Value;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Kit, Tool, Tree, web},
    profile,
    run::Runner,
};

/// Composer's manifest and its lock file.
const MANIFEST: &str = "composer.json";
const LOCK: &str = "composer.lock";

/// An app with a composer.json, or with an index.php at the top or in `public`.
#[derive(Clone, Copy, Debug)]
pub struct Php;

#[async_trait]
impl Buildpack for Php {
    fn name(&self) -> &'static str {
        "php"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        tree.has(MANIFEST) || folder(tree).is_some()
    }

    fn tool(&self, tree: Tree<'_>) -> Option<Tool> {
        let (composer, php) = (("composer", "composer"), ("php", "php-cli"));
        let (program, package) = if tree.has(MANIFEST) { composer } else { php };
        // A Procfile may run something else, and nothing is built.
        (tree.has(MANIFEST) || !tree.has("Procfile")).then_some(Tool { program, package })
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        let tree = work.tree();
        if !tree.has(MANIFEST) {
            return Ok(());
        }
        let cache = work.cache.join("composer").display().to_string();
        let place = work.place.clone().with("COMPOSER_HOME", cache).with("COMPOSER_NO_INTERACTION", "1");
        // In its sandbox, a build without a user of its own is root.
        let place = place.with("COMPOSER_ALLOW_SUPERUSER", "1");
        let runner = &runner.at(&place);
        if tree.has(LOCK) {
            // Otherwise composer warns of a lock file that doesn't fit, and goes on. Its other warnings are for packages.
            let words = ["validate", "--no-check-all", "--no-check-publish"];
            match runner.ask(&place, Path::new("composer"), &words).await {
                Err(BuildError::Failed { .. }) => runner.step("composer", &words).await?,
                asked => drop(asked?),
            }
        } else if has_packages(&tree.read(MANIFEST)?)? {
            work.voice.say("there is no composer.lock: each build takes the newest versions").await;
        }
        let words = ["install", "--no-dev", "--prefer-dist", "--no-progress", "--optimize-autoloader"];
        runner.step("composer", &words).await
    }

    fn may_release(&self) -> bool {
        true
    }

    /// PHP's server answers one request at a time unless told otherwise.
    fn defaults(&self) -> &'static [profile::Default] {
        &[("PHP_CLI_SERVER_WORKERS", "4"), ("APP_ENV", "production")]
    }

    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        Ok(folder(tree)
            .map(|folder| web(format!("exec php -S 0.0.0.0:$PORT -t {folder}")))
            .unwrap_or_default())
    }
}

/// Returns the folder of the pages.
fn folder(tree: Tree<'_>) -> Option<&'static str> {
    [("public/index.php", "public"), ("index.php", ".")]
        .into_iter()
        .find_map(|(page, folder)| tree.has(page).then_some(folder))
}

/// Reports whether a manifest names packages: `php` and `ext-json` are parts of PHP.
fn has_packages(manifest: &[u8]) -> Result<bool, BuildError> {
    let manifest: Value = serde_json::from_slice(manifest)
        .map_err(|error| BuildError::Faulty(format!("{MANIFEST} can't be read: {error}")))?;
    Ok(manifest["require"].as_object().is_some_and(|names| names.keys().any(|name| name.contains('/'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_php_are_no_packages() {
        for (manifest, wanted) in [
            (r#"{"require": {"php": ">=8.1", "ext-json": "*"}}"#, false),
            (r#"{"require": {"php": ">=8.1", "slim/slim": "^4"}}"#, true),
            ("{}", false),
        ] {
            assert_eq!(has_packages(manifest.as_bytes()).expect("it is JSON"), wanted, "{manifest}");
        }
        assert!(
            has_packages(b"{").expect_err("it isn't").to_string().contains("composer.json can't be read")
        );
    }
}
