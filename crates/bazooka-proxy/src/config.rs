//! HAProxy's configuration: one pure function from routes and settings to text.
//!
//! Owns every line of it. Three ideas carry it:
//!
//! - Hosts are looked up in a map file that the Runtime API changes too, so that a domain comes and
//!   goes without a reload.
//! - A worker that is stopping hands each further request to its successor through a socket
//!   (`if { stopping }`). So an old worker, whose servers can't be changed any more, sends nothing to
//!   an instance that was taken out since; what it has under way is all that it still does.
//! - The hash of the configuration without its servers is its structural hash. Only another hash needs a
//!   reload; the hash in force stands in `description`, where a worker can be asked for it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use sha2::{Digest, Sha256};
use visor::names::{HostName, InstanceId};

use crate::routes::{Mode, RmPlace, Routes, Service, ServiceId};

/// What doesn't come from the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where requests for `<app>.<domain>` are taken; none while that can't be opened.
    pub public: Option<SocketAddr>,
    /// Where pushes and fetches are taken for whichever bazooka-rm serves; none: they go to an rm itself.
    pub git: Option<SocketAddr>,
    /// How that address, and the way from it to an rm, speak TLS; none: in the clear.
    pub git_tls: Option<GitTls>,
    /// Where services' own ports are opened.
    pub bind: IpAddr,
    /// The domain below which each app has its name.
    pub domain: HostName,
    /// The folder of the map and the sockets.
    pub folder: PathBuf,
    /// Whom the workers run as, where that is another than who starts them.
    pub run_as: Option<RunAs>,
    /// Whether this HAProxy can tell its own metrics.
    pub exporter: bool,
}

/// The files of TLS on git's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitTls {
    /// This proxy's certificate, those after it, and its key, in one file.
    pub identity: PathBuf,
    /// The cluster's authority.
    pub authority: PathBuf,
}

/// Whom HAProxy's workers run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// The user's name.
    pub user: String,
    /// Its group's name.
    pub group: String,
}

impl Settings {
    /// The file of the host map.
    pub fn map_file(&self) -> PathBuf {
        self.folder.join("hosts.map")
    }

    /// The master's command socket.
    pub fn master_socket(&self) -> PathBuf {
        self.folder.join("master.sock")
    }

    /// Where HAProxy tells its own metrics.
    pub fn exporter_socket(&self) -> PathBuf {
        self.folder.join("exporter.sock")
    }

    fn worker_socket(&self) -> PathBuf {
        self.folder.join("worker.sock")
    }

    fn handover_socket(&self) -> PathBuf {
        self.folder.join("handover.sock")
    }
}

/// The header by which a stopping worker names the service to its successor. No client can set it.
const SERVICE_HEADER: &str = "x-bazooka-service";

/// The host that was asked for: without port, case and final dot.
const HOST: &str = "req.hdr(host),lower,field(1,:),rtrim(.)";

/// Repeated without harm (RFC 9110, 9.2.2). Others are sent again only if nothing was sent before.
const IDEMPOTENT: &str = "GET HEAD OPTIONS TRACE PUT DELETE";

/// A server's options in each mode, bar its weight. They are spelled out for each server, because `add server` takes
/// none from `default-server`.
///
/// One refused connection marks a server down at once (`observe layer4`), so that the next request doesn't
/// try it again. It is looked at again soon: an instance that crashed is started again on the
/// same port within milliseconds. A proc that isn't HTTP may well listen on nothing, so it is asked less often.
/// Checks alone find a host that answers nothing any more, before a request does.
/// Idle connections end before the app is likely to close them (Node does so after 5 s, gunicorn after 2 s).
pub fn server_options(mode: Mode) -> &'static str {
    match mode {
        Mode::Http => {
            "check inter 2s fastinter 200ms downinter 100ms rise 1 fall 2 observe layer4 error-limit 1 \
             on-error mark-down pool-purge-delay 1s"
        }
        Mode::Tcp => {
            "check inter 5s fastinter 1s downinter 1s rise 1 fall 2 observe layer4 error-limit 1 \
             on-error mark-down"
        }
    }
}

/// The name of an instance's server.
pub fn server_name(instance: InstanceId) -> String {
    format!("i{instance}")
}

/// The instance that a server's name stands for.
pub fn instance_of(server: &str) -> Option<InstanceId> {
    server.strip_prefix('i')?.parse().ok()
}

/// The name of the frontend of a service's own port.
pub fn frontend_name(id: &ServiceId, port: u16) -> String {
    format!("{}.{port}", id.backend())
}

/// The port that a frontend's name stands for.
pub fn port_of_frontend(name: &str) -> Option<u16> {
    name.rsplit_once('.')?.1.parse().ok()
}

/// The name of the public frontend.
pub const PUBLIC: &str = "public";

/// The name of the way to the rms.
pub const GIT: &str = "git";

/// Each host name that leads somewhere, with the backend that it leads to.
///
/// `<app>.<domain>` is the app's proc `web`, `<proc>.<app>.<domain>` another that speaks HTTP. A custom domain
/// leads to `web` too, unless the name is an app's own.
pub fn hosts(routes: &Routes, settings: &Settings) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    let web = |app: &visor::names::AppName| {
        let id = ServiceId { app: app.clone(), proc: "web".parse().expect("a valid name") };
        routes.services.contains_key(&id).then_some(id)
    };
    for (domain, app) in &routes.domains {
        if let Some(id) = web(app) {
            hosts.insert(domain.to_string(), id.backend());
        }
    }
    for (id, service) in &routes.services {
        if service.mode != Mode::Http {
            continue;
        }
        let (app, proc, domain) = (&id.app, &id.proc, &settings.domain);
        let name =
            if proc.as_str() == "web" { format!("{app}.{domain}") } else { format!("{proc}.{app}.{domain}") };
        hosts.insert(name, id.backend());
    }
    hosts
}

/// The text of the map file.
pub fn render_map(hosts: &BTreeMap<String, String>) -> String {
    hosts.iter().fold(String::new(), |mut text, (host, backend)| {
        let _ = writeln!(text, "{host} {backend}");
        text
    })
}

/// The structural hash of a configuration: configurations that differ in servers, weights and domains alone have
/// the same.
///
/// A proxy compares it with the hash that a running HAProxy was started with, perhaps by another build. So it must
/// depend on the text alone, and not on the compiler.
pub fn structural_hash(routes: &Routes, settings: &Settings) -> String {
    digest(&structure(routes, settings))
}

/// Whether a hash that HAProxy has in force is that of this configuration.
///
/// A HAProxy that an earlier version of bazooka-proxy started shows the hash of before. That one is heeded too, so
/// that an upgrade reloads nothing; it disappears with the next reload.
pub fn has_structure(in_force: &str, routes: &Routes, settings: &Settings) -> bool {
    let text = structure(routes, settings);
    in_force == digest(&text) || (in_force.len() == EARLIER_DIGITS && in_force == earlier_digest(&text))
}

/// The first half of a SHA-256.
fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(16).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// How long the hash of earlier versions is.
const EARLIER_DIGITS: usize = 16;

/// The hash of earlier versions, as long as the standard library keeps its algorithm.
fn earlier_digest(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The text of a configuration without its servers, weights, domains and hash.
fn structure(routes: &Routes, settings: &Settings) -> String {
    let mut bare = routes.clone();
    for service in bare.services.values_mut() {
        service.servers.clear();
        // That there are weights stays: HAProxy heeds them by another way of taking turns.
        service.weights.iter_mut().for_each(BTreeMap::clear);
    }
    // Domains live in the map.
    bare.domains.clear();
    render_with(&bare, settings, "")
}

/// The whole configuration.
pub fn render(routes: &Routes, settings: &Settings) -> String {
    render_with(routes, settings, &structural_hash(routes, settings))
}

fn render_with(routes: &Routes, settings: &Settings, hash: &str) -> String {
    let mut text = String::new();
    global(&mut text, settings, hash);
    if let Some(public) = settings.public {
        public_frontend(&mut text, settings, public);
    }
    handover(&mut text, settings);
    if settings.exporter {
        exporter(&mut text, settings);
    }
    if let Some(git) = settings.git {
        git_frontend(&mut text, git, settings.git_tls.as_ref(), routes);
    }
    for (id, service) in &routes.services {
        if let Some(port) = service.port {
            service_frontend(&mut text, settings, id, service.mode, port);
        }
        backend(&mut text, id, service);
    }
    text
}

/// Adds lines; a `String` takes them all.
macro_rules! lines {
    ($text:expr, $($line:tt)*) => {
        let _ = writeln!($text, $($line)*);
    };
}

fn global(text: &mut String, settings: &Settings, hash: &str) {
    let socket = settings.worker_socket();
    lines!(text, "# Written by bazooka-proxy; what is changed here is overwritten.");
    lines!(text, "global");
    lines!(text, "    description shape={hash}");
    lines!(text, "    stats socket {} mode 600 level admin expose-fd listeners", quoted(&socket));
    // Old workers end after this, whatever is open on them.
    lines!(text, "    hard-stop-after 30m");
    if let Some(RunAs { user, group }) = &settings.run_as {
        lines!(text, "    user {user}");
        lines!(text, "    group {group}");
    }
    // leastconn: one that is slow, or holds long connections, gets fewer requests; equals take turns.
    // tcp-check with linger: a check that ends with a reset is a traceback in many an app's log.
    // timeout connect: what a request waits for a host that has vanished before it goes to another. A first packet
    // that gets lost is repeated by the kernel after 1 s only; another instance answers sooner.
    // srvtcpka: what waits for an answer of a host that has vanished learns of it in 4 s instead of 2 min.
    text.push_str(
        r#"
defaults http
    mode http
    balance leastconn
    timeout connect 500ms
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout client 2m
    timeout server 2m
    timeout queue 10s
    timeout tunnel 1h
    timeout client-fin 30s
    option idle-close-on-response
    option srvtcpka
    srvtcpka-idle 2s
    srvtcpka-intvl 1s
    srvtcpka-cnt 2
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
    option tcp-check
    tcp-check connect linger
    http-error status 502 content-type "text/plain; charset=utf-8" string "The instance ended the connection without a whole answer.\n"
    http-error status 503 content-type "text/plain; charset=utf-8" string "Nothing here can answer this now.\n" hdr retry-after 1
    http-error status 504 content-type "text/plain; charset=utf-8" string "The instance did not answer in time.\n"

defaults tcp
    mode tcp
    balance leastconn
    timeout connect 500ms
    timeout client 1h
    timeout server 1h
    timeout queue 10s
    timeout client-fin 30s
    option srvtcpka
    srvtcpka-idle 2s
    srvtcpka-intvl 1s
    srvtcpka-cnt 2
    option redispatch 1
    retries 3
    option tcp-check
    tcp-check connect linger
"#,
    );
}

/// What each way in for HTTP does first.
fn http_rules(text: &mut String) {
    lines!(text, "    option forwardfor");
    lines!(text, "    http-request del-header {SERVICE_HEADER}");
    lines!(text, "    http-request set-header x-forwarded-proto http");
}

/// Answers who asks for a host that leads nowhere.
fn unknown_host(text: &mut String, settings: &Settings, unless: &str) {
    let domain = &settings.domain;
    lines!(
        text,
        "    http-request return status 404 content-type \"text/plain; charset=utf-8\" hdr x-content-type-options nosniff \
         lf-string \"No app answers to '%[req.hdr(host),bytes(0,253)]' here. An app's address is <app>.{domain}.\\n\" \
         unless {{ var(txn.backend) -m found }}{unless}"
    );
}

fn public_frontend(text: &mut String, settings: &Settings, public: SocketAddr) {
    let map = quoted_map(settings);
    lines!(text, "\nfrontend {PUBLIC} from http");
    lines!(text, "    bind {public}");
    http_rules(text);
    lines!(text, "    http-request set-var(txn.backend) {HOST},map({map}) unless {{ stopping }}");
    unknown_host(text, settings, " || { stopping }");
    lines!(text, "    use_backend successor if {{ stopping }}");
    lines!(text, "    use_backend %[var(txn.backend)]");
}

/// The way from a stopping worker to the one that follows it.
fn handover(text: &mut String, settings: &Settings) {
    let map = quoted_map(settings);
    let socket = settings.handover_socket();
    let socket = socket.to_string_lossy();
    lines!(text, "\nfrontend handover from http");
    lines!(text, "    bind \"unix@{socket}\" mode 600{}", owner(settings));
    lines!(text, "    http-request set-var(txn.backend) req.hdr({SERVICE_HEADER})");
    lines!(
        text,
        "    http-request set-var(txn.backend) {HOST},map({map}) unless {{ var(txn.backend) -m found }}"
    );
    lines!(text, "    http-request del-header {SERVICE_HEADER}");
    unknown_host(text, settings, "");
    lines!(text, "    use_backend %[var(txn.backend)]");
    lines!(text, "\nbackend successor from http");
    lines!(text, "    retry-on conn-failure");
    lines!(text, "    server next \"unix@{socket}\"");
}

/// Whom a socket in the folder belongs to: the workers.
fn owner(settings: &Settings) -> String {
    settings.run_as.as_ref().map(|run_as| format!(" user {}", run_as.user)).unwrap_or_default()
}

/// HAProxy's own metrics, on a socket that bazooka-proxy alone can open: who may read them is asked at its endpoint, and no
/// visitor of an app gets near.
fn exporter(text: &mut String, settings: &Settings) {
    let socket = settings.exporter_socket();
    lines!(text, "\nfrontend exporter from http");
    lines!(text, "    bind \"unix@{}\" mode 600{}", socket.display(), owner(settings));
    lines!(text, "    http-request use-service prometheus-exporter if {{ path /metrics }}");
    lines!(text, "    http-request return status 404");
}

/// The way to the rms, for git alone: what else they answer is for the cluster's own parts.
///
/// One app's requests go to one rm while that is there (its copy and its caches are warm), and to the next one by
/// the same rule once it has gone. A build may print nothing for long: rm itself bounds a push.
fn git_frontend(text: &mut String, git: SocketAddr, tls: Option<&GitTls>, routes: &Routes) {
    lines!(text, "\nfrontend {GIT} from http");
    let secured = tls.map_or_else(String::new, |tls| {
        format!(" ssl crt {} ssl-min-ver TLSv1.2 alpn http/1.1", quoted(&tls.identity))
    });
    lines!(text, "    bind {git}{secured}");
    lines!(text, "    timeout client 30m");
    lines!(
        text,
        "    http-request return status 404 content-type \"text/plain; charset=utf-8\" \
         string \"Only git is answered here: <app>.git\\n\" \
         unless {{ path_reg ^/[a-z0-9-]+(\\.git)?/(info/refs|git-receive-pack|git-upload-pack)$ }}"
    );
    lines!(text, "    default_backend {GIT}");
    lines!(text, "\nbackend {GIT} from http");
    lines!(text, "    balance hash path,field(2,/)");
    lines!(text, "    hash-type consistent");
    lines!(text, "    timeout server 30m");
    lines!(text, "    http-request disable-l7-retry unless {{ method {IDEMPOTENT} }}");
    lines!(
        text,
        "    http-error status 503 content-type \"text/plain; charset=utf-8\" \
         string \"No bazooka-rm answers now; try again in a moment.\\n\" hdr retry-after 1"
    );
    // In the clear to none that speaks TLS, and with TLS to none that doesn't.
    let fitting = routes.rms.iter().filter(|(_, place)| place.secured == tls.is_some());
    for (name, RmPlace { address, .. }) in fitting {
        // It must be that rm by its certificate's name, at whatever address: any other of the authority's won't do.
        let secured = tls.map_or_else(String::new, |tls| {
            format!(" ssl verify required ca-file {} verifyhost rm:{name}", quoted(&tls.authority))
        });
        lines!(
            text,
            "    server rm-{name} {address}{secured} check inter 1s fastinter 200ms downinter 200ms rise 1 fall 2 \
             observe layer4 error-limit 1 on-error mark-down init-addr libc,none"
        );
    }
}

fn service_frontend(text: &mut String, settings: &Settings, id: &ServiceId, mode: Mode, port: u16) {
    let (name, backend) = (frontend_name(id, port), id.backend());
    let address = SocketAddr::new(settings.bind, port);
    match mode {
        Mode::Http => {
            lines!(text, "\nfrontend {name} from http");
            lines!(text, "    bind {address}");
            http_rules(text);
            lines!(text, "    http-request set-header {SERVICE_HEADER} {backend} if {{ stopping }}");
            lines!(text, "    use_backend successor if {{ stopping }}");
        }
        Mode::Tcp => {
            lines!(text, "\nfrontend {name} from tcp");
            lines!(text, "    bind {address}");
        }
    }
    lines!(text, "    default_backend {backend}");
}

fn backend(text: &mut String, id: &ServiceId, service: &Service) {
    let name = id.backend();
    match service.mode {
        Mode::Http => {
            lines!(text, "\nbackend {name} from http");
            lines!(text, "    http-request disable-l7-retry unless {{ method {IDEMPOTENT} }}");
            lines!(
                text,
                "    http-error status 503 content-type \"text/plain; charset=utf-8\" \
                 string \"No instance of {id} can answer now. See: bazooka ps -a {}\\n\" hdr retry-after 1",
                id.app
            );
        }
        Mode::Tcp => {
            lines!(text, "\nbackend {name} from tcp");
        }
    }
    if service.weights.is_some() {
        // leastconn gives idle servers equal turns whatever their weights.
        lines!(text, "    balance roundrobin");
    }
    for (instance, address) in &service.servers {
        let (server, options) = (server_name(*instance), server_options(service.mode));
        lines!(text, "    server {server} {address} {options} weight {}", service.weight(*instance));
    }
}

/// A path as one word of the configuration. The folder is checked at start to need no more than quotes.
fn quoted(path: &std::path::Path) -> String {
    format!("\"{}\"", path.display())
}

fn quoted_map(settings: &Settings) -> String {
    settings.map_file().display().to_string()
}
