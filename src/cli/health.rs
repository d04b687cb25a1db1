//! `tidegate health`: asks the gateway that runs here how it is. For Docker's HEALTHCHECK, probes and people.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::Agent;

use super::CliError;
use crate::config::ConfigErrors;
use crate::observe::log::one_line;

/// A probe that waits longer than who asked for it (the image's HEALTHCHECK: 5 s) says nothing; the page is there in a millisecond.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The page is a few lines.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why the gateway is not known to be well.
#[derive(Debug, thiserror::Error)]
pub enum UnwellError {
    /// Where it listens is not known.
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
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
    /// Port 0 is a port that the system chooses.
    #[error("HTTP_LISTEN has port 0: the port that it became is in the gateway's log; give it here")]
    AnyPort,
    /// Something answers, and it is not tidegate.
    #[error(
        "http://{address}{path} answers, but not as tidegate does: does another program have this address?"
    )]
    Stranger {
        /// Where the gateway should listen.
        address: SocketAddr,
        /// The page.
        path: &'static str,
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
    let listens = address.ok_or(UnwellError::Off)?;
    if listens.port() == 0 {
        return Err(UnwellError::AnyPort.into());
    }
    let (path, what, word) =
        if ready { ("/readyz", "not ready", "ready") } else { ("/healthz", "not healthy", "healthy") };
    let (address, status, said) = ask_somewhere(listens, path)?;
    let lines: Vec<&str> = said.lines().collect();
    let said = one_line(&lines.join("; ")).into_owned();
    if status != 200 {
        return Err(UnwellError::Unwell { what, said }.into());
    }
    if lines.first() != Some(&word) {
        return Err(UnwellError::Stranger { address, path }.into());
    }
    Ok(writeln!(out, "{said}")?)
}

fn ask_somewhere(listens: SocketAddr, path: &'static str) -> Result<(SocketAddr, u16, String), UnwellError> {
    let mut first = None;
    let addresses = reachable(listens);
    let timeout = TIMEOUT / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    for address in addresses {
        match ask(address, path, timeout) {
            Ok((status, said)) => return Ok((address, status, said)),
            Err(source) => {
                first.get_or_insert(UnwellError::Silent { address, path, source: Box::new(source) });
            }
        }
    }
    Err(first.unwrap_or(UnwellError::Off))
}

fn ask(address: SocketAddr, path: &str, timeout: Duration) -> Result<(u16, String), ureq::Error> {
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
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
/// `[::]` means IPv4 too, and some machines have no IPv6 on loopback.
fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port());
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v6, v4],
        _ => vec![address],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_listens_everywhere_is_asked_on_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1 127.0.0.1:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("127.0.0.1:9464", "127.0.0.1:9464"),
        ] {
            let asked: Vec<SocketAddr> = asked.split(' ').map(|address| address.parse().unwrap()).collect();
            assert_eq!(reachable(listens.parse().unwrap()), asked);
        }
    }
}
