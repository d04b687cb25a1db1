//! subscriber-kafka: reads Kafka topics from their beginning or from now, prints the records, or with `--verify`
//! keeps the books of what `publisher-mqtt` sent: lost, duplicated, out of order, and how long it took.
//!
//! Exit codes: 0 all is well, 1 the books are not clean or it could not read, 2 the command line.
#![allow(clippy::print_stderr, reason = "a command line tool reports to the terminal")]

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tidegate::cli::assemble;
use tidegate::clients::verify::Verifier;
use tidegate::error::chain;
use tidegate::kafka::client::{Client, ClientError, ClientOptions, FetchPosition};
use tidegate::kafka::connection::{ConnectionOptions, Security};
use tidegate::kafka::protocol::OffsetAt;
use tidegate::kafka::record_batch::Record;
use tidegate::observe::heartbeat::Heartbeats;
use tidegate::observe::log::one_line;
use tidegate::thread;
use tidegate::{clock, config};

/// How long one fetch waits for records: Ctrl-C is seen at least this often.
const FETCH_WAIT: Duration = Duration::from_millis(250);
/// How long a call may take with its retries before it is told on stderr and tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between tries to connect, and after a broker has refused our credentials.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// Room for a whole fetch (see `ClientOptions`).
const RESPONSE_BYTES_MAX: u32 = 64 << 20;

/// Reads Kafka topics. Every setting is also read from the environment and from .env.
#[derive(Debug, Parser)]
#[command(name = "subscriber-kafka", version)]
struct Settings {
    /// Brokers, host:port separated by commas
    #[arg(long, env = "KAFKA_BROKER", required = true, value_delimiter = ',', value_parser = parse_broker)]
    kafka_broker: Vec<(String, u16)>,
    /// Kafka topics, separated by commas
    #[arg(long, env = "TOPIC_LIST", required = true, value_delimiter = ',')]
    topic_list: Vec<String>,
    /// Where to begin
    #[arg(long, env = "FROM", value_enum, default_value_t = Begin::Now)]
    from: Begin,
    /// Count loss, duplicates and order by device and sequence instead of printing the records
    #[arg(long)]
    verify: bool,
    /// Stop after this many records; with --verify, this many different messages, which are then expected
    #[arg(long, value_name = "N")]
    expect: Option<u64>,
    /// Stop when nothing has come for so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle_sec: Option<u64>,
    /// Count only this run of publisher-mqtt
    #[arg(long, env = "RUN_ID")]
    run_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Begin {
    /// The first record there is
    Beginning,
    /// What comes from now on
    Now,
}

fn parse_broker(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.trim().rsplit_once(':').ok_or("expected host:port")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port number"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("expected host:port".into());
    }
    Ok((host.to_owned(), port))
}

/// What became of the records so far.
struct Books {
    verifier: Option<Verifier>,
    records: u64,
    last_at: Instant,
}

impl Books {
    fn take(&mut self, topic: &str, partition: i32, records: &[Record]) -> io::Result<()> {
        let now_ns = clock::unix_ns();
        self.records += records.len() as u64;
        if !records.is_empty() {
            self.last_at = clock::now();
        }
        if let Some(verifier) = &mut self.verifier {
            for record in records {
                verifier.enter(partition, record.value.as_deref().unwrap_or_default(), Some(now_ns));
            }
            return Ok(());
        }
        let mut out = io::stdout().lock();
        for record in records {
            let text = |bytes: &Option<bytes::Bytes>| match bytes {
                Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                None => "(none)".to_owned(),
            };
            let (key, value) = (text(&record.key), text(&record.value));
            writeln!(out, "{topic}-{partition}@{} {key} {value}", record.offset)?;
        }
        out.flush()
    }

    /// How far we are towards `--expect`.
    fn count(&self) -> u64 {
        self.verifier.as_ref().map_or(self.records, Verifier::distinct)
    }
}

/// Connects, waits until the topics are there, and finds where to begin. None if the user stopped it.
fn connect(
    settings: &Settings,
    security: &Security,
    stop: &AtomicBool,
) -> Option<(Client, Vec<FetchPosition>)> {
    let mut told = String::new();
    let mut next_try = clock::now();
    while !stop.load(Ordering::Relaxed) {
        if clock::now() >= next_try {
            let Problem { text, pause } = match try_connect(settings, security) {
                Ok(connected) => return Some(connected),
                Err(problem) => problem,
            };
            next_try = clock::now() + pause;
            if text != told {
                eprintln!("subscriber-kafka: {text}; trying again");
                told = text;
            }
        }
        thread::pause(RETRY_PAUSE);
    }
    None
}

/// Why there is no connection, and how long to wait before the next try.
struct Problem {
    text: String,
    pause: Duration,
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        // More tries of what a broker refuses may lock the account.
        let refused = matches!(&error, ClientError::Unreachable(why) if why.refusal().is_some());
        Problem { text: chain(&error), pause: if refused { REFUSED_PAUSE } else { RETRY_PAUSE } }
    }
}

fn try_connect(settings: &Settings, security: &Security) -> Result<(Client, Vec<FetchPosition>), Problem> {
    let connection = ConnectionOptions {
        client_id: "subscriber-kafka".to_owned(),
        connect_timeout: CALL_TIMEOUT,
        response_max_bytes: RESPONSE_BYTES_MAX,
        security: security.clone(),
    };
    let options = ClientOptions { connection, timeout: CALL_TIMEOUT };
    let mut client = Client::connect(&settings.kafka_broker, options)?;
    let names: Vec<&str> = settings.topic_list.iter().map(|topic| topic.trim()).collect();
    let metadata = client.metadata(Some(&names))?;
    let at = match settings.from {
        Begin::Beginning => OffsetAt::Earliest,
        Begin::Now => OffsetAt::Latest,
    };
    let mut positions = Vec::new();
    for topic in &metadata.topics {
        if topic.error != 0 || topic.partitions.is_empty() {
            let text = format!("topic {} is not there (error code {})", topic.name, topic.error);
            return Err(Problem { text, pause: RETRY_PAUSE });
        }
        let partitions: Vec<i32> = topic.partitions.iter().map(|partition| partition.index).collect();
        for (partition, offset) in client.list_offsets(&topic.name, &partitions, at)? {
            positions.push(FetchPosition { topic: topic.name.clone(), partition, offset });
        }
    }
    Ok((client, positions))
}

/// Reads until told to stop, until enough has come, or until nothing comes any more.
fn read(
    settings: &Settings,
    security: &Security,
    stop: &AtomicBool,
    books: &mut Books,
) -> Result<(), String> {
    let Some((mut client, mut positions)) = connect(settings, security, stop) else { return Ok(()) };
    eprintln!("subscriber-kafka: reading {} partitions", positions.len());
    books.last_at = clock::now();
    let mut next_progress = clock::now() + Duration::from_secs(1);
    let mut told = 0;
    while !stop.load(Ordering::Relaxed) {
        match client.fetch(&mut positions, FETCH_WAIT) {
            Ok(fetched) => {
                for (topic, partition, records) in fetched {
                    match books.take(&topic, partition, &records) {
                        // Whoever read our output has had enough (`| head`).
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                        other => other.map_err(|error| format!("standard output: {error}"))?,
                    }
                }
            }
            Err(error @ (ClientError::OffsetOutOfRange { .. } | ClientError::Decode { .. })) => {
                return Err(chain(&error));
            }
            // An outage is waited out: the positions are kept.
            Err(error) => eprintln!("subscriber-kafka: {}; trying again", chain(&error)),
        }
        if settings.expect.is_some_and(|expect| books.count() >= expect) {
            return Ok(());
        }
        if settings.idle_sec.is_some_and(|limit| books.last_at.elapsed() >= Duration::from_secs(limit)) {
            return Ok(());
        }
        if clock::now() >= next_progress {
            next_progress += Duration::from_secs(1);
            if books.records > told {
                told = books.records;
                match &books.verifier {
                    Some(verifier) => eprintln!("subscriber-kafka: {}", verifier.summary(None)),
                    None => eprintln!("subscriber-kafka: {told} records"),
                }
            }
        }
    }
    Ok(())
}

/// As the gateway's: KAFKA_SECURITY_PROTOCOL and what belongs to it.
fn security() -> Result<Security, String> {
    let (variables, of_files) = config::gather(None).map_err(|error| error.to_string())?;
    let (security, of_values) = config::kafka_security(&variables).map_err(|error| error.to_string())?;
    for warning in of_files.iter().chain(&of_values) {
        eprintln!("subscriber-kafka: warning: {}", one_line(warning));
    }
    assemble::security(&security, &Heartbeats::new(None, clock::now()))
        .map_err(|error| format!("the token thread: {error}"))
}

fn run() -> Result<bool, String> {
    // Before the settings are parsed, which read the environment. No file is no error.
    if let Err(error) = dotenvy::from_path(".env")
        && !error.not_found()
    {
        return Err(format!(".env: {error}"));
    }
    let settings = Settings::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| format!("signals: {error}"))?;
    }
    let verifier = settings.verify.then(|| Verifier::new(settings.run_id.clone()));
    let mut books = Books { verifier, records: 0, last_at: clock::now() };
    let security = security()?;
    let outcome = read(&settings, &security, &stop, &mut books);
    let clean = match &books.verifier {
        Some(verifier) => {
            let summary = verifier.summary(settings.expect);
            eprintln!("subscriber-kafka: {summary}");
            summary.is_clean()
        }
        None => {
            eprintln!("subscriber-kafka: {} records", books.records);
            true
        }
    };
    outcome.map(|()| clean)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("subscriber-kafka: {error}");
            ExitCode::FAILURE
        }
    }
}
