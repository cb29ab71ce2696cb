//! The links of the machine's programs into `/etc`.
//!
//! Owns finding them. Debian keeps the configuration of Java, PHP and others in `/etc`, and their programs' folders below
//! `/usr` have links to it. The search takes some tenths of a second, so its result is kept in a file until packages
//! change.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use crate::files::entries;

/// The folders below `/usr` in which programs keep such links.
const SEARCHED: [&str; 8] = ["bin", "sbin", "lib", "lib64", "libexec", "local", "share", "games"];

/// Folders that are large and hold no program's configuration.
const SKIPPED: [&str; 18] = [
    "dist-packages",
    "doc",
    "firmware",
    "gcc",
    "gems",
    "git",
    "go",
    "icons",
    "include",
    "locale",
    "man",
    "modules",
    "node_modules",
    "perl5",
    "python3",
    "site-packages",
    "src",
    "zoneinfo",
];

/// The deepest folder that is searched, below those above.
const DEEPEST: usize = 8;

/// The paths whose changes tell that packages have changed.
const CHANGED_WITH_PACKAGES: [&str; 6] =
    ["/etc/alternatives", "/etc/ld.so.cache", "/usr/bin", "/usr/lib", "/var/lib/dpkg/status", "/usr/lib/jvm"];

/// Entries that may hold secrets, whoever links to them.
const NEVER: [&str; 7] = ["environment", "group", "gshadow", "passwd", "shadow", "ssh", "default"];

/// Returns a text that is another one once packages have changed.
pub fn stamp() -> String {
    let changed =
        |path: &str| fs::metadata(path).map_or(0, |known| known.mtime() ^ known.mtime_nsec().rotate_left(32));
    CHANGED_WITH_PACKAGES.map(|path| format!("{:x}", changed(path))).join(" ")
}

/// Returns the entries of `/etc`, relative to it, that programs below `usr` link to. `kept` holds the last answer and its
/// stamp. Blocks.
pub fn linked(usr: &Path, kept: &Path, stamp: &str) -> BTreeSet<PathBuf> {
    let before = fs::read_to_string(kept).unwrap_or_default();
    if let Some((of, names)) = before.split_once('\n')
        && of == stamp
    {
        return names.lines().map(PathBuf::from).collect();
    }
    let mut found = BTreeSet::new();
    for folder in SEARCHED {
        search(&usr.join(folder), DEEPEST, &mut found);
    }
    let names: Vec<String> = found.iter().filter_map(|path| path.to_str().map(str::to_owned)).collect();
    // Without the file the next start searches again.
    let _ = fs::write(kept, format!("{stamp}\n{}", names.join("\n")));
    found
}

fn search(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            found.extend(fs::read_link(entry.path()).ok().and_then(|target| below_etc(folder, &target)));
        } else if kind.is_dir() && depth > 0 {
            let name = entry.file_name();
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                search(&entry.path(), depth - 1, found);
            }
        }
    }
}

/// Returns the path below `/etc` to which a link in a folder leads.
fn below_etc(folder: &Path, target: &Path) -> Option<PathBuf> {
    let mut whole = PathBuf::new();
    for part in folder.join(target).components() {
        match part {
            Component::ParentDir => _ = whole.pop(),
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    let below = whole.strip_prefix("/etc").ok()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    (!NEVER.contains(&first)).then(|| below.to_owned())
}

/// Returns the entries of a folder whose names begin with one of these words.
pub fn named(folder: &Path, words: &[&str]) -> Vec<String> {
    entries(folder).filter(|name| words.iter().any(|word| name.starts_with(word))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_of_programs_into_etc_are_found_and_kept_until_packages_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let (usr, kept) = (dir.path().join("usr"), dir.path().join("kept"));
        let link = |at: &str, target: &str| {
            let at = usr.join(at);
            fs::create_dir_all(at.parent().expect("it has one")).expect("there is room");
            symlink(target, at).expect("there is room");
        };
        link("bin/java", "/etc/alternatives/java");
        link("lib/jvm/seventeen/lib/security/java.security", "/etc/java-17/security/java.security");
        link("lib/secret", "/etc/ssh/key");
        link("lib/other", "/var/lib/other");
        link("share/doc/readme", "/etc/readme");
        let found = |stamp| {
            let found = linked(&usr, &kept, stamp).into_iter();
            found.map(|path| path.to_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        let wanted = ["alternatives/java", "java-17/security/java.security"];
        assert_eq!(found("1"), wanted);
        link("bin/php", "/etc/alternatives/php");
        assert_eq!(found("1"), wanted);
        assert_eq!(found("2"), ["alternatives/java", "alternatives/php", "java-17/security/java.security"]);
    }

    #[test]
    fn relative_links_are_followed_as_paths() {
        for (target, below) in [
            ("../../etc/maven", Some("maven")),
            ("../lib/x", None),
            ("/etc", None),
            ("/etc/../etc/./magic", Some("magic")),
            ("/etc/shadow", None),
        ] {
            assert_eq!(
                below_etc(Path::new("/usr/share"), Path::new(target)),
                below.map(PathBuf::from),
                "{target}"
            );
        }
    }
}
