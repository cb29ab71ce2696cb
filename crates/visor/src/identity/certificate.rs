//! The content of a certificate: whom it names, when it is valid, and its public key.
//!
//! Owns reading one certificate. It never checks the signature.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, error::X509Error, nom, prelude::FromDer, time::ASN1Time};

use super::Identity;
use crate::names::InvalidName;

/// The identity that a certificate names, and the time for which it is valid.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The person or daemon.
    pub identity: Identity,
    /// The first moment at which it is valid.
    pub not_before: Timestamp,
    /// The last moment at which it is valid.
    pub not_after: Timestamp,
    /// The public key as the bits of its structure (RFC 5280, 4.1.2.7); for P-256, an uncompressed point.
    pub public_key: Vec<u8>,
}

/// The reason why a certificate names nobody.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum SubjectError {
    #[error("it isn't a certificate")]
    Malformed(#[source] nom::Err<X509Error>),
    #[error("it has no common name, which says whose it is")]
    NoName,
    #[error("its common name isn't text")]
    NameNotText(#[source] X509Error),
    #[error("it has more than one common name")]
    SeveralNames,
    #[error("its common name isn't an identity")]
    Name(#[source] InvalidName),
    #[error("its validity period is out of range")]
    Time(#[source] jiff::Error),
}

/// Reads the identity that a certificate names, without checking its validity.
///
/// # Errors
/// [`SubjectError`].
pub fn subject(certificate: &CertificateDer<'_>) -> Result<Subject, SubjectError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(SubjectError::Malformed)?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next().ok_or(SubjectError::NoName)?;
    let name = name.as_str().map_err(SubjectError::NameNotText)?;
    // Two common names are refused, because etcd might take either.
    if names.next().is_some() {
        return Err(SubjectError::SeveralNames);
    }
    let identity = name.parse().map_err(SubjectError::Name)?;
    let at = |time: ASN1Time| Timestamp::from_second(time.timestamp()).map_err(SubjectError::Time);
    Ok(Subject {
        identity,
        not_before: at(parsed.validity().not_before)?,
        not_after: at(parsed.validity().not_after)?,
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}
