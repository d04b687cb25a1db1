//! Threads: the only place that spawns them. Every thread has a name, and how it ended is an event.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// How a thread ended.
#[derive(Debug)]
pub enum Ending {
    /// It returned in the ordinary way.
    Done,
    /// It returned an error: the text of the whole chain.
    Failed(String),
    /// It panicked: the panic's text.
    Panicked(String),
}

/// Spawns a named thread. `at_end` runs on it last, whatever happened, and is told how the work ended.
///
/// # Errors
/// The operating system refused another thread.
pub fn spawn<W, E>(name: &str, work: W, at_end: E) -> io::Result<JoinHandle<()>>
where
    W: FnOnce() -> Result<(), String> + Send + 'static,
    E: FnOnce(Ending) + Send + 'static,
{
    Builder::new().name(name.to_owned()).spawn(move || {
        let ending = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => Ending::Done,
            Ok(Err(error)) => Ending::Failed(error),
            Err(panic) => Ending::Panicked(panic_text(panic.as_ref())),
        };
        at_end(ending);
    })
}

/// Does a piece of work on the calling thread, which outlives its panic: for one that must go on for as long as the process does.
///
/// # Errors
/// The panic's text.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(panic.as_ref()))
}

/// Lets the calling thread sleep: for those that have nothing else to wait for, the client programs and the start.
pub fn pause(length: std::time::Duration) {
    std::thread::sleep(length);
}

/// Makes each panic of the process an event of the log: one line, and at ERROR, where the standard words are several without a level. These
/// are left where the log takes no ERROR.
pub fn log_panics() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !log::log_enabled!(log::Level::Error) {
            return standard(panic);
        }
        let current = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic_text(panic.payload());
        log::error!("the {} thread panicked at {place}: {text}", current.name().unwrap_or("nameless"));
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            log::error!("{backtrace}");
        }
    }));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic without a text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn ending_of(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Ending {
        let (tx, rx) = mpsc::channel();
        spawn("test", work, move |ending| tx.send(ending).unwrap()).unwrap().join().unwrap();
        rx.recv().unwrap()
    }

    #[test]
    fn tells_how_it_ended() {
        assert!(matches!(ending_of(|| Ok(())), Ending::Done));
        assert!(matches!(ending_of(|| Err("no".into())), Ending::Failed(text) if text == "no"));
        assert!(matches!(ending_of(|| panic!("oh {}", 1)), Ending::Panicked(text) if text == "oh 1"));
    }
}
