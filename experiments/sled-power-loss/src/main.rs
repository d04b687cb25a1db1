//! Acknowledged records in sled: `sled-power-loss fill DIR COUNT` inserts COUNT records of 220 bytes and calls `flush()` after every
//! 64, printing `acked N` after each: that is what a gateway would tell its MQTT broker. `sled-power-loss count DIR` opens and counts.
//!
//! `run.sh` counts under strace which of the calls that make data durable were made, and says what a power cut leaves.

use std::io::Write;

const BATCH: u32 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [_, "fill", directory, count] => {
            let db = sled::Config::new().path(directory).flush_every_ms(None).open()?;
            let count: u32 = count.parse()?;
            let mut out = std::io::stdout();
            for n in 0..count {
                db.insert(n.to_be_bytes(), vec![7; 220])?;
                if (n + 1) % BATCH == 0 {
                    db.flush()?;
                    writeln!(out, "acked {}", n + 1)?;
                    out.flush()?;
                }
            }
            // As when the power goes: nothing that a destructor would do.
            std::process::abort();
        }
        [_, "count", directory] => println!("{}", sled::open(directory)?.len()),
        _ => return Err("usage: sled-power-loss fill DIR COUNT | count DIR".into()),
    }
    Ok(())
}
