//! Short-lived tokens, for where no certificate can be shown: git's HTTP.
//!
//! A token is a JWT (RFC 7519) that its user signs with the key of its certificate (ES256, and no other algorithm), and that carries
//! the certificate (`x5c`, RFC 7515 4.1.6). So nobody gives tokens out or keeps them: who has an identity makes one, and who
//! trusts the authority can check it.
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

/// How long a token holds: long enough for git to begin what it was made for. A transfer that has begun goes on.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// How much the clocks of two machines may differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// Whom tokens are for: nothing that another service would take.
const AUDIENCE: &str = "bazooka-git";

/// The one way of signing.
const ALGORITHM: &str = "ES256";

/// Why a token can't be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum MintError {
    #[error("the key is no PKCS #8")]
    Pem(#[source] pem::Error),
    // Without ring's feature `std` these are no errors that could be a source.
    #[error("the key is not one of P-256: {0}")]
    Key(KeyRejected),
    #[error("the key can't sign")]
    Unsigned(Unspecified),
}

/// Why a token doesn't hold.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum TokenError {
    #[error("it isn't a token of ours: {0}")]
    Malformed(&'static str),
    #[error("a part of it isn't base64")]
    Base64(#[source] DecodeError),
    #[error("a part of it isn't what it should be")]
    Json(#[source] serde_json::Error),
    #[error("its certificate doesn't hold")]
    Certificate(#[source] ChainError),
    #[error("its certificate's key is not one of P-256")]
    Key,
    #[error("its signature is wrong")]
    Signature(Unspecified),
    #[error("it holds no longer, or not yet")]
    Time,
    #[error("it is for another service")]
    Audience,
    #[error("it says {said}, and its certificate {named}")]
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
    /// The one app that it is for.
    app: String,
    /// Seconds since 1970.
    nbf: i64,
    exp: i64,
}

/// Makes a token for git's requests about one app. It holds from `now` for [`LIFETIME`].
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

/// Checks a token for an app, and returns who made it.
///
/// # Errors
/// Why it doesn't hold at `now`.
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

/// Checks the `Authorization` header of a request of git's (`Basic` with the token as its password, or `Bearer`), and returns
/// whom it names.
///
/// # Errors
/// Why it names nobody at `now`.
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
