//! Identities from the authority that makes them to the daemon that checks them: files, renewal, tokens, TLS.

use std::{path::Path, time::Duration};

use axum::{Extension, Router, routing::get};
use bazooka_daemon::{
    Callers, CoordinatorArgs, Door, IdentityArgs, Metrics, Serving, git_token,
    git_token::{GitFront, GitRequest, MintError, Purpose, SERVICES, TokenError},
    http_client, in_words, listen,
};
use bazooka_rm::pki::{Address, Authority};
use jiff::{Timestamp, ToSpan};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;
use visor::{
    identity::{Caller, Credentials, CredentialsError, Identity},
    names::AppName,
};

fn who(name: &str) -> Identity {
    name.parse().expect("valid")
}

fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

const HERE: &str = "https://rm.example.org:8081/shop.git";

/// Makes a token for pushes to an app's repository.
fn mint(credentials: &Credentials, app: &AppName, now: Timestamp) -> Result<String, MintError> {
    let repository = format!("https://rm.example.org:8081/{app}.git");
    let purpose = Purpose { app, repository: &repository, service: Some("git-receive-pack") };
    git_token::mint(credentials, &purpose, now)
}

/// Verifies a token for a push to an app's repository.
fn verify(rm: &Credentials, token: &str, app: &AppName, now: Timestamp) -> Result<Identity, TokenError> {
    let asked = GitRequest { app: app.clone(), service: "git-receive-pack" };
    git_token::verify(rm, token, &asked, &front(false), now)
}

fn front(takes_unbound: bool) -> GitFront {
    let hosts = ["rm.example.org".to_owned()].into();
    GitFront { hosts, takes_unbound, ..GitFront::default() }
}

fn loopback() -> Vec<Address> {
    vec!["127.0.0.1".parse().expect("an address")]
}

/// An authority in a folder that goes with the test.
struct Rig {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::create(&dir.path().join("pki"), Timestamp::now(), 30).expect("made");
        Rig { dir, authority }
    }

    /// Makes an identity in a folder, as of some days ago.
    fn issue(&self, name: &str, folder: &str, days_ago: i64, days: u32) {
        let serves = name.contains(':') && !name.starts_with("monitor:");
        let addresses = if serves { loopback() } else { Vec::new() };
        let at = Timestamp::now() - (24 * days_ago).hours();
        let issued = self.authority.issue(&who(name), &addresses, at, days).expect("it can be issued");
        issued.write(&self.dir.path().join(folder)).expect("it can be written");
    }

    fn person(&self, name: &str) -> Credentials {
        self.issue(name, name, 0, 1);
        self.open(name).expect("it was just made")
    }

    fn open(&self, folder: &str) -> Result<Credentials, CredentialsError> {
        Credentials::open(&self.dir.path().join(folder))
    }

    fn copy(&self, file: &str, from: &str, to: &str) {
        let at = |folder: &str| self.dir.path().join(folder).join(file);
        std::fs::copy(at(from), at(to)).expect("it can be copied");
    }
}

#[test]
fn what_is_wrong_with_an_identity_is_said_with_the_file() {
    let rig = Rig::new();
    rig.issue("ada", "good", 0, 1);
    assert_eq!(rig.open("good").expect("whole").identity(), who("ada"));
    let says = |folder: &str, words: &[&str]| {
        let error = in_words(&rig.open(folder).expect_err("it is wrong"));
        for word in words {
            assert!(error.contains(word), "{word:?} in {error:?}");
        }
    };
    says("none", &["none/ca.pem", "bazooka-rm pki"]);
    rig.issue("ada", "anothers-key", 0, 1);
    rig.copy("key.pem", "good", "anothers-key");
    says("anothers-key", &["anothers-key/key.pem", "not the key of cert.pem"]);
    rig.issue("ada", "ended", 3, 2);
    says("ended", &["ended/cert.pem", "it ended at", "bazooka-rm pki"]);
    let other = Rig::new();
    other.issue("ada", "ada", 0, 1);
    rig.issue("ada", "anothers-authority", 0, 1);
    std::fs::copy(other.dir.path().join("ada/ca.pem"), rig.dir.path().join("anothers-authority/ca.pem"))
        .expect("it can be copied");
    says("anothers-authority", &["anothers-authority/cert.pem", "ca.pem hasn't signed it"]);
    rig.issue("ada", "no-text", 0, 1);
    std::fs::write(rig.dir.path().join("no-text/cert.pem"), "no certificate").expect("written");
    says("no-text", &["no-text/cert.pem", "no certificate in it"]);
}

#[test]
fn the_authority_makes_nothing_that_is_wrong() {
    let rig = Rig::new();
    let now = Timestamp::now();
    let issue = |name: &str, addresses: &[Address]| {
        rig.authority.issue(&who(name), addresses, now, 1).map(|_| ()).expect_err("it is refused").to_string()
    };
    assert!(issue("pm:h1", &[]).contains("--address"));
    assert!(issue("ada", &loopback()).contains("serves nothing"));
    let long = format!("pm:{}", vec!["a"; 40].join("."));
    assert!(issue(&long, &loopback()).contains("longer"));
    let again = Authority::create(&rig.dir.path().join("pki"), now, 1);
    assert!(again.err().expect("there is one").to_string().contains("already"));
    let key = rig.dir.path().join("pki/ca-key.pem");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_member_of_etcd_has_a_second_certificate_that_no_caller_has() {
    let rig = Rig::new();
    let at = |path: &str| rig.dir.path().join(path);
    rig.issue("etcd:e1", "e1", 0, 1);
    rig.issue("ada", "ada", 0, 1);
    let read = |path: &str| std::fs::read(at(path)).expect("it is there");
    assert_eq!(read("e1/ca.pem"), read("ada/ca.pem"));
    assert_eq!(read("e1/peers.pem"), read("pki/peers.pem"));
    assert_ne!(read("e1/peers.pem"), read("e1/ca.pem"));
    for caller in ["ada/peers.pem", "ada/peer-cert.pem", "ada/peer-key.pem"] {
        assert!(!at(caller).exists(), "{caller}");
    }
    for key in ["e1/peer-key.pem", "pki/peers-key.pem"] {
        let metadata = std::fs::metadata(at(key)).expect("there");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777, 0o600, "{key}");
    }
    // As folders of their own: each certificate is of its own authority, and of no other.
    for (folder, authority, holds) in [("by-peers", "peers.pem", true), ("by-cluster", "ca.pem", false)] {
        std::fs::create_dir(at(folder)).expect("made");
        for (from, to) in [("peer-cert.pem", "cert.pem"), ("peer-key.pem", "key.pem"), (authority, "ca.pem")]
        {
            std::fs::copy(at("e1").join(from), at(folder).join(to)).expect("copied");
        }
        assert_eq!(rig.open(folder).is_ok(), holds, "{folder}");
    }
}

#[test]
fn an_authority_without_peers_gets_them_once() {
    let rig = Rig::new();
    let pki = rig.dir.path().join("pki");
    let now = Timestamp::now();
    for name in ["peers.pem", "peers-key.pem"] {
        std::fs::remove_file(pki.join(name)).expect("removed");
    }
    let before = std::fs::read(pki.join("ca.pem")).expect("there");
    let old = Authority::open(&pki).expect("it is an authority all the same");
    let error = old.issue(&who("etcd:e1"), &loopback(), now, 1).err().expect("there is none to issue it");
    assert!(error.to_string().contains("bazooka-rm pki init-peers"), "{error}");
    old.issue(&who("pm:h1"), &loopback(), now, 1).expect("others need none");
    let new = Authority::add_peers(&pki, now, 30).expect("made");
    new.issue(&who("etcd:e1"), &loopback(), now, 1).expect("issued");
    assert_eq!(std::fs::read(pki.join("ca.pem")).expect("there"), before);
    let again = Authority::add_peers(&pki, now, 30).err().expect("there is one");
    assert!(again.to_string().contains("already"), "{again}");
    let nothing = Authority::add_peers(&rig.dir.path().join("none"), now, 30).err().expect("no authority");
    assert!(nothing.to_string().contains("bazooka-rm pki init"), "{nothing}");
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_is_taken_and_what_is_wrong_is_not() {
    let rig = Rig::new();
    let ada = rig.person("ada");
    let first = ada.not_after();
    let look = || tokio::time::advance(Duration::from_secs(2));
    rig.issue("ada", "longer", 0, 20);
    // One file after the other, as a renewal has it.
    rig.copy("key.pem", "longer", "ada");
    look().await;
    assert_eq!(ada.not_after(), first, "the key alone is no renewal");
    rig.copy("cert.pem", "longer", "ada");
    look().await;
    let second = ada.not_after();
    assert!(second > first + 100.hours());
    rig.issue("eve", "ada", 0, 25);
    look().await;
    assert_eq!((ada.identity(), ada.not_after()), (who("ada"), second), "somebody else's isn't taken");
}

#[test]
fn a_token_is_for_one_app_one_time_and_who_made_it() {
    let rig = Rig::new();
    let (rm, ada) = (rig.open_daemon("rm:r1"), rig.person("ada"));
    let now = Timestamp::now();
    let token = mint(&ada, &app("shop"), now).expect("it can be made");
    assert_eq!(verify(&rm, &token, &app("shop"), now).expect("it holds"), who("ada"));
    let elsewhere = verify(&rm, &token, &app("shop2"), now);
    assert!(matches!(&elsewhere, Err(TokenError::OtherApp(app)) if app == "shop"), "{elsewhere:?}");
    for (seconds, holds) in [(-90, false), (-30, true), (290, true), (400, false)] {
        let verified = verify(&rm, &token, &app("shop"), now + seconds.seconds());
        assert_eq!(verified.is_ok(), holds, "{seconds} s: {verified:?}");
    }
    let parts: Vec<&str> = token.split('.').collect();
    let eves = mint(&rig.person("eve"), &app("shop"), now).expect("it can be made");
    let of_eve: Vec<&str> = eves.split('.').collect();
    for (what, forged) in [
        ("another's claims", [parts[0], of_eve[1], parts[2]]),
        ("another's signature", [parts[0], parts[1], of_eve[2]]),
        ("another's certificate", [of_eve[0], parts[1], parts[2]]),
        ("another's name under one's own signature", [of_eve[0], parts[1], of_eve[2]]),
    ] {
        assert!(verify(&rm, &forged.join("."), &app("shop"), now).is_err(), "{what}");
    }
    for nothing in ["", "a.b.c", "ada", &token[..token.len() - 10], &format!("{token}x")] {
        assert!(verify(&rm, nothing, &app("shop"), now).is_err(), "{nothing:?}");
    }
    let stranger = mint(&Rig::new().person("ada"), &app("shop"), now).expect("it can be made");
    let refused = verify(&rm, &stranger, &app("shop"), now);
    assert!(matches!(refused, Err(TokenError::Certificate(_))), "{refused:?}");
}

#[test]
fn a_token_is_for_one_repository_and_what_git_does_there() {
    let rig = Rig::new();
    let (rm, ada) = (rig.open_daemon("rm:r1"), rig.person("ada"));
    let now = Timestamp::now();
    let shop = app("shop");
    let asked = |service| GitRequest { app: shop.clone(), service };
    let mint = |repository: &str, service| {
        let purpose = Purpose { app: &shop, repository, service };
        git_token::mint(&ada, &purpose, now).expect("it can be made")
    };
    for made_for in SERVICES.map(Some).into_iter().chain([None]) {
        let token = mint(HERE, made_for);
        for service in SERVICES {
            let verified = git_token::verify(&rm, &token, &asked(service), &front(false), now);
            let holds = made_for.is_none_or(|made_for| made_for == service);
            assert_eq!(verified.is_ok(), holds, "for {made_for:?}, used for {service}: {verified:?}");
        }
    }
    for elsewhere in
        ["https://evil.example/shop.git", "https://rm.example.org.evil.example/shop.git", "shop.git", ""]
    {
        let verified =
            git_token::verify(&rm, &mint(elsewhere, None), &asked("git-receive-pack"), &front(true), now);
        assert!(matches!(verified, Err(TokenError::OtherRepository(_))), "{elsewhere}: {verified:?}");
    }
}

#[test]
fn a_token_of_the_release_before_is_valid_until_the_cluster_is_migrated() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let rig = Rig::new();
    let (rm, ada) = (rig.open_daemon("rm:r1"), rig.person("ada"));
    let now = Timestamp::now();
    // As that release makes it: today's without the two claims.
    let today = mint(&ada, &app("shop"), now).expect("it can be made");
    let header = today.split('.').next().expect("it has one");
    let claims = serde_json::json!({
        "sub": "ada", "aud": "bazooka-git", "app": "shop", "nbf": now.as_second(), "exp": now.as_second() + 300,
    });
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let pair =
        rcgen::KeyPair::from_pem(&String::from_utf8(ada.key_pem()).expect("it is text")).expect("a key");
    let signature = rcgen::SigningKey::sign(&pair, signed.as_bytes()).expect("it can be signed");
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed(&signature)));
    let asked = GitRequest { app: app("shop"), service: "git-upload-pack" };
    let verified = git_token::verify(&rm, &token, &asked, &front(true), now);
    assert_eq!(verified.expect("it holds"), who("ada"));
    let verified = git_token::verify(&rm, &token, &asked, &front(false), now);
    assert!(matches!(verified, Err(TokenError::Unbound)), "{verified:?}");
}

/// Turns an ECDSA signature's ASN.1 form into the one of a JWT: both numbers, of 32 bytes each.
fn fixed(der: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let (length, begin) = (usize::from(der[at + 1]), at + 2);
        let bytes = &der[begin..begin + length];
        let bytes = &bytes[bytes.len().saturating_sub(32)..];
        ([vec![0; 32 - bytes.len()], bytes.to_vec()].concat(), begin + length)
    };
    let (r, next) = number(2);
    [r, number(next).0].concat()
}

impl Rig {
    fn open_daemon(&self, name: &str) -> Credentials {
        self.issue(name, name, 0, 1);
        self.open(name).expect("it was just made")
    }
}

async fn endpoint(identity: &Path) -> (String, Serving) {
    let args = CoordinatorArgs {
        coordinator: vec!["https://127.0.0.1:1".into()],
        prefix: "/none".into(),
        identity: IdentityArgs { identity: Some(identity.into()) },
    };
    let cluster = args.cluster().expect("the identity is whole");
    let (listener, address) = listen("127.0.0.1:0".parse().expect("an address")).await.expect("it listens");
    let routes = Router::new()
        .route("/who", get(|Extension(caller): Extension<Caller>| async move { caller.to_string() }));
    let door = Door::new(routes, Metrics::default());
    let serving = Serving::start(listener, door, &cluster, CancellationToken::new());
    (format!("https://{address}"), serving)
}

#[tokio::test]
async fn an_endpoint_knows_who_calls() {
    let rig = Rig::new();
    rig.issue("rm:r1", "rm", 0, 1);
    let (base, _end) = endpoint(&rig.dir.path().join("rm")).await;
    let ask = |client: reqwest::Client| {
        let url = format!("{base}/who");
        async move {
            client
                .get(url)
                .send()
                .await
                .map_err(|error| format!("{error:?}"))?
                .text()
                .await
                .map_err(|error| error.to_string())
        }
    };
    let client = |credentials: &Credentials| http_client(Some(credentials)).build().expect("made");
    let ada = rig.person("ada");
    assert_eq!(ask(client(&ada)).await.as_deref(), Ok("ada"));
    let stranger = Rig::new().person("ada");
    // It doesn't trust the server either; and the server wouldn't let it in.
    assert!(ask(client(&stranger)).await.is_err());

    // Somebody who says nothing holds nobody up.
    let silent = TcpStream::connect(base.trim_start_matches("https://")).await.expect("it connects");
    assert_eq!(ask(client(&ada)).await.as_deref(), Ok("ada"));
    drop(silent);
    // In the clear there is no answer.
    let mut clear = TcpStream::connect(base.trim_start_matches("https://")).await.expect("it connects");
    tokio::io::AsyncWriteExt::write_all(&mut clear, b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
}

#[tokio::test]
async fn a_token_says_who_calls_where_there_is_no_certificate() {
    let rig = Rig::new();
    rig.issue("rm:r1", "rm", 0, 1);
    let ada = rig.person("ada");
    let args = CoordinatorArgs {
        coordinator: vec!["https://127.0.0.1:1".into()],
        prefix: "/none".into(),
        identity: IdentityArgs { identity: Some(rig.dir.path().join("rm")) },
    };
    let credentials = args.cluster().expect("the identity is whole").credentials;
    let (_says, git) = watch::channel(front(true));
    let callers = Callers::new(credentials.clone(), Some(git));
    let elsewhere = Callers::new(credentials, None);
    let token = mint(&ada, &app("shop"), Timestamp::now()).expect("it can be made");
    let basic = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("whoever:{token}"))
    };
    let (pushes, basic) = ("/info/refs?service=git-receive-pack", Some(format!("Basic {basic}")));
    let git = |method: &'static str, path: String, header: &Option<String>, wanted: &'static str| {
        (method, path, header.clone(), wanted, callers.clone())
    };
    let bearer = Some(format!("Bearer {token}"));
    for (method, path, header, wanted, callers) in [
        git("GET", format!("/shop.git{pushes}"), &basic, "ada"),
        git("GET", format!("/shop{pushes}"), &bearer, "ada"),
        git("POST", "/shop.git/git-receive-pack".into(), &basic, "ada"),
        git("GET", format!("/other.git{pushes}"), &basic, "nobody known"),
        git("GET", format!("/shop.git{pushes}"), &Some("Basic !!".to_owned()), "nobody known"),
        git("GET", format!("/shop.git{pushes}"), &Some(format!("Digest {token}")), "nobody known"),
        git("GET", format!("/shop.git{pushes}"), &None, "nobody known"),
        // No other request takes a token, whatever its path begins with.
        git("GET", "/shop.git/info/refs".into(), &basic, "nobody known"),
        git("GET", "/shop.git/info/refs?service=git-upload-pack".into(), &basic, "nobody known"),
        git("POST", "/shop.git/git-upload-pack".into(), &basic, "nobody known"),
        git("GET", "/shop.git/git-receive-pack".into(), &basic, "nobody known"),
        git("POST", "/shop.git/git-receive-pack/".into(), &basic, "nobody known"),
        git("POST", "/shop".into(), &basic, "nobody known"),
        git("DELETE", "/shop/info/refs".into(), &basic, "nobody known"),
        git("GET", "/shop/envs/e1".into(), &basic, "nobody known"),
        ("POST", "/shop.git/git-receive-pack".into(), basic.clone(), "nobody known", elsewhere),
    ] {
        let routes = Router::new()
            .fallback(|Extension(caller): Extension<Caller>| async move { caller.to_string() })
            .layer(axum::middleware::from_fn({
                let callers = callers.clone();
                move |request, next| callers.clone().find_out(request, next)
            }));
        let mut request = axum::http::Request::builder().method(method).uri(&path);
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let answer = tower::ServiceExt::oneshot(routes, request).await.expect("it never fails");
        let body = axum::body::to_bytes(answer.into_body(), 1000).await.expect("it is short");
        assert_eq!(String::from_utf8_lossy(&body), wanted, "{method} {path}");
    }
}
