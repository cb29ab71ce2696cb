//! The `/etc` that instances see: the machine's files that programs need, and no secrets.
//!
//! Owns its folder in the state folder, which all sandboxed instances of a host share, read-only.

mod links;

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::files::entries;

/// The copied entries: names, addresses, trusted certificates, the time zone, the places of programs and libraries. Those
/// that programs below `/usr` link to come besides.
const COPIED: [&str; 31] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mailcap",
    "mime.types",
    "networks",
    "nodejs",
    "odbcinst.ini",
    "os-release",
    "papersize",
    "pki/tls/certs",
    "protocols",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "xml",
];

/// The beginnings of the names of programs' own entries, which often end with a version.
const OF_PROGRAMS: [&str; 8] =
    ["ImageMagick-", "OpenCL", "chromium", "ghostscript", "java-", "maven", "php", "python3"];

/// The names of entries that may hold secrets, wherever they are.
const SECRET: [&str; 3] = ["apache2", "fpm", "pool.d"];

/// The entries that change while the machine runs. They are compared before each start.
const CHANGING: [&str; 3] = ["hosts", "nsswitch.conf", "resolv.conf"];

/// The most bytes of a file. A larger file is no configuration.
const MOST_BYTES: u64 = 4 << 20;

/// The reason why there is no `/etc` for instances.
#[derive(Debug, thiserror::Error)]
#[error("can't use {}", path.display())]
pub struct EtcError {
    path: PathBuf,
    source: io::Error,
}

/// The `/etc` of instances.
#[derive(Clone, Debug)]
pub struct Etc {
    machine: PathBuf,
    own: PathBuf,
    more: Vec<String>,
    /// The machine's packages as they were at the last copy.
    stamp: Arc<Mutex<String>>,
}

impl Etc {
    /// Builds the folder from the folder `machine`, with the entries `more` besides those that every program needs.
    /// Running instances see it change file by file. Blocks.
    ///
    /// # Errors
    /// [`EtcError`].
    pub fn make(machine: &Path, own: &Path, more: &[&str]) -> Result<Etc, EtcError> {
        let more = more.iter().map(|name| (*name).to_owned()).collect();
        let etc = Etc { machine: machine.to_owned(), own: own.to_owned(), more, stamp: Arc::default() };
        let stamp = links::stamp();
        etc.copy_all(&stamp).map_err(|source| EtcError { path: own.to_owned(), source })?;
        *etc.stamp.lock().expect("no holder panics") = stamp;
        Ok(etc)
    }

    fn copy_all(&self, stamp: &str) -> io::Result<()> {
        let Etc { machine, own, .. } = self;
        fs::create_dir_all(own)?;
        fs::set_permissions(own, fs::Permissions::from_mode(0o755))?;
        let names = COPIED.iter().chain(&CHANGING).map(|name| (*name).to_owned());
        for name in names.chain(self.more.iter().cloned()).chain(links::named(machine, &OF_PROGRAMS)) {
            copy(&machine.join(&name), &own.join(&name))?;
        }
        for path in links::linked(&machine.join("../usr"), &own.with_extension("links"), stamp) {
            // The folders above it must be everybody's, as `copy` demands of those below.
            let above = path.ancestors().skip(1).map(|folder| machine.join(folder));
            if !above.map(fs::metadata).all(|known| known.is_ok_and(|known| may_enter(&known))) {
                continue;
            }
            copy(&machine.join(&path), &own.join(&path))?;
        }
        // These lead to each instance's own files, which name only its own user.
        for name in ["passwd", "group"] {
            link(&Path::new("/run/bazooka").join(name), &own.join(name))?;
        }
        Ok(())
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.own
    }

    /// Copies the entries that have changed since: all of them where packages have. Blocks.
    pub fn renew(&self) {
        let now = links::stamp();
        let mut stamp = self.stamp.lock().expect("no holder panics");
        if *stamp != now {
            if let Err(error) = self.copy_all(&now) {
                tracing::warn!(error = %error, "can't renew what instances see of the machine's programs");
            }
            *stamp = now;
        }
        drop(stamp);
        for name in CHANGING {
            if let Err(error) = copy(&self.machine.join(name), &self.own.join(name)) {
                tracing::warn!(file = name, error = %error, "can't renew what instances see of the machine's configuration");
            }
        }
    }
}

/// Copies a world-readable file or folder, unless the same is already there. A link to a program or to data stays a
/// link.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(known) = fs::symlink_metadata(from) else { return Ok(()) };
    if known.is_symlink() {
        let target = fs::read_link(from)?;
        if target.starts_with("/usr") || target.components().count() == 1 {
            return link(&target, to);
        }
    }
    let Ok(known) = fs::metadata(from) else { return Ok(()) };
    if known.is_dir() && !may_enter(&known) {
        return Ok(());
    }
    if known.is_dir() {
        fs::create_dir_all(to)?;
        for name in entries(from).filter(|name| !SECRET.contains(&name.as_str())) {
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    let is_public = known.permissions().mode() & 0o004 != 0;
    if !known.is_file() || !is_public || known.len() > MOST_BYTES {
        return Ok(());
    }
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|before| before == content) {
        return Ok(());
    }
    let draft = draft(to)?;
    fs::write(&draft, content)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o644))?;
    fs::rename(&draft, to)
}

/// Reports whether everybody may enter a folder.
fn may_enter(folder: &fs::Metadata) -> bool {
    folder.permissions().mode() & 0o001 != 0
}

fn link(target: &Path, to: &Path) -> io::Result<()> {
    if fs::read_link(to).is_ok_and(|before| before == target) {
        return Ok(());
    }
    let draft = draft(to)?;
    symlink(target, &draft)?;
    fs::rename(&draft, to)
}

/// Returns the path of a draft that is later renamed into place, so that no reader sees half of a file.
fn draft(to: &Path) -> io::Result<PathBuf> {
    to.parent().map_or(Ok(()), fs::create_dir_all)?;
    let mut draft = to.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(draft),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_see_what_programs_need_and_nothing_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let machine = dir.path().join("machine");
        fs::create_dir_all(machine.join("ssl/certs")).expect("it can be made");
        let write = |name: &str, mode: u32| {
            fs::create_dir_all(machine.join(name).parent().expect("it has one")).expect("there is room");
            fs::write(machine.join(name), name).expect("there is room");
            fs::set_permissions(machine.join(name), fs::Permissions::from_mode(mode)).expect("it is ours");
        };
        for (name, mode) in [
            ("hosts", 0o644),
            ("shadow", 0o640),
            ("services", 0o600),
            ("ssl/certs/a.pem", 0o644),
            ("secret", 0o644),
            ("php/8.2/cli/php.ini", 0o644),
            ("php/8.2/fpm/pool.d/www.conf", 0o644),
            ("java-17/security/java.security", 0o644),
            ("java-17/management/jmxremote.password", 0o600),
            ("linked/one.conf", 0o644),
            ("linked/other.conf", 0o644),
            ("php/closed/key", 0o644),
            ("closed/key", 0o644),
        ] {
            write(name, mode);
        }
        symlink("/usr/share/zoneinfo/UTC", machine.join("localtime")).expect("it can be made");
        symlink("a.pem", machine.join("ssl/certs/b.0")).expect("it can be made");
        fs::create_dir_all(dir.path().join("usr/lib")).expect("it can be made");
        symlink("/etc/linked/one.conf", dir.path().join("usr/lib/one.conf")).expect("it can be made");
        symlink("/etc/closed/key", dir.path().join("usr/lib/key")).expect("it can be made");
        for folder in ["closed", "php/closed"] {
            fs::set_permissions(machine.join(folder), fs::Permissions::from_mode(0o750)).expect("it is ours");
        }
        let own = dir.path().join("own");
        let etc = Etc::make(&machine, &own, &[]).expect("it can be made");
        let mut names: Vec<String> = entries(&own).collect();
        names.sort();
        assert_eq!(names, ["group", "hosts", "java-17", "linked", "localtime", "passwd", "php", "ssl"]);
        for (name, is_there) in [
            ("php/8.2/cli/php.ini", true),
            ("php/8.2/fpm", false),
            ("java-17/security/java.security", true),
            ("java-17/management/jmxremote.password", false),
            ("linked/one.conf", true),
            ("linked/other.conf", false),
            ("php/closed", false),
        ] {
            assert_eq!(own.join(name).exists(), is_there, "{name}");
        }
        assert_eq!(
            fs::read_to_string(own.join("ssl/certs/b.0")).expect("a link to its neighbour"),
            "ssl/certs/a.pem"
        );
        write("resolv.conf", 0o644);
        etc.renew();
        assert!(own.join("resolv.conf").exists());
        assert!(!own.join("secret").exists());
        Etc::make(&machine, &own, &["secret"]).expect("it can be made again, with more");
        assert!(own.join("secret").exists());
    }
}
