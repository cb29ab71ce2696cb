//! Short-lived tokens for git's HTTP, where a client can't present a certificate.
//!
//! A token is a JWT (RFC 7519). Its user signs it with the key of their certificate (ES256, and no other algorithm),
//! and it carries the certificate (`x5c`, RFC 7515 4.1.6). So no server issues or stores tokens: every holder of an
//! identity can make one, and every part that trusts the authority can verify it.
//!
//! ```text
//! base64url({"alg":"ES256","typ":"JWT","x5c":[…]}) . base64url({"sub","aud","app","nbf","exp"}) . base64url(r ‖ s)
//! └────────────────────────────── signed by the certificate's key ─────────────────────────────┘
//! ```

use std::time::Duration;

use base64::{
    DecodeError, Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
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

/// The validity of a token: long enough for git to begin its transfer. A transfer that has begun goes on.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// The difference allowed between two machines' clocks.
const LEEWAY: Duration = Duration::from_secs(60);

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
    /// Seconds since 1970.
    nbf: i64,
    exp: i64,
}

/// Makes a token for git's requests about one app. It is valid from `now` for [`LIFETIME`].
///
/// # Errors
/// [`MintError`].
pub fn mint(credentials: &Credentials, app: &AppName, now: Timestamp) -> Result<String, MintError> {
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
        app: app.to_string(),
        nbf: now.as_second(),
        exp: now.as_second() + seconds(LIFETIME),
    };
    let signed = format!("{}.{}", encoded(&header), encoded(&claims));
    let signature = key.sign(&random, signed.as_bytes()).map_err(MintError::Unsigned)?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Verifies a token for an app, and returns its maker.
///
/// # Errors
/// Why the token is invalid at `now`.
pub fn verify(
    credentials: &Credentials,
    token: &str,
    app: &AppName,
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
    if claims.app != app.as_str() {
        return Err(TokenError::OtherApp(claims.app));
    }
    Ok(subject.identity)
}

/// Verifies the `Authorization` header of a request of git's (`Basic` with the token as its password, or `Bearer`),
/// and returns the identity in it.
///
/// # Errors
/// Why the header proves no identity at `now`.
pub fn verify_authorization(
    credentials: &Credentials,
    header: &str,
    path: &str,
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
    let app = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let app = app.strip_suffix(".git").unwrap_or(app);
    let app = app.parse().map_err(|_| TokenError::Malformed("the request is about no app"))?;
    verify(credentials, &token, &app, now)
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
