//! Reads the arguments and runs bazooka-proxy.

mod faults;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, bail};
use bazooka_daemon::{
    self as daemon, CoordinatorArgs, Loops, Readiness, Serving, folder_token,
    supervisor::{Pulse, announce},
};
use bazooka_proxy::{
    config::{GitTls, RunAs, Settings},
    directory::Board,
    dns::{
        self,
        server::{Answers, Sockets},
    },
    driver::Driver,
    endpoint::{self, Endpoint},
    files::Place,
    haproxy::{Cli, process::Process},
    metrics::ProxyMetrics,
    proxy::{self, Identity, Parts},
};
use clap::{Parser, ValueEnum};
use visor::{
    identity::{Credentials, Kind},
    names::{HostName, ZoneName},
    store::wait_until_ready,
};

/// Routes requests to running instances: writes HAProxy's configuration and drives its Runtime API
#[derive(Debug, Parser)]
#[command(name = "bazooka-proxy", version)]
struct Args {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// This proxy's name in the cluster; the machine's unless given
    #[arg(long, env = "BAZOOKA_NAME", value_name = "NAME")]
    name: Option<HostName>,
    /// Where this proxy stands
    #[arg(long, env = "BAZOOKA_ZONE", value_name = "ZONE", default_value = "default")]
    zone: ZoneName,
    /// The folder of HAProxy's files and sockets
    #[arg(long, env = "BAZOOKA_STATE", default_value = "/var/lib/bazooka-proxy", value_name = "DIR")]
    state: PathBuf,
    /// Where requests for <app>.<domain> are taken
    #[arg(long, env = "BAZOOKA_PUBLIC", default_value = "0.0.0.0:8080", value_name = "ADDR:PORT")]
    public: SocketAddr,
    /// Where pushes and fetches are taken, and led to whichever bazooka-rm serves; who reaches this may push
    #[arg(long, env = "BAZOOKA_GIT", value_name = "ADDR:PORT")]
    git: Option<SocketAddr>,
    /// Where services' own ports are opened
    #[arg(long, env = "BAZOOKA_BIND", default_value = "0.0.0.0", value_name = "ADDR")]
    bind: IpAddr,
    /// The domain below which each app has its name
    #[arg(long, env = "BAZOOKA_DOMAIN", default_value = "localhost", value_name = "DOMAIN")]
    domain: HostName,
    /// Where services are found by name, by DNS: <proc>.<app>.<domain> and <proc>.<app>.<zone>.<domain>
    #[arg(long, env = "BAZOOKA_DNS", value_name = "ADDR:PORT")]
    dns: Option<SocketAddr>,
    /// The domain below which services have their names by DNS; that of apps unless given
    #[arg(long, env = "BAZOOKA_DNS_DOMAIN", value_name = "DOMAIN", requires = "dns")]
    dns_domain: Option<HostName>,
    /// Where metrics and health are served
    #[arg(long, env = "BAZOOKA_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Run HAProxy, and find it again after a restart
    #[arg(
        long,
        env = "BAZOOKA_RUN_HAPROXY",
        conflicts_with = "haproxy_socket",
        required_unless_present = "haproxy_socket"
    )]
    run_haproxy: bool,
    /// The master socket of an HAProxy that a unit of its own runs with <state>/haproxy.cfg
    #[arg(long, env = "BAZOOKA_HAPROXY_SOCKET", value_name = "PATH")]
    haproxy_socket: Option<PathBuf>,
    /// The HAProxy program; looked for in $PATH and /usr/sbin unless it is a path
    #[arg(long, env = "BAZOOKA_HAPROXY", default_value = "haproxy", value_name = "PATH")]
    haproxy: PathBuf,
    /// Whom HAProxy's workers run as when it is started as root; haproxy unless given, if there is such a user
    #[arg(long, env = "BAZOOKA_HAPROXY_USER", value_name = "USER")]
    haproxy_user: Option<String>,
    /// What becomes of HAProxy when this process is told to end
    #[arg(long, env = "BAZOOKA_ON_EXIT", default_value = "keep", value_name = "WHAT")]
    on_exit: OnExit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnExit {
    /// It goes on, and is found again
    Keep,
    /// It ends too
    Stop,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Args = daemon::settings::read();
    daemon::init_logs();
    let signals = daemon::shutdown().context("can't take signals")?;
    let shutdown = signals.token();
    let cluster = args.coordinator.cluster()?;
    let name = match cluster.own_name(Kind::Proxy, args.name)? {
        Some(name) => name,
        None => machine_name()?,
    };
    let folder = state_folder(&args.state)?;
    let token = folder_token(&folder)?;
    let _only_one = lock(&folder).await?;
    let program = find_program(&args.haproxy)?;
    let run_as = run_as(args.haproxy_user.as_deref(), &folder)?;
    let git_tls = match (&cluster.credentials, args.git) {
        (Some(credentials), Some(_)) => Some(GitTls {
            identity: tls_file(&folder, credentials)?,
            authority: plain_path(&credentials.authority_file())?,
        }),
        _ => None,
    };
    let names = dns::Zone::new(args.dns_domain.as_ref().unwrap_or(&args.domain), args.zone.clone());
    let settings = Settings {
        public: Some(args.public),
        git: args.git,
        git_tls,
        bind: args.bind,
        domain: args.domain,
        folder: folder.clone(),
        run_as,
        exporter: has_exporter(&program).await?,
    };

    let registry = Arc::new(Mutex::new(prometheus_client::registry::Registry::default()));
    let metrics = ProxyMetrics::register(&registry);
    let readiness = Readiness::default();
    let not_ready = readiness.hold();
    let _announcing = announce(readiness.clone(), shutdown.clone());
    let (listener, address) = daemon::listen(args.listen).await?;
    if address.ip().is_unspecified() {
        tracing::warn!(%address, "others are told this address, and can't reach it: name this machine's own with --listen");
    }
    let mut loops = Loops::default();
    let directory = Board::default();
    let exporter = settings.exporter.then(|| settings.exporter_socket());
    let asked = Endpoint {
        cluster: cluster.clone(),
        directory: directory.shown(),
        zone: args.zone.clone(),
        exporter,
    };
    if let Some(address) = args.dns {
        let sockets =
            Sockets::open(address).with_context(|| format!("can't answer about names on {address}"))?;
        let answers = Answers { directory: directory.shown(), zone: names, metrics: metrics.clone() };
        let serving = sockets.serve(answers, shutdown.clone()).context("can't answer about names")?;
        loops.spawn("the answers about names", serving);
    }
    let routes = daemon::common_routes(readiness, registry, &cluster).merge(endpoint::routes(asked));
    let mut serving = Serving::start(listener, routes, &cluster, shutdown.child_token());

    let place = Place {
        config: folder.join("haproxy.cfg"),
        last_good: folder.join("haproxy.last-good.cfg"),
        map: settings.map_file(),
        program: program.clone(),
    };
    let cli = Cli::new(args.haproxy_socket.unwrap_or_else(|| settings.master_socket()));
    let process = args
        .run_haproxy
        .then(|| Process::new(program, place.config.clone(), folder.join("haproxy.log"), cli.clone()));
    let balancer = Box::new(Driver::new(cli, place, process, metrics.clone(), &mut loops));

    let store = cluster.visor.store().clone();
    let warning = cluster.clone();
    loops.spawn_once("the wait for the coordinator", async move {
        let say = |error: &visor::store::StoreError| {
            tracing::warn!(error = %error, "waiting for the coordinator; what is routed stays as it is");
        };
        if let Err(error) = wait_until_ready(&*store, say).await {
            tracing::error!(error = %error, "the coordinator refuses");
        }
        warning.warn_of_old_coordinator().await;
    });
    let identity = Identity {
        name,
        url: format!("{}://{address}", cluster.scheme()),
        zone: args.zone,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        token,
    };
    let parts = Parts {
        visor: cluster.visor,
        balancer,
        settings,
        identity,
        directory,
        metrics,
        not_ready,
        pulse: Pulse::asked_for(),
    };
    let ran = tokio::select! {
        ran = proxy::run(parts, &mut loops, args.on_exit == OnExit::Stop, shutdown) => ran,
        ended = serving.ended() => Err(ended),
    };
    let drained = serving.drain().await;
    Ok(ran.and(drained)?)
}

fn machine_name() -> anyhow::Result<HostName> {
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

fn is_plain(path: &Path) -> bool {
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
fn checked_folder(folder: &Path) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    let text = folder.to_str().unwrap_or_default();
    if text.is_empty() || !text.chars().all(plain) {
        bail!("the state folder {} must be named with letters, digits and /._-+@ alone", folder.display());
    }
    // What the kernel takes for a socket's path, with the longest name in it and HAProxy's own suffix.
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
async fn lock(folder: &Path) -> anyhow::Result<nix::fcntl::Flock<std::fs::File>> {
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

fn find_program(program: &Path) -> anyhow::Result<PathBuf> {
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

/// Whether this HAProxy was built with its exporter, as Debian's is. One that wasn't refuses a configuration that names it.
async fn has_exporter(program: &Path) -> anyhow::Result<bool> {
    let says = tokio::process::Command::new(program).arg("-vv").output().await;
    let says = says.with_context(|| format!("can't run {}", program.display()))?;
    let has = String::from_utf8_lossy(&says.stdout).contains("prometheus-exporter");
    if !has {
        tracing::warn!(haproxy = %program.display(), "this HAProxy has no exporter: there are no metrics of it");
    }
    Ok(has)
}

/// Whom the workers run as: nobody else unless this is root.
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
