//! SCRAM (RFC 5802) with SHA-256 (RFC 7677) and SHA-512, the client's side, without channel binding.
//!
//! The password is taken as UTF-8 without SASLprep, as Kafka's own `ScramFormatter` does on both sides.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use super::{SaslError, Step};
use crate::secret::Secret;

/// Kafka itself refuses fewer; a server that asks for less wants the password to be guessed easily (RFC 7677 section 4).
const ITERATIONS_MIN: u32 = 4096;
/// Half a second of a board with a slow ARM processor, and far above what is in use: Kafka's default is 4096, and its tools take
/// 16384 at most.
const ITERATIONS_MAX: u32 = 100_000;
/// Random part of the nonce, bytes.
pub const NONCE_BYTES: usize = 24;

/// The hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl Hash {
    fn mechanism(self) -> &'static str {
        match self {
            Hash::Sha256 => "SCRAM-SHA-256",
            Hash::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(bytes).to_vec(),
            Hash::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], bytes: &[u8]) -> Vec<u8> {
        fn with<M: Mac + KeyInit>(key: &[u8], bytes: &[u8]) -> Vec<u8> {
            // HMAC takes keys of any length (RFC 2104): there is no error to have.
            let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
            mac.update(bytes);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Hash::Sha256 => with::<Hmac<Sha256>>(key, bytes),
            Hash::Sha512 => with::<Hmac<Sha512>>(key, bytes),
        }
    }

    /// `Hi` of RFC 5802 section 2.2, which is PBKDF2.
    fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Hash::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, iterations).to_vec(),
        }
    }
}

/// The base64 of random bytes, for [`Client::begin`].
pub fn nonce(random: [u8; NONCE_BYTES]) -> String {
    STANDARD.encode(random)
}

/// One authentication, from the client's side.
pub struct Client {
    hash: Hash,
    password: Secret,
    first_bare: String,
    nonce: String,
    state: State,
}

enum State {
    WaitsForFirst,
    WaitsForFinal { server_signature: Vec<u8> },
    Done,
}

impl Client {
    /// Gives the client-first-message.
    pub fn begin(hash: Hash, user: &str, password: Secret, nonce: &str) -> (Client, Vec<u8>) {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        let message = format!("n,,{first_bare}").into_bytes();
        let client =
            Client { hash, password, first_bare, nonce: nonce.to_owned(), state: State::WaitsForFirst };
        (client, message)
    }

    /// Takes a message of the server.
    ///
    /// # Errors
    /// It is malformed, or refuses, or does not prove that the server knows the password.
    pub fn next(&mut self, message: &[u8]) -> Result<Step, SaslError> {
        let mechanism = self.hash.mechanism();
        let protocol = |what| SaslError::Protocol { mechanism, what };
        let text = std::str::from_utf8(message).map_err(|_| protocol("is not UTF-8"))?;
        if let Some(why) = text.strip_prefix("e=") {
            return Err(SaslError::Refused { mechanism, message: why.to_owned() });
        }
        match &self.state {
            State::WaitsForFirst => {
                let (answer, server_signature) = self.answer(text).map_err(protocol)?;
                self.state = State::WaitsForFinal { server_signature };
                Ok(Step::Send(answer))
            }
            State::WaitsForFinal { server_signature } => {
                let signature = text.strip_prefix("v=").ok_or_else(|| protocol("has no server signature"))?;
                let signature = signature.split(',').next().unwrap_or_default();
                if STANDARD.decode(signature).is_ok_and(|signature| signature == *server_signature) {
                    self.state = State::Done;
                    Ok(Step::Done)
                } else {
                    Err(SaslError::WrongServerSignature { mechanism })
                }
            }
            State::Done => Err(protocol("comes after the end")),
        }
    }

    /// The client-final-message to a server-first-message, and the signature that the server must give.
    fn answer(&self, server_first: &str) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
        let mut fields = server_first.split(',');
        let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name));
        let nonce = field("r=").ok_or("has no nonce")?;
        let salt = field("s=").ok_or("has no salt")?;
        let iterations = field("i=").and_then(|text| text.parse().ok()).ok_or("has no iteration count")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("has a nonce that is not built on ours");
        }
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err("has an iteration count out of bounds (4096 to 100000)");
        }
        let salt = STANDARD.decode(salt).map_err(|_| "has a salt that is not base64")?;
        let hash = self.hash;
        let salted = hash.salted_password(self.password.expose().as_bytes(), &salt, iterations);
        let client_key = hash.hmac(&salted, b"Client Key");
        let stored_key = hash.digest(&client_key);
        // "biws" is the base64 of "n,,": no channel binding.
        let final_bare = format!("c=biws,r={nonce}");
        let auth_message = format!("{},{server_first},{final_bare}", self.first_bare);
        let signature = hash.hmac(&stored_key, auth_message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, bit)| key ^ bit).collect();
        let server_key = hash.hmac(&salted, b"Server Key");
        let server_signature = hash.hmac(&server_key, auth_message.as_bytes());
        let message = format!("{final_bare},p={}", STANDARD.encode(proof));
        Ok((message.into_bytes(), server_signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 7677 section 3.
    fn of_the_rfc(password: &str) -> Client {
        let (client, first) =
            Client::begin(Hash::Sha256, "user", Secret::new(password), "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        client
    }

    const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    #[test]
    fn the_example_of_rfc_7677() {
        let mut client = of_the_rfc("pencil");
        let expected = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(client.next(SERVER_FIRST).unwrap(), Step::Send(expected.as_bytes().to_vec()));
        assert_eq!(client.next(SERVER_FINAL).unwrap(), Step::Done);
        assert!(client.next(SERVER_FINAL).is_err());
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        let mut client = of_the_rfc("pencil");
        client.next(SERVER_FIRST).unwrap();
        let error = client.next(b"v=AAriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap_err();
        assert_eq!(error, SaslError::WrongServerSignature { mechanism: "SCRAM-SHA-256" });
        let mut other = of_the_rfc("pencils");
        other.next(SERVER_FIRST).unwrap();
        assert!(other.next(SERVER_FINAL).is_err());
    }

    #[test]
    fn a_refusal_is_told() {
        let mut client = of_the_rfc("pencil");
        client.next(SERVER_FIRST).unwrap();
        let said = client.next(b"e=invalid-proof").unwrap_err().to_string();
        assert_eq!(said, "SCRAM-SHA-256 authentication is refused by the broker: invalid-proof");
    }

    #[test]
    fn names_are_escaped() {
        let (_, first) = Client::begin(Hash::Sha512, "a=b,c", Secret::new("x"), "n");
        assert_eq!(first, b"n,,n=a=3Db=2Cc,r=n");
    }

    #[test]
    fn what_a_server_must_not_say_is_refused() {
        for (message, what) in [
            ("", "has no nonce"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096", "has a nonce that is not built on ours"),
            ("r=other,s=W22Z,i=4096", "has a nonce that is not built on ours"),
            ("r=rOprNGfwEbeRWgbNEkqOx,i=4096", "has no salt"),
            (
                "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4095",
                "has an iteration count out of bounds (4096 to 100000)",
            ),
            (
                "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4000000000",
                "has an iteration count out of bounds (4096 to 100000)",
            ),
            (
                "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=100001",
                "has an iteration count out of bounds (4096 to 100000)",
            ),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=-1", "has no iteration count"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=*,i=4096", "has a salt that is not base64"),
            ("m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4096", "has no nonce"),
        ] {
            let expected = SaslError::Protocol { mechanism: "SCRAM-SHA-256", what };
            assert_eq!(of_the_rfc("pencil").next(message.as_bytes()), Err(expected), "{message}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Any server that follows RFC 5802 with the same password is believed, and verifies the client's proof.
        #[test]
        fn both_sides_agree(
            user in "[a-z=,]{1,12}", password in "\\PC{1,20}", salt in proptest::collection::vec(any::<u8>(), 1..32),
            nonce in "[!-+.-~]{8,24}", more in "[!-+.-~]{1,24}", long in any::<bool>(),
        ) {
            let hash = if long { Hash::Sha512 } else { Hash::Sha256 };
            let (mut client, first) = Client::begin(hash, &user, Secret::new(&*password), &nonce);
            let first = String::from_utf8(first).unwrap();
            let server_first = format!("r={nonce}{more},s={},i=4096", STANDARD.encode(&salt));
            let Step::Send(last) = client.next(server_first.as_bytes()).unwrap() else { panic!("no answer") };
            let last = String::from_utf8(last).unwrap();
            let (final_bare, proof) = last.rsplit_once(",p=").unwrap();
            let auth = format!("{},{server_first},{final_bare}", &first[3..]);
            let salted = hash.salted_password(password.as_bytes(), &salt, 4096);
            let stored = hash.digest(&hash.hmac(&salted, b"Client Key"));
            let signature = hash.hmac(&stored, auth.as_bytes());
            let key: Vec<u8> =
                STANDARD.decode(proof).unwrap().iter().zip(&signature).map(|(a, b)| a ^ b).collect();
            prop_assert_eq!(hash.digest(&key), stored);
            let server = hash.hmac(&hash.hmac(&salted, b"Server Key"), auth.as_bytes());
            prop_assert_eq!(client.next(format!("v={}", STANDARD.encode(server)).as_bytes()), Ok(Step::Done));
        }
    }
}
