//! Why a broker says no: the reason codes of MQTT 5 with plain names. Data only.
//!
//! MQTT 3.1.1 has five reasons of its own for refusing a connection; they are told as the codes of MQTT 5 that mean
//! the same.
//!
//! Source: MQTT 5.0, OASIS Standard, section 2.4; MQTT 3.1.1, section 3.2.2.3.

use std::fmt;

use thiserror::Error;

/// A reason code (MQTT 5, section 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub u8);

impl Reason {
    /// Success, or a normal end.
    pub const SUCCESS: Reason = Reason(0);
    /// No reason given; what SUBACK of MQTT 3.1.1 says.
    pub const UNSPECIFIED: Reason = Reason(0x80);
    /// The protocol version is not supported.
    pub const PROTOCOL_VERSION: Reason = Reason(0x84);
    /// The client identifier is not accepted.
    pub const CLIENT_ID: Reason = Reason(0x85);
    /// User name or password.
    pub const CREDENTIALS: Reason = Reason(0x86);
    /// Not authorised.
    pub const NOT_AUTHORISED: Reason = Reason(0x87);
    /// The server cannot serve now.
    pub const UNAVAILABLE: Reason = Reason(0x88);
    /// Another connection uses the client identifier.
    pub const TAKEN_OVER: Reason = Reason(0x8e);

    /// The reason that a CONNACK of MQTT 3.1.1 names.
    pub fn of_return_code(code: u8) -> Option<Reason> {
        match code {
            1 => Some(Reason::PROTOCOL_VERSION),
            2 => Some(Reason::CLIENT_ID),
            3 => Some(Reason::UNAVAILABLE),
            4 => Some(Reason::CREDENTIALS),
            5 => Some(Reason::NOT_AUTHORISED),
            _ => None,
        }
    }

    /// Nothing changes until an operator changes something; otherwise waiting may help: unavailable, busy, shutting
    /// down, quota, rate.
    pub fn needs_operator(self) -> bool {
        !matches!(self.0, 0x88 | 0x89 | 0x8b | 0x96 | 0x97 | 0x9f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0x00 => "the broker gives no reason",
            0x04 => "the broker ends the connection with its will message",
            0x80 => "the broker does not say why",
            0x81 => "the broker takes a packet for malformed",
            0x82 => "the broker sees a protocol error",
            0x83 => "the broker refuses for a reason of its own",
            0x84 => "the broker does not support this protocol version (MQTT_VERSION)",
            0x85 => "the broker does not accept this client id",
            0x86 => "the broker refused the user name or password",
            0x87 => "the broker says this client is not authorised",
            0x88 => "the broker says its service is unavailable",
            0x89 => "the broker is busy",
            0x8a => "the broker has banned this client",
            0x8b => "the broker is shutting down",
            0x8c => "the broker does not support this way to authenticate",
            0x8d => "the broker heard nothing within the keep-alive",
            0x8e => "another client has connected with this client id and taken the session over",
            0x8f => "the broker does not accept this topic filter",
            0x90 => "the broker does not accept this topic name",
            0x91 => "the broker says the packet identifier is in use",
            0x92 => "the broker does not know the packet identifier",
            0x93 => "the broker says more was sent than its receive maximum",
            0x94 => "the broker does not accept the topic alias",
            0x95 => "the packet is larger than the broker accepts",
            0x96 => "the broker says messages come too fast",
            0x97 => "a quota of the broker is exceeded",
            0x98 => "the broker's administrator ended the connection",
            0x99 => "the payload is not of the format that was announced",
            0x9a => "the broker does not support retained messages",
            0x9b => "the broker does not support this QoS",
            0x9c => "the broker says to use another server for now",
            0x9d => "the broker says it has moved to another server",
            0x9e => "the broker does not support shared subscriptions",
            0x9f => "the broker says connections come too fast",
            0xa0 => "the longest time that the broker grants a connection is over",
            0xa1 => "the broker does not support subscription identifiers",
            0xa2 => "the broker does not support wildcards in subscriptions",
            other => return write!(f, "the broker gives reason code {other:#04x}"),
        })
    }
}

/// A refusal, or the end of a connection, in the broker's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}{}", quoted(.said.as_deref()))]
pub struct Refusal {
    /// The reason code.
    pub reason: Reason,
    /// Reason string or server reference (MQTT 5), cut and escaped when shown: it is for people, not for us.
    pub said: Option<String>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal { reason, said: None }
    }
}

/// Longest text of a broker in a log line.
const SAID_CHARS_MAX: usize = 200;

fn quoted(said: Option<&str>) -> String {
    match said {
        None | Some("") => String::new(),
        Some(said) => format!(", it says {:?}", said.chars().take(SAID_CHARS_MAX).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_of_the_specification_has_a_text_of_its_own() {
        let codes = [0, 4].into_iter().chain(0x80..=0xa2);
        let texts: Vec<String> = codes.map(|code| Reason(code).to_string()).collect();
        assert!(texts.iter().all(|text| !text.contains("reason code")), "{texts:?}");
        assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len());
        assert_eq!(Reason(0xee).to_string(), "the broker gives reason code 0xee");
    }

    #[test]
    fn what_the_broker_says_is_cut_and_escaped() {
        let said = Some(format!("line\n{}", "x".repeat(1000)));
        let text = Refusal { reason: Reason::CREDENTIALS, said }.to_string();
        assert!(text.starts_with("the broker refused the user name or password, it says \"line\\nxxx"));
        assert!(text.len() < 300);
        assert_eq!(Refusal::from(Reason::TAKEN_OVER).to_string(), Reason::TAKEN_OVER.to_string());
    }
}
