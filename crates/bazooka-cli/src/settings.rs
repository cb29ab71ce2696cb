//! Settings files, which name the coordinator for commands without a flag or an environment variable for it.
//!
//! Owns the format of `~/.config/bazooka/config.toml` and `/etc/bazooka/bazooka.toml`, in this order of precedence.
//! Each may contain `coordinator` (a URL or a list of them), `prefix` and `identity` (a folder).

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::failure::{Failure, Kind, Result};

/// The contents of a settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The coordinator's endpoints.
    #[serde(default, deserialize_with = "one_or_many")]
    pub coordinator: Option<Vec<String>>,
    /// The prefix of the cluster's keys.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The folder of the user's identity.
    #[serde(default)]
    pub identity: Option<PathBuf>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match Either::deserialize(from)? {
        Either::One(one) => one.split(',').map(|url| url.trim().to_owned()).collect(),
        Either::Many(many) => many,
    }))
}

impl Settings {
    /// Takes each setting that is missing here from `others`.
    pub fn or(self, others: Settings) -> Settings {
        Settings {
            coordinator: self.coordinator.or(others.coordinator),
            prefix: self.prefix.or(others.prefix),
            identity: self.identity.or(others.identity),
        }
    }
}

/// Returns the paths of the files, the user's own first.
pub fn files(look_up: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let own = look_up("XDG_CONFIG_HOME").or_else(|| look_up("HOME").map(|home| home.join(".config")));
    let own = own.filter(|dir| dir.is_absolute()).map(|dir| dir.join("bazooka/config.toml"));
    own.into_iter().chain([PathBuf::from("/etc/bazooka/bazooka.toml")]).collect()
}

/// Reads the files and merges them; earlier ones take precedence. Missing files are skipped.
///
/// # Errors
/// If a file can't be read or parsed.
pub fn read(files: &[PathBuf]) -> Result<Settings> {
    files.iter().try_fold(Settings::default(), |settings, file| Ok(settings.or(read_one(file)?)))
}

fn read_one(file: &Path) -> Result<Settings> {
    let wrong = |error: &dyn std::error::Error| {
        Failure::from_error(Kind::Usage, format!("{} can't be used", file.display()), error)
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        // `~/.config` may be a file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Settings::default());
        }
        Err(error) => return Err(wrong(&error)),
    };
    toml::from_str(&text).map_err(|error| {
        wrong(&error).hint("it may hold: coordinator = [\"http://10.0.0.1:2379\"], prefix = \"/bazooka\" and identity = \"/FOLDER\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_file_comes_before_the_machines() {
        let env = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/ada"));
        assert_eq!(
            files(env),
            [
                PathBuf::from("/home/ada/.config/bazooka/config.toml"),
                PathBuf::from("/etc/bazooka/bazooka.toml")
            ]
        );
        assert_eq!(files(|_| None), [PathBuf::from("/etc/bazooka/bazooka.toml")]);
    }

    #[test]
    fn what_one_file_leaves_open_the_next_one_says() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let (own, machine) = (dir.path().join("own"), dir.path().join("machine"));
        let files = [own.clone(), machine.clone(), dir.path().join("none")];
        assert_eq!(read(&files).expect("none is there"), Settings::default());
        std::fs::write(&own, "coordinator = 'http://a:1, http://b:2'").expect("written");
        std::fs::write(&machine, "coordinator = ['http://c:3']\nprefix = '/x'").expect("written");
        let wanted = Settings {
            coordinator: Some(vec!["http://a:1".into(), "http://b:2".into()]),
            prefix: Some("/x".into()),
            identity: None,
        };
        assert_eq!(read(&files).expect("both can be read"), wanted);
        std::fs::write(&own, "cordinator = 'http://a:1'").expect("written");
        let failure = read(&files).expect_err("a slip of the pen");
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.to_string().contains("cordinator"), "{failure}");
    }
}
