//! Which Apache Kafka, and what differs between them in starting one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::installed;

/// The versions that tests/stack/setup.sh fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The first with record batches v2 and idempotent producers, so the first that tidegate speaks to.
    V0_11,
    /// Its metadata is in ZooKeeper. The first with DescribeProducers (API 61) is 2.8.0.
    V2_8,
    /// KRaft, the last before 4.0.
    V3_9,
    V4_1,
    /// What everything is tested against.
    V4_3,
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Version::V0_11 => "0.11.0.3",
            Version::V2_8 => "2.8.2",
            Version::V3_9 => "3.9.2",
            Version::V4_1 => "4.1.2",
            Version::V4_3 => "4.3.1",
        }
    }

    pub fn has_zookeeper(self) -> bool {
        matches!(self, Version::V0_11 | Version::V2_8)
    }

    /// The jars that tests/stack/setup.sh fetched.
    fn jars(self) -> PathBuf {
        let cache = std::env::var_os("TIDEGATE_STACK_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"));
        let jars = match self {
            Version::V4_3 => cache.join("kafka"),
            older => cache.join(format!("kafka-{}", older.name())),
        };
        let name = self.name();
        assert!(jars.is_dir(), "Apache Kafka {name} is not in {}: run `make test-setup`", jars.display());
        jars
    }

    /// A class of this version's jars with its arguments.
    pub fn java(self, main: &[&str]) -> Command {
        let mut command = installed("java");
        // Two cores: the small collector and the quick compiler start faster and are fast enough here.
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg("-Dorg.slf4j.simpleLogger.showDateTime=true");
        command.arg("-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS");
        if self == Version::V0_11 {
            let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stack/kafka/log4j.properties");
            command.arg(format!("-Dlog4j.configuration=file:{}", log.display()));
        }
        command.arg("-cp").arg(self.jars().join("*")).args(main);
        command
    }
}
