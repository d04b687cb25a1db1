//! One request to the token endpoint, and everything that can be wrong with it.
//!
//! Source: RFC 6749 sections 4.4 and 5, RFC 6750 for what a token may consist of.

use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroU16;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::config::ConfigBuilder;
use ureq::http::Uri;
use ureq::typestate::AgentScope;
use ureq::{Agent, Timeout};

use super::{ClientAuth, TokenOptions, date, jwt};
use crate::secret::Secret;
use crate::tls::{self, TlsError};

/// A token is a few kB; what is larger is something else.
const RESPONSE_BYTES_MAX: u64 = 256 * 1024;
/// The life of a token of which nobody tells it (RFC 6749 section 5.1 only recommends that it is told).
const LIFE_UNTOLD: Duration = Duration::from_secs(300);
/// Longer lives are taken for this one: the end of a life is a point in time, and there is a last one.
const LIFE_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Clocks differ by so much without anybody's fault.
const SKEW_HARMLESS_SEC: i64 = 5;

/// A URL that tokens can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    host: String,
    is_https: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Endpoint {
    /// Parses `https://HOST[:PORT]/PATH`, or the same with http.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Endpoint, &'static str> {
        let expected = "expected https://HOST[:PORT]/PATH";
        let uri: Uri = text.parse().map_err(|_| expected)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(expected),
        };
        let authority = uri.authority().ok_or(expected)?;
        if authority.as_str().contains('@') {
            return Err("expected no user name and password in it: they are SASL_OAUTHBEARER_CLIENT_ID and \
                        SASL_OAUTHBEARER_CLIENT_SECRET");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(expected);
        }
        // The HTTP client takes a port that is none for the default, and would send the secret there.
        let behind = authority.as_str().strip_prefix(authority.host()).ok_or(expected)?;
        let port = behind.strip_prefix(':');
        let is_port =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<NonZeroU16>().is_ok();
        if port.is_none() && !behind.is_empty() || port.is_some_and(|port| !is_port(port)) {
            return Err("expected a port from 1 to 65535 behind the host's colon");
        }
        Ok(Endpoint { url: text.to_owned(), host, is_https })
    }

    /// Whether TLS protects what is said to it.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether it is on this machine, where nobody listens in between.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// A token as it was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// It.
    pub token: Secret,
    /// How long it may be used from now on.
    pub life: Duration,
    /// How far this machine's clock is ahead of the endpoint's, seconds, where that is more than nobody's fault.
    pub clock_ahead_sec: Option<i64>,
}

/// Why there is no token. Each has its own message; an operator must act on all but those that pass by themselves.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its CA file cannot be used.
    #[error("the token endpoint cannot be asked")]
    Files(#[source] TlsError),
    /// No TLS with it.
    #[error("no TLS with the token endpoint")]
    Tls(#[source] TlsError),
    /// Its host has no address.
    #[error("the token endpoint's host {host} cannot be resolved")]
    Resolve {
        /// The host.
        host: String,
    },
    /// It cannot be reached.
    #[error("the token endpoint {url} cannot be reached")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("the token endpoint {url} did not answer within {sec:.0} s ({step})")]
    Slow {
        /// Where.
        url: String,
        /// The limit, seconds.
        sec: f32,
        /// What was waited for.
        step: String,
    },
    /// 401, or 400 with an error that says so: it does not take who we are.
    #[error("the token endpoint refuses client id or secret: {status}{said}")]
    Refused {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 400 with `invalid_scope`.
    #[error("the token endpoint does not grant the scope ({scope}): {status}{said}")]
    Scope {
        /// Which.
        scope: String,
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 400 with another error: it does not take the request, whoever asks.
    #[error("the token endpoint does not take the request for a token: {status}{said}")]
    Request {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 403: it knows us, and gives us none.
    #[error("the token endpoint forbids this client to have a token: {status}{said}")]
    Forbidden {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 429: it is asked too often, by this client or by all of them.
    #[error("the token endpoint is asked too often: {status}{said}")]
    TooOften {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 5xx: it is broken, or its database is.
    #[error("the token endpoint has a fault of its own: {status}{said}")]
    Broken {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// Another status: the URL is not that of a token endpoint.
    #[error("the token endpoint answered {status}{said}: is SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI right?")]
    Status {
        /// The status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// 200, and no token in it.
    #[error("the token endpoint's answer is no token: {what}")]
    Nonsense {
        /// What it is.
        what: String,
    },
    /// A token that is over already.
    #[error("the token endpoint gave a token that has expired {sec} s ago{by}")]
    Expired {
        /// Seconds since its end.
        sec: i64,
        /// By which clock.
        by: &'static str,
    },
    /// A token for later.
    #[error("the token endpoint gave a token that is not valid for another {sec} s{by}")]
    NotYetValid {
        /// Seconds until its beginning.
        sec: i64,
        /// By which clock.
        by: &'static str,
    },
    /// A panic while it was asked: a defect.
    #[error("asking the token endpoint failed by a defect of tidegate: {what}")]
    Defect {
        /// The panic's text.
        what: String,
    },
    /// Anything else of the HTTP client.
    #[error("the token endpoint {url} cannot be asked: {what}")]
    Http {
        /// Where.
        url: String,
        /// What it says.
        what: String,
    },
}

/// Asks for a token. `now_sec` is this machine's clock, seconds since the Unix epoch.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch(options: &TokenOptions, now_sec: i64) -> Result<Fetched, FetchError> {
    let agent = agent(options)?;
    let body = body(options);
    let mut request = agent
        .post(&options.endpoint.url)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Accept", "application/json");
    if options.client_auth == ClientAuth::Basic {
        let pair = format!("{}:{}", form(&options.client_id), form(options.client_secret.expose()));
        request = request.header("Authorization", format!("Basic {}", STANDARD.encode(pair)));
    }
    let failed = |error| explain(options, error);
    let response = request.send(body).map_err(failed)?;
    let status = response.status().as_u16();
    let date = response.headers().get("date").and_then(|value| value.to_str().ok()).and_then(date::parse);
    let mut text = Vec::new();
    let mut reader = response.into_body().into_reader().take(RESPONSE_BYTES_MAX + 1);
    reader.read_to_end(&mut text).map_err(|error| failed(ureq::Error::from(error)))?;
    if text.len() as u64 > RESPONSE_BYTES_MAX {
        return Err(FetchError::Nonsense { what: format!("it is larger than {RESPONSE_BYTES_MAX} bytes") });
    }
    if status != 200 {
        return Err(unsuccessful(status, &text, options));
    }
    read_token(&text, date, now_sec)
}

fn agent(options: &TokenOptions) -> Result<Agent, FetchError> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would carry the secret to another place.
        .max_redirects(0)
        .max_redirects_will_error(false)
        // What the environment says of proxies is no setting of ours.
        .proxy(None)
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(options.timeout))
        .timeout_resolve(Some(options.timeout / 2))
        .timeout_connect(Some(options.timeout / 2))
        .max_response_header_size(64 * 1024);
    if options.endpoint.is_https {
        config = with_tls(config, options).map_err(FetchError::Files)?;
    }
    Ok(config.build().into())
}

/// With the authorities as the file has them now.
#[cfg(feature = "tls")]
fn with_tls(
    config: ConfigBuilder<AgentScope>,
    options: &TokenOptions,
) -> Result<ConfigBuilder<AgentScope>, TlsError> {
    use ureq::tls::{Certificate, RootCerts, TlsConfig};
    let roots = tls::root_certificates(options.ca_file.as_ref())?;
    tls::prepare_process();
    let roots = roots.iter().map(|der| Certificate::from_der(der).to_owned());
    Ok(config.tls_config(TlsConfig::builder().root_certs(RootCerts::from(roots)).build()))
}

#[cfg(not(feature = "tls"))]
fn with_tls(_: ConfigBuilder<AgentScope>, _: &TokenOptions) -> Result<ConfigBuilder<AgentScope>, TlsError> {
    Err(TlsError::NotBuiltIn)
}

fn body(options: &TokenOptions) -> String {
    let mut body = "grant_type=client_credentials".to_owned();
    if let Some(scope) = &options.scope {
        body.push_str(&format!("&scope={}", form(scope)));
    }
    if options.client_auth == ClientAuth::Post {
        let (id, secret) = (form(&options.client_id), form(options.client_secret.expose()));
        body.push_str(&format!("&client_id={id}&client_secret={secret}"));
    }
    body
}

/// `application/x-www-form-urlencoded` (RFC 6749 appendix B).
fn form(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn explain(options: &TokenOptions, error: ureq::Error) -> FetchError {
    let (url, host) = (options.endpoint.url.clone(), options.endpoint.host.clone());
    let tls_options = tls::TlsOptions { ca_file: options.ca_file.clone(), client: None };
    // ureq does not tell its sources.
    let source: &(dyn std::error::Error + 'static) = match &error {
        ureq::Error::Io(source) => source,
        #[cfg(feature = "tls")]
        ureq::Error::Rustls(source) => source,
        error => error,
    };
    if let Some(error) = tls::explain_foreign(&tls_options, &host, source) {
        return FetchError::Tls(error);
    }
    match error {
        ureq::Error::HostNotFound => FetchError::Resolve { host },
        ureq::Error::Timeout(step) => {
            let step = match step {
                Timeout::Resolve => "resolving its name",
                Timeout::Connect => "connecting",
                Timeout::SendRequest | Timeout::SendBody => "sending",
                Timeout::RecvResponse | Timeout::RecvBody => "its response",
                _ => "all of it",
            };
            FetchError::Slow { url, sec: options.timeout.as_secs_f32(), step: step.to_owned() }
        }
        ureq::Error::Io(source)
            if options.endpoint.is_https && source.kind() == io::ErrorKind::UnexpectedEof =>
        {
            let what = "it closed the connection: it may not speak TLS on this port".to_owned();
            FetchError::Tls(TlsError::Failed { host, what })
        }
        ureq::Error::Io(source) => match io_kind(source) {
            Ok(step) => FetchError::Slow { url, sec: options.timeout.as_secs_f32(), step },
            Err(source) => FetchError::Unreachable { url, source },
        },
        ureq::Error::ConnectionFailed => {
            FetchError::Unreachable { url, source: io::Error::other("the connection failed") }
        }
        error => FetchError::Http { url, what: error.to_string() },
    }
}

/// Ok if it is a time limit in the guise of an I/O error.
fn io_kind(error: io::Error) -> Result<String, io::Error> {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Ok("its response".to_owned()),
        _ => Err(error),
    }
}

/// What a status other than 200 means (RFC 6749 section 5.2).
fn unsuccessful(status: u16, body: &[u8], options: &TokenOptions) -> FetchError {
    let said = said(body, options);
    let json = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    match (status, json.get("error").and_then(|error| error.as_str())) {
        (400, Some("invalid_scope")) => {
            let scope = match &options.scope {
                Some(_) => "SASL_OAUTHBEARER_SCOPE",
                None => "its default, as SASL_OAUTHBEARER_SCOPE is not set",
            };
            FetchError::Scope { scope: scope.to_owned(), status, said }
        }
        (400, None | Some("invalid_client" | "unauthorized_client" | "invalid_grant")) | (401, _) => {
            FetchError::Refused { status, said }
        }
        (400, Some(_)) => FetchError::Request { status, said },
        (403, _) => FetchError::Forbidden { status, said },
        (429, _) => FetchError::TooOften { status, said },
        (500..=599, _) => FetchError::Broken { status, said },
        _ => FetchError::Status { status, said },
    }
}

/// The endpoint's words for an error (RFC 6749 section 5.2), without our secret should it repeat it.
fn said(body: &[u8], options: &TokenOptions) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else { return String::new() };
    let word = |name: &str| json.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let words: Vec<String> = ["error", "error_description"].into_iter().filter_map(word).collect();
    if words.is_empty() {
        return String::new();
    }
    let mut text = words.join(": ");
    let secret = options.client_secret.expose();
    for form in [secret.to_owned(), form(secret)] {
        if !form.is_empty() {
            text = text.replace(&form, "***");
        }
    }
    let text: String = text.chars().take(300).collect();
    format!(" {text}")
}

/// Reads a successful response (RFC 6749 section 5.1).
fn read_token(body: &[u8], date_sec: Option<i64>, now_sec: i64) -> Result<Fetched, FetchError> {
    let nonsense = |what: &str| FetchError::Nonsense { what: what.to_owned() };
    let json: serde_json::Value = serde_json::from_slice(body).map_err(|_| nonsense("it is not JSON"))?;
    let token = json.get("access_token").and_then(|token| token.as_str());
    let token = token.filter(|token| !token.is_empty()).ok_or_else(|| nonsense("it has no access_token"))?;
    // RFC 6750 section 2.1; anything else would break the SASL message.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(nonsense("its access_token has characters that no token has"));
    }
    let kind = json.get("token_type").and_then(|kind| kind.as_str());
    if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(nonsense("its token_type is not Bearer"));
    }
    let claims = jwt::claims(token);
    // The endpoint's own clock, so that a board without a battery can live with the tokens it gets.
    let (reference, by) = match date_sec.or(claims.iat) {
        Some(theirs) => (theirs, ""),
        None => (now_sec, " (by this machine's clock, which may be wrong)"),
    };
    let ahead = now_sec.saturating_sub(reference);
    if let Some(nbf) = claims.nbf.filter(|nbf| *nbf > reference.saturating_add(SKEW_HARMLESS_SEC)) {
        return Err(FetchError::NotYetValid { sec: nbf.saturating_sub(reference), by });
    }
    if let Some(exp) = claims.exp.filter(|exp| *exp <= reference) {
        return Err(FetchError::Expired { sec: reference.saturating_sub(exp), by });
    }
    // Keycloak writes a number, some endpoints a string.
    let told = json.get("expires_in").and_then(|told| match told {
        serde_json::Value::String(text) => text.parse::<f64>().ok(),
        told => told.as_f64(),
    });
    if told.is_some_and(|seconds| seconds <= 0.0) {
        return Err(FetchError::Expired { sec: 0, by: "" });
    }
    let told = told.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let in_it =
        claims.exp.and_then(|exp| u64::try_from(exp.saturating_sub(reference)).ok()).map(Duration::from_secs);
    let life = [told, in_it].into_iter().flatten().min().unwrap_or(LIFE_UNTOLD).min(LIFE_MAX);
    Ok(Fetched {
        token: Secret::new(token),
        life,
        clock_ahead_sec: Some(ahead).filter(|ahead| ahead.saturating_abs() > SKEW_HARMLESS_SEC),
    })
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
