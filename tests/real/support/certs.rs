//! Certificates of the test's own: authorities, servers, clients, and servers that must not be trusted. Written as PEM.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// An authority. Its certificate is in `DIR/NAME.pem`.
pub struct Authority {
    pub file: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    /// PKCS#8.
    pub key: PathBuf,
    /// Key and certificate in one file, as Kafka wants them.
    pub both: PathBuf,
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
enum Years {
    Now,
    Gone,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Authority {
        fs::create_dir_all(dir).expect("folder for certificates");
        let mut params = params(name, &[], Years::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, issuer.pem()).expect("PEM file");
        Authority { file, issuer, dir: dir.to_owned() }
    }

    /// A server by these names and addresses. `name` is of its files: Kafka exchanges a certificate while it runs only for one of the
    /// same distinguished name, with the same hosts and maybe more.
    pub fn server(&self, name: &str, hosts: &[&str]) -> Identity {
        self.issue(name, params("server", hosts, Years::Now), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// The same, no longer valid since years.
    pub fn expired_server(&self, name: &str, hosts: &[&str]) -> Identity {
        self.issue(name, params("server", hosts, Years::Gone), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client that is called `name`.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(name, params(name, &[], Years::Now), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let file = |end: &str| self.dir.join(format!("{name}{end}"));
        let (key, identity) = (
            key.serialize_pem(),
            Identity { certificate: file(".pem"), key: file(".key"), both: file("-both.pem") },
        );
        fs::write(&identity.certificate, &certificate).expect("PEM file");
        fs::write(&identity.key, &key).expect("PEM file");
        fs::write(&identity.both, key + &certificate).expect("PEM file");
        identity
    }
}

fn params(name: &str, hosts: &[&str], years: Years) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names of hosts");
    params.distinguished_name.push(DnType::CommonName, name);
    let (from, to) = match years {
        Years::Now => (2020, 2120),
        Years::Gone => (2019, 2020),
    };
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params
}

/// A file as a setting.
pub fn text(file: &Path) -> &str {
    file.to_str().expect("a temporary path is text")
}
