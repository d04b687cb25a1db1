//! `tidegate health`: asks the gateway that runs here how it is. For Docker's HEALTHCHECK, probes and people.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::Agent;

use super::CliError;
use crate::observe::log::one_line;

/// A probe that waits longer than Docker does (30 s) says nothing; the page is there in a millisecond.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The page is a few lines.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why the gateway is not known to be well.
#[derive(Debug, thiserror::Error)]
pub enum UnwellError {
    /// It does not listen.
    #[error("HTTP_LISTEN is off: there is nobody to ask")]
    Off,
    /// No answer: it does not run, or hangs.
    #[error("http://{address}{path} does not answer")]
    Silent {
        /// Where it should listen.
        address: SocketAddr,
        /// The page.
        path: &'static str,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// Its own words.
    #[error("{what}: {said}")]
    Unwell {
        /// What it is not.
        what: &'static str,
        /// Why.
        said: String,
    },
}

/// Asks, and writes one line if it is well.
pub(super) fn health(address: Option<SocketAddr>, ready: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let address = reachable(address.ok_or(UnwellError::Off)?);
    let (path, what) = if ready { ("/readyz", "not ready") } else { ("/healthz", "not healthy") };
    let (status, said) = ask(address, path).map_err(|source| UnwellError::Silent {
        address,
        path,
        source: Box::new(source),
    })?;
    let lines: Vec<&str> = said.lines().collect();
    let said = one_line(&lines.join("; ")).into_owned();
    if status != 200 {
        return Err(UnwellError::Unwell { what, said }.into());
    }
    Ok(writeln!(out, "{said}")?)
}

fn ask(address: SocketAddr, path: &str) -> Result<(u16, String), ureq::Error> {
    let config = Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        // What the environment names is for the way out.
        .proxy(None)
        .build();
    let mut response = Agent::new_with_config(config).get(format!("http://{address}{path}")).call()?;
    let said = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok((response.status().as_u16(), said))
}

/// Where one that listens at `address` is reached from here: one that listens everywhere listens on loopback too.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_listens_everywhere_is_asked_on_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("127.0.0.1:9464", "127.0.0.1:9464"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
