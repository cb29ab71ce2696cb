//! HAProxy's configuration: one pure function from routes and settings to text.
//!
//! Owns every line of the configuration. It rests on three ideas:
//!
//! - Hosts are looked up in a map file that the Runtime API can change, so adding or removing a domain needs no
//!   reload.
//! - A stopping worker passes each further request to its successor through a socket (`if { stopping }`). The servers
//!   of a stopping worker can't be changed any more, so otherwise it could send requests to an instance that has been
//!   taken out since. It only finishes the requests that it already has.
//! - The hash of the configuration without its servers is its structural hash. HAProxy is reloaded only when this
//!   hash changes. The hash in force stands in `description`, where a worker reports it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use sha2::{Digest, Sha256};
use visor::names::{HostName, InstanceId};

use crate::routes::{Mode, RmPlace, Routes, Service, ServiceId};

/// Settings of this proxy, which don't come from the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The address for requests to `<app>.<domain>`; `None` while it can't be opened.
    pub public: Option<SocketAddr>,
    /// The address for pushes and fetches, routed to an available bazooka-rm; `None` if clients connect to an rm
    /// directly.
    pub git: Option<SocketAddr>,
    /// The TLS files for git's address and for the connections from it to the rms; `None`: without TLS.
    pub git_tls: Option<GitTls>,
    /// The address at which the services' own ports are opened.
    pub bind: IpAddr,
    /// The domain below which each app has its name.
    pub domain: HostName,
    /// The folder of the map and the sockets.
    pub folder: PathBuf,
    /// The user of the workers, if it differs from the user that starts HAProxy.
    pub run_as: Option<RunAs>,
    /// True if this HAProxy has its Prometheus exporter built in.
    pub exporter: bool,
    /// True if this HAProxy runs Lua scripts; [`GIVE_UP`] stands at [`Settings::script`] then.
    pub lua: bool,
}

/// The TLS files of git's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitTls {
    /// This proxy's certificate, the certificates of its chain, and its key, in one file.
    pub identity: PathBuf,
    /// The certificate of the cluster's authority.
    pub authority: PathBuf,
}

/// The user and group of HAProxy's workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// The user's name.
    pub user: String,
    /// The group's name.
    pub group: String,
}

impl Settings {
    /// Returns the path of the host map.
    pub fn map_file(&self) -> PathBuf {
        self.folder.join("hosts.map")
    }

    /// Returns the path of the master's command socket.
    pub fn master_socket(&self) -> PathBuf {
        self.folder.join("master.sock")
    }

    /// Returns the path of the socket on which HAProxy serves its metrics.
    pub fn exporter_socket(&self) -> PathBuf {
        self.folder.join("exporter.sock")
    }

    /// Returns the path of [`GIVE_UP`]. A changed script needs another name: HAProxy reads the script only when it
    /// starts or reloads, and the structural hash contains the name alone.
    pub fn script(&self) -> PathBuf {
        self.folder.join("give-up-1.lua")
    }

    fn worker_socket(&self) -> PathBuf {
        self.folder.join("worker.sock")
    }

    fn handover_socket(&self) -> PathBuf {
        self.folder.join("handover.sock")
    }
}

/// The header in which a stopping worker passes the service's name to its successor. HAProxy removes it from clients'
/// requests.
const SERVICE_HEADER: &str = "x-bazooka-service";

/// The requested host, without port and final dot, in lower case.
const HOST: &str = "req.hdr(host),lower,field(1,:),rtrim(.)";

/// The methods that may be repeated (RFC 9110, 9.2.2). Other requests are sent again only if no byte of them was
/// sent.
const IDEMPOTENT: &str = "GET HEAD OPTIONS TRACE PUT DELETE";

/// The answer to a request whose instance died.
const NO_WHOLE_ANSWER: &str = "The instance ended the connection without a whole answer.\\n";

/// The script of the action that answers a request with 502 in place of another try.
///
/// While the connection is open the action does nothing: the instance may still answer, or exceed its time.
pub const GIVE_UP: &str = r#"-- Written by bazooka-proxy; what is changed here is overwritten.
core.register_action("bazooka_give_up", { "tcp-res" }, function(txn)
    if txn.res:may_recv() then return end
    local reply = txn:reply({ status = 502, reason = "Bad Gateway" })
    reply:add_header("content-type", "text/plain; charset=utf-8")
    reply:set_body("The instance ended the connection without a whole answer.\n")
    txn:done(reply)
end)
"#;

/// The time in seconds for which a backend waits for an answer, and the time for which its [`one_more`] rules watch the
/// connection: shorter, so that an instance that exceeds its time leads to 504.
struct AnswerTime {
    timeout: u32,
    watched: u32,
}

const OF_SERVICES: AnswerTime = AnswerTime { timeout: 120, watched: 119 };
const OF_RMS: AnswerTime = AnswerTime { timeout: 1800, watched: 1799 };

/// The most connections to git's address at a time; further ones wait in the kernel. A bazooka-rm takes as many from one
/// proxy, and the public address keeps the rest of HAProxy's.
const GIT_CONNECTIONS: u32 = 1_024;

/// The most connections of one visitor to git's address: of an IPv4 address, or of an IPv6 /64. Further ones are refused,
/// as at a bazooka-rm.
const GIT_CONNECTIONS_OF_ONE: u32 = 256;

/// Returns a server's options in a mode, except its weight. Each server has them spelled out, because `add server`
/// ignores `default-server`.
///
/// One refused connection marks a server down at once (`observe layer4`), so that the next request doesn't try it
/// again. A down server is checked again soon, because an instance that crashed starts again on the same port within
/// milliseconds. TCP procs are checked less often, because many of them listen on nothing. Only the checks find a
/// host that no longer answers at all before a request does. Idle connections end before the app is likely to close
/// them (Node does so after 5 s, gunicorn after 2 s).
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

/// Returns the name of an instance's server.
pub fn server_name(instance: InstanceId) -> String {
    format!("i{instance}")
}

/// Returns the instance that a server's name stands for; `None` for a server that isn't an instance's.
pub fn instance_of(server: &str) -> Option<InstanceId> {
    server.strip_prefix('i')?.parse().ok()
}

/// Returns the name of the frontend of a service's own port.
pub fn frontend_name(id: &ServiceId, port: u16) -> String {
    format!("{}.{port}", id.backend())
}

/// Returns the port in the name of a service's frontend; `None` for other frontends.
pub fn port_of_frontend(name: &str) -> Option<u16> {
    name.rsplit_once('.')?.1.parse().ok()
}

/// The name of the public frontend.
pub const PUBLIC: &str = "public";

/// The name of the frontend and the backend that lead to the rms.
pub const GIT: &str = "git";

/// Returns the backend for each host name.
///
/// `<app>.<domain>` is the app's proc `web`, `<proc>.<app>.<domain>` another HTTP proc. A custom domain leads to
/// `web` too, unless it equals an app's own name.
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

/// Returns the text of the map file.
pub fn render_map(hosts: &BTreeMap<String, String>) -> String {
    hosts.iter().fold(String::new(), |mut text, (host, backend)| {
        let _ = writeln!(text, "{host} {backend}");
        text
    })
}

/// Returns the structural hash of a configuration. Configurations that differ only in servers, weights and domains
/// have the same hash.
///
/// A proxy compares it with the hash that a running HAProxy was started with, perhaps by another build. So the hash
/// must depend on the text alone, and not on the compiler.
pub fn structural_hash(routes: &Routes, settings: &Settings) -> String {
    digest(&structure(routes, settings))
}

/// Returns the first half of a SHA-256 in hexadecimal.
fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(16).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Returns the text of a configuration without its servers, weights, domains and hash.
fn structure(routes: &Routes, settings: &Settings) -> String {
    let mut bare = routes.clone();
    for service in bare.services.values_mut() {
        service.servers.clear();
        // Whether a service has weights is structure: with weights its `balance` algorithm differs.
        service.weights.iter_mut().for_each(BTreeMap::clear);
    }
    // Domains are in the map file.
    bare.domains.clear();
    render_with(&bare, settings, "")
}

/// Returns the text of the whole configuration.
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
        git_frontend(&mut text, settings, git, routes);
    }
    for (id, service) in &routes.services {
        if let Some(port) = service.port {
            service_frontend(&mut text, settings, id, service.mode, port);
        }
        backend(&mut text, settings, id, service);
    }
    text
}

/// Appends a line to a `String`, which can't fail.
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
    // Old workers end after this time, even with open connections.
    lines!(text, "    hard-stop-after 30m");
    if settings.lua {
        lines!(text, "    lua-load {}", quoted(&settings.script()));
    }
    if let Some(RunAs { user, group }) = &settings.run_as {
        lines!(text, "    user {user}");
        lines!(text, "    group {group}");
    }
    // leastconn: a slow instance, or one that holds long connections, gets fewer requests; equal instances take
    // turns.
    // tcp-check with linger: many apps log a traceback when a check ends with a reset.
    // timeout connect: the time a request waits for a vanished host before it goes to another instance. The kernel
    // repeats a lost first packet only after 1 s; another instance answers sooner.
    // srvtcpka: a request that waits for the response of a vanished host fails after 4 s instead of 2 min.
    // retry-on: without the rules of `one_more` a request is sent again only if no instance took it.
    let retry_on = if settings.lua { "conn-failure empty-response" } else { "conn-failure" };
    let timeout = OF_SERVICES.timeout;
    lines!(
        text,
        r#"
defaults http
    mode http
    balance leastconn
    timeout connect 500ms
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout client 2m
    timeout server {timeout}s
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
    retry-on {retry_on}
    option tcp-check
    tcp-check connect linger
    http-error status 502 content-type "text/plain; charset=utf-8" string "{NO_WHOLE_ANSWER}"
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
    tcp-check connect linger"#
    );
}

/// Writes the rules for a request that an instance took and didn't answer: sent to one more instance at most, and only if
/// it is safe to repeat. Otherwise a request that kills its instance would kill one after the other.
///
/// HAProxy evaluates the `tcp-response` rules whenever a server has taken the request. The first time they only note
/// it. The next time, or at once for a request that isn't safe to repeat, they wait for a status; the connection's end
/// without one leads to 502. HAProxy by itself would close a kept connection without an answer and without a trace in
/// its metrics, and most clients would then send the request again.
fn one_more(text: &mut String, settings: &Settings, time: &AnswerTime) {
    lines!(text, "    http-request disable-l7-retry unless {{ method {IDEMPOTENT} }}");
    if !settings.lua {
        return;
    }
    lines!(text, "    http-request set-var(txn.taken) bool(true) unless {{ method {IDEMPOTENT} }}");
    lines!(text, "    tcp-response inspect-delay {}s", time.watched);
    lines!(text, "    tcp-response content set-var(txn.last) bool(true) if {{ var(txn.taken) -m found }}");
    lines!(text, "    tcp-response content set-var(txn.taken) bool(true)");
    // From the first try on HAProxy waits by itself: only so can it send the request again.
    lines!(text, "    tcp-response content accept unless {{ var(txn.last) -m found }}");
    lines!(text, "    tcp-response content accept if {{ status ge 100 }}");
    lines!(text, "    tcp-response content lua.bazooka_give_up");
}

/// Writes the first rules of each HTTP frontend.
fn http_rules(text: &mut String) {
    lines!(text, "    option forwardfor");
    lines!(text, "    http-request del-header {SERVICE_HEADER}");
    lines!(text, "    http-request set-header x-forwarded-proto http");
}

/// Answers 404 to a request for a host that leads nowhere.
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

/// Writes the socket over which a stopping worker passes requests to its successor.
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

/// Returns the owner of a socket in the folder: the workers' user.
fn owner(settings: &Settings) -> String {
    settings.run_as.as_ref().map(|run_as| format!(" user {}", run_as.user)).unwrap_or_default()
}

/// Writes the frontend of HAProxy's own metrics, on a socket that only bazooka-proxy can open. bazooka-proxy's
/// endpoint checks who may read the metrics, and visitors of apps can't reach them.
fn exporter(text: &mut String, settings: &Settings) {
    let socket = settings.exporter_socket();
    lines!(text, "\nfrontend exporter from http");
    lines!(text, "    bind \"unix@{}\" mode 600{}", socket.display(), owner(settings));
    lines!(text, "    http-request use-service prometheus-exporter if {{ path /metrics }}");
    lines!(text, "    http-request return status 404");
}

/// Writes git's frontend, which leads to the rms. It serves git requests alone; the rms' other endpoints are for the
/// cluster's daemons.
///
/// The requests for one app all go to one rm while it is available, because its clone and its caches are warm; after
/// it has gone, they go to the next rm by the same hash. A build may print nothing for a long time, so the timeouts
/// are long; the rm limits a push itself.
fn git_frontend(text: &mut String, settings: &Settings, git: SocketAddr, routes: &Routes) {
    let tls = settings.git_tls.as_ref();
    lines!(text, "\nfrontend {GIT} from http");
    let secured = tls.map_or_else(String::new, |tls| {
        format!(" ssl crt {} ssl-min-ver TLSv1.2 alpn http/1.1", quoted(&tls.identity))
    });
    lines!(text, "    bind {git}{secured}");
    lines!(text, "    maxconn {GIT_CONNECTIONS}");
    lines!(text, "    timeout client 30m");
    // Before the TLS handshake. An IPv6 visitor has a whole /64.
    lines!(text, "    stick-table type ipv6 size 100k expire 1h store conn_cur");
    lines!(text, "    tcp-request connection track-sc0 src,ipmask(32,64)");
    lines!(text, "    tcp-request connection reject if {{ sc0_conn_cur gt {GIT_CONNECTIONS_OF_ONE} }}");
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
    lines!(text, "    timeout server {}s", OF_RMS.timeout);
    one_more(text, settings, &OF_RMS);
    lines!(
        text,
        "    http-error status 503 content-type \"text/plain; charset=utf-8\" \
         string \"No bazooka-rm answers now; try again in a moment.\\n\" hdr retry-after 1"
    );
    // Never plaintext to an rm that speaks TLS, nor TLS to an rm that doesn't.
    let fitting = routes.rms.iter().filter(|(_, place)| place.secured == tls.is_some());
    for (name, RmPlace { address, .. }) in fitting {
        // The certificate must name this rm, whatever its address; no other certificate of the authority is accepted.
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

fn backend(text: &mut String, settings: &Settings, id: &ServiceId, service: &Service) {
    let name = id.backend();
    match service.mode {
        Mode::Http => {
            lines!(text, "\nbackend {name} from http");
            one_more(text, settings, &OF_SERVICES);
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
        // leastconn gives idle servers equal turns, whatever their weights.
        lines!(text, "    balance roundrobin");
    }
    for (instance, address) in &service.servers {
        let (server, options) = (server_name(*instance), server_options(service.mode));
        lines!(text, "    server {server} {address} {options} weight {}", service.weight(*instance));
    }
}

/// Quotes a path as one word of the configuration. Start-up checks that the folder's path needs no more than quotes.
fn quoted(path: &std::path::Path) -> String {
    format!("\"{}\"", path.display())
}

fn quoted_map(settings: &Settings) -> String {
    settings.map_file().display().to_string()
}
