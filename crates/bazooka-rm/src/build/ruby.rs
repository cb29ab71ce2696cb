//! Builds for Ruby: bundler installs what Gemfile.lock says into `vendor/bundle`, and Rails compiles its assets.
//!
//! Owns `vendor/bundle`. The gems that were installed for one lock file are kept for the next push with the same file.

use std::{ffi::OsStr, os::unix::fs::MetadataExt};

use async_trait::async_trait;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Carried, Kit, Tool, Tree, web},
    kept::Kept,
    profile,
    run::Runner,
    toolchains::{self, Chosen},
    versions::Language,
};

/// The lock file.
const LOCK: &str = "Gemfile.lock";

/// The folder of the gems in a tree.
const GEMS: &str = "vendor/bundle";

/// The variables by which bundler installs and finds gems, in builds and in instances.
const BUNDLER: [(&str, &str); 3] =
    [("BUNDLE_DEPLOYMENT", "true"), ("BUNDLE_PATH", GEMS), ("BUNDLE_WITHOUT", "development:test")];

/// Gems that bring Rails the task which compiles assets.
const WITH_ASSETS: [&str; 3] = ["sprockets-rails", "propshaft", "vite_rails"];

/// An app with a Gemfile.
#[derive(Clone, Copy, Debug)]
pub struct Ruby;

#[async_trait]
impl Buildpack for Ruby {
    fn name(&self) -> &'static str {
        "ruby"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        tree.has("Gemfile")
    }

    fn tool(&self, _: Tree<'_>) -> Option<Tool> {
        Some(Tool { program: "bundle", package: "ruby-bundler" })
    }

    async fn prepare(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &mut Kit) -> Result<(), BuildError> {
        if !work.tree().has(LOCK) {
            return Err(BuildError::Faulty(
                "there is a Gemfile and no Gemfile.lock; run `bundle lock`, commit Gemfile.lock, and push again".into(),
            ));
        }
        if let Chosen::Folder { path, .. } = toolchains::choose(work, runner, Language::Ruby).await? {
            kit.path.push(path.join("bin"));
            kit.carried.push(Carried { name: "ruby", from: path });
        }
        Ok(())
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        let mut place =
            work.place.clone().with("BUNDLE_USER_HOME", work.cache.join("bundle").display().to_string());
        for (name, value) in BUNDLER {
            place = place.with(name, value);
        }
        let runner = &runner.at(&place);
        let lock = lock(work.tree())?;
        install(work, runner, &lock).await?;
        let is_rails = has_gem(&lock, "railties") && work.tree().has("Rakefile");
        if is_rails && WITH_ASSETS.iter().any(|gem| has_gem(&lock, gem)) {
            // Rails loads the app for it, and older ones take no dummy but the secret itself.
            let place = place
                .clone()
                .with("RAILS_ENV", "production")
                .with("SECRET_KEY_BASE_DUMMY", "1")
                .with("SECRET_KEY_BASE", "only while assets are compiled");
            runner.at(&place).step("bundle", &["exec", "rake", "assets:precompile"]).await?;
        }
        Ok(())
    }

    fn may_release(&self) -> bool {
        true
    }

    fn defaults(&self) -> &'static [profile::Default] {
        &[
            ("RACK_ENV", "production"),
            ("RAILS_ENV", "production"),
            ("RAILS_LOG_TO_STDOUT", "enabled"),
            ("RAILS_SERVE_STATIC_FILES", "enabled"),
            BUNDLER[0],
            BUNDLER[1],
            BUNDLER[2],
        ]
    }

    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        Ok(server(tree, &lock(tree)?).map(web).unwrap_or_default())
    }
}

/// Returns the command of the app's server: Rails's own, or that of a rack app.
fn server(tree: Tree<'_>, lock: &str) -> Option<&'static str> {
    if tree.has("bin/rails") && has_gem(lock, "railties") {
        return Some("exec bin/rails server -p $PORT -b 0.0.0.0");
    }
    if !tree.has("config.ru") {
        return None;
    }
    let puma = "exec bundle exec puma -b tcp://0.0.0.0:$PORT config.ru";
    Some(if has_gem(lock, "puma") { puma } else { "exec bundle exec rackup -p $PORT -o 0.0.0.0" })
}

fn lock(tree: Tree<'_>) -> Result<String, BuildError> {
    Ok(String::from_utf8_lossy(&tree.read(LOCK)?).into_owned())
}

/// Reports whether a lock file has a gem, which it lists as `    puma (6.4.0)`.
fn has_gem(lock: &str, gem: &str) -> bool {
    lock.lines()
        .any(|line| line.strip_prefix("    ").is_some_and(|line| line.starts_with(&format!("{gem} ("))))
}

/// Installs the gems, or takes those that an earlier build has kept.
async fn install(work: &Work<'_>, runner: &Runner<'_>, lock: &str) -> Result<(), BuildError> {
    let gems = work.place.seen().join(GEMS);
    let kept = kept(work, lock)?;
    if let Some(kept) = kept.as_ref().filter(|kept| kept.is_there()) {
        work.voice.say("Gemfile.lock is as it was: its gems are kept from an earlier build").await;
        runner.files("removing vendor/bundle", &[OsStr::new("remove"), gems.as_os_str()]).await?;
        return kept.take(runner, &gems).await;
    }
    runner.step("bundle", &["install", "--jobs", "4", "--retry", "2"]).await?;
    match kept {
        Some(kept) if work.dir.join(GEMS).is_dir() => kept.keep(runner, &gems).await,
        _ => Ok(()),
    }
}

/// Returns the gems that Gemfile and Gemfile.lock determine; `None` if some lie in the app's tree.
fn kept(work: &Work<'_>, lock: &str) -> Result<Option<Kept>, BuildError> {
    if lock.lines().any(|line| line == "PATH") {
        return Ok(None);
    }
    let ruby = work.place.find("ruby").and_then(|ruby| ruby.canonicalize().ok());
    let known = ruby.as_ref().and_then(|ruby| ruby.metadata().ok());
    let mark = format!("{ruby:?} {:?}", known.map(|known| (known.len(), known.mtime())));
    let gemfile = work.tree().read("Gemfile")?;
    Ok(Some(Kept::of(work, "gems", &[mark.as_bytes(), &gemfile, lock.as_bytes()])))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::tree::{File, Files};

    #[test]
    fn the_server_is_that_of_rails_or_of_the_rack_app() {
        let lock = |gems: &[&str]| gems.iter().map(|gem| format!("    {gem} (1.0.0)\n")).collect::<String>();
        for (files, gems, wanted) in [
            (
                &["bin/rails", "config.ru"][..],
                &["railties", "puma"][..],
                Some("exec bin/rails server -p $PORT"),
            ),
            (&["config.ru"], &["puma"], Some("exec bundle exec puma -b tcp://0.0.0.0:$PORT")),
            (&["config.ru"], &["rack"], Some("exec bundle exec rackup -p $PORT -o 0.0.0.0")),
            (&["config.ru"], &["puma_worker_killer"], Some("exec bundle exec rackup")),
            (&["app.rb"], &["puma"], None),
        ] {
            let files: Files =
                files.iter().map(|name| (PathBuf::from(name), File::Regular { executable: true })).collect();
            let tree = Tree { dir: Path::new("/nowhere"), files: &files };
            let got = server(tree, &lock(gems));
            assert_eq!(got.is_some(), wanted.is_some(), "{gems:?}");
            assert!(got.unwrap_or_default().starts_with(wanted.unwrap_or_default()), "{gems:?}: {got:?}");
        }
    }
}
