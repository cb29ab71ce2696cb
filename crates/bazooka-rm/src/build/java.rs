//! Builds for Java: Maven or Gradle makes a jar, or javac compiles sources at the top.
//!
//! An instance takes `java` from its host. How much memory a JVM takes follows from the limits that it sees there.

use std::path::Path;

use async_trait::async_trait;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Kit, Tool, Tree, web},
    run::Runner,
};
use crate::tree::File;

/// The folder of the classes of sources at the top.
const CLASSES: &str = "classes";

/// Files beside which sources at the top are not the app.
const OTHERS: [&str; 9] = [
    "Procfile",
    "package.json",
    "requirements.txt",
    "pyproject.toml",
    "Pipfile",
    "Gemfile",
    "composer.json",
    "go.mod",
    "Cargo.toml",
];

/// An app with Maven's or Gradle's files, or with sources at the top.
#[derive(Clone, Copy, Debug)]
pub struct Java;

/// The tool that builds an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    Maven,
    Gradle,
    Javac,
}

impl Builder {
    fn of(tree: Tree<'_>) -> Option<Builder> {
        let has = |names: &[&str]| names.iter().any(|name| tree.has(name));
        if has(&["pom.xml", "mvnw"]) {
            Some(Builder::Maven)
        } else if has(&["build.gradle", "build.gradle.kts", "gradlew"]) {
            Some(Builder::Gradle)
        } else {
            // A Procfile may run sources as they are, and those beside another language's files are its own.
            let is_alone = !has(&OTHERS);
            (is_alone && !sources(tree).is_empty()).then_some(Builder::Javac)
        }
    }

    /// Returns the app's own script that fetches and runs the tool, and the machine's program.
    fn programs(self) -> (&'static str, Tool) {
        match self {
            Builder::Maven => ("mvnw", Tool { program: "mvn", package: "maven" }),
            Builder::Gradle => ("gradlew", Tool { program: "gradle", package: "gradle" }),
            Builder::Javac => ("", Tool { program: "javac", package: "default-jdk-headless" }),
        }
    }
}

#[async_trait]
impl Buildpack for Java {
    fn name(&self) -> &'static str {
        "java"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        Builder::of(tree).is_some()
    }

    fn tool(&self, tree: Tree<'_>) -> Option<Tool> {
        let (script, tool) = Builder::of(tree)?.programs();
        // The script brings its tool, and takes a compiler.
        Some(if tree.has(script) { Builder::Javac.programs().1 } else { tool })
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        let tree = work.tree();
        let Some(builder) = Builder::of(tree) else { return Ok(()) };
        let below = |name: &str| work.cache.join(name).display().to_string();
        let repository = format!("-Dmaven.repo.local={}", below("maven"));
        let place = work
            .place
            .clone()
            .with("MAVEN_USER_HOME", below("maven-home"))
            .with("GRADLE_USER_HOME", below("gradle"));
        let sources = sources(tree);
        let mut words: Vec<&str> = match builder {
            Builder::Maven => vec!["-B", "-ntp", "-DskipTests", &repository, "package"],
            Builder::Gradle => vec!["--no-daemon", "--console=plain", "build", "-x", "test"],
            Builder::Javac => vec!["-d", CLASSES],
        };
        if builder == Builder::Javac {
            words.extend(sources.iter().map(String::as_str));
        }
        let (script, tool) = builder.programs();
        let own = format!("./{script}");
        let program = match tree.files.get(Path::new(script)) {
            Some(File::Regular { executable: false }) => {
                words.insert(0, &own);
                "sh"
            }
            Some(_) => &own,
            None => tool.program,
        };
        runner.at(&place).step(program, &words).await
    }

    fn may_release(&self) -> bool {
        true
    }

    /// Returns the jar as `web`, if the tool made one alone; or the class of the sources that has a main function.
    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        let command = match Builder::of(tree) {
            Some(Builder::Maven) => jar("target", &tree.names("target")?),
            Some(Builder::Gradle) => jar("build/libs", &tree.names("build/libs")?),
            _ => main_class(tree)?.map(|class| format!("exec java $JAVA_OPTS -cp {CLASSES} {class}")),
        };
        Ok(command.map(web).unwrap_or_default())
    }
}

/// Returns the names of the sources at the top.
fn sources(tree: Tree<'_>) -> Vec<String> {
    let names = tree.files.keys().filter(|path| path.components().count() == 1);
    let names = names.filter_map(|path| path.to_str()).filter(|name| name.ends_with(".java"));
    names.map(str::to_owned).collect()
}

/// Returns the command that runs the jar of a folder, if there is one alone beside those that no app is started from.
/// Spring takes its port from a property.
fn jar(folder: &str, names: &[String]) -> Option<String> {
    let others = ["-sources.jar", "-javadoc.jar", "-tests.jar", "-plain.jar"];
    let is_app = |name: &&String| {
        name.ends_with(".jar")
            && !name.starts_with("original-")
            && !others.iter().any(|end| name.ends_with(end))
    };
    let jars: Vec<&String> = names.iter().filter(is_app).collect();
    let [jar] = jars[..] else { return None };
    let jar = jar.replace('\'', r"'\''");
    Some(format!("exec java $JAVA_OPTS -Dserver.port=$PORT -jar '{folder}/{jar}'"))
}

/// Returns the class at the top that has a main function, if there is one alone.
fn main_class(tree: Tree<'_>) -> Result<Option<String>, BuildError> {
    let mut found = Vec::new();
    for name in sources(tree) {
        let text = String::from_utf8_lossy(&tree.read(&name)?).into_owned();
        if text.contains("static void main(") {
            found.push(name.trim_end_matches(".java").to_owned());
        }
    }
    let is_name = |name: &String| name.chars().all(|c| c.is_alphanumeric() || c == '_');
    Ok(if found.len() == 1 { found.pop().filter(is_name) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jar_is_the_one_that_an_app_is_started_from() {
        for (names, wanted) in [
            (
                &["shop-1.jar", "shop-1-sources.jar", "original-shop-1.jar", "classes"][..],
                Some("target/shop-1.jar"),
            ),
            (&["shop-1.jar", "shop-1-plain.jar"], Some("target/shop-1.jar")),
            (&["a.jar", "b.jar"], None),
            (&["shop-1.war"], None),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let command = wanted.map(|jar| format!("exec java $JAVA_OPTS -Dserver.port=$PORT -jar '{jar}'"));
            assert_eq!(jar("target", &names), command, "{names:?}");
        }
    }
}
