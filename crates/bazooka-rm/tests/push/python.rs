//! Apps in Python, by each file in which its tools name dependencies.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    languages::{push, pushed},
    rig::Rig,
};

const PROCFILE: (&str, &str) = ("Procfile", "web: python3 app.py\n");

/// An app as `uv init` makes one, with a folder of its own modules and others beside it.
fn app(dependencies: &str) -> String {
    format!(
        "[project]\nname = \"shop\"\nversion = \"0.1.0\"\nrequires-python = \">=3.9\"\ndependencies = [{dependencies}]\n\
         [dependency-groups]\ndev = [\"iniconfig\"]\n"
    )
}

/// Runs Python in an unpacked slug as an instance would.
fn python(slug: &Path, code: &str) -> Output {
    let mut python = Command::new("sh");
    python.args(["-c", "exec python3 -c \"$0\"", code]).current_dir(slug).env_clear();
    let path = format!("{}:/usr/bin:/bin", slug.join(".venv/bin").display());
    python.env("PATH", path).output().expect("sh is there")
}

#[track_caller]
fn imports(slug: &Path, module: &str) {
    let output = python(slug, &format!("import {module}"));
    assert!(output.status.success(), "{module}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn lacks(slug: &Path, module: &str) {
    let output = python(slug, &format!("import {module}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("No module named '{module}'")), "{module}: {said}");
}

/// Writes a lock file with the tool of its format, as a developer would. Returns its text.
fn locked(rig: &Rig, tool: &str, lock: &str, manifest: (&str, &str)) -> String {
    let dir = rig.dir.path().join(format!("locked-{tool}"));
    std::fs::create_dir_all(&dir).expect("made");
    std::fs::write(dir.join(manifest.0), manifest.1).expect("written");
    let made = std::fs::read_dir(rig.state().join("cache/.pip")).expect("it is there").filter_map(Result::ok);
    let is_tool = |path: &PathBuf| path.to_string_lossy().ends_with(&format!("-{tool}"));
    let folder = made.map(|entry| entry.path()).find(is_tool).expect("it was made");
    let words: &[&str] = if tool == "poetry" { &["lock", "--no-interaction"] } else { &["lock"] };
    let mut locks = Command::new(folder.join("bin").join(tool));
    locks.args(words).current_dir(&dir).env("HOME", &dir).env("UV_PYTHON_DOWNLOADS", "never");
    let ran = locks.output().expect("it is there");
    assert!(ran.status.success(), "{ran:?}");
    std::fs::read_to_string(dir.join(lock)).expect("it was locked")
}

#[tokio::test]
async fn an_app_that_no_build_system_takes_for_a_package_is_an_app() {
    let rig = Rig::start().await;
    let manifest = app("");
    let files = [
        PROCFILE,
        ("pyproject.toml", manifest.as_str()),
        ("app.py", "import shop\n"),
        ("shop/__init__.py", ""),
        ("migrations/__init__.py", ""),
        ("static/a.css", "p {}\n"),
    ];
    let (_, rev, slug) = pushed(&rig, "shop", &files).await;
    assert_eq!(rev.kind, "python");
    imports(&slug, "app");
}

#[tokio::test]
async fn files_that_contradict_each_other_are_refused_before_anything_is_installed() {
    let rig = Rig::start().await;
    let manifest = app("\"flask\"");
    for (name, lock, wanted) in [
        (
            "two",
            ("poetry.lock", ""),
            "uv.lock and poetry.lock each say what is installed; keep that of the tool",
        ),
        ("left", ("Pipfile.lock", "{}"), "uv.lock is the one that fits; `git rm Pipfile.lock`"),
    ] {
        let (app, folder) = rig.app(name).await;
        let files = [PROCFILE, ("pyproject.toml", manifest.as_str()), ("uv.lock", ""), lock];
        push(&folder, &files).await.rejected(wanted);
        assert!(rig.view(&app).await.revs.is_empty());
    }
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn what_a_manifest_without_a_lock_file_names_is_installed_and_told() {
    let rig = Rig::start().await;
    let manifest = app("\"itsdangerous\"");
    let flat = "[build-system]\nrequires = [\"setuptools\"]\nbuild-backend = \"setuptools.build_meta\"\n";
    let whole = format!("{manifest}{flat}");
    let pipfile = "[packages]\nitsdangerous = \"*\"\n[dev-packages]\niniconfig = \"*\"\n";
    let poetry = "[tool.poetry]\nname = \"shop\"\nversion = \"1\"\ndescription = \"\"\nauthors = []\npackage-mode = false\n\
                  [tool.poetry.dependencies]\npython = \">=3.9\"\nitsdangerous = \"*\"\n\
                  [tool.poetry.group.dev.dependencies]\niniconfig = \"*\"\n";
    for (name, manifest, more, lock) in [
        ("plain", ("pyproject.toml", manifest.as_str()), "shop/__init__.py", "uv.lock"),
        ("inside", ("pyproject.toml", &whole), "src/shop/__init__.py", "uv.lock"),
        ("flat", ("pyproject.toml", &whole), "shop/__init__.py", "uv.lock"),
        ("pipfile", ("Pipfile", pipfile), "shop/__init__.py", "Pipfile.lock"),
        ("poetry", ("pyproject.toml", poetry), "shop/__init__.py", "poetry.lock"),
    ] {
        let files = [PROCFILE, manifest, (more, ""), ("other/__init__.py", "")];
        let (said, _, slug) = pushed(&rig, name, &files).await;
        let words = format!("there is no {lock}: the newest versions are installed");
        assert!(said.stderr.contains(&words), "{said:?}");
        imports(&slug, "itsdangerous");
        imports(&slug, "shop");
        lacks(&slug, "iniconfig");
        let not_a_package = said.stderr.contains("the app can't be installed as a package, so it isn't");
        assert_eq!(not_a_package, name == "flat", "{said:?}");
    }
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn a_lock_file_is_obeyed_kept_and_refused_if_it_does_not_fit() {
    let rig = Rig::start().await;
    let (uv, uv_later) = (app("\"itsdangerous<2.2\""), app("\"itsdangerous<2.2\", \"click\""));
    let poetry = |more: &str| {
        format!(
            "[tool.poetry]\nname = \"shop\"\nversion = \"1\"\ndescription = \"\"\nauthors = []\n\
             [tool.poetry.dependencies]\npython = \">=3.9\"\nitsdangerous = \"<2.2\"\n{more}\
             [tool.poetry.group.dev.dependencies]\niniconfig = \"*\"\n\
             [build-system]\nrequires = [\"poetry-core\"]\nbuild-backend = \"poetry.core.masonry.api\"\n"
        )
    };
    let pipenv = |more: &str| {
        format!("[packages]\nitsdangerous = \"<2.2\"\n{more}[dev-packages]\niniconfig = \"*\"\n")
    };
    let click = "click = \"*\"\n";
    for (tool, lock, file, manifest, later, words) in [
        ("uv", "uv.lock", "pyproject.toml", uv, uv_later, "needs to be updated"),
        ("poetry", "poetry.lock", "pyproject.toml", poetry(""), poetry(click), "changed significantly"),
        ("pipenv", "Pipfile.lock", "Pipfile", pipenv(""), pipenv(click), "out-of-date"),
    ] {
        // The first push has the tool made.
        let (app, folder) = rig.app(tool).await;
        push(&folder, &[PROCFILE, (file, &manifest), ("shop/__init__.py", "")]).await.ok();
        let text = locked(&rig, tool, lock, (file, &manifest));
        let said = push(&folder, &[(lock, &text)]).await.ok();
        assert!(!said.stderr.contains("there is no "), "{said:?}");
        let said = push(&folder, &[("app.py", "import itsdangerous\n")]).await.ok();
        let words_of_it =
            format!("{lock} and {file} are as before: the packages are kept from an earlier build");
        assert!(said.remote_lines().contains(&words_of_it.as_str()), "{said:?}");
        let view = rig.view(&app).await;
        let tip = folder.git_now(&["rev-parse", "HEAD"]);
        let rev = &view.revs[&tip.trim().parse().expect("it is an id")].value;
        let slug = rig.unpacked(rev, tool);
        imports(&slug, "app");
        imports(&slug, "shop");
        lacks(&slug, "iniconfig");
        let version = python(&slug, "from importlib.metadata import version; print(version('itsdangerous'))");
        assert_eq!(String::from_utf8_lossy(&version.stdout), "2.1.2\n");
        push(&folder, &[(file, &later)]).await.rejected(words);
    }
}

#[tokio::test]
#[ignore = "long form: it installs from a registry"]
async fn static_files_of_django_are_collected_where_the_settings_say() {
    let rig = Rig::start().await;
    let manage = "import os, sys\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\n\
                  from django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n";
    let settings = "SECRET_KEY = 'x'\nINSTALLED_APPS = ['django.contrib.staticfiles', 'shop']\nSTATIC_URL = '/static/'\n";
    let root = format!(
        "{settings}import pathlib\nSTATIC_ROOT = pathlib.Path(__file__).parent.parent / 'collected'\n"
    );
    let needs = format!("import os\nKEY = os.environ['A_CONFIG_VAR']\n{root}");
    for (name, settings, words) in [
        ("root", root.as_str(), "$ python3 manage.py collectstatic --noinput"),
        ("none", settings, "static files are not collected: the settings have no STATIC_ROOT"),
        ("needs", &needs, "static files are not collected: Django can't load the app's settings here"),
    ] {
        let files = [
            PROCFILE,
            ("requirements.txt", "django>=5,<5.3\n"),
            ("manage.py", manage),
            ("site1/__init__.py", ""),
            ("site1/settings.py", settings),
            ("shop/__init__.py", ""),
            ("shop/static/shop.css", "p {}\n"),
        ];
        let (said, _, slug) = pushed(&rig, name, &files).await;
        assert!(said.stderr.contains(words), "{said:?}");
        assert_eq!(slug.join("collected/shop.css").exists(), name == "root");
    }
}
