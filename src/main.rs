//! The tidegate executable: hands the command line to the library and its exit code to the system.

use std::process::ExitCode;

use tidegate::cli::assemble::{reach_kafka, reach_mqtt, run};
use tidegate::cli::{Hooks, start};

fn main() -> ExitCode {
    let hooks = Hooks { run: &run, reach_mqtt: &reach_mqtt, reach_kafka: &reach_kafka };
    ExitCode::from(start(std::env::args_os(), &hooks))
}
