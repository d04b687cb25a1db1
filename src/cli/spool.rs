//! `tidegate spool status|verify|dump`: looks at a spool and changes nothing, also while the gateway runs.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::CliError;
use crate::fs::StdFs;
use crate::observe::log::one_line;
use crate::spool::inspect::{Seen, Summary, inspect};
use crate::spool::{Given, Identity, SpoolError};

/// What to do with a spool.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum SpoolCommand {
    /// Say what is waiting, by Kafka topic
    Status(SpoolDirectory),
    /// Read everything and check every checksum; the exit code tells
    Verify(SpoolDirectory),
    /// List every frame
    Dump(SpoolDirectory),
}

/// Where the spool is.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SpoolDirectory {
    /// The spool's directory
    #[arg(value_name = "DIR", env = "DB_PERSIST_PATH")]
    pub directory: PathBuf,
}

/// How looking at a spool failed. Exit code 1 all.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// It cannot be read.
    #[error("the spool cannot be looked at")]
    Spool(#[from] SpoolError),
    /// It was read, and something in it is damaged.
    #[error("the spool has {0} faults")]
    Faults(usize),
}

pub(super) fn spool(command: &SpoolCommand, out: &mut dyn Write) -> Result<(), CliError> {
    match command {
        SpoolCommand::Status(at) => {
            let summary = look(&at.directory, false, &mut |_| {})?;
            status(&at.directory, &summary, out)
        }
        SpoolCommand::Verify(at) => {
            let mut frames = 0_u64;
            let summary = look(&at.directory, true, &mut |_| frames += 1)?;
            status(&at.directory, &summary, out)?;
            for fault in &summary.faults {
                writeln!(out, "{}", one_line(fault))?;
            }
            match summary.faults.len() {
                0 => Ok(writeln!(out, "{frames} frames read, every checksum is right")?),
                faults => Err(LookError::Faults(faults).into()),
            }
        }
        SpoolCommand::Dump(at) => {
            let mut result = writeln!(
                out,
                "frame offset bytes records messages oldest_ms newest_ms state \
                 partition/producer:epoch:sequence/batch_records/after_offset/positions;... topic"
            );
            look(&at.directory, true, &mut |seen| {
                if result.is_ok() {
                    result = writeln!(out, "{}", line(seen));
                }
            })?;
            Ok(result?)
        }
    }
}

fn look(directory: &Path, bodies: bool, visit: &mut dyn FnMut(&Seen<'_>)) -> Result<Summary, CliError> {
    Ok(inspect(&StdFs, directory, bodies, visit).map_err(LookError::Spool)?)
}

fn status(directory: &Path, summary: &Summary, out: &mut dyn Write) -> Result<(), CliError> {
    let Summary { segments, bytes, .. } = summary;
    writeln!(out, "{}: {bytes} bytes in {segments} segments", one_line(&directory.display().to_string()))?;
    for (topic, backlog) in &summary.routes {
        writeln!(
            out,
            "  {}: {} records of {} messages in {} frames, {} bytes, oldest of {} ms since 1970",
            one_line(topic),
            backlog.records,
            backlog.messages,
            backlog.frames,
            backlog.bytes,
            backlog.oldest_ms.unwrap_or_default()
        )?;
    }
    if summary.routes.is_empty() {
        writeln!(out, "  nothing is waiting")?;
    }
    if summary.unfinished_bytes > 0 {
        writeln!(out, "  {} bytes at the end are being written, or torn", summary.unfinished_bytes)?;
    }
    if summary.quarantined > 0 {
        writeln!(out, "  {} damaged parts in quarantine/", summary.quarantined)?;
    }
    for name in &summary.foreign {
        writeln!(out, "  {} does not belong to the spool", one_line(name))?;
    }
    Ok(())
}

fn line(seen: &Seen<'_>) -> String {
    let Seen { entry, topic, done, header, given } = seen;
    let state = match (done, header) {
        (true, _) => "done",
        (false, Some(_)) => "waiting",
        (false, None) => "damaged",
    };
    let given: Vec<String> = given.iter().map(batch).collect();
    format!(
        "{} {} {} {} {} {} {} {state} {} {}",
        entry.id.0,
        entry.offset,
        entry.bytes,
        entry.records,
        entry.messages,
        entry.oldest_ms,
        header.as_ref().map_or(entry.oldest_ms, |header| header.newest_ms),
        if given.is_empty() { "-".to_owned() } else { given.join(";") },
        one_line(topic)
    )
}

fn batch(given: &Given) -> String {
    let Given { partition, identity, batch_records, after_offset, records } = given;
    let Identity { producer_id, epoch, base_sequence } = identity;
    format!("{partition}/{producer_id}:{epoch}:{base_sequence}/{batch_records}/{after_offset}/{records}")
}
