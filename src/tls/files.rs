//! From PEM files to what rustls needs.
//!
//! PEM: RFC 7468; keys: RFC 5958 (PKCS#8), RFC 8017 (PKCS#1), RFC 5915 (SEC1).

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{ClientCertificate, NamedFile, TlsError, TlsOptions};
use crate::fs;

/// A bundle of all public authorities is about 250 kB; what is larger is no PEM file of ours.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The whole configuration of a connection, read from the files now.
///
/// # Errors
/// A file is missing, or is not what it should be.
pub fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: rustls::Error| TlsError::Failed { host: "any peer".into(), what: error.to_string() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots(options.ca_file.as_ref())?);
    let Some(client) = &options.client else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let (certificates, key) = identity(client)?;
    let config = builder.with_client_auth_cert(certificates, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::KeyMismatch { key: client.key.clone(), certificate: client.certificate.clone() }
        }
        rustls::Error::InvalidCertificate(error) => TlsError::File {
            file: client.certificate.clone(),
            what: format!("has a certificate that cannot be used ({error:?})"),
        },
        // The text of rustls is of the kind of key, never of its content.
        error => TlsError::File {
            file: client.key.clone(),
            what: format!("has a key that cannot be used: {error}"),
        },
    })?;
    Ok(Arc::new(config))
}

/// The authorities as DER, for a client that takes them so.
///
/// # Errors
/// As [`client_config`].
pub fn root_certificates(ca_file: Option<&NamedFile>) -> Result<Vec<Vec<u8>>, TlsError> {
    let authorities = Authorities::read(ca_file)?;
    Ok(authorities.ders.iter().map(|der| der.to_vec()).collect())
}

/// How many certificates of a CA file cannot be read, and are passed over; 0 if the file as a whole cannot be.
pub fn unreadable(ca_file: &NamedFile) -> usize {
    Authorities::read(Some(ca_file)).map_or(0, |authorities| authorities.unreadable)
}

fn roots(ca_file: Option<&NamedFile>) -> Result<RootCertStore, TlsError> {
    Ok(Authorities::read(ca_file)?.store)
}

/// Those that a peer is checked against: all that can be read of a bundle, which may hold an oddity among many sound ones.
struct Authorities {
    store: RootCertStore,
    ders: Vec<CertificateDer<'static>>,
    unreadable: usize,
}

impl Authorities {
    fn read(ca_file: Option<&NamedFile>) -> Result<Authorities, TlsError> {
        let (found, broken) = match ca_file {
            None => (system_roots()?, 0),
            Some(file) => certificates(file)?,
        };
        let mut authorities =
            Authorities { store: RootCertStore::empty(), ders: Vec::new(), unreadable: broken };
        for der in found {
            match authorities.store.add(der.clone()) {
                Ok(()) => authorities.ders.push(der),
                Err(_) => authorities.unreadable += 1,
            }
        }
        if !authorities.ders.is_empty() {
            return Ok(authorities);
        }
        Err(match ca_file {
            None => TlsError::NoSystemRoots { why: "none of them can be read".to_owned() },
            Some(file) => {
                let count = authorities.unreadable;
                let what = format!("has no certificate that can be read (of {count})");
                TlsError::File { file: file.clone(), what }
            }
        })
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let why = if why.is_empty() { "none found".to_owned() } else { why.join("; ") };
        return Err(TlsError::NoSystemRoots { why });
    }
    Ok(found.certs)
}

fn identity(
    client: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let (certificates, broken) = certificates(&client.certificate)?;
    if broken > 0 {
        let what = "is no sound PEM".to_owned();
        return Err(TlsError::File { file: client.certificate.clone(), what });
    }
    let pem = read(&client.key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let encrypted = pem.windows(9).any(|piece| piece == b"ENCRYPTED");
        let what = match error {
            PemError::NoItemsFound if encrypted => {
                "holds an encrypted key: decrypt it, and protect the file by its mode"
            }
            PemError::NoItemsFound => "has no private key in PEM form in it (PKCS#8, PKCS#1 or SEC1)",
            _ => "is no sound PEM",
        };
        TlsError::File { file: client.key.clone(), what: what.to_owned() }
    })?;
    Ok((certificates, key))
}

/// All certificates of a PEM file, and how many sections are no sound PEM; at least one of either.
fn certificates(file: &NamedFile) -> Result<(Vec<CertificateDer<'static>>, usize), TlsError> {
    let pem = read(file)?;
    let (mut found, mut broken) = (Vec::new(), 0);
    for section in CertificateDer::pem_slice_iter(&pem) {
        match section {
            Ok(certificate) => found.push(certificate),
            Err(_) => broken += 1,
        }
    }
    if found.is_empty() && broken == 0 {
        let what = "has no certificate in PEM form in it".to_owned();
        return Err(TlsError::File { file: file.clone(), what });
    }
    Ok((found, broken))
}

fn read(file: &NamedFile) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { file: file.clone(), source };
    let bytes = fs::read_at_most(&file.path, FILE_BYTES_MAX).map_err(failed)?;
    bytes.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "it is far too large for PEM")))
}
