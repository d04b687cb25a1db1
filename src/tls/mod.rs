//! TLS for every connection that tidegate opens: to Kafka, to the MQTT broker, to the token endpoint.
//!
//! ```text
//! TlsOptions (files) -- read anew for each connection --> Session: bytes of records in and out, plain bytes in and out
//! ```
//!
//! A [`Session`] has no socket: its owner reads and writes, on one thread or on two. The only place that names rustls
//! (docs/decisions/0010). Knows nothing of Kafka and MQTT. Invariants:
//! - the peer's certificate and its host name are always verified; nothing turns that off;
//! - files are read when a connection is opened, so that a renewed certificate counts at the next one;
//! - each thing that can be wrong has its own message, which names the variable and the file to look at;
//! - a key is in no error and in no debug output.
//!
//! Without the cargo feature `tls` there is no C in the build, and [`Session::new`] says so ([`TlsError::NotBuiltIn`]).

#[cfg(feature = "tls")]
mod explain;
#[cfg(feature = "tls")]
mod files;
#[cfg(feature = "tls")]
mod session;
#[cfg(not(feature = "tls"))]
#[path = "absent.rs"]
mod session;

use std::fmt;
use std::io;
use std::path::PathBuf;

#[cfg(feature = "tls")]
pub use self::explain::{explain_foreign, prepare_process};
#[cfg(feature = "tls")]
pub use self::files::client_config;
#[cfg(feature = "tls")]
pub use self::files::root_certificates;
pub use self::session::Session;
#[cfg(not(feature = "tls"))]
pub use self::session::explain_foreign;

/// Whether this build has TLS.
pub const IS_BUILT_IN: bool = cfg!(feature = "tls");

/// A file, and the variable that names it: messages tell both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The variable's name.
    pub variable: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.variable, self.path.display())
    }
}

/// What this side shows a peer that asks for a certificate (mTLS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file of the certificate and those between it and its authority, in this order.
    pub certificate: NamedFile,
    /// PEM file of its key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: NamedFile,
}

/// How to connect by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file of the authorities that the peer is checked against; the system's without it.
    pub ca_file: Option<NamedFile>,
    /// What a peer that asks for it is shown.
    pub client: Option<ClientCertificate>,
}

/// Why there is no TLS with a peer. Each tells an operator where to look.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Built without the feature.
    #[error("this build of tidegate has no TLS (cargo feature `tls`)")]
    NotBuiltIn,
    /// A file cannot be read.
    #[error("the file of {file} cannot be read")]
    Read {
        /// Which.
        file: NamedFile,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("the file of {file} {what}")]
    File {
        /// Which.
        file: NamedFile,
        /// What is wrong with it.
        what: String,
    },
    /// Certificate and key are not a pair.
    #[error("the key of {key} does not fit the certificate of {certificate}")]
    KeyMismatch {
        /// The key's file.
        key: NamedFile,
        /// The certificate's file.
        certificate: NamedFile,
    },
    /// The system has no authorities, or they cannot be read.
    #[error("the system has no root certificates ({why}): name a CA file")]
    NoSystemRoots {
        /// What the search for them said.
        why: String,
    },
    /// The host is neither a name nor an address that a certificate can be for.
    #[error("{host:?} is no host name that a certificate can be checked for")]
    HostName {
        /// The host.
        host: String,
    },
    /// The peer's certificate is from an authority that is not trusted.
    #[error("the certificate of {host} is from an unknown authority: {trusted} does not have its CA")]
    UnknownIssuer {
        /// The host.
        host: String,
        /// Whose authorities were looked through.
        trusted: String,
    },
    /// The peer's certificate is for other names.
    #[error("the certificate is not for the host name {host}{}", for_names(names))]
    WrongHostName {
        /// The host connected to.
        host: String,
        /// The names that the certificate is for.
        names: Vec<String>,
    },
    /// The peer's certificate is too old.
    #[error("the certificate of {host} has expired{ago} (or this machine's clock is wrong)")]
    Expired {
        /// The host.
        host: String,
        /// Since when, in words; may be empty.
        ago: String,
    },
    /// The peer's certificate is for later.
    #[error("the certificate of {host} is not valid yet{ahead} (is this machine's clock right?)")]
    NotYetValid {
        /// The host.
        host: String,
        /// For how long, in words; may be empty.
        ahead: String,
    },
    /// The peer's certificate is refused for another reason.
    #[error("the certificate of {host} cannot be accepted: {what}")]
    BadCertificate {
        /// The host.
        host: String,
        /// Why.
        what: String,
    },
    /// What the peer sent is no TLS.
    #[error("{host} does not speak TLS on this port")]
    NotTls {
        /// The host.
        host: String,
    },
    /// The peer asks for a client certificate and none was shown.
    #[error("{host} asks for a client certificate, and none is configured ({alert})")]
    CertificateRequired {
        /// The host.
        host: String,
        /// The alert that it sent.
        alert: String,
    },
    /// The peer refuses our certificate.
    #[error("{host} refuses the client certificate of {file} ({alert})")]
    CertificateRefused {
        /// The host.
        host: String,
        /// What was shown.
        file: NamedFile,
        /// The alert that it sent.
        alert: String,
    },
    /// Anything else between the two.
    #[error("TLS with {host} failed: {what}")]
    Failed {
        /// The host.
        host: String,
        /// What rustls says.
        what: String,
    },
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        io::Error::other(error)
    }
}

fn for_names(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", but for {}", names.join(", ")) }
}

#[cfg(test)]
mod tests;
