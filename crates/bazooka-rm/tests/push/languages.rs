//! Buildpacks and trees as people write them.

use std::{collections::BTreeMap, path::PathBuf};

use visor::{names::AppName, schema::Rev};

use crate::rig::{Folder, Ran, Rig};

/// Pushes a tree of these files. Returns what git said, the rev, and the folder in which its slug is unpacked.
pub async fn pushed(rig: &Rig, name: &str, files: &[(&str, &str)]) -> (Ran, Rev, PathBuf) {
    let (app, folder) = rig.app(name).await;
    let said = push(&folder, files).await.ok();
    let rev = rev(rig, &app).await;
    let unpacked = rig.unpacked(&rev, name);
    (said, rev, unpacked)
}

pub async fn push(folder: &Folder, files: &[(&str, &str)]) -> Ran {
    for (path, content) in files {
        folder.write(path, content);
    }
    folder.commit("one");
    folder.push().await
}

pub async fn rev(rig: &Rig, app: &AppName) -> Rev {
    rig.view(app).await.revs.into_values().next().expect("registered").value
}

pub fn procs(rev: &Rev) -> BTreeMap<&str, &str> {
    rev.procs.iter().map(|(proc, command)| (proc.as_str(), command.as_str())).collect()
}

#[tokio::test]
async fn an_app_for_node_without_a_procfile_runs_npm_start() {
    let rig = Rig::start().await;
    let says = r#"{"scripts": {"start": "node index.js"}}"#;
    for (name, files) in [
        ("says", &[("package.json", says), ("index.js", ""), ("index.html", "")][..]),
        ("usual", &[("package.json", "{}"), ("server.js", "")]),
    ] {
        let (said, rev, slug) = pushed(&rig, name, files).await;
        assert_eq!((rev.kind.as_str(), procs(&rev)), ("node", [("web", "npm start")].into()));
        let words = "there is no Procfile; web runs `npm start`";
        assert!(said.remote_lines().contains(&words), "{:?}", said.remote_lines());
        for (env, wanted) in [(None, "production"), (Some("test"), "test")] {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", ". ./.profile.d/*.sh; printf %s \"$NODE_ENV\""]).current_dir(&slug).env_clear();
            let output = shell.envs(env.map(|env| ("NODE_ENV", env))).output().expect("sh is there");
            assert_eq!(String::from_utf8_lossy(&output.stdout), wanted);
        }
    }
}

#[tokio::test]
async fn pages_beside_a_package_json_without_a_server_are_served() {
    let rig = Rig::start().await;
    let formats = r#"{"scripts": {"format": "fmt ."}}"#;
    let builds = r#"{"scripts": {"build": "mkdir dist && echo '<p>built' >dist/index.html"}}"#;
    for (name, package, command) in
        [("plain", formats, "exec ./bin/bazooka-static"), ("built", builds, "exec ./bin/bazooka-static dist")]
    {
        let files = [("package.json", package), ("index.html", "<p>pushed")];
        let (_, rev, slug) = pushed(&rig, name, &files).await;
        assert_eq!(procs(&rev), [("web", command)].into());
        assert!(slug.join("bin/bazooka-static").is_file());
    }
}

#[tokio::test]
async fn what_a_script_links_is_neither_written_through_nor_listed() {
    let rig = Rig::start().await;
    let outside = rig.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("made");
    let out = outside.display();
    let builds = format!(
        r#"{{"scripts": {{"build": "rm -rf bin && ln -s {out} bin && mkdir dist && echo x >dist/index.html"}}}}"#
    );
    let (app, folder) = rig.app("linked").await;
    let said =
        push(&folder, &[("package.json", &builds)]).await.rejected("bin is a symbolic link that leads out");
    assert_eq!(std::fs::read_dir(&outside).expect("it is there").count(), 0, "{said:?}");
    assert!(rig.view(&app).await.revs.is_empty());
}

#[tokio::test]
async fn development_dependencies_are_there_while_scripts_run_and_gone_from_the_slug() {
    let rig = Rig::start().await;
    let package = r#"{"name": "app", "version": "1.0.0",
        "scripts": {"start": "node made.js", "postinstall": "maker"},
        "devDependencies": {"maker": "file:tools/maker"}}"#;
    let maker = r#"{"name": "maker", "version": "1.0.0", "bin": {"maker": "make.js"}}"#;
    let make = "#!/usr/bin/env node\nrequire('fs').writeFileSync('made.js', '')\n";
    let files =
        [("package.json", package), ("tools/maker/package.json", maker), ("tools/maker/make.js", make)];
    let (_, _, slug) = pushed(&rig, "made", &files).await;
    assert!(slug.join("made.js").is_file() && !slug.join("node_modules/maker").exists());
}

#[tokio::test]
#[ignore = "long form: it takes Go"]
async fn a_program_in_go_is_built_with_what_it_vendors_and_runs() {
    let rig = Rig::start().await;
    let files = [
        ("go.mod", "module example.org/hello\n\ngo 1.19\n\nrequire example.org/words v1.0.0\n"),
        (
            "main.go",
            "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.org/words\"\n)\n\nfunc main() { fmt.Println(words.Hello) }\n",
        ),
        ("vendor/modules.txt", "# example.org/words v1.0.0\n## explicit\nexample.org/words\n"),
        ("vendor/example.org/words/words.go", "package words\n\nconst Hello = \"hello from Go\"\n"),
    ];
    let (_, rev, slug) = pushed(&rig, "hello", &files).await;
    assert_eq!((rev.kind.as_str(), procs(&rev)), ("go", [("web", "exec './bin/hello'")].into()));
    let said = std::process::Command::new(slug.join("bin/hello")).output().expect("it is a program");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello from Go\n");
    let (_, folder) = rig.app("words").await;
    let library = [("Procfile", "web: x\n"), ("go.mod", "module words\n"), ("words.go", "package words\n")];
    push(&folder, &library).await.rejected("go: no main packages to build");
}

#[tokio::test]
async fn an_app_that_no_buildpack_can_start_needs_a_procfile() {
    let rig = Rig::start().await;
    for (name, files) in [
        ("snake", &[("requirements.txt", ""), ("app.py", "")][..]),
        ("empty", &[("package.json", "{}")]),
        ("words", &[("README", "")]),
    ] {
        let (app, folder) = rig.app(name).await;
        push(&folder, files).await.rejected("there is no Procfile; put a file of that name at the top");
        assert!(rig.view(&app).await.revs.is_empty());
    }
}
