//! The access matrix: each identity against each endpoint and each part of the coordinator, cell by cell.
//!
//! Nothing is changed by asking. A write to the coordinator is a transaction whose condition can't hold: etcd asks for
//! the right to write all the same.

use std::{collections::BTreeMap, path::PathBuf};

use bazooka_daemon::{
    git_token::{GitRequest, Purpose, mint},
    http_client,
};
use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, SOON, example};
use http::Uri;
use jiff::{Timestamp, ToSpan};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode};
use tokio::runtime::Runtime;
use visor::{
    identity::Credentials,
    names::AppName,
    store::{
        Compare, Keys, Op, Store, Txn,
        etcd::{EtcdConfig, EtcdStore},
    },
};

/// Who asks. The words are those of the tables below.
const CALLERS: [&str; 11] = [
    "none",
    "expired",
    "stranger",
    "outsider",
    "eve",
    "ada",
    OPERATOR,
    "pm:host2",
    "pm:host1",
    "proxy:proxy1",
    "rm:rm1",
];

/// What each caller may, in the order of [`CALLERS`]: `y` or `-`.
type Row = (&'static str, &'static str);

/// The coordinator, by key: read, then written. A converger's are in the unit tests of `visor::access`, as all of these.
const READS: [Row; 20] = [
    // none expired stranger outsider eve ada ops host2 host1 proxy rm
    ("schema", "----yyyyyyy"),
    ("apps/goto-rocket", "----yyy--yy"),
    ("apps/goto-rocket/formation/web", "----yyy--yy"),
    ("apps/other/envs/e1", "----yyy--yy"),
    ("ports/8501", "----yyy--yy"),
    ("assigned/host1/1", "----yyy-yyy"),
    ("assigned/host2/1", "----yyyy-yy"),
    ("status/host1/1", "----yyy-yyy"),
    ("hosts/host1", "----yyy-yyy"),
    ("hosts/host2", "----yyyy-yy"),
    ("archives/host1", "----yyy-yyy"),
    ("serving/host1/goto-rocket/1", "----yyy-yyy"),
    ("rms/rm1", "----yyyyyyy"),
    ("access/goto-rocket", "----yyyyyyy"),
    ("identities/ada", "----yyyyyyy"),
    ("private/wraps/goto-rocket/e1", "-----y----y"),
    ("private/wraps/other/e1", "----y-----y"),
    ("private/wrapping/host1/goto-rocket/e1/host2", "--------y-y"),
    ("private/wrapping/host2/goto-rocket/e1/host1", "-------y--y"),
    ("private/asks/rm1", "----------y"),
];

const WRITES: [Row; 32] = [
    // none expired stranger outsider eve ada ops host2 host1 proxy rm
    ("schema", "----------y"),
    ("counters/instance", "------y---y"),
    ("counters/port", "------y---y"),
    ("ports/8501", "------y---y"),
    ("apps/goto-rocket", "------y---y"),
    ("apps/goto-rocket/formation/web", "-----yy---y"),
    ("apps/goto-rocket/procs/web", "-----yy---y"),
    ("apps/goto-rocket/envs/e1", "-----yy---y"),
    ("apps/goto-rocket/releases/v1", "-----yy---y"),
    ("apps/goto-rocket/head", "-----yy---y"),
    ("apps/goto-rocket/trial", "-----yy---y"),
    ("apps/goto-rocket/pause", "-----yy---y"),
    ("apps/goto-rocket/revs/0123456789012345678901234567890123456789", "------y---y"),
    ("apps/goto-rocket/instances/1", "------y---y"),
    ("apps/other/formation/web", "----y-y---y"),
    ("assigned/host1/1", "------y---y"),
    ("status/host1/1", "------y-y-y"),
    ("status/host2/1", "------yy--y"),
    ("hosts/host1", "------y-y-y"),
    ("hosts/host2", "------yy--y"),
    ("archives/host1", "------y-y-y"),
    ("archives/host2", "------yy--y"),
    ("serving/host1/goto-rocket/1", "------y---y"),
    ("private/wraps/goto-rocket/e1", "-----y----y"),
    ("private/wrapping/host1/goto-rocket/e1/host2", "--------y-y"),
    ("private/wrapping/host2/goto-rocket/e1/host1", "-------y--y"),
    ("private/asks/rm1", "----------y"),
    ("hostmeta/host1", "------y---y"),
    ("unfreeze", "------y---y"),
    ("proxies/proxy1", "------y--yy"),
    ("access/goto-rocket", "----------y"),
    ("election/converger", "------y---y"),
];

/// Endpoints: a part, a request, and who is let through. What comes then (such as 400, to a body that makes no sense) is not
/// the matter here.
const REQUESTS: [(&str, &str, Row); 22] = [
    // none expired stranger outsider eve ada ops host2 host1 proxy rm
    ("rm", "GET", ("/healthz", "y--yyyyyyyy")),
    ("rm", "GET", ("/metrics", "----yyyyyyy")),
    ("rm", "POST", ("/apps", "----yyy---y")),
    ("rm", "DELETE", ("/apps/no-such-app", "------y---y")),
    ("rm", "POST", ("/access/grant", "------y---y")),
    ("rm", "POST", ("/access/revoke", "------y---y")),
    ("rm", "GET", ("/goto-rocket.git/info/refs?service=git-upload-pack", "-----yy---y")),
    ("rm", "GET", ("/goto-rocket.git/info/refs?service=git-receive-pack", "-----yy---y")),
    ("rm", "POST", ("/goto-rocket.git/git-receive-pack", "-----yy---y")),
    ("rm", "GET", ("/apps/goto-rocket/envs/e1", "-----yy---y")),
    ("rm", "GET", ("/slugs/SLUG", "--------y-y")),
    ("pm", "GET", ("/logs?app=goto-rocket", "-----yy---y")),
    // No instance of host2 waits for that slug.
    ("pm", "GET", ("/archives/SLUG", "----------y")),
    ("pm", "GET", ("/metrics", "----yyyyyyy")),
    ("proxy", "GET", ("/metrics", "----yyyyyyy")),
    ("proxy", "GET", ("/sd", "----yyy--yy")),
    ("proxy", "GET", ("/services/goto-rocket/web", "----yyy--yy")),
    ("proxy", "GET", ("/haproxy/metrics", "----yyy--yy")),
    ("converger", "GET", ("/metrics", "----yyyyyyy")),
    // Where etcd's members reach each other. Whoever gets in there writes any key.
    ("peer", "GET", ("/version", "-----------")),
    ("peer", "GET", ("/members", "-----------")),
    ("peer", "POST", ("/raft", "-----------")),
];

const PARTS: [(&str, Endpoint); 5] = [
    ("rm", Endpoint::Rm),
    ("pm", Endpoint::Host(1)),
    ("proxy", Endpoint::Proxy),
    ("converger", Endpoint::Converger),
    ("peer", Endpoint::EtcdPeer),
];

/// A client as somebody, or why there can be none: who is not trusted doesn't get through the handshake.
fn client(cluster: &Cluster, who: &str, folders: &BTreeMap<&str, PathBuf>) -> Client {
    match who {
        "none" => {
            let authority = std::fs::read(cluster.folder("id/ada/ca.pem")).expect("it is there");
            let authority = reqwest::Certificate::from_pem(&authority).expect("a certificate");
            alone(Client::builder().no_proxy().tls_certs_only([authority]))
        }
        who => alone(http_client(Some(&held(folders, who)))),
    }
}

/// A client for the port of etcd's peers: it trusts their authority, so that the port is the one who refuses.
fn peer_client(cluster: &Cluster, certificate_and_key: Option<[PathBuf; 2]>) -> Client {
    let read = |path: PathBuf| std::fs::read(path).expect("it is there");
    let peers = read(cluster.folder("id/etcd:e1/peers.pem"));
    let peers = reqwest::Certificate::from_pem(&peers).expect("a certificate");
    // etcd hands each connection of HTTP/2 to gRPC there, which answers none of these requests.
    let builder = Client::builder().no_proxy().tls_certs_only([peers]).http1_only();
    match certificate_and_key {
        None => alone(builder),
        Some(files) => {
            let both = files.map(read).concat();
            let identity = reqwest::Identity::from_pem(&both).expect("an identity");
            alone(builder.identity(identity))
        }
    }
}

/// Builds a client that makes a connection for each request: no cell depends on the cell before it, which a daemon may have
/// answered by closing the connection.
fn alone(builder: ClientBuilder) -> Client {
    builder.pool_max_idle_per_host(0).build().expect("made")
}

fn held(folders: &BTreeMap<&str, PathBuf>, who: &str) -> Credentials {
    Credentials::open(&folders[who]).expect("it is whole")
}

#[test]
fn each_identity_may_what_it_should_and_nothing_else() {
    // Tests take no part in choosing one: both may be linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::with(ClusterOptions { identities: true, hosts: 1, ..ClusterOptions::default() });
    let operator = cluster.repo_of("operating", OPERATOR);
    for who in ["ada", "eve", "outsider"] {
        cluster.person(who);
    }
    let folder = |who: &str| cluster.folder("id").join(who);
    cluster.issue("pm:host2", &["127.0.0.1".to_owned()], &folder("pm:host2"), Timestamp::now(), 1);
    cluster.issue("ada", &[], &folder("expired"), Timestamp::now() - 48.hours(), 1);
    for who in ["ada", "eve", "pm:host2"] {
        operator.bazooka(&["access", "grant", who]).ok();
    }
    let app = cluster.repo_of("goto-rocket", "ada");
    app.copy(&example("goto-rocket"));
    app.commit("go to rocket");
    app.bazooka(&["init"]).ok();
    app.git(&["push", "bazooka", "master"]).ok();
    app.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.repo_of("other", "eve").bazooka(&["init"]).ok();
    let rocket: AppName = "goto-rocket".parse().expect("valid");
    let slug = cluster.snapshot().apps[&rocket].revs.values().next().expect("a rev").slug.sha256.to_string();

    let mut folders: BTreeMap<&str, PathBuf> = CALLERS.map(|who| (who, folder(who))).into();
    let strangers = tempfile::tempdir().expect("a temporary folder");
    stranger(strangers.path(), &folder("ada"));
    folders.insert("stranger", strangers.path().join("ada"));

    let (_, runtime) = cluster.visor();
    let asking = asking_runtime();
    let mut wrong = Vec::new();
    let mut cells = 0;
    let mut check = |what: String, who: &str, wanted: u8, may: bool| {
        cells += 1;
        if may != (wanted == b'y') {
            wrong.push(format!("{who}: {what}: {}", if may { "allowed" } else { "denied" }));
        }
    };
    let members = format!("https://{}/members", cluster.at(Endpoint::EtcdPeer));
    for (certificate, wanted) in [("peer-cert.pem", true), ("cert.pem", false)] {
        let folder = folder("etcd:e1");
        let key = certificate.replace("cert", "key");
        let member = peer_client(&cluster, Some([folder.join(certificate), folder.join(key)]));
        let answer = asking.block_on(member.get(&members).send());
        assert_eq!(answer.is_ok(), wanted, "{certificate} of a member: {answer:?}");
    }
    for (at, who) in CALLERS.into_iter().enumerate() {
        // A client wouldn't show an expired certificate by itself: the server is to be the one who refuses.
        let caller = match who {
            "expired" => expired(&folders["expired"]),
            who => client(&cluster, who, &folders),
        };
        let files = |who: &str| ["cert.pem", "key.pem"].map(|name| folders[who].join(name));
        let peer = peer_client(&cluster, (who != "none").then(|| files(who)));
        for (part, method, (path, wanted)) in REQUESTS {
            let (_, endpoint) = PARTS.iter().find(|(name, _)| *name == part).expect("a part");
            let url = format!("https://{}{}", cluster.at(*endpoint), path.replace("SLUG", &slug));
            let method: Method = method.parse().expect("a method");
            // Of these two nothing comes: eve is in, and nobody of the other name is.
            let body = match path {
                "/access/grant" => r#"{"who": "eve"}"#,
                "/access/revoke" => r#"{"who": "nobody-here"}"#,
                _ => "{}",
            };
            let kind = if path.ends_with("git-receive-pack") && method == Method::POST {
                "application/x-git-receive-pack-request"
            } else {
                "application/json"
            };
            let caller = if part == "peer" { &peer } else { &caller };
            let request = caller.request(method, url).header("content-type", kind).body(body);
            // Whoever asks, a web page of another origin may not have it done.
            let of_a_page =
                request.try_clone().expect("its body is text").header("origin", "https://evil.example");
            let answer = ask(&asking, request);
            check(format!("{part} {path} {answer:?}"), who, wanted.as_bytes()[at], lets_in(&answer));
            let answer = ask(&asking, of_a_page);
            check(format!("{part} {path} as a page: {answer:?}"), who, b'-', lets_in(&answer));
        }
        let store = coordinator(&cluster, who, &folders);
        for (key, wanted) in READS {
            let may = store
                .as_ref()
                .is_some_and(|store| runtime.block_on(store.range(Keys::One(key.into()), None)).is_ok());
            check(format!("read {key}"), who, wanted.as_bytes()[at], may);
        }
        for (key, wanted) in WRITES {
            let never = Txn {
                when: vec![Compare::ModRevision(key.into(), i64::MAX)],
                then: vec![Op::Put { key: key.into(), value: "x".into(), lease: None }],
                otherwise: Vec::new(),
            };
            let may = store.as_ref().is_some_and(|store| runtime.block_on(store.txn(never.clone())).is_ok());
            check(format!("write {key}"), who, wanted.as_bytes()[at], may);
        }
        for prefix in ["", "apps/", "private/", "private/wraps/"] {
            let all = match prefix {
                "" | "apps/" => matches!(who, "eve" | "ada" | OPERATOR | "proxy:proxy1" | "rm:rm1"),
                _ => who == "rm:rm1",
            };
            let may = store.as_ref().is_some_and(|store| {
                runtime.block_on(store.range(Keys::Prefix(prefix.into()), None)).is_ok()
            });
            check(format!("read all of {prefix:?}"), who, if all { b'y' } else { b'-' }, may);
        }
    }
    wrong.extend(tokens(&cluster, &folders, &slug, &asking));
    eprintln!("{cells} cells");
    assert!(wrong.is_empty(), "{} of {cells} cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// A token of ada's, which may do everything with goto-rocket, in each request: it is good for git's own three alone.
fn tokens(cluster: &Cluster, folders: &BTreeMap<&str, PathBuf>, slug: &str, asking: &Runtime) -> Vec<String> {
    let app: AppName = "goto-rocket".parse().expect("valid");
    let repository = format!("https://{}/goto-rocket.git", cluster.at(Endpoint::Rm));
    let purpose = Purpose { app: &app, repository: &repository, service: None };
    let token = mint(&held(folders, "ada"), &purpose, Timestamp::now()).expect("it can be made");
    let none = client(cluster, "none", folders);
    let more = [("rm", "POST", "/goto-rocket.git/git-upload-pack"), ("rm", "GET", "/goto-rocket.git/logs")];
    let requests = REQUESTS.map(|(part, method, (path, _))| (part, method, path)).into_iter().chain(more);
    let mut wrong = Vec::new();
    for (part, method, path) in requests {
        let (_, endpoint) = PARTS.iter().find(|(name, _)| *name == part).expect("a part");
        let url = format!("https://{}{}", cluster.at(*endpoint), path.replace("SLUG", slug));
        let (method, uri): (Method, Uri) = (method.parse().expect("valid"), path.parse().expect("valid"));
        let wanted = path == "/healthz" || GitRequest::of(&method, &uri).is_some();
        let service = path.rsplit('/').next().unwrap_or_default();
        let kind = match service {
            "git-upload-pack" | "git-receive-pack" => format!("application/x-{service}-request"),
            _ => "application/json".into(),
        };
        let request = none.request(method, url).header("content-type", kind).bearer_auth(&token).body("{}");
        let answer = ask(asking, request);
        // 404: there is nothing to be let into.
        let may =
            lets_in(&answer) && !answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::NOT_FOUND);
        if may != wanted {
            wrong.push(format!("a token of ada's: {part} {path}: {answer:?}"));
        }
    }
    wrong
}

/// A runtime of one thread for requests. With two, hyper 1.12 can lose a request that is queued at the moment when its
/// connection fails, as many here do: its future never ends, though no task is left. Bazooka's programs send their requests
/// from runtimes of one thread, too.
fn asking_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Sends a request. Panics, with what was asked, if neither an answer nor an error comes.
fn ask(asking: &Runtime, request: RequestBuilder) -> reqwest::Result<Response> {
    let asked = format!("{request:?}");
    asking.block_on(async { tokio::time::timeout(SOON, request.send()).await }).unwrap_or_else(|_| {
        panic!("no answer to {asked}");
    })
}

fn lets_in(answer: &reqwest::Result<Response>) -> bool {
    answer
        .as_ref()
        .is_ok_and(|answer| ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status()))
}

/// A client with an expired certificate, which it shows all the same.
fn expired(folder: &std::path::Path) -> Client {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("it is there");
    let both = [read("cert.pem"), read("key.pem")].concat();
    let builder = Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&read("ca.pem")).expect("a certificate")])
        .identity(reqwest::Identity::from_pem(&both).expect("an identity"));
    alone(builder)
}

/// An identity of the same name, of another authority, that trusts this cluster's.
fn stranger(folder: &std::path::Path, ada: &std::path::Path) {
    let authority =
        bazooka_rm::pki::Authority::create(&folder.join("pki"), Timestamp::now(), 1).expect("made");
    let issued = authority.issue(&"ada".parse().expect("valid"), &[], Timestamp::now(), 1).expect("issued");
    issued.write(&folder.join("ada")).expect("written");
    // Both authorities: so that it accepts the cluster's daemons, and is not stopped by its own checks.
    let own = std::fs::read(folder.join("pki/ca.pem")).expect("there");
    let clusters = std::fs::read(ada.join("ca.pem")).expect("there");
    std::fs::write(folder.join("ada/ca.pem"), [own, clusters].concat()).expect("written");
}

/// The coordinator as somebody; none where no connection can even be tried with that.
fn coordinator(cluster: &Cluster, who: &str, folders: &BTreeMap<&str, PathBuf>) -> Option<EtcdStore> {
    if matches!(who, "none" | "expired") {
        return None;
    }
    let envs = cluster.client_envs();
    let config = EtcdConfig::new(vec![cluster.coordinator().to_owned()], envs["BAZOOKA_PREFIX"].clone());
    Some(EtcdStore::new(EtcdConfig { credentials: Some(held(folders, who)), ..config }))
}
