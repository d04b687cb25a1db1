//! A Mosquitto of the test's own.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::certs::{Authority, Identity, text};
use super::process::{Process, installed};
use super::stage::free_ports;
use super::until;

pub struct Mosquitto {
    pub port: u16,
    /// For TLS, with a certificate asked of the client; none.
    pub secure_port: Option<u16>,
    dir: PathBuf,
    process: Option<Process>,
}

impl Mosquitto {
    /// Starts one; `config` are lines for mosquitto.conf beyond listener and log.
    pub fn start(dir: &Path, config: &str) -> Mosquitto {
        for _ in 0..5 {
            let mut mosquitto = Mosquitto::prepare(dir, config);
            if mosquitto.try_start() {
                return mosquitto;
            }
            // Somebody took the port between our look and its bind.
        }
        panic!(
            "mosquitto did not start in five attempts\n{}",
            super::process::tail(&dir.join("mosquitto.log"), 10)
        );
    }

    /// Starts one that has a second port, for TLS, and wants a certificate of this authority there. The publisher comes by the
    /// first.
    pub fn start_secured(dir: &Path, server: &Identity, authority: &Authority, config: &str) -> Mosquitto {
        for _ in 0..5 {
            let port = free_ports(1)[0];
            let listener = format!(
                "{config}\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
                text(&authority.file),
                text(&server.certificate),
                text(&server.key)
            );
            let mut mosquitto = Mosquitto::prepare(dir, &listener);
            mosquitto.secure_port = Some(port);
            if mosquitto.try_start() {
                return mosquitto;
            }
        }
        panic!(
            "mosquitto did not start in five attempts\n{}",
            super::process::tail(&dir.join("mosquitto.log"), 10)
        );
    }

    /// Chooses the port and writes the configuration, and starts nothing yet.
    pub fn prepare(dir: &Path, config: &str) -> Mosquitto {
        let dir = dir.to_owned();
        fs::create_dir_all(dir.join("mosquitto")).expect("folder for mosquitto");
        let port = free_ports(1)[0];
        let lines = format!(
            // As root Mosquitto changes its user, who may not write here; for others the line has no effect.
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
             log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n\
             connection_messages true\npersistence_location {}/mosquitto/\n{config}\n",
            dir.display()
        );
        fs::write(dir.join("mosquitto.conf"), lines).expect("mosquitto.conf");
        Mosquitto { port, secure_port: None, dir, process: None }
    }

    fn try_start(&mut self) -> bool {
        let mut command = installed("mosquitto");
        command.arg("-c").arg(self.dir.join("mosquitto.conf"));
        let mut process = Process::start("mosquitto", &self.dir, &mut command);
        let port = self.port;
        let up = until("mosquitto to listen", Duration::from_secs(10), || {
            if let Some(status) = process.ended() {
                return Ok(status.success());
            }
            TcpStream::connect(("127.0.0.1", port)).map(|_| true)
        });
        // Another program may have answered in its place.
        if !up || process.ended().is_some() {
            return false;
        }
        self.process = Some(process);
        true
    }

    /// Starts it on its port, with its stored sessions if it has `persistence true`.
    pub fn up(&mut self) {
        assert!(self.try_start(), "mosquitto does not start on port {}", self.port);
    }

    /// Stops it in order: with `persistence true` it stores its sessions.
    pub fn down(&mut self) {
        self.process.take().expect("mosquitto runs").terminate(Duration::from_secs(20));
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.dir.join("mosquitto.log")).unwrap_or_default()
    }

    /// Waits until Mosquitto itself says that this client has subscribed.
    pub fn wait_subscribed(&self, client_id: &str, filter: &str, limit: Duration) {
        let wanted = [0, 1, 2].map(|qos| format!("{client_id} {qos} {filter}"));
        until(&format!("{client_id} to subscribe to {filter}"), limit, || {
            let log = self.log_text();
            let found = log.lines().any(|line| wanted.iter().any(|wanted| line.ends_with(wanted.as_str())));
            if found { Ok(()) } else { Err(super::process::tail(&self.dir.join("mosquitto.log"), 5)) }
        });
    }

    /// Panics if its own limits made it drop messages, which no gateway can bring back. To be asked when the load has ended
    /// and before all of it is waited for: then a loss names its cause.
    pub fn assert_kept_all(&self) {
        let log = self.log_text();
        let drops: Vec<&str> = log.lines().filter(|line| line.contains("being dropped")).collect();
        assert!(drops.is_empty(), "Mosquitto's own queue was full, which tidegate is to prevent: {drops:?}");
    }

    /// How often this client has connected.
    pub fn connections_of(&self, client_id: &str) -> usize {
        let client = format!(" as {client_id} (");
        self.log_text()
            .lines()
            .filter(|line| line.contains("New client connected") && line.contains(&client))
            .count()
    }
}
