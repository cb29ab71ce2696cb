//! The start of a proxy: its options checked against this machine, its state folder taken, HAProxy found.
//!
//! Owns everything that a proxy has before its loop runs. It starts nothing but HAProxy's own check of its version.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bazooka_daemon::{Cluster, Loops, folder_token};
use bazooka_proxy::{
    config::{GIVE_UP, GitTls, RunAs, Settings},
    dns,
    driver::Driver,
    files::Place,
    haproxy::{Cli, process::Process},
    metrics::ProxyMetrics,
    proxy::Identity,
};
use visor::{
    identity::{Credentials, Kind},
    names::HostName,
};

use super::Args;

/// A proxy that is configured, and routes nothing yet.
pub struct Start {
    /// The part of HAProxy's configuration that doesn't come from the cluster.
    pub settings: Settings,
    name: HostName,
    token: String,
    program: PathBuf,
}

impl Start {
    /// Checks the options against this machine, and takes the state folder for as long as the returned lock is held.
    pub async fn open(args: &Args, cluster: &Cluster) -> anyhow::Result<(Start, StateLock)> {
        let name = match cluster.own_name(Kind::Proxy, args.name.clone())? {
            Some(name) => name,
            None => machine_name()?,
        };
        let folder = state_folder(&args.state)?;
        let token = folder_token(&folder)?;
        let lock = lock(&folder).await?;
        let program = find_program(&args.haproxy)?;
        let run_as = run_as(args.haproxy_user.as_deref(), &folder)?;
        let git_tls = match (&cluster.credentials, args.git) {
            (Some(credentials), Some(_)) => Some(GitTls {
                identity: tls_file(&folder, credentials)?,
                authority: plain_path(&credentials.authority_file())?,
            }),
            _ => None,
        };
        let built_with = built_with(&program).await?;
        let settings = Settings {
            public: Some(args.public),
            git: args.git,
            git_tls,
            bind: args.bind,
            domain: args.domain.clone(),
            folder,
            run_as,
            exporter: built_with.exporter,
            lua: built_with.lua,
        };
        if settings.lua {
            write_script(&settings.script())?;
        }
        Ok((Start { settings, name, token, program }, lock))
    }

    /// Returns the driver of HAProxy, whose loops are started.
    pub fn driver(&self, args: &Args, metrics: ProxyMetrics, loops: &mut Loops) -> Driver {
        let folder = &self.settings.folder;
        let place = Place {
            config: folder.join("haproxy.cfg"),
            last_good: folder.join("haproxy.last-good.cfg"),
            map: self.settings.map_file(),
            program: self.program.clone(),
        };
        let cli = Cli::new(args.haproxy_socket.clone().unwrap_or_else(|| self.settings.master_socket()));
        let process = args.run_haproxy.then(|| {
            Process::new(self.program.clone(), place.config.clone(), folder.join("haproxy.log"), cli.clone())
        });
        Driver::new(cli, place, process, metrics, loops)
    }

    /// Returns what this proxy says of itself, with the base URL of its endpoint.
    pub fn identity(&self, args: &Args, url: String) -> Identity {
        Identity {
            name: self.name.clone(),
            url,
            zone: args.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            token: self.token.clone(),
        }
    }
}

/// Returns the part of DNS that this proxy answers for.
pub fn names(args: &Args) -> dns::Zone {
    dns::Zone::new(args.dns_domain.as_ref().unwrap_or(&args.domain), args.zone.clone())
}

/// The lock of a state folder, held for as long as this bazooka-proxy uses it.
pub type StateLock = nix::fcntl::Flock<std::fs::File>;

pub fn machine_name() -> anyhow::Result<HostName> {
    let name = nix::unistd::gethostname().context("can't read the machine's name")?;
    let name = name.to_string_lossy().to_lowercase();
    name.parse().with_context(|| format!("the machine is called {name:?}; give a name with --name"))
}

/// This proxy's certificate and key in one file, as HAProxy wants them. They are those of now: a renewed certificate is
/// shown once bazooka-proxy has been started again.
fn tls_file(folder: &Path, credentials: &Credentials) -> anyhow::Result<PathBuf> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let (file, draft) = (folder.join("git.pem"), folder.join("git.pem.new"));
    let written = (|| {
        let _ = std::fs::remove_file(&draft);
        let mut new = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        new.write_all(&credentials.certificate_and_key())?;
        std::fs::rename(&draft, &file)
    })();
    written.with_context(|| format!("can't write {}", file.display()))?;
    Ok(file)
}

/// A path that HAProxy's configuration can name.
fn plain_path(path: &Path) -> anyhow::Result<PathBuf> {
    let path = path.canonicalize().with_context(|| format!("can't find {}", path.display()))?;
    if !is_plain(&path) {
        bail!("{} must be named with letters, digits and /._-+@: alone", path.display());
    }
    Ok(path)
}

pub fn is_plain(path: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    path.to_str().is_some_and(|text| !text.is_empty() && text.chars().all(plain))
}

/// Makes the state folder, and returns it as HAProxy's configuration and sockets can name it.
fn state_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    let folder = folder.canonicalize().with_context(|| format!("can't find {}", folder.display()))?;
    checked_folder(&folder)?;
    Ok(folder)
}

/// Sees to it that HAProxy's configuration and sockets can name a folder.
pub fn checked_folder(folder: &Path) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    let text = folder.to_str().unwrap_or_default();
    if text.is_empty() || !text.chars().all(plain) {
        bail!("the state folder {} must be named with letters, digits and /._-+@ alone", folder.display());
    }
    // The kernel allows 108 bytes for a socket's path; the longest name and HAProxy's own suffix must fit in.
    if text.len() > 108 - "/handover.sock.1234567890.tmp".len() {
        bail!(
            "the state folder {} has too long a path for a socket in it: 79 characters at most",
            folder.display()
        );
    }
    Ok(())
}

/// Keeps a second bazooka-proxy out of the folder, for as long as the answer is held. One that is
/// just ending is waited for.
async fn lock(folder: &Path) -> anyhow::Result<StateLock> {
    use nix::fcntl::{Flock, FlockArg};
    let path = folder.join("lock");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("can't open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err((_, error)) => {
                return Err(error).with_context(|| {
                    format!("another bazooka-proxy uses {}; give each its own --state", folder.display())
                });
            }
        }
    }
}

pub fn find_program(program: &Path) -> anyhow::Result<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize().with_context(|| format!("there is no {}", program.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("there is no {} in $PATH; install it: apt install haproxy", program.display())
        })
}

/// The parts that a HAProxy may be built without. It refuses a configuration that names a missing one.
struct BuiltWith {
    exporter: bool,
    lua: bool,
}

/// Finds out which parts this HAProxy has, and says what is lost without one. Debian's has all of them.
async fn built_with(program: &Path) -> anyhow::Result<BuiltWith> {
    let says = tokio::process::Command::new(program).arg("-vv").output().await;
    let says = says.with_context(|| format!("can't run {}", program.display()))?;
    let says = String::from_utf8_lossy(&says.stdout);
    let built_with =
        BuiltWith { exporter: says.contains("prometheus-exporter"), lua: says.contains("Built with Lua") };
    if !built_with.exporter {
        tracing::warn!(haproxy = %program.display(), "this HAProxy has no exporter: there are no metrics of it");
    }
    if !built_with.lua {
        tracing::warn!(
            haproxy = %program.display(),
            "this HAProxy has no Lua: a request whose instance dies is lost, even if it is safe to repeat, and a kept \
             connection may end without an answer; install one with Lua: apt install haproxy"
        );
    }
    Ok(built_with)
}

/// Writes the script that HAProxy's configuration names, whole or not at all.
fn write_script(path: &Path) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    std::fs::write(&draft, GIVE_UP)
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("can't write {}", path.display()))
}

/// Returns the user that HAProxy's workers run as; none unless this process is root.
fn run_as(asked: Option<&str>, folder: &Path) -> anyhow::Result<Option<RunAs>> {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let found = nix::unistd::User::from_name(asked.unwrap_or("haproxy")).context("can't look up users")?;
    let user = match (found, asked) {
        (Some(user), _) => user,
        (None, Some(asked)) => bail!("there is no user {asked:?}"),
        (None, None) => return Ok(None),
    };
    let group = nix::unistd::Group::from_gid(user.gid).context("can't look up groups")?;
    let Some(group) = group else { bail!("user {} has no group", user.name) };
    // A stopping worker reaches its successor through a socket in the folder: it must be let through.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("can't set the mode of {}", folder.display()))?;
    let shut = folder.ancestors().find(|ancestor| {
        !std::fs::metadata(ancestor).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
    });
    if let Some(shut) = shut {
        tracing::warn!(
            folder = %shut.display(),
            user = user.name,
            "HAProxy's workers run as root: another user could not pass this folder"
        );
        return Ok(None);
    }
    Ok(Some(RunAs { user: user.name, group: group.name }))
}
