//! The command line: what was asked, done by the library, and the exit code that tells how it went.
//!
//! Knows the configuration and the routes. How brokers are reached and how the gateway runs is given to it as
//! [`Hooks`], so that everything here is tested without a socket. Output goes to a writer, errors to the caller.

pub mod assemble;
mod check;
mod health;
mod route;
mod spool;

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use log::warn;

use crate::config::{self, Config, ConfigErrors, document};
use crate::error::chain;
use crate::observe;
use crate::observe::log::Style;
use crate::route::{Router, Rules};
use crate::thread;

pub use self::health::UnwellError;
pub use self::spool::{LookError, SpoolCommand, SpoolDirectory};

/// Pairs of overlapping rules that are named at start; the others are counted. Twenty can be read.
const OVERLAPS_NAMED: usize = 20;

/// An MQTT to Kafka gateway for the edge that acknowledges a message only when it is safe.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = "--help also documents every environment variable.")]
pub struct Cli {
    /// Read environment variables from FILE instead of .env; the process environment wins
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// What to do; `run` if absent
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// See [`Cli::command`].
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Take messages from MQTT to Kafka until SIGTERM or SIGINT (the default)
    Run,
    /// Validate the configuration, say what would be subscribed, where it would go and where the spool is, and reach both
    /// brokers
    Check,
    /// Say which rule, Kafka topic and key a message with each TOPIC would get; needs no broker
    Route {
        /// MQTT topic names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
    },
    /// Look at a spool; changes nothing, also while the gateway runs
    Spool {
        /// What to do with it
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// Ask the gateway that runs on this machine how it is (HTTP_LISTEN): one line, exit code 0 or 1
    Health {
        /// Ask whether messages flow (/readyz), not only whether the process works (/healthz)
        #[arg(long)]
        ready: bool,
    },
    /// Print the version
    Version,
}

/// How a broker is reached: Ok says what was found, Err why it cannot be reached.
pub type Reach<'a> = &'a dyn Fn(&Config) -> Result<String, String>;

/// What the commands need of the rest of the gateway.
pub struct Hooks<'a> {
    /// Runs the gateway until it is told to stop.
    pub run: &'a dyn Fn(Config, Router) -> Result<(), Box<dyn Error>>,
    /// Reaches the MQTT broker.
    pub reach_mqtt: Reach<'a>,
    /// Reaches the Kafka cluster.
    pub reach_kafka: Reach<'a>,
}

/// How a command failed: the variant decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The operator must change the configuration. Exit code 2.
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
    /// `check` reached not every broker. Exit code 1.
    #[error("not every broker can be reached")]
    Unreachable,
    /// `check` found that nothing can be kept in DB_PERSIST_PATH. Exit code 1.
    #[error("the spool's directory (DB_PERSIST_PATH) cannot be used")]
    SpoolUnusable,
    /// `route` was asked about something that is no topic name. Exit code 1.
    #[error("{0:?} is no MQTT topic name")]
    NoTopic(String, #[source] crate::route::TopicError),
    /// The spool cannot be read, or is damaged. Exit code 1.
    #[error(transparent)]
    Spool(#[from] LookError),
    /// `health` heard that it is not well, or nothing at all. Exit code 1.
    #[error(transparent)]
    Unwell(#[from] UnwellError),
    /// The gateway ended by itself. Exit code 1.
    #[error("the gateway ended with an error")]
    Run(#[source] Box<dyn Error>),
    /// The output could not be written. Exit code 1.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
    /// The log was set up before. Exit code 1.
    #[error("the log cannot be set up")]
    Log(#[from] log::SetLoggerError),
}

impl CliError {
    /// 1: failed at run time; 2: configuration.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Configuration(_) => 2,
            _ => 1,
        }
    }
}

/// The command line parser, with every environment variable in its long help.
pub fn command() -> clap::Command {
    Cli::command().after_long_help(document::help())
}

/// Does what the command line asks, prints what went wrong once to stderr, and gives the exit code: 0 clean, 1 failed at run
/// time, 2 configuration or usage.
pub fn start(arguments: impl IntoIterator<Item = OsString>, hooks: &Hooks<'_>) -> u8 {
    let parsed =
        command().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version come this way too, with code 0. Nothing can be told if the terminal is gone.
            let _ = usage.print();
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    // Not locked: `run` lasts as long as the process, and another thread that prints would wait for its end.
    match execute(&cli, hooks, &mut io::stdout()) {
        Ok(()) => 0,
        // `tidegate route ... | head` closes our output: that is no failure worth a message.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 1,
        Err(error) => {
            let head = Style::of_stderr(config::service().journal).of_the_end();
            for line in format!("tidegate: {}", safe_lines(&chain(&error))).lines() {
                let _ = writeln!(io::stderr(), "{head}{line}");
            }
            error.exit_code()
        }
    }
}

/// Line breaks between problems stay; everything else that could steer a terminal is escaped.
fn safe_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(observe::log::one_line).collect();
    lines.join("\n")
}

/// Does what the command line asks; `out` gets what was asked for.
///
/// # Errors
/// See [`CliError`].
pub fn execute(cli: &Cli, hooks: &Hooks<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let command = cli.command.clone().unwrap_or(Command::Run);
    if command == Command::Version {
        return Ok(writeln!(out, "tidegate {}", env!("CARGO_PKG_VERSION"))?);
    }
    // Needs the directory only: it works where the rest of the configuration is not at hand.
    if let Command::Spool { command } = &command {
        return spool::spool(command, out);
    }
    // Needs one variable only: a probe may not be allowed to read the secrets.
    if let Command::Health { ready } = command {
        let address = config::http_listen(cli.env_file.as_deref()).map_err(UnwellError::from)?;
        return health::health(address, ready, out);
    }
    let config = Config::load(cli.env_file.as_deref())?;
    match command {
        Command::Run => {
            let style = Style::of_stderr(config::service().journal);
            observe::log::init(config.run.log_level.filter(), style)?;
            thread::log_panics();
            let router = Router::new(config.routes.rules.clone());
            for warning in warnings(&config, &router) {
                warn!("{warning}");
            }
            (hooks.run)(config, router).map_err(CliError::Run)
        }
        Command::Check => check::check(&config, hooks, out),
        Command::Route { topics } => route::route(&config, &topics, out),
        Command::Spool { .. } | Command::Health { .. } | Command::Version => Ok(()),
    }
}

/// What the operator is told at start: each is one WARN of `run` and one line of `check`. A sound configuration has none.
pub fn warnings(config: &Config, router: &Router) -> Vec<String> {
    let mut warnings = config.warnings.clone();
    for (one, two) in colliding_topics(router.rules()) {
        warnings.push(format!(
            "Kafka topics {one} and {two} are the same to Kafka's metrics (. and _), so it makes only the first of them; \
             rename one"
        ));
    }
    let overlaps = router.overlaps(OVERLAPS_NAMED);
    for overlap in &overlaps.listed {
        if let (Some(first), Some(second)) =
            (router.rules().get(overlap.first), router.rules().get(overlap.second))
        {
            warnings.push(format!(
                "WILDCARD_TOPIC_LIST entries {first} and {second} overlap: a topic that both match goes to {} only",
                first.target
            ));
        }
    }
    let unnamed = overlaps.total - overlaps.listed.len() as u64;
    if unnamed > 0 {
        warnings.push(format!(
            "{unnamed} more pairs of WILDCARD_TOPIC_LIST entries overlap: the first in the list wins"
        ));
    }
    warnings
}

/// Pairs of fixed Kafka topics that Kafka does not let exist side by side: it refuses to create a topic whose name
/// differs from another's only in `.` and `_`.
fn colliding_topics(rules: &Rules) -> Vec<(&str, &str)> {
    let mut by_metric_name: BTreeMap<String, &str> = BTreeMap::new();
    let mut pairs = Vec::new();
    let fixed = rules.all().iter().filter_map(|rule| rule.target.constant()).chain(rules.default_topic());
    for topic in fixed {
        let first = *by_metric_name.entry(topic.replace('.', "_")).or_insert(topic);
        if first != topic.as_ref() && !pairs.contains(&(first, topic.as_ref())) {
            pairs.push((first, topic.as_ref()));
        }
    }
    pairs
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
