//! Apps for Node, by each package manager.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::{
    languages::{push, rev},
    rig::Rig,
};

/// Runs a line in an unpacked slug as an instance would.
fn run(slug: &Path, line: &str) -> Output {
    let line = format!("for f in .profile.d/*.sh; do . ./$f; done; {line}");
    let path = std::env::var("PATH").expect("it is set");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(slug).env_clear().env("PATH", path);
    shell.output().expect("sh is there")
}

/// Writes a lock file with the manager that a build has made, as a developer would. Returns its text.
fn locked(rig: &Rig, manager: &str, lock: &str, manifest: &str) -> String {
    let dir = rig.dir.path().join(format!("locked-{manager}"));
    std::fs::create_dir_all(&dir).expect("made");
    std::fs::write(dir.join("package.json"), manifest).expect("written");
    std::fs::write(dir.join(lock), "").expect("written");
    if lock != "yarn.lock" {
        std::fs::remove_file(dir.join(lock)).expect("it was written");
    }
    let tool = rig.state().join("cache/.pip").join(manager.replace('@', "-"));
    let bun = tool.join("lib/node_modules/@oven/bun-linux-x64/bin");
    let path =
        format!("{}:{}:{}", tool.join("bin").display(), bun.display(), std::env::var("PATH").expect("set"));
    let name = manager.split('@').next().expect("it begins with its name");
    let mut locks = Command::new("sh");
    locks.args(["-c", &format!("exec {name} install")]).current_dir(&dir).env("HOME", &dir).env("PATH", path);
    locks.env("YARN_ENABLE_IMMUTABLE_INSTALLS", "0");
    let ran = locks.output().expect("sh is there");
    assert!(ran.status.success(), "{ran:?}");
    std::fs::read_to_string(dir.join(lock)).expect("it was locked")
}

#[tokio::test]
async fn lock_files_of_several_managers_are_refused_before_anything_is_installed() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("two").await;
    let files =
        [("package.json", r#"{"scripts": {"start": "x"}}"#), ("package-lock.json", "{}"), ("yarn.lock", "")];
    push(&folder, &files)
        .await
        .rejected("package-lock.json and yarn.lock are of different package managers: `git rm yarn.lock`");
    assert!(rig.view(&app).await.revs.is_empty());
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn each_manager_obeys_its_lock_file_and_unchanged_packages_are_kept() {
    let rig = Rig::start().await;
    for (name, manager, lock, refusal) in [
        ("npm", "npm@10.9.2", "package-lock.json", "Missing: inherits@"),
        ("yarn", "yarn@1.22.22", "yarn.lock", "Your lockfile needs to be updated"),
        ("berry", "yarn@4.5.3", "yarn.lock", "The lockfile would have been modified by this install"),
        ("pnpm", "pnpm@10.12.1", "pnpm-lock.yaml", "specifiers in the lockfile don't match"),
        ("bun", "bun@1.2.15", "bun.lock", "lockfile had changes, but lockfile is frozen"),
    ] {
        let (app, folder) = rig.app(name).await;
        let program = manager.split('@').next().expect("it begins with its name");
        let manifest = |more: &str| {
            format!(
                r#"{{"name": "shop", "version": "1.0.0", "packageManager": "{manager}",
                "scripts": {{"build": "node -e \"require('once')\"", "start": "{program} run serve", "serve": "node ."}},
                "dependencies": {{{more}"ms": "^2.0.0"}}, "devDependencies": {{"once": "^1.4.0"}}}}"#
            )
        };
        let said = push(&folder, &[("package.json", &manifest("")), ("index.js", "")]).await.ok();
        assert!(said.stderr.contains(&format!("there is no {lock}")), "{said:?}");
        let text = locked(&rig, manager, lock, &manifest(""));
        let said = push(&folder, &[(lock, &text)]).await.ok();
        assert!(!said.stderr.contains("there is no p"), "{said:?}");
        let said = push(&folder, &[("index.js", "require('ms')")]).await.ok();
        let kept = format!("{lock} is as it was: its packages are kept from an earlier build");
        assert!(said.stderr.contains(&kept), "{said:?}");
        let tip = folder.git_now(&["rev-parse", "HEAD"]);
        let rev = rig.view(&app).await.revs[&tip.trim().parse().expect("it is an id")].value.clone();
        let slug = rig.unpacked(&rev, name);
        let works = run(&slug, "node index.js");
        assert!(works.status.success(), "{works:?}");
        let lacks = run(&slug, "node -e \"require('once')\"");
        assert!(String::from_utf8_lossy(&lacks.stderr).contains("Cannot find module 'once'"), "{lacks:?}");
        if program != "npm" {
            let version = run(&slug, &format!("{program} --version"));
            let wanted = manager.split('@').nth(1).expect("it has a version");
            assert_eq!(String::from_utf8_lossy(&version.stdout).trim(), wanted, "{version:?}");
        }
        push(&folder, &[("package.json", &manifest("\"inherits\": \"*\", "))]).await.rejected(refusal);
    }
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn the_manager_is_known_by_its_lock_file() {
    let rig = Rig::start().await;
    let manifest = r#"{"scripts": {"start": "node ."}, "dependencies": {"ms": "2.1.3"}, "devDependencies": {"once": "1"}}"#;
    let lock = "# yarn lockfile v1\n\n\nms@2.1.3:\n  version \"2.1.3\"\n\nonce@1:\n  version \"1.4.0\"\n  \
                dependencies:\n    wrappy \"1\"\n\nwrappy@1:\n  version \"1.0.2\"\n";
    let (app, folder) = rig.app("yarn").await;
    let files = [("package.json", manifest), ("yarn.lock", lock), ("index.js", "require('ms')")];
    let said = push(&folder, &files).await.ok();
    let words = "$ yarn install --frozen-lockfile --production=false --non-interactive";
    assert!(said.remote_lines().contains(&words), "{said:?}");
    let slug = rig.unpacked(&rev(&rig, &app).await, "first");
    assert!(slug.join("node_modules/ms").exists() && !slug.join("node_modules/once").exists());
    assert!(!slug.join(".bazooka").exists(), "no command of the app names yarn");
    let said = push(&folder, &[("index.js", "")]).await.ok();
    let kept =
        "yarn.lock is as it was: its packages are kept from an earlier build, without those for development";
    assert!(said.remote_lines().contains(&kept) && !said.stderr.contains("$ yarn"), "{said:?}");
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn the_members_of_a_workspace_keep_their_packages_and_lose_those_for_development() {
    let rig = Rig::start().await;
    let member = |name: &str, dependencies: &str| {
        format!(
            r#"{{"name": "{name}", "version": "1.0.0", "main": "index.js", "dependencies": {{{dependencies}}},
            "devDependencies": {{"once": "^1.4.0"}}}}"#
        )
    };
    let (words, web) = (member("words", r#""ms": "^2.0.0""#), member("web", r#""words": "workspace:*""#));
    let (npm_web, scripts) =
        (member("web", r#""words": "*""#), r#""scripts": {"start": "node members/web"}"#);
    for (name, root, web) in [
        ("pnpm", format!(r#"{{"private": true, "packageManager": "pnpm@10.12.1", {scripts}}}"#), &web),
        ("npm", format!(r#"{{"private": true, "workspaces": ["members/*"], {scripts}}}"#), &npm_web),
    ] {
        let files = [
            ("package.json", root.as_str()),
            ("pnpm-workspace.yaml", "packages:\n  - members/*\n"),
            ("members/words/package.json", &words),
            ("members/words/index.js", "module.exports = require('ms')('1s')"),
            ("members/web/package.json", web),
            ("members/web/index.js", "console.log(require('words'))"),
        ];
        let files = files.into_iter().filter(|(file, _)| name == "pnpm" || *file != "pnpm-workspace.yaml");
        let (app, folder) = rig.app(name).await;
        push(&folder, &files.collect::<Vec<_>>()).await.ok();
        let slug = rig.unpacked(&rev(&rig, &app).await, name);
        let works = run(&slug, "node members/web");
        assert_eq!(String::from_utf8_lossy(&works.stdout), "1000\n", "{works:?}");
        let lacks = run(&slug, "cd members/words; node -e \"require('once')\"");
        assert!(
            String::from_utf8_lossy(&lacks.stderr).contains("Cannot find module 'once'"),
            "{name}: {lacks:?}"
        );
    }
}
