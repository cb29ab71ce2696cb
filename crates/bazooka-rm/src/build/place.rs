//! The place where one build's steps run: its tree, its cache, its user, and the visible parts of the machine.
//!
//! Owns the preparation of the app's folders before a build: it gives them to the build's user, and copies the
//! operator's own settings into them. No process of the app runs meanwhile, so a file that was checked stays as it is.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use bazooka_sandbox::protocol::{LaunchSpec, Mount, PROTOCOL};

use crate::layout;

/// The path of the tree in a sandboxed build.
pub(super) const SEEN: &str = "/app";

/// The folders of the machine that every sandbox has.
const ANYWAY: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sys", "/dev"];

/// The variables that name one or several folders which a build sees.
const FOLDERS: [&str; 5] = ["PATH", "RUSTUP_HOME", "PIP_FIND_LINKS", "SSL_CERT_DIR", "UV_FIND_LINKS"];

/// The largest file of settings or certificates that is copied, in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// The place where a build's steps run.
#[derive(Clone, Debug)]
pub struct Place {
    spec: LaunchSpec,
    /// The app's config vars that its builds see. Only the steps in the app's tree get them; bazooka-rm's own choice of
    /// files and folders goes by none of them.
    vars: BTreeMap<String, String>,
    /// The folder of the operator's settings that were copied for the build's user, if there is one.
    given: Option<PathBuf>,
}

/// The variables of a build that no config var replaces: they name its folders.
const OWN: [&str; 3] = ["PATH", "HOME", "TMPDIR"];

impl Place {
    /// Returns a place without isolation: a folder and variables, for bazooka-rm's own user, who sees the whole
    /// machine.
    pub fn plain(dir: &Path, environment: BTreeMap<String, String>) -> Place {
        Place {
            vars: BTreeMap::new(),
            spec: LaunchSpec {
                protocol: PROTOCOL,
                env_apart: false,
                command: String::new(),
                folder: dir.to_owned(),
                env: environment,
                uid: None,
                memory: None,
                groups: Vec::new(),
                processes: None,
                sandbox: None,
                log_folder: PathBuf::new(),
                stop_timeout_ms: 0,
                lease_file: None,
            },
            given: None,
        }
    }

    /// Returns this place with the folder where the copies of the operator's settings are.
    pub(super) fn given(self, folder: PathBuf) -> Place {
        Place { given: Some(folder), ..self }
    }

    /// Returns this place with a variable set.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Place {
        self.spec.env.insert(name.to_owned(), value.into());
        self
    }

    /// Returns the value of a variable of the steps.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let shown = self.vars.get(name).filter(|_| !OWN.contains(&name));
        shown.or_else(|| self.spec.env.get(name)).map(String::as_str)
    }

    /// Returns this place with folders before all others in PATH.
    pub fn with_path(self, folders: &[PathBuf]) -> Place {
        let before = folders.iter().map(|folder| folder.display().to_string());
        let path = before.chain(self.variable("PATH").map(str::to_owned)).collect::<Vec<_>>().join(":");
        self.with("PATH", path)
    }

    /// Returns the path of a program in the steps' PATH.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        let path = self.variable("PATH").unwrap_or_default();
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|known| known.is_file() && known.permissions().mode() & 0o111 != 0)
        };
        path.split(':').map(|folder| Path::new(folder).join(program)).find(is_program)
    }

    /// Returns this place with the isolation that `keep` sets.
    pub(super) fn apart(mut self, keep: impl FnOnce(&mut LaunchSpec)) -> Place {
        keep(&mut self.spec);
        self
    }

    /// Returns this place with the app's config vars that its builds see.
    pub fn showing(mut self, vars: BTreeMap<String, String>) -> Place {
        self.vars = vars;
        self
    }

    /// Returns the config vars that the steps see.
    pub fn vars(&self) -> &BTreeMap<String, String> {
        &self.vars
    }

    /// Returns the tree's path as the steps see it.
    pub fn seen(&self) -> &Path {
        if self.spec.sandbox.is_some() { Path::new(SEEN) } else { &self.spec.folder }
    }

    /// Returns the user that the steps run as, or `None` if it is bazooka-rm's own.
    pub fn uid(&self) -> Option<u32> {
        self.spec.uid
    }

    /// Reports whether a program is in the steps' PATH. A program that is named by its path is looked for there.
    pub fn has(&self, program: &str) -> bool {
        self.find(program).is_some()
    }

    /// Returns a place for the same user in which only `folder` is writable and nothing of the app is visible. The copies of
    /// the operator's settings are: nothing of the app may have run since they were made.
    pub fn without_the_app(&self, folder: &Path) -> Place {
        let mut spec = self.spec.clone();
        spec.folder = folder.to_owned();
        for name in ["HOME", "TMPDIR"] {
            spec.env.insert(name.to_owned(), "/tmp".to_owned());
        }
        if let Some(sandbox) = &mut spec.sandbox {
            sandbox.mounts.retain(|mount| !mount.writable && !folder.starts_with(&mount.path));
            let given = self.given.iter().filter(|given| given.is_dir());
            sandbox.mounts.extend(given.map(|given| Mount { path: given.clone(), writable: false }));
            sandbox.mounts.push(Mount { path: folder.to_owned(), writable: true });
        }
        Place { spec, given: self.given.clone(), vars: BTreeMap::new() }
    }

    /// Returns what to launch for a command of these words.
    pub(super) fn spec(&self, words: &[String]) -> LaunchSpec {
        let mut spec = LaunchSpec { command: line(words), ..self.spec.clone() };
        let vars = self.vars.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        spec.env.extend(vars.map(|(name, value)| (name.clone(), value.clone())));
        spec
    }
}

/// Returns a shell's line that replaces the shell by this command.
fn line(words: &[String]) -> String {
    let words = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    std::iter::once("exec".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Gives a folder and its contents to a user. Skips the contents if the folder itself already belongs to the user.
///
/// # Errors
/// The file system's. The folder itself then keeps its owner, so that the next call does all of it again.
pub(super) fn give(folder: &Path, uid: u32) -> io::Result<()> {
    let known = fs::symlink_metadata(folder)?;
    if known.uid() == uid && known.gid() == uid {
        return Ok(());
    }
    give_all(folder, uid)
}

/// Gives a folder and its contents to a user, whatever the folder's present owner.
///
/// # Errors
/// The file system's.
pub(super) fn give_all(path: &Path, uid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all(&entry?.path(), uid)?;
        }
    }
    lchown(path, Some(uid), Some(uid))
}

/// Makes a folder of the cache, replacing whatever else an earlier build left there, a link included.
///
/// # Errors
/// The file system's.
pub(super) fn folder(path: &Path, uid: Option<u32>) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|known| known.is_dir()) {
        layout::remove(path)?;
        fs::create_dir_all(path)?;
    }
    uid.map_or(Ok(()), |uid| lchown(path, Some(uid), Some(uid)))
}

/// Copies a file of the operator's into such a folder, readable only by this user.
///
/// # Errors
/// The file system's.
pub(super) fn hand_over(file: &Path, copy: &Path, uid: Option<u32>) -> io::Result<()> {
    layout::remove(copy)?;
    let content = fs::read(file)?;
    let mut made = fs::File::options().write(true).create_new(true).mode(0o600).open(copy)?;
    io::Write::write_all(&mut made, &content)?;
    uid.map_or(Ok(()), |uid| lchown(copy, Some(uid), Some(uid)))
}

/// Returns the folders that the variables name and a sandbox does not have. Leaves out `/etc` and the folders that
/// contain `hidden`.
pub(super) fn shown(environment: &BTreeMap<String, String>, hidden: &Path) -> Vec<PathBuf> {
    let named = FOLDERS.iter().filter_map(|name| environment.get(*name));
    let named = named.flat_map(|value| value.split([':', ' '])).map(PathBuf::from);
    let mut shown: Vec<PathBuf> =
        named.filter(|path| path.is_absolute() && !is_anyway(path) && !hidden.starts_with(path)).collect();
    // A folder is mounted before the folders below it.
    shown.sort();
    shown.dedup();
    shown.retain(|path| !path.starts_with("/etc") && path.is_dir());
    shown
}

fn is_anyway(path: &Path) -> bool {
    ANYWAY.iter().any(|known| path.starts_with(known))
}

/// Copies the files that variables name and that the build couldn't read itself to `given`, and points the variables at
/// the copies. `etc` is the folder that the build sees as `/etc`.
///
/// # Errors
/// The file system's.
pub(super) fn hand_over_files(
    environment: &mut BTreeMap<String, String>,
    given: &Path,
    etc: &Path,
    uid: u32,
) -> io::Result<()> {
    for (name, value) in environment.iter_mut() {
        let path = Path::new(value.as_str());
        let Some(known) = path.is_absolute().then(|| fs::metadata(path).ok()).flatten() else { continue };
        let in_etc = path.strip_prefix("/etc").is_ok_and(|rest| etc.join(rest).exists());
        let is_public = known.permissions().mode() & 0o004 != 0;
        if !known.is_file() || known.len() > MOST_BYTES || (is_public && (is_anyway(path) || in_etc)) {
            continue;
        }
        let copy = given.join(name);
        hand_over(path, &copy, Some(uid))?;
        *value = copy.display().to_string();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn a_program_is_looked_for_where_steps_find_it() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("notes"), "").expect("written");
        let path = format!("/nowhere:{}:/bin", dir.path().display());
        let place = Place::plain(Path::new("/"), vars(&[("PATH", &path)]));
        let asked = ["sh", "/bin/sh", "no-such-program", "notes", "/nowhere/sh"];
        assert_eq!(asked.map(|program| place.has(program)), [true, true, false, false, false]);
    }

    #[test]
    fn a_command_stays_the_words_that_it_is_made_of() {
        let words = ["./a b", "it's", "$HOME", ""].map(String::from);
        let shown = format!("{}; ", line(&words)).replacen("exec", "printf '[%s]'", 1);
        let said = std::process::Command::new("sh").args(["-c", &shown]).output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "[./a b][it's][$HOME][]");
    }

    #[test]
    fn the_apps_config_vars_are_for_its_own_steps_and_name_no_folder() {
        let own = vars(&[("PATH", "/usr/bin"), ("PIP_INDEX_URL", "the operator's")]);
        let shown =
            vars(&[("PATH", "/evil"), ("PIP_INDEX_URL", "the app's"), ("DISABLE_COLLECTSTATIC", "1")]);
        let place = Place::plain(Path::new("/tree"), own).showing(shown);
        assert_eq!(place.variable("PATH"), Some("/usr/bin"));
        assert_eq!(place.variable("DISABLE_COLLECTSTATIC"), Some("1"));
        let env = place.spec(&[]).env;
        assert_eq!((env["PATH"].as_str(), env["PIP_INDEX_URL"].as_str()), ("/usr/bin", "the app's"));
        let apart = place.without_the_app(Path::new("/tool")).spec(&[]).env;
        assert_eq!(apart["PIP_INDEX_URL"], "the operator's");
        assert!(!apart.contains_key("DISABLE_COLLECTSTATIC"));
    }

    #[test]
    fn what_the_variables_name_is_shown_and_never_the_state_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("made");
            path.display().to_string()
        };
        let (tools, more, wheels, state) =
            (place("tools"), place("tools/more"), place("wheels"), place("rm/state"));
        let path = format!("/usr/bin:{more}:{tools}:/nowhere:{state}:relative:/:/etc");
        let own = vars(&[("PATH", &path), ("PIP_FIND_LINKS", &wheels), ("OTHER", &place("other"))]);
        let found: Vec<String> =
            shown(&own, &dir.path().join("rm/state")).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, [tools, more, wheels]);
        let above = vars(&[("PATH", &dir.path().display().to_string())]);
        assert_eq!(shown(&above, &dir.path().join("rm/state")), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_private_file_is_handed_over_as_a_copy_and_no_link_is_followed() {
        let own = nix::unistd::getuid().as_raw();
        let dir = tempfile::tempdir().expect("a folder");
        let (npmrc, target, given) =
            (dir.path().join("npmrc"), dir.path().join("target"), dir.path().join("given"));
        fs::write(&npmrc, "token").expect("written");
        fs::write(&target, "as it was").expect("written");
        // The state that an earlier build may have left.
        std::os::unix::fs::symlink(dir.path(), &given).expect("made");
        folder(&given, None).expect("it can be made");
        assert!(!given.is_symlink());
        std::os::unix::fs::symlink(&target, given.join("NPM_CONFIG_USERCONFIG")).expect("made");
        let mut all = vars(&[
            ("NPM_CONFIG_USERCONFIG", &npmrc.display().to_string()),
            ("SHELL", "/bin/sh"),
            ("LANG", "C.UTF-8"),
        ]);
        hand_over_files(&mut all, &given, Path::new("/nowhere"), own).expect("it can be copied");
        let copy = given.join("NPM_CONFIG_USERCONFIG");
        assert_eq!(all["NPM_CONFIG_USERCONFIG"], copy.display().to_string());
        assert_eq!((all["SHELL"].as_str(), all["LANG"].as_str()), ("/bin/sh", "C.UTF-8"));
        assert_eq!(fs::read_to_string(copy).expect("it is there"), "token");
        assert_eq!(fs::read_to_string(target).expect("it is there"), "as it was");
    }
}
