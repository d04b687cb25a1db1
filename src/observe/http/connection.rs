//! One connection: a request is read, its answer written, and what the client still sends read past, so that the answer arrives (closing
//! a socket with unread input resets the connection). Each step has its time, counted from its beginning and not from the last byte: a
//! client that sends a byte now and then gains nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::super::pages::Page;
use super::request::{Outcome, REQUEST_BYTES_MAX, answer};

/// For a request to be whole, and for its answer to be taken.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// For the client to end its side once it has the answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// What is read past in that time at the most, bytes.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Ends the sending side of a stream.
pub trait Shut {
    /// Nothing more will be written.
    ///
    /// # Errors
    /// The operating system's.
    fn shut(&mut self) -> io::Result<()>;
}

impl Shut for std::net::TcpStream {
    fn shut(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

/// What is being done.
#[derive(Debug)]
enum Step {
    Reading(Vec<u8>),
    Writing { bytes: Vec<u8>, written: usize },
    Lingering { read_past: usize },
}

/// See the module head.
#[derive(Debug)]
pub struct Connection<S> {
    /// Its socket, which does not block.
    pub stream: S,
    step: Step,
    /// When the step must be over.
    pub deadline: Instant,
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Bytes of the client.
    Read,
    /// Room for bytes of ours.
    Write,
    /// Nothing: it is over.
    End,
}

impl<S: Read + Write + Shut> Connection<S> {
    /// A connection that was accepted just now.
    pub fn new(stream: S, now: Instant) -> Self {
        Connection { stream, step: Step::Reading(Vec::new()), deadline: now + STEP_TIMEOUT }
    }

    /// What is lost with it, when there must be room for another: least of all one whose answer is written.
    pub fn worth(&self) -> u8 {
        match self.step {
            Step::Lingering { .. } => 0,
            Step::Reading(_) => 1,
            Step::Writing { .. } => 2,
        }
    }

    /// What it waits for.
    pub fn wants(&self) -> Wants {
        match self.step {
            Step::Reading(_) | Step::Lingering { .. } => Wants::Read,
            Step::Writing { .. } => Wants::Write,
        }
    }

    /// Goes as far as it can without waiting, and says what it waits for then.
    pub fn advance(&mut self, now: Instant, page: &dyn Fn(&str) -> Option<Page>) -> Wants {
        loop {
            let done = match &mut self.step {
                Step::Reading(_) => self.read(page),
                Step::Writing { .. } => self.write(),
                Step::Lingering { .. } => return self.read_past(),
            };
            match done {
                Ok(Some((step, timeout))) => {
                    self.step = step;
                    self.deadline = now + timeout;
                }
                Ok(None) => return self.wants(),
                Err(_) => return Wants::End,
            }
        }
    }

    /// Some: the next step, and its time. None: it has to wait.
    fn read(&mut self, page: &dyn Fn(&str) -> Option<Page>) -> io::Result<Option<(Step, Duration)>> {
        let Step::Reading(request) = &mut self.step else { return Ok(None) };
        let mut bytes = [0; 2048];
        loop {
            let room = (REQUEST_BYTES_MAX - request.len()).min(bytes.len());
            let read = match self.stream.read(bytes.get_mut(..room).unwrap_or_default()) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (new, first) = (bytes.get(..read).unwrap_or_default(), request.is_empty());
            request.extend_from_slice(new);
            // A line that is not whole says nothing new: who sends byte by byte must not have all of it read for each.
            if !first && !new.contains(&b'\n') && request.len() < REQUEST_BYTES_MAX {
                continue;
            }
            // The limit ends it: a request of that length always has an answer, so there is room for another byte above.
            if let Outcome::Answer(bytes) = answer(request, page) {
                return Ok(Some((Step::Writing { bytes, written: 0 }, STEP_TIMEOUT)));
            }
        }
    }

    fn write(&mut self) -> io::Result<Option<(Step, Duration)>> {
        let Step::Writing { bytes, written } = &mut self.step else { return Ok(None) };
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.shut()?;
        Ok(Some((Step::Lingering { read_past: 0 }, LINGER_TIMEOUT)))
    }

    fn read_past(&mut self) -> Wants {
        let Step::Lingering { read_past } = &mut self.step else { return Wants::End };
        let mut bytes = [0; 4096];
        while *read_past < LINGER_BYTES_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Wants::End,
                Ok(count) => *read_past += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Wants::Read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Wants::End,
            }
        }
        Wants::End
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A client that has sent these pieces, and takes so many bytes at a time.
    #[derive(Debug, Default)]
    struct Script {
        sends: VecDeque<Vec<u8>>,
        closes: bool,
        takes: usize,
        got: Vec<u8>,
        shut: bool,
    }

    impl Read for Script {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(!into.is_empty(), "there is always room for more");
            let Some(mut piece) = self.sends.pop_front() else {
                return if self.closes { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
            };
            let count = piece.len().min(into.len());
            into[..count].copy_from_slice(&piece[..count]);
            if count < piece.len() {
                self.sends.push_front(piece.split_off(count));
            }
            Ok(count)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(std::mem::take(&mut self.takes));
            self.got.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shut for Script {
        fn shut(&mut self) -> io::Result<()> {
            self.shut = true;
            Ok(())
        }
    }

    fn page(_: &str) -> Option<Page> {
        Some(Page { status: 200, content_type: "text/x", body: "body".to_owned() })
    }

    fn connection(script: Script) -> (Connection<Script>, Instant) {
        let now = Instant::now();
        (Connection::new(script, now), now)
    }

    #[test]
    fn a_request_in_pieces_is_answered_in_pieces_and_the_end_is_waited_for() {
        let (mut connection, now) = connection(Script::default());
        for piece in ["GE", "T / HTTP/1.1\r\nHo", "st: a\r\n"] {
            connection.stream.sends.push_back(piece.into());
            assert_eq!(connection.advance(now, &page), Wants::Read);
            assert!(connection.worth() == 1 && connection.deadline == now + STEP_TIMEOUT);
        }
        connection.stream.sends.push_back(b"\r\n".to_vec());
        let later = now + Duration::from_secs(4);
        assert_eq!(connection.advance(later, &page), Wants::Write);
        assert_eq!(connection.deadline, later + STEP_TIMEOUT);
        for _ in 0..1000 {
            connection.stream.takes = 10;
            if connection.advance(later, &page) == Wants::Read {
                break;
            }
        }
        assert!(connection.stream.shut && connection.stream.got.ends_with(b"\r\n\r\nbody"));
        assert_eq!(connection.deadline, later + LINGER_TIMEOUT);
        connection.stream.closes = true;
        assert_eq!(connection.advance(later, &page), Wants::End);
    }

    #[test]
    fn a_request_without_end_is_refused_and_read_past_up_to_a_limit() {
        let mut script = Script { takes: 100_000, ..Script::default() };
        script.sends.push_back(b"GET / HTTP/1.1\r\nX: ".to_vec());
        script.sends.extend((0..100).map(|_| vec![b'x'; 100_000]));
        let (mut connection, now) = connection(script);
        assert_eq!(connection.advance(now, &page), Wants::End);
        assert!(connection.stream.got.starts_with(b"HTTP/1.1 431 "));
        let left: usize = connection.stream.sends.iter().map(Vec::len).sum();
        assert!(left > 10_000_000 - LINGER_BYTES_MAX - 200_000, "{left}");
    }

    #[test]
    fn a_client_that_goes_before_its_request_is_whole_ends_it() {
        let mut script = Script { closes: true, ..Script::default() };
        script.sends.push_back(b"GET / HT".to_vec());
        let (mut connection, now) = connection(script);
        assert_eq!(connection.advance(now, &page), Wants::End);
        assert!(connection.stream.got.is_empty());
    }
}
