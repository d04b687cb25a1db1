//! The tidegate executable: hands the command line to the library and its exit code to the system.

use std::process::ExitCode;

use tidegate::cli::{Hooks, start};

fn main() -> ExitCode {
    let not_wired = |what: &str| format!("{what} is not wired yet");
    let hooks = Hooks {
        run: &|_config, _router| Err(not_wired("the pipeline").into()),
        reach_mqtt: &|_config| Err(not_wired("the MQTT session")),
        reach_kafka: &|_config| Err(not_wired("the Kafka client")),
    };
    ExitCode::from(start(std::env::args_os(), &hooks))
}
