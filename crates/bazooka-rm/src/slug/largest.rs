//! The largest things in a tree, for the pusher of one that is too large for a slug.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Component, Path, PathBuf},
};

/// The number of things that are named.
const NAMED: usize = 10;

/// The number of a path's parts by which files are counted together: `node_modules/next`.
const PARTS: usize = 2;

/// The largest files and folders of a tree, each with its size in bytes, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Largest(Vec<(PathBuf, u64)>);

impl Largest {
    /// Measures a tree. What can't be read is left out: this only helps.
    pub fn of(tree: &Path) -> Largest {
        let mut sizes: BTreeMap<PathBuf, u64> = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(at) = folders.pop() {
            for entry in fs::read_dir(tree.join(&at)).into_iter().flatten().flatten() {
                let path = at.join(entry.file_name());
                match entry.metadata() {
                    Ok(known) if known.is_dir() => folders.push(path),
                    Ok(known) if known.is_file() => {
                        let thing: PathBuf =
                            path.components().take(PARTS).map(Component::as_os_str).collect();
                        *sizes.entry(thing).or_default() += known.len();
                    }
                    _ => {}
                }
            }
        }
        let mut sizes: Vec<(PathBuf, u64)> = sizes.into_iter().collect();
        sizes.sort_by(|(path, bytes), (other_path, other)| other.cmp(bytes).then(path.cmp(other_path)));
        sizes.truncate(NAMED);
        Largest(sizes)
    }
}

impl fmt::Display for Largest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (path, bytes)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} {:.1} MB", path.display(), *bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_largest_are_named_with_folders_counted_together() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |path: &str, bytes: usize| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, vec![0; bytes]).expect("written");
        };
        write("node_modules/next/a.js", 1_500_000);
        write("node_modules/next/dist/b.js", 1_500_000);
        write("model.bin", 2_000_000);
        (0..12).for_each(|n| write(&format!("small/{n}"), 1));
        let largest = Largest::of(dir.path());
        assert_eq!(largest.0.len(), NAMED);
        let told = largest.to_string();
        assert!(told.starts_with("node_modules/next 3.0 MB, model.bin 2.0 MB, small/0 0.0 MB, "), "{told}");
    }
}
