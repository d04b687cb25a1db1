//! The ZooKeeper of a Kafka that needs one, from the same jars.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::kafka_version::Version;
use super::process::{Process, tail};
use super::until;

/// Milliseconds. The broker asks for a session of twelve of these.
const TICK: u32 = 500;
/// What the broker asks for. A killed broker is noticed after this.
pub const SESSION_MS: u32 = 12 * TICK;

pub struct ZooKeeper {
    pub port: u16,
    process: Process,
}

impl ZooKeeper {
    /// Starts one and waits until it serves; None if it ended, as it does when its port is taken.
    pub fn start(version: Version, dir: &Path, port: u16) -> Option<ZooKeeper> {
        fs::create_dir_all(dir).expect("folder for ZooKeeper");
        let text = format!(
            "tickTime={TICK}\ndataDir={}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\n4lw.commands.whitelist=ruok,dump\n",
            dir.display()
        );
        fs::write(dir.join("zoo.cfg"), text).expect("zoo.cfg");
        let mut command = version.java(&["org.apache.zookeeper.server.quorum.QuorumPeerMain", "zoo.cfg"]);
        let mut process = Process::start("zookeeper", dir, &mut command);
        let up = until("ZooKeeper to serve", Duration::from_secs(60), || {
            if process.ended().is_some() {
                let log = tail(&process.log, 40);
                assert!(log.contains("already in use"), "ZooKeeper ended at its start\n{log}");
                return Ok(false);
            }
            if ask(port, "ruok")? == "imok" { Ok(true) } else { Err("not ok".to_owned()) }
        });
        up.then_some(ZooKeeper { port, process })
    }

    pub fn freeze(&self) {
        self.process.freeze();
    }

    pub fn thaw(&self) {
        self.process.thaw();
    }
}

/// Waits until the session of a killed broker has ended: before that, the broker cannot come back.
pub fn wait_forgotten(port: u16, broker: i32) {
    let node = format!("/brokers/ids/{broker}");
    until("ZooKeeper to forget a killed broker", Duration::from_secs(30), || {
        let sessions = ask(port, "dump")?;
        let known = sessions.lines().any(|line| line.trim() == node);
        if known { Err(format!("{node} is still there")) } else { Ok(()) }
    });
}

/// One of ZooKeeper's commands of four letters.
fn ask(port: u16, command: &str) -> Result<String, String> {
    let text = |error: std::io::Error| format!("{command}: {error}");
    let mut socket = TcpStream::connect(("127.0.0.1", port)).map_err(text)?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(text)?;
    socket.write_all(command.as_bytes()).map_err(text)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).map_err(text)?;
    Ok(answer)
}
