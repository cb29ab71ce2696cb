//! The files in which apps ask for versions.

use serde_json::Value;

use super::{
    super::{BuildError, buildpack::Tree},
    Comparison, Language, Rule, Wanted, numbers,
};

/// The names that nvm has for lines of Node with long support.
const LONG_SUPPORT: [(&str, &str); 6] = [
    ("fermium", "14"),
    ("gallium", "16"),
    ("hydrogen", "18"),
    ("iron", "20"),
    ("jod", "22"),
    ("krypton", "24"),
];

/// Returns all versions of a language that an app asks for.
///
/// # Errors
/// [`BuildError`], if a file can't be read, or doesn't say a version.
pub(in crate::build) fn wanted(tree: Tree<'_>, language: Language) -> Result<Vec<Wanted>, BuildError> {
    let mut all = Vec::new();
    let mut add = |place: &str, text: &str, rule: Rule| {
        all.push(Wanted { place: place.to_owned(), text: text.to_owned(), rule });
    };
    if let Some(text) = text(tree, ".tool-versions")?
        && let Some(version) = tool_version(&text, language.plugin())
    {
        add(".tool-versions", version, plain(language, version)?);
    }
    for name in files(language) {
        let content = text(tree, name)?;
        let Some(line) = content.as_deref().and_then(first_line) else { continue };
        add(name, line, plain(language, line)?);
    }
    match language {
        Language::Node => {
            if let Some(range) = engine(tree)? {
                let place = "package.json's engines.node";
                let parsed = node_semver::Range::parse(&range);
                let parsed = parsed.map_err(|_| no_version(place, &range))?;
                add(place, &range, Rule::Node(parsed));
            }
        }
        Language::Python => python(tree, &mut add)?,
        Language::Ruby => {
            if let Some(words) = text(tree, "Gemfile")?.as_deref().and_then(gemfile) {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                add("Gemfile", &words.join(", "), Rule::ruby(&words));
            }
        }
        Language::Go => {
            let text = text(tree, "go.mod")?.unwrap_or_default();
            if let Some(version) = text.lines().find_map(|line| line.trim().strip_prefix("go ")) {
                let version = version.split("//").next().unwrap_or_default().trim();
                add("go.mod", version, Rule::Numbers(vec![(Comparison::AtLeast, numbers(version))]));
            }
        }
        Language::Rust => rust(tree, &mut add)?,
    }
    Ok(all)
}

/// Returns the files that hold a version alone.
fn files(language: Language) -> &'static [&'static str] {
    match language {
        Language::Node => &[".nvmrc", ".node-version"],
        Language::Python => &[".python-version", "runtime.txt"],
        Language::Ruby => &[".ruby-version"],
        Language::Go => &[".go-version"],
        Language::Rust => &[],
    }
}

fn text(tree: Tree<'_>, name: &str) -> Result<Option<String>, BuildError> {
    let read = || tree.read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    tree.has(name).then(read).transpose()
}

fn first_line(text: &str) -> Option<&str> {
    let lines = text.trim_start_matches('\u{feff}').lines();
    lines.map(|line| line.split('#').next().unwrap_or_default().trim()).find(|line| !line.is_empty())
}

fn tool_version<'a>(text: &'a str, plugin: &str) -> Option<&'a str> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut lines = lines.map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(plugin)).then(|| words.next()).flatten())
}

fn no_version(place: &str, text: &str) -> BuildError {
    BuildError::Faulty(format!("{place} is {text:?}, which is no version"))
}

/// Returns the rule of a version alone, as version managers read it.
fn plain(language: Language, text: &str) -> Result<Rule, BuildError> {
    let version = text.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let version = version.unwrap_or(text);
    let version = match language {
        Language::Python => ["python-", "cpython@", "cpython-", "python@"]
            .into_iter()
            .find_map(|begin| version.strip_prefix(begin)),
        Language::Ruby => version.strip_prefix("ruby-"),
        Language::Go => version.strip_prefix("go"),
        Language::Node | Language::Rust => None,
    }
    .unwrap_or(version);
    if version == "system" {
        return Ok(Rule::Any);
    }
    if language != Language::Node {
        return Ok(Rule::beginning(version));
    }
    let range = match version {
        "node" | "stable" | "current" | "latest" | "*" => return Ok(Rule::Any),
        "lts" | "lts/*" | "lts/-1" => "18 || 20 || 22 || 24 || 26".to_owned(),
        other => match other.strip_prefix("lts/") {
            Some(name) => LONG_SUPPORT
                .iter()
                .find(|(known, _)| name.eq_ignore_ascii_case(known))
                .map_or_else(|| other.to_owned(), |(_, major)| (*major).to_owned()),
            None => other.to_owned(),
        },
    };
    let range = node_semver::Range::parse(&range);
    Ok(range.map_or_else(|_| Rule::Name(version.to_owned()), Rule::Node))
}

fn engine(tree: Tree<'_>) -> Result<Option<String>, BuildError> {
    if !tree.has("package.json") {
        return Ok(None);
    }
    // A faulty file is complained about by the build for Node.
    let package: Value = serde_json::from_slice(&tree.read("package.json")?).unwrap_or_default();
    Ok(package["engines"]["node"].as_str().map(str::to_owned))
}

fn python(tree: Tree<'_>, add: &mut impl FnMut(&str, &str, Rule)) -> Result<(), BuildError> {
    let parsed = |name: &str| -> Result<toml::Table, BuildError> {
        // A faulty file is complained about by the tool that reads it.
        Ok(text(tree, name)?.and_then(|text| toml::from_str(&text).ok()).unwrap_or_default())
    };
    let pyproject = parsed("pyproject.toml")?;
    let range = pyproject.get("project").and_then(|project| project.get("requires-python"));
    if let Some(range) = range.and_then(toml::Value::as_str) {
        let place = "pyproject.toml's requires-python";
        let parsed = range.parse::<pep440_rs::VersionSpecifiers>().map_err(|_| no_version(place, range))?;
        add(place, range, Rule::Python(parsed));
    }
    let pipfile = parsed("Pipfile")?;
    for name in ["python_version", "python_full_version"] {
        let version = pipfile.get("requires").and_then(|requires| requires.get(name));
        if let Some(version) = version.and_then(toml::Value::as_str).filter(|version| *version != "*") {
            add(&format!("Pipfile's {name}"), version, Rule::beginning(version));
        }
    }
    Ok(())
}

/// Returns the words of a Gemfile's line `ruby "~> 3.1"`; none if it names a file.
fn gemfile(text: &str) -> Option<Vec<String>> {
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix("ruby"))?;
    let is_call = line.starts_with([' ', '(']);
    let line = line.trim_start_matches([' ', '(']);
    if !is_call || !line.starts_with(['"', '\'']) {
        return None;
    }
    // Options such as `engine: "jruby"` follow the versions.
    let versions = line.split(',').map(str::trim).take_while(|word| word.starts_with(['"', '\'']));
    Some(versions.map(|word| word.trim_matches(['"', '\'', ')', ' ']).to_owned()).collect())
}

fn rust(tree: Tree<'_>, add: &mut impl FnMut(&str, &str, Rule)) -> Result<(), BuildError> {
    for name in ["rust-toolchain.toml", "rust-toolchain"] {
        let Some(text) = text(tree, name)? else { continue };
        let table = toml::from_str::<toml::Table>(&text).ok();
        let channel = table.as_ref().and_then(|table| table.get("toolchain")?.get("channel")?.as_str());
        // A file without an ending may hold the channel alone.
        let alone = || table.is_none().then(|| first_line(&text)).flatten();
        if let Some(channel) = channel.or_else(alone) {
            let rule = if channel == "stable" { Rule::Any } else { Rule::beginning(channel) };
            add(name, channel, rule);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{File, Files};

    fn of(language: Language, files: &[(&str, &str)]) -> Result<Vec<Wanted>, BuildError> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut names = Files::new();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
            names.insert(name.into(), File::Regular { executable: false });
        }
        wanted(Tree { dir: dir.path(), files: &names }, language)
    }

    #[test]
    fn each_file_is_read_as_its_own_tool_reads_it() {
        use Language::{Go, Node, Python, Ruby, Rust};
        for (language, file, content, fitting, others) in [
            (Node, "package.json", r#"{"engines":{"node":">=18 <21"}}"#, &["20.20.2"][..], &["22.1.0"][..]),
            (Node, "package.json", r#"{"engines":{"node":"20.x"}}"#, &["20.0.0"], &["21.0.0"]),
            (
                Node,
                "package.json",
                r#"{"engines":{"node":"^18 || ^20.1"}}"#,
                &["18.2.0", "20.1.0"],
                &["20.0.0"],
            ),
            (Node, "package.json", r#"{"engines":{"npm":"1"}}"#, &["1.0.0"], &[]),
            (Node, ".nvmrc", "v20\n", &["20.20.2"], &["18.0.0"]),
            (Node, ".nvmrc", "lts/iron\n", &["20.1.0"], &["22.1.0"]),
            (Node, ".nvmrc", "lts/*\n", &["22.1.0", "20.1.0"], &["21.1.0"]),
            (Node, ".nvmrc", "node\n", &["9.1.0"], &[]),
            (Node, ".node-version", "20.20.2\n", &["20.20.2"], &["20.20.3"]),
            (Node, ".tool-versions", "ruby 3.1\nnodejs 20.1.0 # x\n", &["20.1.0"], &["20.1.1"]),
            (Python, ".python-version", "# x\n3.11\n", &["3.11.2"], &["3.12.0", "3.1.0"]),
            (Python, ".python-version", "3.11.7\n", &["3.11.7"], &["3.11.2"]),
            (Python, ".python-version", "my-env\n", &[], &["3.11.2"]),
            (Python, "runtime.txt", "python-3.8.20\n", &["3.8.20"], &["3.8.2", "3.11.2"]),
            (
                Python,
                "pyproject.toml",
                "[project]\nrequires-python = '>=3.9,<3.12'\n",
                &["3.11.2"],
                &["3.12.1"],
            ),
            (Python, "pyproject.toml", "[project]\nrequires-python = '~=3.11'\n", &["3.12.0"], &["3.9.1"]),
            (Python, "Pipfile", "[requires]\npython_version = '3.11'\n", &["3.11.2"], &["3.12.0"]),
            (Python, ".tool-versions", "python system\n", &["3.11.2"], &[]),
            (Ruby, ".ruby-version", "ruby-3.1.2\n", &["3.1.2"], &["3.1.3"]),
            (Ruby, "Gemfile", "source 'x'\nruby \"~> 3.1\", engine: 'ruby'\n", &["3.4.0"], &["4.0.0"]),
            (Ruby, "Gemfile", "ruby file: '.ruby-version'\n", &["1.0.0"], &[]),
            (Go, "go.mod", "module x\n\ngo 1.22\n", &["1.22.0", "1.25.1"], &["1.19.8"]),
            (Rust, "rust-toolchain.toml", "[toolchain]\nchannel = '1.86.0'\n", &["1.86.0"], &["1.95.0"]),
            (Rust, "rust-toolchain", "nightly-2026-01-01\n", &["nightly-2026-01-01"], &["1.95.0"]),
            (Rust, "rust-toolchain.toml", "[toolchain]\nchannel = 'stable'\n", &["1.95.0"], &[]),
            (Rust, "rust-toolchain.toml", "[toolchain]\ncomponents = ['clippy']\n", &["1.95.0"], &[]),
        ] {
            let wanted = of(language, &[(file, content)]).expect("it can be read");
            let fits = |version: &&str| wanted.iter().all(|wanted| wanted.fits(version));
            assert!(fitting.iter().all(&fits), "{file} {content}: {wanted:?}");
            assert!(!others.iter().any(fits), "{file} {content}: {wanted:?}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused_with_its_place() {
        for (language, file, content, words) in [
            (
                Language::Node,
                "package.json",
                r#"{"engines":{"node":"new"}}"#,
                "package.json's engines.node is \"new\"",
            ),
            (
                Language::Python,
                "pyproject.toml",
                "[project]\nrequires-python = 'new'\n",
                "pyproject.toml's requires-python is \"new\", which is no version",
            ),
        ] {
            let said = of(language, &[(file, content)]).expect_err("it is none").to_string();
            assert!(said.contains(words), "{said}");
        }
    }
}
