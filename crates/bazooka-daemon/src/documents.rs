//! A program's manual pages and completions, generated from its options.
//!
//! Owns their files' names. Only packaging uses them.

use std::{ffi::OsString, fs, io, path::Path};

use clap::Command;
use clap_complete::Shell;

/// The first word of a command line that asks for them. It isn't part of the program's interface.
pub const WORD: &str = "documents";

/// Writes the pages to `DIR/man` and the completions to `DIR/completions`, and returns the process's exit status.
pub fn run(command: Command, words: &[OsString]) -> u8 {
    let [dir] = words else {
        eprintln!("usage: {} documents DIR", command.get_name());
        return 2;
    };
    match write(command, Path::new(dir)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("can't write to {}: {error}", Path::new(dir).display());
            1
        }
    }
}

/// Writes the pages and completions.
///
/// # Errors
/// The file system's.
pub fn write(command: Command, dir: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(command.clone(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
    }
    Ok(())
}
