//! Handshakes in memory, with certificates made here: each thing that can be wrong, and its words.
#![cfg(feature = "tls")]

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::*;

/// An authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: rustls_pki_types::CertificateDer<'static>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (pem, der) = (certificate.pem(), certificate.der().clone());
    Authority { issuer: Issuer::new(params, key), pem, der }
}

/// Certificate and key in PEM, for one host and these days around now.
fn certificate(of: &Authority, host: &str, years: (i32, i32)) -> (String, String) {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &of.issuer).unwrap().pem(), key.serialize_pem())
}

const NOW: (i32, i32) = (2020, 2090);

fn named(variable: &'static str, folder: &Path, content: &str) -> NamedFile {
    let path = folder.join(variable);
    std::fs::write(&path, content).unwrap();
    NamedFile { variable, path }
}

fn server(
    authority: &Authority,
    host: &str,
    years: (i32, i32),
    clients: Option<&Authority>,
) -> ServerConnection {
    let (certificate, key) = certificate(authority, host, years);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = vec![rustls_pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    ServerConnection::new(Arc::new(builder.with_single_cert(chain, key).unwrap())).unwrap()
}

/// Moves records between both until nobody has more to say.
fn shake(client: &mut Session, server: &mut ServerConnection) -> Result<(), TlsError> {
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_records(&mut wire).unwrap();
        }
        let mut incoming = wire.as_slice();
        while !incoming.is_empty() {
            server.read_tls(&mut incoming).unwrap();
            let _ = server.process_new_packets();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut incoming = wire.as_slice();
        while !incoming.is_empty() {
            client.read_records(&mut incoming).unwrap();
            client.process()?;
        }
    }
    Ok(())
}

fn trusting(ca: &Authority, folder: &Path) -> TlsOptions {
    TlsOptions { ca_file: Some(named("KAFKA_CA_FILE", folder, &ca.pem)), client: None }
}

fn refusal(server: &mut ServerConnection, options: &TlsOptions, host: &str) -> String {
    let mut client = Session::new(options, host).unwrap();
    shake(&mut client, server).expect_err("the handshake must fail").to_string()
}

#[test]
fn a_trusted_peer_is_talked_to_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let mut server = server(&ca, "broker.test", NOW, None);
    let mut client = Session::new(&trusting(&ca, folder.path()), "broker.test").unwrap();
    client.write_plain(b"question").unwrap();
    shake(&mut client, &mut server).unwrap();
    assert!(!client.is_handshaking());
    let mut heard = [0; 8];
    server.reader().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"question");
    server.writer().write_all(b"answer").unwrap();
    shake(&mut client, &mut server).unwrap();
    let mut heard = [0; 16];
    assert_eq!(client.read_plain(&mut heard).unwrap(), 6);
    assert_eq!(client.read_plain(&mut heard).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    server.send_close_notify();
    shake(&mut client, &mut server).unwrap();
    assert_eq!(client.read_plain(&mut heard).unwrap(), 0);
}

#[test]
fn an_address_is_a_host_name_too() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority("ca");
    let mut client = Session::new(&trusting(&ca, folder.path()), "127.0.0.1").unwrap();
    shake(&mut client, &mut server(&ca, "127.0.0.1", NOW, None)).unwrap();
}

#[test]
fn each_fault_of_the_peers_certificate_has_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (authority("ca"), authority("other"));
    let options = trusting(&ca, folder.path());
    let said = refusal(&mut server(&other, "broker.test", NOW, None), &options, "broker.test");
    assert!(said.contains("unknown authority: KAFKA_CA_FILE ("), "{said}");
    let said = refusal(&mut server(&ca, "another.test", NOW, None), &options, "broker.test");
    assert_eq!(said, "the certificate is not for the host name broker.test, but for another.test");
    let said = refusal(&mut server(&ca, "broker.test", (2001, 2002), None), &options, "broker.test");
    assert!(said.starts_with("the certificate of broker.test has expired "), "{said}");
    let said = refusal(&mut server(&ca, "broker.test", (2089, 2090), None), &options, "broker.test");
    assert!(said.starts_with("the certificate of broker.test is not valid yet, only in "), "{said}");
}

#[test]
fn what_is_no_tls_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Session::new(&trusting(&authority("ca"), folder.path()), "broker.test").unwrap();
    client.read_records(&mut b"HTTP/1.1 400 Bad Request\r\n".as_slice()).unwrap();
    assert_eq!(client.process().unwrap_err().to_string(), "broker.test does not speak TLS on this port");
    assert!(client.closed_early().to_string().contains("closed the connection"));
}

#[test]
fn a_client_certificate_is_shown_and_a_missing_or_refused_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, clients) = (authority("ca"), authority("clients"));
    let mut options = trusting(&ca, folder.path());
    let said = refusal(&mut server(&ca, "broker.test", NOW, Some(&clients)), &options, "broker.test");
    let expected =
        "broker.test asks for a client certificate, and none is configured (alert CertificateRequired)";
    assert_eq!(said, expected);

    let shown = |of: &Authority| {
        let (certificate, key) = certificate(of, "edge-7", NOW);
        ClientCertificate {
            certificate: named("KAFKA_CERT_FILE", folder.path(), &certificate),
            key: named("KAFKA_KEY_FILE", folder.path(), &key),
        }
    };
    options.client = Some(shown(&ca));
    let said = refusal(&mut server(&ca, "broker.test", NOW, Some(&clients)), &options, "broker.test");
    assert!(said.starts_with("broker.test refuses the client certificate of KAFKA_CERT_FILE ("), "{said}");
    options.client = Some(shown(&clients));
    let mut client = Session::new(&options, "broker.test").unwrap();
    let mut server = server(&ca, "broker.test", NOW, Some(&clients));
    shake(&mut client, &mut server).unwrap();
    assert!(server.peer_certificates().is_some());
}

fn problem(options: &TlsOptions) -> String {
    crate::error::chain(&Session::new(options, "broker.test").unwrap_err())
}

#[test]
fn each_fault_of_a_file_has_its_own_words_and_names_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ca = authority("ca");
    let absent = NamedFile { variable: "KAFKA_CA_FILE", path: folder.join("absent.pem") };
    let said = problem(&TlsOptions { ca_file: Some(absent), client: None });
    assert!(said.starts_with("the file of KAFKA_CA_FILE (") && said.contains("No such file"), "{said}");
    let empty = TlsOptions { ca_file: Some(named("KAFKA_CA_FILE", folder, "not PEM at all")), client: None };
    assert!(problem(&empty).ends_with("has no certificate in PEM form in it"), "{}", problem(&empty));
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = TlsOptions { ca_file: Some(named("KAFKA_CA_FILE", folder, broken)), client: None };
    assert!(problem(&broken).ends_with("has no certificate that can be read (of 1)"), "{}", problem(&broken));

    let with_client = |certificate: &str, key: &str| {
        let mut options = trusting(&ca, folder);
        options.client = Some(ClientCertificate {
            certificate: named("KAFKA_CERT_FILE", folder, certificate),
            key: named("KAFKA_KEY_FILE", folder, key),
        });
        problem(&options)
    };
    let (one, key_of_one) = certificate(&ca, "one", NOW);
    let (_, key_of_two) = certificate(&ca, "two", NOW);
    let said = with_client(&one, &key_of_two);
    assert!(said.starts_with("the key of KAFKA_KEY_FILE (") && said.contains("does not fit"), "{said}");
    let said = with_client(&one, &one);
    assert!(said.contains("KAFKA_KEY_FILE") && said.contains("no private key"), "{said}");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let said = with_client(&one, encrypted);
    assert!(said.contains("KAFKA_KEY_FILE") && said.contains("encrypted key"), "{said}");
    let said = with_client(&key_of_one, &key_of_one);
    assert!(said.contains("KAFKA_CERT_FILE") && said.contains("no certificate"), "{said}");
}

#[test]
fn what_cannot_be_read_of_a_bundle_is_passed_over_and_counted_when_an_authority_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (authority("ca"), authority("other"));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\
                   -----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
    let bundle = named("KAFKA_CA_FILE", folder.path(), &format!("{garbage}{}", ca.pem));
    assert_eq!(root_certificates(Some(&bundle)).unwrap(), [ca.der.to_vec()]);
    let options = TlsOptions { ca_file: Some(bundle), client: None };
    let mut client = Session::new(&options, "broker.test").unwrap();
    shake(&mut client, &mut server(&ca, "broker.test", NOW, None)).unwrap();
    let said = refusal(&mut server(&other, "broker.test", NOW, None), &options, "broker.test");
    assert!(said.ends_with(", of which 2 certificates cannot be read, does not have its CA"), "{said}");
    let alone = named("SASL_OAUTHBEARER_CA_FILE", folder.path(), garbage);
    let said = root_certificates(Some(&alone)).unwrap_err().to_string();
    assert!(said.ends_with("has no certificate that can be read (of 2)"), "{said}");
}

#[test]
fn what_is_no_host_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = trusting(&authority("ca"), folder.path());
    let error = Session::new(&options, "a host").unwrap_err();
    assert_eq!(error.to_string(), "\"a host\" is no host name that a certificate can be checked for");
}

#[test]
fn files_are_read_anew_for_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (authority("old"), authority("new"));
    let options = trusting(&old, folder.path());
    assert!(
        refusal(&mut server(&new, "broker.test", NOW, None), &options, "broker.test").contains("unknown")
    );
    std::fs::write(&options.ca_file.as_ref().unwrap().path, &new.pem).unwrap();
    let mut client = Session::new(&options, "broker.test").unwrap();
    shake(&mut client, &mut server(&new, "broker.test", NOW, None)).unwrap();
}
