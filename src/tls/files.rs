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
    let ders = match ca_file {
        Some(file) => certificates(file)?,
        None => system_roots()?,
    };
    Ok(ders.iter().map(|der| der.to_vec()).collect())
}

fn roots(ca_file: Option<&NamedFile>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            for der in certificates(file)? {
                store.add(der).map_err(|error| TlsError::File {
                    file: file.clone(),
                    what: format!("has a certificate that cannot be read ({error})"),
                })?;
            }
        }
        None => {
            // A system may hold an oddity among 140 sound ones.
            let (added, _) = store.add_parsable_certificates(system_roots()?);
            if added == 0 {
                return Err(TlsError::NoSystemRoots { why: "none of them can be read".to_owned() });
            }
        }
    }
    Ok(store)
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
    let certificates = certificates(&client.certificate)?;
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

/// All certificates of a PEM file, at least one.
fn certificates(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(file)?;
    let broken = |what: &str| TlsError::File { file: file.clone(), what: what.to_owned() };
    let found: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(broken("has no certificate in PEM form in it")),
        Ok(found) => Ok(found),
        Err(_) => Err(broken("is no sound PEM")),
    }
}

fn read(file: &NamedFile) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { file: file.clone(), source };
    let bytes = fs::read_at_most(&file.path, FILE_BYTES_MAX).map_err(failed)?;
    bytes.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "it is far too large for PEM")))
}
