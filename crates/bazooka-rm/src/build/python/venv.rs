//! The move of a virtual environment from the path where it was built.
//!
//! Owns what in `.venv` names that path: the scripts' first lines, `pyvenv.cfg`, and the paths of editable installs.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

/// Removes the path where an environment was built from its files.
pub(in crate::build) fn relocate(venv: &Path, tree: &Path) -> io::Result<()> {
    let bin = venv.join("bin");
    for entry in fs::read_dir(&bin)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Activation scripts hold the path, and only an interactive shell uses them; an instance has none.
        if name.to_ascii_lowercase().starts_with("activate") {
            fs::remove_file(&path)?;
            continue;
        }
        let kind = fs::symlink_metadata(&path)?;
        if kind.is_symlink() {
            // An interpreter that lies in the tree is linked by its whole path.
            if let Ok(inside) = fs::read_link(&path)?.strip_prefix(tree) {
                fs::remove_file(&path)?;
                std::os::unix::fs::symlink(Path::new("../..").join(inside), &path)?;
            }
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        // venv copies the interpreter under each of its names; one copy and links are enough.
        if name != "python3" && name.starts_with("python") && same(&path, &bin.join("python3"))? {
            fs::remove_file(&path)?;
            std::os::unix::fs::symlink("python3", &path)?;
            continue;
        }
        let content = fs::read(&path)?;
        if let Some(moved) = movable(&content, &bin) {
            let mode = fs::metadata(&path)?.permissions().mode();
            fs::write(&path, moved)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    let config = venv.join("pyvenv.cfg");
    let kept: String = fs::read_to_string(&config)?
        .lines()
        .filter(|line| !line.starts_with("command"))
        .map(|line| format!("{}\n", home(line, tree)))
        .collect();
    fs::write(config, kept)?;
    for library in fs::read_dir(venv.join("lib"))? {
        let packages = library?.path().join("site-packages");
        for entry in fs::read_dir(&packages).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "pth") {
                let text = fs::read_to_string(&path)?;
                if let Some(moved) = relative_paths(&text, tree) {
                    fs::write(&path, moved)?;
                }
            }
        }
    }
    Ok(())
}

/// Returns a line of `pyvenv.cfg` with the path of an interpreter in the tree made relative, unless instances see the tree
/// at the same path. Python takes a relative path from the folder in which it is started.
fn home(line: &str, tree: &Path) -> String {
    let inside = line.strip_prefix("home = ").and_then(|home| Path::new(home).strip_prefix(tree).ok());
    match inside {
        Some(inside) if tree != Path::new(super::super::place::SEEN) => {
            format!("home = {}", inside.display())
        }
        _ => line.to_owned(),
    }
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(fs::metadata(one)?.len() == fs::metadata(other)?.len() && fs::read(one)? == fs::read(other)?)
}

/// Returns a script with its first line changed to look for the interpreter in PATH, if that line names the
/// environment's own.
fn movable(script: &[u8], bin: &Path) -> Option<Vec<u8>> {
    let bin = bin.to_str()?;
    let text = script.strip_prefix(b"#!")?;
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let (first, rest) = text.split_at(end);
    let interpreter = std::str::from_utf8(first).ok()?.trim();
    if interpreter.starts_with(&format!("{bin}/python")) {
        return Some([b"#!/usr/bin/env python3", rest].concat());
    }
    // If the path is too long for a first line, pip writes a shell's line, which Python takes for a string.
    if interpreter == "/bin/sh" {
        let body = std::str::from_utf8(rest).ok()?;
        let script = body
            .strip_prefix(&format!("\n'''exec' {bin}/python"))
            .or_else(|| body.strip_prefix(&format!("\n'''exec' \"{bin}/python")))?;
        let (_, script) = script.split_once("\n' '''")?;
        return Some(format!("#!/usr/bin/env python3{script}").into_bytes());
    }
    None
}

/// Returns a `.pth` file with its lines into the app's tree made relative to its own folder, if it has any.
fn relative_paths(text: &str, tree: &Path) -> Option<String> {
    let tree = tree.to_str()?;
    if !text.contains(tree) {
        return None;
    }
    // Relative to .venv/lib/pythonX.Y/site-packages.
    let line = |line: &str| match line.strip_prefix(tree) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("../../../..{rest}\n"),
        _ => format!("{line}\n"),
    };
    Some(text.lines().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_find_their_interpreter_through_path() {
        let bin = Path::new("/b/app/.venv/bin");
        for (script, wanted) in [
            ("#!/b/app/.venv/bin/python3\nimport x\n", Some("#!/usr/bin/env python3\nimport x\n")),
            ("#!/b/app/.venv/bin/python\n# -*- y\n", Some("#!/usr/bin/env python3\n# -*- y\n")),
            (
                "#!/bin/sh\n'''exec' /b/app/.venv/bin/python3 \"$0\" \"$@\"\n' '''\nimport x\n",
                Some("#!/usr/bin/env python3\nimport x\n"),
            ),
            (
                "#!/bin/sh\n'''exec' \"/b/app/.venv/bin/python3\" \"$0\" \"$@\"\n' '''\nimport x\n",
                Some("#!/usr/bin/env python3\nimport x\n"),
            ),
            ("#!/bin/sh\necho\n", None),
            ("#!/usr/bin/perl\n", None),
            ("\u{7f}ELF", None),
        ] {
            let got = movable(script.as_bytes(), bin);
            assert_eq!(got.as_deref(), wanted.map(str::as_bytes), "{script:?}");
        }
    }

    #[test]
    fn an_interpreter_in_the_tree_is_found_from_where_the_tree_is() {
        for (line, tree, wanted) in [
            ("home = /b/app/.bazooka/python/bin", "/b/app", "home = .bazooka/python/bin"),
            ("home = /app/.bazooka/python/bin", "/app", "home = /app/.bazooka/python/bin"),
            ("home = /usr/bin", "/b/app", "home = /usr/bin"),
            ("version = 3.11.2", "/b/app", "version = 3.11.2"),
        ] {
            assert_eq!(home(line, Path::new(tree)), wanted, "{line}");
        }
    }

    #[test]
    fn an_editable_install_is_found_from_the_environment() {
        let tree = Path::new("/b/app");
        assert_eq!(
            relative_paths("/b/app/src\n/b/app\n/b/apple\nimport z\n", tree).as_deref(),
            Some("../../../../src\n../../../..\n/b/apple\nimport z\n")
        );
        assert_eq!(relative_paths("import z\n", tree), None);
    }
}
