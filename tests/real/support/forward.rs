//! A port that nobody listens on until it leads somewhere.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::stage::free_ports;

pub struct Forward {
    port: u16,
}

impl Forward {
    pub fn prepare() -> Forward {
        Forward { port: free_ports(1)[0] }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on what comes goes to this port of the machine, until the end of the run.
    pub fn begin(self, to: u16) {
        let listener = TcpListener::bind(("127.0.0.1", self.port))
            .unwrap_or_else(|error| panic!("port {}: {error}", self.port));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let ways = [near.try_clone().and_then(|from| Ok((from, far.try_clone()?))), Ok((far, near))];
                for (from, into) in ways.into_iter().flatten() {
                    thread::spawn(move || copy(from, into));
                }
            }
        });
    }
}

fn copy(mut from: TcpStream, mut into: TcpStream) {
    // However one side ends, the other hears of it.
    let _ = io::copy(&mut from, &mut into);
    let _ = into.shutdown(Shutdown::Write);
}
