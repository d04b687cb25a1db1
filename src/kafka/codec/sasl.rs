//! The two requests that carry SASL messages (KIP-43, KIP-152, KIP-255, KIP-368), and the frames without a header that
//! brokers before Kafka 1.0 want.

use bytes::{BufMut, Bytes, BytesMut};

use super::reader::{Malformed, Reader};
use super::versions::{SASL_AUTHENTICATE_KEY, SASL_HANDSHAKE_KEY};
use super::wire::{self, StrBytes};
use super::{CORRELATION_ID_BYTES, CodecError, check_correlation_id, frame};
use crate::kafka::error::ErrorCode;

/// What the broker says to a mechanism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeAnswer {
    /// UNSUPPORTED_SASL_MECHANISM, ILLEGAL_SASL_STATE, or none.
    pub error: ErrorCode,
    /// The mechanisms it has.
    pub mechanisms: Vec<String>,
}

/// What the broker says to a SASL message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticateAnswer {
    /// SASL_AUTHENTICATION_FAILED, or none.
    pub error: ErrorCode,
    /// Its own words.
    pub message: Option<String>,
    /// Its SASL message.
    pub bytes: Bytes,
    /// How long what is authenticated now may be used, milliseconds; 0 is for ever (KIP-368).
    pub session_lifetime_ms: i64,
}

/// The frame of SaslHandshake: 1 if SaslAuthenticate follows, else 0.
///
/// # Errors
/// [`CodecError::Encode`], which has no reason to happen.
pub fn handshake_frame(
    version: i16,
    mechanism: &str,
    correlation_id: i32,
    client_id: &str,
) -> Result<Bytes, CodecError> {
    let body =
        wire::SaslHandshakeRequest::default().with_mechanism(StrBytes::from_string(mechanism.to_owned()));
    frame(&body, SASL_HANDSHAKE_KEY, version, correlation_id, client_id)
}

/// Reads the answer to [`handshake_frame`].
///
/// # Errors
/// The bytes are malformed or answer something else.
pub fn decode_handshake(
    version: i16,
    correlation_id: i32,
    body: &Bytes,
) -> Result<HandshakeAnswer, CodecError> {
    check_correlation_id(body, correlation_id)?;
    let mut reader = Reader::new(body.slice(CORRELATION_ID_BYTES..), false);
    let mut read = || {
        let error = ErrorCode(reader.i16()?);
        Ok(HandshakeAnswer { error, mechanisms: reader.array(Reader::string)? })
    };
    read().map_err(|Malformed(what)| CodecError::Malformed { key: SASL_HANDSHAKE_KEY, version, what })
}

/// The frame of SaslAuthenticate.
///
/// # Errors
/// [`CodecError::Encode`], which has no reason to happen.
pub fn authenticate_frame(
    version: i16,
    message: Vec<u8>,
    correlation_id: i32,
    client_id: &str,
) -> Result<Bytes, CodecError> {
    let body = wire::SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(message));
    frame(&body, SASL_AUTHENTICATE_KEY, version, correlation_id, client_id)
}

/// Reads the answer to [`authenticate_frame`].
///
/// # Errors
/// The bytes are malformed or answer something else.
pub fn decode_authenticate(
    version: i16,
    correlation_id: i32,
    body: &Bytes,
) -> Result<AuthenticateAnswer, CodecError> {
    check_correlation_id(body, correlation_id)?;
    let mut reader = Reader::new(body.slice(CORRELATION_ID_BYTES..), version >= 2);
    let mut read = || {
        reader.tags()?; // of the header
        let error = ErrorCode(reader.i16()?);
        let message = reader.nullable_string()?;
        let bytes = reader.bytes()?;
        let session_lifetime_ms = if version >= 1 { reader.i64()? } else { 0 };
        reader.tags()?;
        Ok(AuthenticateAnswer { error, message, bytes, session_lifetime_ms })
    };
    read().map_err(|Malformed(what)| CodecError::Malformed { key: SASL_AUTHENTICATE_KEY, version, what })
}

/// A SASL message as brokers before Kafka 1.0 take it: its length, and nothing else. Their answers are the same.
pub fn bare_frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + message.len());
    // A message is a few kB at most.
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::wire::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
    use super::super::wire::protocol::{Encodable, StrBytes};
    use super::*;

    #[test]
    fn answers_of_every_version_are_read() {
        for version in 0..=1 {
            let response = SaslHandshakeResponse::default()
                .with_error_code(33)
                .with_mechanisms(vec![StrBytes::from_static_str("PLAIN")]);
            let mut body = BytesMut::new();
            body.put_i32(-7);
            response.encode(&mut body, version).unwrap();
            let answer = decode_handshake(version, -7, &body.freeze()).unwrap();
            assert_eq!(
                answer,
                HandshakeAnswer { error: ErrorCode(33), mechanisms: vec!["PLAIN".to_owned()] }
            );
        }
        for version in 0..=2 {
            let lifetime = if version >= 1 { 45_000 } else { 0 };
            let response = SaslAuthenticateResponse::default()
                .with_error_code(58)
                .with_error_message(Some(StrBytes::from_static_str("no")))
                .with_auth_bytes(Bytes::from_static(b"{}"))
                .with_session_lifetime_ms(lifetime);
            let mut body = BytesMut::new();
            body.put_i32(-7);
            if version >= 2 {
                body.put_u8(0);
            }
            response.encode(&mut body, version).unwrap();
            let body = body.freeze();
            let answer = decode_authenticate(version, -7, &body).unwrap();
            assert_eq!((answer.error, answer.message.as_deref()), (ErrorCode(58), Some("no")));
            assert_eq!((&answer.bytes[..], answer.session_lifetime_ms), (&b"{}"[..], lifetime));
            for cut in 0..body.len() {
                assert!(decode_authenticate(version, -7, &body.slice(..cut)).is_err(), "cut at {cut}");
            }
            assert!(decode_authenticate(version, -8, &body).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100), version in 0..3_i16,
        ) {
            let body = Bytes::from([&1_i32.to_be_bytes()[..], &bytes].concat());
            let _ = decode_authenticate(version, 1, &body);
            let _ = decode_handshake(version.min(1), 1, &body);
        }
    }

    #[test]
    fn a_bare_frame_is_length_and_message() {
        assert_eq!(&bare_frame(b"ab")[..], b"\0\0\0\x02ab");
    }
}
