//! The environment and the command line of an instance's process. Pure, except that it looks which folders a slug has.

use std::{collections::BTreeMap, path::Path};

use visor::{
    names::{HostName, InstanceId},
    schema::Assignment,
};

use super::runtime::Given;

/// Folders of a slug that hold programs. Those that exist come first in PATH.
const PROGRAMS: [&str; 3] = [".venv/bin", "node_modules/.bin", "bin"];

/// The folder of a slug whose scripts the shell reads before it runs the command.
const PROFILES: &str = ".profile.d";

/// The system's part of PATH.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folders of an instance.
pub struct Places<'a> {
    /// The slug, at the path that the instance sees.
    pub app: &'a Path,
    /// The instance's HOME.
    pub home: &'a Path,
    /// The instance's TMPDIR.
    pub tmp: &'a Path,
}

/// Returns the whole environment. The platform's own variables override the app's vars, so that no var can pose as one
/// of them.
pub fn environment(
    host: &HostName,
    id: InstanceId,
    assignment: &Assignment,
    given: Given<'_>,
    port: u16,
    slug: &Path,
    places: &Places<'_>,
) -> BTreeMap<String, String> {
    let mut path: Vec<String> = PROGRAMS
        .iter()
        .filter(|folder| slug.join(folder).is_dir())
        .map(|folder| places.app.join(folder).display().to_string())
        .collect();
    path.push(SYSTEM_PATH.to_owned());
    let place = |path: &Path| path.display().to_string();
    let defaults = [
        ("PATH", path.join(":")),
        ("HOME", place(places.home)),
        ("TMPDIR", place(places.tmp)),
        // Without it, many programs take text for ASCII.
        ("LANG", "C.UTF-8".to_owned()),
        // Without it, Python keeps what is printed until it has some kilobytes; an app may be a script without a language's
        // files.
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    let fixed = [
        ("PORT", port.to_string()),
        ("BAZOOKA_APP", assignment.app.to_string()),
        ("BAZOOKA_PROC", assignment.proc.to_string()),
        ("BAZOOKA_REV", assignment.rev.to_string()),
        ("BAZOOKA_RELEASE", assignment.release.to_string()),
        ("BAZOOKA_INSTANCE", id.to_string()),
        ("BAZOOKA_INDEX", assignment.index.to_string()),
        ("BAZOOKA_HOST", host.to_string()),
    ];
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.extend(defaults.map(|(name, value)| (name.to_owned(), value)));
    // A name with `=` or a value with NUL can't be passed on at all.
    let passable = |(name, value): &(&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    let vars = given.vars.as_map().iter().filter(passable);
    all.extend(vars.map(|(name, value)| (name.clone(), value.clone())));
    all.extend(given.services.clone());
    all.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
    all
}

/// Returns the line for the instance's shell: it reads the slug's `.profile.d/*.sh` in the order of their names, as
/// Heroku's does, and then runs the command.
pub fn line(command: &str, slug: &Path) -> String {
    if !slug.join(PROFILES).is_dir() {
        return command.to_owned();
    }
    // No config var has a name that begins so.
    let each = r#"if [ -r "$BAZOOKA_PROFILE" ]; then . "./$BAZOOKA_PROFILE"; fi"#;
    format!("for BAZOOKA_PROFILE in {PROFILES}/*.sh; do {each}; done; unset BAZOOKA_PROFILE; {command}")
}
