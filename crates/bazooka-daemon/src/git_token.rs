//! Short-lived tokens for git's HTTP, where a client can't present a certificate.
//!
//! A token is a JWT (RFC 7519). Its user signs it with the key of their certificate (ES256, and no other algorithm),
//! and it carries the certificate (`x5c`, RFC 7515 4.1.6). So no server issues or stores tokens: every holder of an
//! identity can make one, and every part that trusts the authority can verify it.
//!
//! ```text
//! base64url({"alg":"ES256","typ":"JWT","x5c":[…]})
//!   . base64url({"sub","aud","app","repo","svc","nbf","exp"})     both signed by the certificate's key
//!   . base64url(r ‖ s)
//! ```
//!
//! A token is valid for one app's repository at one host (`repo`, the URL that git asked about), for pushes or for fetches
//! (`svc`), and only in git's own three requests ([`GitRequest`]): no other endpoint takes it.
//!
//! Git before 2.41 doesn't tell its credential helper what it is about to do; a token for such a git has no `svc` and is
//! valid for both. Tokens of the release before have neither claim; [`GitFront::takes_unbound`] says whether they are valid
//! still. Earlier verifiers read neither claim.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use base64::{
    DecodeError, Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{Method, Uri};
use jiff::Timestamp;
use ring::{
    error::{KeyRejected, Unspecified},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey},
};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer,
    pem::{self, PemObject},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use visor::{
    identity::{ChainError, Credentials, Identity},
    names::AppName,
};

use crate::hosts::host_of_url;

/// The validity of a token: long enough for git to begin its transfer. A transfer that has begun goes on.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// The difference allowed between two machines' clocks.
const LEEWAY: Duration = Duration::from_secs(60);

/// The services of git.
pub const SERVICES: [&str; 2] = ["git-receive-pack", "git-upload-pack"];

/// The audience of tokens, so that no other service accepts them.
const AUDIENCE: &str = "bazooka-git";

/// The only signature algorithm.
const ALGORITHM: &str = "ES256";

/// The reason why a token can't be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum MintError {
    #[error("the key isn't PKCS #8")]
    Pem(#[source] pem::Error),
    // Without ring's feature `std` its errors don't implement `Error`, so they can't be a source.
    #[error("the key is not one of P-256: {0}")]
    Key(KeyRejected),
    #[error("the key can't sign")]
    Unsigned(Unspecified),
}

/// The reason why a token is invalid.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum TokenError {
    #[error("it isn't a token of Bazooka: {0}")]
    Malformed(&'static str),
    #[error("a part of it isn't base64")]
    Base64(#[source] DecodeError),
    #[error("a part of it has the wrong form")]
    Json(#[source] serde_json::Error),
    #[error("its certificate isn't valid")]
    Certificate(#[source] ChainError),
    #[error("its certificate's key is not one of P-256")]
    Key,
    #[error("its signature is wrong")]
    Signature(Unspecified),
    #[error("it has expired, or isn't valid yet")]
    Time,
    #[error("it is for another service")]
    Audience,
    #[error("it names {said}, and its certificate names {named}")]
    OtherName { said: String, named: Identity },
    #[error("it is for app '{0}'")]
    OtherApp(String),
    #[error(
        "it is for {0}, and this is another one's; name that host with --git-url, or run `bazooka init` again"
    )]
    OtherRepository(String),
    #[error("it is for {0}")]
    OtherService(String),
    #[error("it names no repository: a bazooka from before this cluster's migration made it")]
    Unbound,
}

/// One of git's three requests about an app's repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRequest {
    /// The app.
    pub app: AppName,
    /// The service that is asked for, one of [`SERVICES`].
    pub service: &'static str,
}

impl GitRequest {
    /// Returns the request of git's that this is: `GET /A.git/info/refs?service=S`, `POST /A.git/git-receive-pack` or `POST
    /// /A.git/git-upload-pack`. As in a repository's URL, `.git` may be missing.
    pub fn of(method: &Method, uri: &Uri) -> Option<GitRequest> {
        let (repository, rest) = uri.path().strip_prefix('/')?.split_once('/')?;
        let app = repository.strip_suffix(".git").unwrap_or(repository).parse().ok()?;
        let service = match (method, rest) {
            (&Method::GET, "info/refs") => {
                let asked = uri.query()?.split('&').find_map(|pair| pair.strip_prefix("service="))?;
                SERVICES.into_iter().find(|service| *service == asked)?
            }
            (&Method::POST, rest) => SERVICES.into_iter().find(|service| *service == rest)?,
            _ => return None,
        };
        Some(GitRequest { app, service })
    }
}

/// The ways by which git's requests reach an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitFront {
    /// The addresses of the proxies that carry people's connections here.
    pub carriers: BTreeSet<IpAddr>,
    /// The hosts of the URLs of repositories here, in lower case and without ports. A token for another host's repository
    /// is invalid here.
    pub hosts: BTreeSet<String>,
    /// True while tokens of the release before, which name no repository, are valid too.
    pub takes_unbound: bool,
}

/// The purpose of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purpose<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The URL of the repository, as git asks about it: `https://HOST[:PORT]/A.git`.
    pub repository: &'a str,
    /// The service, one of [`SERVICES`]; none if git doesn't tell.
    pub service: Option<&'a str>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    typ: Option<String>,
    alg: String,
    /// The certificate, and those between it and the authority: base64 of DER.
    x5c: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    /// The one app that the token is for.
    app: String,
    /// The URL of its repository; none in tokens of the release before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repo: Option<String>,
    /// The service; none for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    svc: Option<String>,
    /// Seconds since 1970.
    nbf: i64,
    exp: i64,
}

/// Makes a token for git's requests about one repository. It is valid from `now` for [`LIFETIME`].
///
/// # Errors
/// [`MintError`].
pub fn mint(credentials: &Credentials, purpose: &Purpose<'_>, now: Timestamp) -> Result<String, MintError> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(&credentials.key_pem()).map_err(MintError::Pem)?;
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, key.secret_pkcs8_der(), &random).map_err(MintError::Key)?;
    let header = Header {
        typ: Some("JWT".to_owned()),
        alg: ALGORITHM.to_owned(),
        x5c: credentials.chain().iter().map(|one| STANDARD.encode(one)).collect(),
    };
    let claims = Claims {
        sub: credentials.identity().to_string(),
        aud: AUDIENCE.to_owned(),
        app: purpose.app.to_string(),
        repo: Some(purpose.repository.to_owned()),
        svc: purpose.service.map(str::to_owned),
        nbf: now.as_second(),
        exp: now.as_second() + seconds(LIFETIME),
    };
    let signed = format!("{}.{}", encoded(&header), encoded(&claims));
    let signature = key.sign(&random, signed.as_bytes()).map_err(MintError::Unsigned)?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Verifies a token for a request, and returns its maker.
///
/// # Errors
/// Why the token is invalid at `now`.
pub fn verify(
    credentials: &Credentials,
    token: &str,
    asked: &GitRequest,
    front: &GitFront,
    now: Timestamp,
) -> Result<Identity, TokenError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed("it has no signature"))?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed("it has no claims"))?;
    let header: Header = decoded(header)?;
    if header.alg != ALGORITHM {
        return Err(TokenError::Malformed("it is signed in another way"));
    }
    let chain: Result<Vec<_>, _> =
        header.x5c.iter().map(|one| STANDARD.decode(one).map(CertificateDer::from)).collect();
    let chain = chain.map_err(TokenError::Base64)?;
    let subject = credentials.verify(&chain, now).map_err(TokenError::Certificate)?;
    // An uncompressed point (SEC 1, 2.3.3).
    if !matches!(subject.public_key.as_slice(), [4, point @ ..] if point.len() == 64) {
        return Err(TokenError::Key);
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(TokenError::Base64)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &subject.public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(TokenError::Signature)?;
    let claims: Claims = decoded(claims)?;
    if claims.aud != AUDIENCE {
        return Err(TokenError::Audience);
    }
    let (now, leeway) = (now.as_second(), seconds(LEEWAY));
    let lasts = claims.exp.checked_sub(claims.nbf);
    let is_over = now.saturating_sub(leeway) > claims.exp;
    if is_over || now + leeway < claims.nbf || lasts.is_none_or(|lasts| lasts > seconds(LIFETIME)) {
        return Err(TokenError::Time);
    }
    if claims.sub != subject.identity.to_string() {
        return Err(TokenError::OtherName { said: claims.sub, named: subject.identity });
    }
    is_for(claims, asked, front)?;
    Ok(subject.identity)
}

/// Checks that a token is good for a request.
fn is_for(claims: Claims, asked: &GitRequest, front: &GitFront) -> Result<(), TokenError> {
    if claims.app != asked.app.as_str() {
        return Err(TokenError::OtherApp(claims.app));
    }
    match claims.repo {
        Some(repo) => {
            let is_here = host_of_url(&repo).is_some_and(|host| front.hosts.contains(&host));
            if !is_here {
                return Err(TokenError::OtherRepository(repo));
            }
        }
        None if front.takes_unbound => {}
        None => return Err(TokenError::Unbound),
    }
    match claims.svc {
        Some(service) if service != asked.service => Err(TokenError::OtherService(service)),
        _ => Ok(()),
    }
}

/// Verifies the `Authorization` header of a request of git's (`Basic` with the token as its password, or `Bearer`),
/// and returns the identity in it.
///
/// # Errors
/// Why the header proves no identity at `now`.
pub fn verify_authorization(
    credentials: &Credentials,
    header: &str,
    asked: &GitRequest,
    front: &GitFront,
    now: Timestamp,
) -> Result<Identity, TokenError> {
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
        Some((scheme, both)) if scheme.eq_ignore_ascii_case("basic") => {
            let both = STANDARD.decode(both.trim()).map_err(TokenError::Base64)?;
            let both = String::from_utf8(both).map_err(|_| TokenError::Malformed("it isn't text"))?;
            let (_, token) = both.split_once(':').ok_or(TokenError::Malformed("it has no password"))?;
            token.to_owned()
        }
        _ => return Err(TokenError::Malformed("neither Basic nor Bearer")),
    };
    verify(credentials, &token, asked, front, now)
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).expect("it is some minutes")
}

fn encoded(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("strings and numbers are always valid JSON"))
}

fn decoded<T: DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let text = URL_SAFE_NO_PAD.decode(part).map_err(TokenError::Base64)?;
    serde_json::from_slice(&text).map_err(TokenError::Json)
}
