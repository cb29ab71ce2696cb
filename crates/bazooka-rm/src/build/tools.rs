//! The tools that builds of all apps share, such as pip and the package managers: each in a folder of its own, made by the
//! first build that takes it.
//!
//! Owns those folders. A tool is made before any process of an app has run, nothing of an app is visible while it is
//! made, and builds can't write to it afterwards.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::sync::Mutex;

use super::{BuildError, Work, buildpack::Tool, place, run::Runner};
use crate::layout;

/// The name of the file that marks a folder as complete.
pub(super) const WHOLE: &str = ".bazooka-whole";

/// The folder of a tool's downloads, which goes once the tool is made.
const DOWNLOADS: &str = ".downloads";

/// The folder of all tools. It can't collide with an app's cache: no app's name begins with a dot.
const TOOLS: &str = ".pip";

/// Held by the build that makes a tool, while others wait.
static MAKING: Mutex<()> = Mutex::const_new(());

/// Returns the folder of a tool, made or not.
pub(super) fn folder(work: &Work<'_>, name: &str) -> PathBuf {
    work.cache.with_file_name(TOOLS).join(name)
}

/// Returns the folder of a tool. Makes it if it is missing, by commands of the machine's program `by`, which are told to
/// the pusher.
///
/// # Errors
/// [`BuildError`]. The next build then makes it again.
pub(super) async fn make(
    work: &Work<'_>,
    runner: &Runner<'_>,
    name: &str,
    by: Tool,
    commands: impl FnOnce(&str) -> Vec<Vec<String>>,
) -> Result<PathBuf, BuildError> {
    let tool = folder(work, name);
    let making = || BuildError::disk(format!("making {name}"));
    let _making = MAKING.lock().await;
    if tool.join(WHOLE).exists() {
        return Ok(tool);
    }
    if !work.place.has(by.program) {
        return Err(BuildError::NoTool { program: by.program, package: by.package });
    }
    layout::remove(&tool).and_then(|()| fs::create_dir_all(&tool)).map_err(making())?;
    // The builds' users of all apps must read it, whatever the umask is.
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).map_err(making())?;
    if let Some(uid) = work.place.uid() {
        place::give_all(&tool, uid).map_err(making())?;
    }
    let downloads = tool.join(DOWNLOADS).display().to_string();
    let apart = work.place.without_the_app(&tool).with("npm_config_cache", downloads);
    for words in commands(&tool.display().to_string()) {
        work.voice.say(format!("$ {}", words.join(" "))).await;
        runner.run_in(&apart, Path::new(&words[0]), &words[1..]).await?;
    }
    layout::remove(&tool.join(DOWNLOADS)).map_err(making())?;
    if work.place.uid().is_some() {
        place::give_all(&tool, 0).map_err(making())?;
    }
    fs::write(tool.join(WHOLE), "").map_err(making())?;
    Ok(tool)
}

/// Returns a command as owned words.
pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
