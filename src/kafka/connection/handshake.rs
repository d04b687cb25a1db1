//! What comes between connecting and the first request: TLS is there already; versions are negotiated (KIP-35), then SASL
//! (KIP-43). All of it within one connect timeout, also against a peer that sends a byte now and then.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::authentication;
use super::life::Life;
use super::socket::{ReadError, read_response};
use super::stream::Stream;
use super::{ConnectionError, ConnectionOptions};
use crate::auth::Token;
use crate::kafka::codec::{self, ApiVersionsAnswer, CodecError, Versions};
use crate::kafka::sasl::SaslError;
use crate::tls::TlsError;

/// Correlation ids below this are the handshake's.
pub const CORRELATION_IDS_END: i32 = 2;

/// A broker's list of APIs is a few kB; a peer that announces more is no broker.
const RESPONSE_BYTES_MAX: u32 = 1 << 20;

/// Negotiates and authenticates.
pub fn shake(
    stream: &mut Stream,
    peer: SocketAddr,
    options: &ConnectionOptions,
    token: Option<Token>,
    deadline: Instant,
) -> Result<(Versions, Life), ConnectionError> {
    let versions = negotiate(stream, peer, options, deadline)?;
    let Some(credentials) = &options.security.sasl else { return Ok((versions, Life::endless())) };
    let mechanism = credentials.mechanism();
    let is_bare = versions.sasl_authenticate().is_none();
    let mut exchange = |frame: Bytes| {
        exchange(stream, &frame, peer, deadline).map_err(|error| match error {
            ConnectionError::Handshake { source, .. } if source.kind() == ErrorKind::UnexpectedEof => {
                let message = "it closed the connection".to_owned();
                if is_bare {
                    // Brokers before Kafka 1.0 have no other way to say no.
                    ConnectionError::Sasl { peer, source: SaslError::Refused { mechanism, message } }
                } else {
                    // Later ones say it. This one stops, or something between us and it does not let SASL through.
                    let message = format!("{message} during the authentication, without a word");
                    ConnectionError::Handshake { peer, source: io::Error::new(source.kind(), message) }
                }
            }
            error => error,
        })
    };
    let client_id = options.client_id.as_str();
    let party = authentication::Party { credentials, versions: &versions, client_id, peer, before: None };
    let life = authentication::authenticate(&party, token, &mut exchange)?;
    Ok((versions, life))
}

fn negotiate(
    stream: &mut Stream,
    peer: SocketAddr,
    options: &ConnectionOptions,
    deadline: Instant,
) -> Result<Versions, ConnectionError> {
    let versions_failed = |source| ConnectionError::Versions { peer, source };
    for (id, version) in [(0, codec::API_VERSIONS_NEWEST), (1, codec::API_VERSIONS_OLDEST)] {
        let frame = codec::api_versions_frame(version, id, &options.client_id).map_err(versions_failed)?;
        let body = exchange(stream, &frame, peer, deadline)?;
        match codec::decode_api_versions(version, id, body).map_err(versions_failed)? {
            ApiVersionsAnswer::Versions(versions) => return Ok(versions),
            ApiVersionsAnswer::AskOldest => {}
        }
    }
    // Only reached if the answer to the oldest version asks for the oldest version, which the codec rules out.
    Err(versions_failed(CodecError::Unexpected { correlation_id: None }))
}

/// Writes a request and reads its response, until the deadline.
fn exchange(
    stream: &mut Stream,
    frame: &[u8],
    peer: SocketAddr,
    deadline: Instant,
) -> Result<Bytes, ConnectionError> {
    let failed = |source| ConnectionError::Handshake { peer, source };
    let is_tls = stream.is_tls();
    if let Err(error) = stream.write_all_until(frame, deadline) {
        // A peer that refuses our certificate says so and closes: its reason counts, not that nothing can be written.
        let mut reason = [0];
        let said = if is_tls { stream.until(deadline).read(&mut reason).err() } else { None };
        let said = said.filter(|said| said.get_ref().is_some_and(|inner| inner.is::<TlsError>()));
        return Err(failed(said.unwrap_or(error)));
    }
    read_response(&mut stream.until(deadline), RESPONSE_BYTES_MAX).map_err(|error| match error {
        ReadError::Io(source) => failed(source),
        // The alert of a TLS listener that was sent plain text (RFC 8446 section 5.1: type 21, version 3).
        ReadError::TooLarge { bytes, .. } if !is_tls && bytes.to_be_bytes().starts_with(&[21, 3]) => {
            let what = "it speaks TLS on this port: set KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL";
            failed(io::Error::new(ErrorKind::InvalidData, what))
        }
        ReadError::TooLarge { bytes, limit_bytes } => {
            ConnectionError::ResponseTooLarge { peer, bytes, limit_bytes }
        }
    })
}
