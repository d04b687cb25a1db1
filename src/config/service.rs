//! What a service manager tells by the environment of the process: not by `.env`, whose variables are for the gateway.
//!
//! Source: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).

use std::time::Duration;

/// See the module head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service {
    /// NOTIFY_SOCKET is set: the manager wants to be told when the gateway is ready.
    pub notifies: bool,
    /// WATCHDOG_USEC, if it is meant for this process: a sign of life is wanted so often.
    pub watchdog: Option<Duration>,
    /// JOURNAL_STREAM: device and inode of the stream that goes to the journal.
    pub journal: Option<(u64, u64)>,
}

/// What the environment of this process says.
pub fn service() -> Service {
    read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()), std::process::id())
}

fn read(variable: impl Fn(&str) -> Option<String>, process: u32) -> Service {
    let number = |name: &str| variable(name)?.parse::<u64>().ok();
    // A process that was started by a service has its environment too, and must not answer for it.
    let is_for_us = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(process));
    let watchdog = number("WATCHDOG_USEC").filter(|usec| is_for_us && *usec > 0).map(Duration::from_micros);
    let journal = variable("JOURNAL_STREAM").and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    Service { notifies: variable("NOTIFY_SOCKET").is_some(), watchdog, journal }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Service {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        read(find, 42)
    }

    #[test]
    fn nothing_is_told_outside_a_service() {
        assert_eq!(of(&[]), Service::default());
        assert_eq!(of(&[("WATCHDOG_USEC", "never"), ("JOURNAL_STREAM", "1-2")]), Service::default());
    }

    #[test]
    fn what_systemd_tells_is_taken() {
        let told = of(&[
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("WATCHDOG_USEC", "30000000"),
            ("WATCHDOG_PID", "42"),
            ("JOURNAL_STREAM", "9:123456"),
        ]);
        let watchdog = Some(Duration::from_secs(30));
        assert_eq!(told, Service { notifies: true, watchdog, journal: Some((9, 123_456)) });
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        assert_eq!(of(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "41")]).watchdog, None);
        assert_eq!(of(&[("WATCHDOG_USEC", "1000000")]).watchdog, Some(Duration::from_secs(1)));
        assert_eq!(of(&[("WATCHDOG_USEC", "0")]).watchdog, None);
    }
}
