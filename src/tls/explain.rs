//! From what rustls says to what an operator can act on.

use rustls::{AlertDescription, CertificateError, Error};

use super::{NamedFile, TlsError, TlsOptions, files};

/// Whom a session is with, for messages.
pub struct Peer {
    pub host: String,
    pub options: TlsOptions,
}

/// Makes ring the cryptography of a client that makes its own rustls connections. Doing it twice is the same as once.
pub fn prepare_process() {
    // Only an error if it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The message for an error of such a client, if one of rustls is in it.
pub fn explain_foreign(
    options: &TlsOptions,
    host: &str,
    error: &(dyn std::error::Error + 'static),
) -> Option<TlsError> {
    let peer = Peer { host: host.to_owned(), options: options.clone() };
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(explain(&peer, error));
        }
        // What an I/O error wraps is not its source, but whose source its source is.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The one message for an error of rustls.
pub fn explain(peer: &Peer, error: &Error) -> TlsError {
    let host = peer.host.clone();
    match error {
        Error::InvalidCertificate(error) => certificate(peer, error),
        Error::InvalidMessage(_) => TlsError::NotTls { host },
        Error::AlertReceived(alert) => refused(peer, *alert),
        error => TlsError::Failed { host, what: error.to_string() },
    }
}

fn certificate(peer: &Peer, error: &CertificateError) -> TlsError {
    let host = peer.host.clone();
    match error {
        CertificateError::UnknownIssuer => {
            let trusted = peer.options.ca_file.as_ref().map_or("the system's store".to_owned(), named);
            TlsError::UnknownIssuer { host, trusted }
        }
        CertificateError::NotValidForName => TlsError::WrongHostName { host, names: Vec::new() },
        CertificateError::NotValidForNameContext { presented, .. } => {
            TlsError::WrongHostName { host, names: presented.iter().map(|name| plain_name(name)).collect() }
        }
        CertificateError::Expired => TlsError::Expired { host, ago: String::new() },
        CertificateError::ExpiredContext { time, not_after } => {
            let seconds = time.as_secs().saturating_sub(not_after.as_secs());
            TlsError::Expired { host, ago: format!(" {seconds} s ago") }
        }
        CertificateError::NotValidYet => TlsError::NotYetValid { host, ahead: String::new() },
        CertificateError::NotValidYetContext { time, not_before } => {
            let seconds = not_before.as_secs().saturating_sub(time.as_secs());
            TlsError::NotYetValid { host, ahead: format!(", only in {seconds} s") }
        }
        // rustls has no variant for it: a certificate made with `openssl req -x509` is one that signs.
        CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
            let what =
                "it is the certificate of an authority (CA:TRUE), which a server must not use".to_owned();
            TlsError::BadCertificate { host, what }
        }
        error => TlsError::BadCertificate { host, what: error.to_string() },
    }
}

/// A CA file, and how much of it could not be used: the authority that is missed may be there.
fn named(file: &NamedFile) -> String {
    match files::unreadable(file) {
        0 => file.to_string(),
        1 => format!("{file}, of which one certificate cannot be read,"),
        count => format!("{file}, of which {count} certificates cannot be read,"),
    }
}

/// rustls shows names as `DnsName("a")` and the like.
fn plain_name(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}

/// RFC 8446 section 6.2: which alerts speak of our certificate.
fn refused(peer: &Peer, alert: AlertDescription) -> TlsError {
    use AlertDescription as Alert;
    let host = peer.host.clone();
    let of_certificate = matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            // Servers of TLS 1.2 say this when a certificate they ask for is missing.
            | Alert::HandshakeFailure
    );
    let alert_text = format!("alert {alert:?}");
    match &peer.options.client {
        Some(client) if of_certificate && alert != Alert::HandshakeFailure => {
            TlsError::CertificateRefused { host, file: client.certificate.clone(), alert: alert_text }
        }
        None if of_certificate => TlsError::CertificateRequired { host, alert: alert_text },
        _ => TlsError::Failed { host, what: format!("it ended the connection with {alert_text}") },
    }
}
