//! A child process: in a group of its own, with a clean environment, its output in a file, dead when dropped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{reaper, until};

pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

/// A command by its name on PATH or in Debian's sbin, which is not on an ordinary user's PATH.
///
/// # Panics
/// It is not installed: a test that cannot run fails, it is never skipped.
pub fn installed(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .chain(["/usr/sbin", "/usr/local/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `make test-setup`"));
    clean(Command::new(found))
}

/// One of this project's executables, from the folder that cargo built this one into.
pub fn built(name: &str) -> Command {
    let here = std::env::current_exe().expect("the running executable has a path");
    let file = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: run `cargo build --bins`"));
    clean(Command::new(file))
}

/// tidegate: the one that cargo built, or the one for a board that cross/test.sh names in TIDEGATE_REAL_EXECUTABLE. It is
/// started by TIDEGATE_REAL_RUNNER then, a program and arguments between blanks, which stays the process: an emulator.
pub fn tidegate() -> Command {
    let Some(file) = std::env::var_os("TIDEGATE_REAL_EXECUTABLE") else { return built("tidegate") };
    let file = Path::new(&file);
    assert!(file.is_file(), "{} is not built: run `make cross`", file.display());
    let runner = runner();
    match runner.split_whitespace().collect::<Vec<_>>().as_slice() {
        [program, arguments @ ..] => {
            let mut command = installed(program);
            command.args(arguments).arg(file);
            command
        }
        [] => clean(Command::new(file)),
    }
}

/// TIDEGATE_REAL_RUNNER, empty without one.
pub fn runner() -> String {
    std::env::var("TIDEGATE_REAL_RUNNER").unwrap_or_default()
}

fn clean(mut command: Command) -> Command {
    command.env_clear();
    for name in ["PATH", "HOME", "LANG", "JAVA_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    command
}

impl Process {
    /// Starts it; output and errors are appended to `DIR/NAME.log`.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Process {
        fs::create_dir_all(dir).expect("folder for a process");
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("log file");
        let errors = out.try_clone().expect("log file");
        command.current_dir(dir).stdout(out).stderr(errors).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        reaper::watch(child.id());
        Process { name: name.to_owned(), log, child, ended: None }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let group = Pid::from_child(&self.child);
        // It may have ended by itself in this moment.
        let _ = kill_process_group(group, signal);
    }

    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
            if self.ended.is_some() {
                reaper::forget(self.child.id());
            }
        }
        self.ended
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = format!("the end of {}", self.name);
        let log = self.log.clone();
        until(&name, limit, || self.ended().ok_or_else(|| format!("still running\n{}", tail(&log, 5))))
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(limit)
    }

    /// SIGKILL to all of it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
            self.wait(Duration::from_secs(10));
        }
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its own ports of the connections that it has to this port of the machine (proc(5): net/tcp, and the sockets among its
    /// open files).
    pub fn connections_to(&self, port: u16) -> BTreeSet<u16> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        let open: BTreeSet<String> = files
            .filter_map(|file| fs::read_link(file.path()).ok()?.to_str().map(str::to_owned))
            .filter_map(|name| Some(name.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        let port_of = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
        let tables = ["tcp", "tcp6"].map(|table| format!("/proc/{}/net/{table}", self.id()));
        let text = tables.map(|table| fs::read_to_string(table).unwrap_or_default()).concat();
        let lines = text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, remote address, state (01 is established); the inode is the tenth.
            let [_, local, remote, "01", _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
            (port_of(remote) == Some(port) && open.contains(*inode)).then(|| port_of(local))?
        });
        lines.collect()
    }

    /// Resident memory, now and at its highest, KiB (proc(5): VmRSS, VmHWM).
    pub fn memory_kib(&self) -> (u64, u64) {
        (self.account("status", "VmRSS"), self.account("status", "VmHWM"))
    }

    /// Resident memory of the program that an emulator runs, without the emulator's own, KiB: its mappings lie from `base`
    /// up to where the kernel puts the emulator's heap, then its code (proc(5): smaps).
    pub fn guest_memory_kib(&self, base: u64) -> u64 {
        const EMULATOR: u64 = 0x5000_0000_0000;
        let text = fs::read_to_string(format!("/proc/{}/smaps", self.id())).unwrap_or_default();
        let (mut within, mut sum_kib) = (false, 0);
        for line in text.lines() {
            let (word, rest) = line.split_once([' ', '-']).unwrap_or((line, ""));
            if let Ok(start) = u64::from_str_radix(word, 16) {
                within = (base..EMULATOR).contains(&start);
            } else if within && word == "Rss:" {
                sum_kib += rest.trim().trim_end_matches(" kB").parse::<u64>().expect("smaps counts in kB");
            }
        }
        sum_kib
    }

    /// Bytes that it had written to a disk, or will have (proc(5): write_bytes). Its log is among them.
    pub fn written_bytes(&self) -> u64 {
        self.account("io", "write_bytes")
    }

    /// A number that the kernel keeps about it, 0 if it has ended.
    fn account(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_matches([':', ' ', '\t']).split(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        // No panic in here: this may run while a test fails.
        if self.ended.is_none() {
            self.thaw();
            self.signal(Signal::KILL);
            let _ = self.child.wait();
            reaper::forget(self.child.id());
        }
    }
}
