//! A real socket, a rustls server on a thread of the test, certificates made here.
#![cfg(feature = "tls")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::mqtt::transport::{ConnectError, Connection, Endpoint, READ_BYTES, ReadOutcome, connect, wait};
use crate::mqtt::waker::Waker;
use crate::tls::{ClientCertificate, NamedFile, TlsError, TlsOptions};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key in PEM.
    fn issue(&self, host: &str) -> (String, String) {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

type Served = StreamOwned<ServerConnection, std::net::TcpStream>;

/// One connection, served by `serve` on a thread; the port to connect to.
fn server(
    authority: &Authority,
    clients: Option<&Authority>,
    serve: impl FnOnce(Served) + Send + 'static,
) -> (u16, std::thread::JoinHandle<()>) {
    let (certificate, key) = authority.issue("localhost");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream));
    });
    (port, thread)
}

fn file(folder: &Path, variable: &'static str, content: &str) -> NamedFile {
    let path = folder.join(variable);
    std::fs::write(&path, content).unwrap();
    NamedFile { variable, path }
}

fn endpoint(port: u16, folder: &Path, ca: &Authority, client: Option<(&str, &str)>) -> Endpoint {
    let tls = TlsOptions {
        ca_file: Some(file(folder, "MQTT_CA_FILE", &ca.pem)),
        client: client.map(|(certificate, key)| ClientCertificate {
            certificate: file(folder, "MQTT_CERT_FILE", certificate),
            key: file(folder, "MQTT_KEY_FILE", key),
        }),
    };
    Endpoint { host: "localhost".into(), port, tls: Some(tls) }
}

/// Waits in poll(2) as the ingest thread does, then reads; None at the end.
fn read_on(connection: &mut Connection, waker: &Waker) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        let ready = wait(waker, Some((connection, true, false)), Some(std::time::Duration::from_secs(20)))?;
        assert!(ready.readable, "nothing came for 20 s");
        match connection.read()? {
            ReadOutcome::Bytes(bytes) => return Ok(Some(bytes.to_vec())),
            ReadOutcome::Empty => {}
            ReadOutcome::Closed => return Ok(None),
        }
    }
}

#[test]
fn megabytes_go_both_ways_whole_and_in_order_and_poll_misses_nothing() {
    let (folder, authority, waker) =
        (tempfile::tempdir().unwrap(), Authority::new("authority 0"), Waker::new().unwrap());
    const COUNT: usize = 3_000_000;
    let pattern: Vec<u8> = (0..COUNT).map(|n| (n / 7) as u8).collect();
    let expected = pattern.clone();
    let (port, thread) = server(&authority, None, move |mut served| {
        let mut received = vec![0; COUNT];
        served.read_exact(&mut received).unwrap();
        assert!(received == expected);
        served.write_all(&received).unwrap();
        served.conn.send_close_notify();
        served.flush().unwrap();
    });
    let mut connection = connect(&endpoint(port, folder.path(), &authority, None)).unwrap();
    let mut written = 0;
    while written < COUNT {
        written += connection.write(&pattern[written..]).unwrap();
        if written < COUNT {
            wait(&waker, Some((&connection, false, true)), None).unwrap();
        }
    }
    assert!(!connection.wants_write(), "what counts as written has left");
    let mut received = Vec::new();
    let mut whole_buffers = 0;
    while let Some(bytes) = read_on(&mut connection, &waker).unwrap() {
        whole_buffers += usize::from(bytes.len() == READ_BYTES);
        received.extend(bytes);
    }
    assert!(received == pattern, "{} bytes came back", received.len());
    assert!(whole_buffers > 0, "some reads left something behind");
    thread.join().unwrap();
}

#[test]
fn another_authority_is_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (port, thread) = server(&Authority::new("authority 1"), None, |mut served| {
        assert!(served.read(&mut [0; 10]).is_err(), "nothing but the alert");
    });
    let error = connect(&endpoint(port, folder.path(), &Authority::new("authority 2"), None)).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { source: TlsError::UnknownIssuer { .. }, .. }), "{error:?}");
    thread.join().unwrap();
}

#[test]
fn a_client_certificate_is_shown_and_one_that_is_refused_or_missing_is_told_at_the_first_read() {
    let (folder, authority, clients) =
        (tempfile::tempdir().unwrap(), Authority::new("authority 3"), Authority::new("authority 4"));
    let waker = Waker::new().unwrap();
    let good = clients.issue("gateway");
    let bad = Authority::new("authority 5").issue("gateway");
    for (pair, accepted) in [(Some(&good), true), (Some(&bad), false), (None, false)] {
        let (port, thread) = server(&authority, Some(&clients), |mut served| {
            let mut byte = [0];
            if served.read_exact(&mut byte).is_ok() {
                served.write_all(&byte).unwrap();
            }
        });
        let pair = pair.map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        let mut connection = connect(&endpoint(port, folder.path(), &authority, pair)).unwrap();
        let written = connection.write(b"x");
        let told = written.and_then(|_| read_on(&mut connection, &waker));
        if accepted {
            assert_eq!(told.unwrap(), Some(b"x".to_vec()));
        } else {
            let text = told.unwrap_err().to_string();
            assert!(text.contains("client certificate"), "{text}");
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_port_without_tls_is_told_as_such() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("authority 6"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-something\r\n").unwrap();
        let _ = stream.read(&mut [0; 1000]);
    });
    let mut at = endpoint(port, folder.path(), &authority, None);
    at.host = "127.0.0.1".into();
    let error = connect(&at).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { source: TlsError::NotTls { .. }, .. }), "{error:?}");
    thread.join().unwrap();
}
