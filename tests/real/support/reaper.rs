//! A small process that outlives this one by a moment and kills what is left of its children.
//!
//! Brokers shared by tests live in statics, which are never dropped, and Ctrl-C, a failed assertion or kill -9 can end
//! us anywhere. The reaper reads from a pipe that only we hold: when we are gone, whatever the reason, the pipe
//! ends, it kills the process groups that are still on its list and removes the folders nobody wants to keep.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// One command a line: `+PGID`, `-PGID`, `dir PATH`, `keep`.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
groups=' '
dir=
while read -r word rest; do
    case $word in
    +*) groups="$groups${word#+} " ;;
    -*) groups=$(printf '%s' "$groups" | sed "s/ ${word#-} / /") ;;
    dir) dir=$rest ;;
    keep) dir= ;;
    esac
done
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
[ -z "$dir" ] || rm -rf "$dir"
"#;

struct Reaper {
    input: ChildStdin,
    _child: Child,
}

fn say(line: &str) {
    static REAPER: OnceLock<Mutex<Reaper>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Mutex::new(Reaper { input: child.stdin.take().expect("stdin is piped"), _child: child })
    });
    let mut reaper = reaper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    writeln!(reaper.input, "{line}").expect("the reaper listens until this process ends");
}

/// This process group dies with us.
pub fn watch(group: u32) {
    say(&format!("+{group}"));
}

/// This process group has ended.
pub fn forget(group: u32) {
    say(&format!("-{group}"));
}

/// This folder is removed after us, unless [`keep_dir`] is called.
pub fn remove_dir(dir: &Path) {
    say(&format!("dir {}", dir.display()));
}

/// Somebody will want to read the logs.
pub fn keep_dir() {
    say("keep");
}
