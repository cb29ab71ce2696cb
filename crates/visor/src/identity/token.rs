//! Short-lived tokens, for where no certificate can be shown: git's HTTP.
//!
//! A token is a JWT (RFC 7519) that its user signs with the key of its certificate (ES256), and that carries the
//! certificate (`x5c`, RFC 7515 4.1.6). So nobody gives tokens out or keeps them: who has an identity makes
//! one, and who trusts the authority can check it.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Credentials, Identity, credentials};
use crate::names::AppName;

/// How long a token holds: long enough for git to begin what it was made for. A transfer that has begun goes on.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(300);

/// How much the clocks of two machines may differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// Whom tokens are for: nothing that another service would take.
const AUDIENCE: &str = "bazooka-git";

/// Why a token doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum TokenError {
    #[error("it isn't a token of ours: {0}")]
    Malformed(String),
    #[error("its certificate doesn't hold: {0}")]
    Certificate(String),
    #[error("it says {said}, and its certificate {named}")]
    AnothersName { said: String, named: String },
    #[error("it is for app '{0}'")]
    AnotherApp(String),
    #[error("it holds no longer, or not yet, or its signature is wrong: {0}")]
    Invalid(String),
    #[error("the key can't sign: {0}")]
    Unsigned(String),
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

impl Credentials {
    /// Makes a token for git's requests about one app. It holds from `now` for [`TOKEN_LIFETIME`].
    ///
    /// # Errors
    /// If the key isn't one of P-256.
    pub fn mint(&self, app: &AppName, now: Timestamp) -> Result<String, TokenError> {
        let (chain, key) = self.signer();
        let unsigned = |error: jsonwebtoken::errors::Error| TokenError::Unsigned(error.to_string());
        let key = EncodingKey::from_ec_pem(&key).map_err(unsigned)?;
        let mut header = Header::new(Algorithm::ES256);
        header.x5c = Some(chain.iter().map(|one| base64(one)).collect());
        let lifetime = i64::try_from(TOKEN_LIFETIME.as_secs()).expect("it is short");
        let claims = Claims {
            sub: self.identity().to_string(),
            aud: AUDIENCE.into(),
            app: app.to_string(),
            nbf: now.as_second(),
            exp: now.as_second() + lifetime,
        };
        jsonwebtoken::encode(&header, &claims, &key).map_err(unsigned)
    }

    /// Who made a token for an app.
    ///
    /// # Errors
    /// Why it doesn't hold at `now`.
    pub fn verify_token(&self, token: &str, app: &AppName, now: Timestamp) -> Result<Identity, TokenError> {
        let malformed = |error: jsonwebtoken::errors::Error| TokenError::Malformed(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(malformed)?;
        let chain = header.x5c.unwrap_or_default();
        let chain: Result<Vec<_>, _> =
            chain.iter().map(|one| unbase64(one).map(CertificateDer::from)).collect();
        let chain = chain.map_err(TokenError::Malformed)?;
        let named = self.verify(&chain, credentials::unix(now)).map_err(TokenError::Certificate)?;
        let subject = credentials::subject(&chain[0]).map_err(TokenError::Certificate)?;
        let (x, y) = point(&subject.public_key)
            .ok_or_else(|| TokenError::Certificate("its key is not one of P-256".into()))?;
        let key = DecodingKey::from_ec_components(&base64_url(x), &base64_url(y)).map_err(malformed)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["sub", "aud", "exp", "nbf"]);
        // Against the clock that is passed in, below.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let invalid = |error: jsonwebtoken::errors::Error| TokenError::Invalid(error.to_string());
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(invalid)?.claims;
        let (now, leeway) = (now.as_second(), i64::try_from(LEEWAY.as_secs()).expect("it is short"));
        let longest = i64::try_from(TOKEN_LIFETIME.as_secs()).expect("it is short");
        if now > claims.exp + leeway || now + leeway < claims.nbf || claims.exp - claims.nbf > longest {
            return Err(TokenError::Invalid("it is for another time".into()));
        }
        if claims.sub != named.to_string() {
            return Err(TokenError::AnothersName { said: claims.sub, named: named.to_string() });
        }
        if claims.app != app.as_str() {
            return Err(TokenError::AnotherApp(claims.app));
        }
        Ok(named)
    }

    /// Who an `Authorization` header names, for a request of git's: `Basic` with the token as its password, or `Bearer`.
    ///
    /// # Errors
    /// Why it names nobody at `now`.
    pub fn verify_authorization(
        &self,
        header: &str,
        path: &str,
        now: Timestamp,
    ) -> Result<Identity, TokenError> {
        let malformed = |what: &str| TokenError::Malformed(what.into());
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
            Some((scheme, both)) if scheme.eq_ignore_ascii_case("basic") => {
                let both = unbase64(both.trim()).map_err(TokenError::Malformed)?;
                let both = String::from_utf8(both).map_err(|_| malformed("it isn't text"))?;
                let (_, token) = both.split_once(':').ok_or_else(|| malformed("it has no password"))?;
                token.to_owned()
            }
            _ => return Err(malformed("neither Basic nor Bearer")),
        };
        let app = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let app = app.strip_suffix(".git").unwrap_or(app);
        let app = app.parse().map_err(|_| malformed("the request is about no app"))?;
        self.verify_token(&token, &app, now)
    }
}

/// The coordinates of an uncompressed point of P-256 (SEC 1, 2.3.3).
fn point(bits: &[u8]) -> Option<(&[u8], &[u8])> {
    match bits {
        [4, rest @ ..] if rest.len() == 64 => Some(rest.split_at(32)),
        _ => None,
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn unbase64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| error.to_string())
}
