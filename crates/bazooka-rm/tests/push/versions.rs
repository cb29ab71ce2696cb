//! Versions of languages that apps ask for.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::{
    languages::{push, pushed},
    rig::Rig,
};

/// Writes a program of a toolchain.
fn program(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("it has one")).expect("made");
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

/// A folder of toolchains: a Node and a Go that say who they are.
fn toolchains() -> tempfile::TempDir {
    let dir =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().expect("a folder");
    program(&dir.path().join("node/98.0.0/bin/node"), "#!/bin/sh\necho node 98\n");
    program(&dir.path().join("node/99.1.0/bin/node"), "#!/bin/sh\necho node 99\n");
    let builds =
        "#!/bin/sh\nmkdir bin\nprintf '#!/bin/sh\\necho built by 99\\n' >bin/hello\nchmod +x bin/hello\n";
    program(&dir.path().join("go/99.0.0/bin/go"), builds);
    dir
}

#[tokio::test]
async fn a_version_that_the_machine_lacks_comes_from_the_operators_folder() {
    let dir = toolchains();
    let rig = Rig::told(&["--build-toolchains", &dir.path().display().to_string()]).await;
    let package = r#"{"engines": {"node": ">=98"}, "scripts": {"start": "node ."}}"#;
    let files = [("package.json", package), (".nvmrc", "99\n"), ("index.js", "")];
    let (said, _, slug) = pushed(&rig, "node", &files).await;
    assert!(said.remote_lines().contains(&".nvmrc asks for 99: 99.1.0 is used"), "{said:?}");
    let mut shell = Command::new("sh");
    shell.args(["-c", ". ./.profile.d/000-bazooka.sh; node"]).current_dir(&slug).env_clear();
    let output = shell.env("PATH", "/usr/bin:/bin").output().expect("sh is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "node 99\n", "an instance has it");
    let files = [("go.mod", "module hello\n\ngo 99.0\n"), ("main.go", "package main\n")];
    let (_, _, slug) = pushed(&rig, "go", &files).await;
    assert!(slug.join("bin/hello").exists() && !slug.join(".bazooka").exists(), "only the build has it");
}

#[tokio::test]
async fn a_version_that_nobody_has_is_refused_with_those_that_there_are() {
    let dir = toolchains();
    let rig = Rig::told(&["--build-toolchains", &dir.path().display().to_string()]).await;
    let (app, folder) = rig.app("old").await;
    let files = [
        ("Procfile", "web: python3 app.py\n"),
        ("requirements.txt", ""),
        ("runtime.txt", "python-3.8.20\n"),
        (".python-version", "3.8\n"),
    ];
    let said = push(&folder, &files).await.rejected(
        ".python-version asks for 3.8 and runtime.txt asks for python-3.8.20, and such a Python toolchain is not installed \
         here: there is 3.",
    );
    let place = format!("puts one that fits into {}/python/VERSION", dir.path().display());
    assert!(said.stderr.contains(&place), "{said:?}");
    let (_, folder) = rig.app("new").await;
    push(&folder, &[("go.mod", "module x\n\ngo 100.0\n"), ("main.go", "package main\n")])
        .await
        .rejected("99.0.0 (of --build-toolchains)");
    assert!(rig.view(&app).await.revs.is_empty());
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn a_node_that_the_machine_lacks_comes_from_the_registry() {
    let rig = Rig::start().await;
    let package = |range: &str| {
        format!(
            r#"{{"engines": {{"node": "{range}"}}, "scripts": {{"start": "node .", "build": "node --version >built"}}}}"#
        )
    };
    let (_, _, slug) = pushed(&rig, "node", &[("package.json", &package("22.12.x")), ("index.js", "")]).await;
    assert_eq!(fs::read_to_string(slug.join("built")).expect("it was built"), "v22.12.0\n");
    let mut shell = Command::new("sh");
    shell.args(["-c", ". ./.profile.d/000-bazooka.sh; node --version"]).current_dir(&slug).env_clear();
    let output = shell.env("PATH", "/usr/bin:/bin").output().expect("sh is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "v22.12.0\n");
    let (_, folder) = rig.app("new").await;
    push(&folder, &[("package.json", &package(">=99")), ("index.js", "")]).await.rejected(
        "package.json's engines.node asks for >=99, and such a Node toolchain is not installed here",
    );
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn a_package_that_takes_another_python_is_refused_in_a_line() {
    let rig = Rig::start().await;
    let (_, folder) = rig.app("shop").await;
    // Versions from 6 on take Python 3.12, and hosts of Debian 12 have 3.11.
    let files = [("Procfile", "web: python3 app.py\n"), ("requirements.txt", "Django>=6\n")];
    let said =
        push(&folder, &files).await.rejected("Django>=6 needs Python 3.12; this app is built with 3.11");
    assert!(!said.stderr.contains("Requires-Python") && !said.stderr.contains("from versions"), "{said:?}");
}

/// Makes a toolchain of the machine's Python, as another version.
fn python(toolchains: &Path, version: &str) {
    let place = toolchains.join("python").join(version);
    let script = "p=$1; v=$(/usr/bin/python3 -c 'import sys; print(\"python%d.%d\" % sys.version_info[:2])'); \
                  mkdir -p $p/bin $p/lib && cp -L /usr/bin/python3 $p/bin/ && cp -rL /usr/lib/$v $p/lib/ && \
                  rm -rf $p/lib/$v/test $p/lib/$v/config-*";
    let made = Command::new("sh").args(["-ec", script, "sh"]).arg(&place).status();
    assert!(made.is_ok_and(|made| made.success()));
}

#[tokio::test]
#[ignore = "long form: it copies and compiles a whole Python"]
async fn a_python_of_the_operators_folder_travels_in_the_slug() {
    let dir = toolchains();
    python(dir.path(), "3.99.0");
    let rig = Rig::told(&["--build-toolchains", &dir.path().display().to_string()]).await;
    let files =
        [("Procfile", "web: python3 app.py\n"), ("requirements.txt", ""), (".python-version", "3.99\n")];
    let (said, _, slug) = pushed(&rig, "shop", &files).await;
    assert!(said.remote_lines().contains(&".python-version asks for 3.99: 3.99.0 is used"), "{said:?}");
    let link = fs::read_link(slug.join(".venv/bin/python3")).expect("it is a link");
    assert_eq!(link, Path::new("../../.bazooka/python/bin/python3"));
    // An instance sees the slug at the path that the file names; here it lies elsewhere.
    let config = fs::read_to_string(slug.join(".venv/pyvenv.cfg")).expect("it is there");
    let home = config.lines().find_map(|line| line.strip_prefix("home = ")).expect("it has a home");
    assert!(home.ends_with(".bazooka/python/bin"), "{config}");
    let here = slug.join(".bazooka/python/bin").display().to_string();
    fs::write(slug.join(".venv/pyvenv.cfg"), config.replace(home, &here)).expect("written");
    let ask = "import encodings, sys; print(sys.prefix, encodings.__file__)";
    let output =
        Command::new(slug.join(".venv/bin/python3")).args(["-c", ask]).output().expect("it is a program");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.starts_with(&slug.join(".venv").display().to_string()), "{output:?}");
    assert!(words.contains(&slug.join(".bazooka/python/lib").display().to_string()), "{output:?}");
}
