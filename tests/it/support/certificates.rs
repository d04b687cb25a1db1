//! Certificates of the test's own, in files, and the TLS servers that use them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// An authority, and the folder that its files are in.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pub ca_file: PathBuf,
    folder: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let ca_file = folder.join(format!("{name}.pem"));
        fs::write(&ca_file, certificate.pem()).unwrap();
        let der = certificate.der().clone();
        Authority { issuer: Issuer::new(params, key), der, ca_file, folder: folder.to_owned() }
    }

    pub fn ca(&self) -> &str {
        self.ca_file.to_str().unwrap()
    }

    fn certificate(&self, host: &str, years: (i32, i32)) -> (String, String) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Files of a client's certificate and key.
    pub fn client(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.certificate(name, (2020, 2090));
        let path = |what: &str| self.folder.join(format!("{name}-{what}.pem")).to_str().unwrap().to_owned();
        let paths = (path("cert"), path("key"));
        fs::write(&paths.0, certificate).unwrap();
        fs::write(&paths.1, key).unwrap();
        paths
    }

    /// A server for this host, with a certificate of these years, that wants clients of this authority if one is given.
    pub fn server(&self, host: &str, years: (i32, i32), clients: Option<&Authority>) -> Arc<ServerConfig> {
        let (certificate, key) = self.certificate(host, years);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.der.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}
