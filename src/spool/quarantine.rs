//! The folder of what was damaged: copies of bytes that are no frame, and whole files that could not be read or are not what their
//! names say.

use std::io;
use std::path::Path;

use crate::fs::{File, Filesystem, Open};

/// Its name.
pub const QUARANTINE: &str = "quarantine";
/// Copies of damage take no more than this, bytes: damage is counted all the same. Whole files that were set aside do not count.
const QUARANTINE_BYTES_MAX: u64 = 16 << 20;

/// Copies bytes of a file to the quarantine, as far as there is room. A failure is none of the spool: what is damaged is lost
/// either way.
pub(super) fn quarantine(
    fs: &dyn Filesystem,
    directory: &Path,
    file: &dyn File,
    name: &str,
    offset: u64,
    bytes: u64,
) {
    let folder = directory.join(QUARANTINE);
    let _ = fs.create_dir(&folder);
    let there = fs.list(&folder).unwrap_or_default();
    let held: u64 = there.iter().filter(|entry| entry.name.contains('-')).map(|entry| entry.bytes).sum();
    let Ok(length) = usize::try_from(bytes) else { return };
    if held.saturating_add(bytes) > QUARANTINE_BYTES_MAX {
        return;
    }
    let mut content = vec![0; length];
    let Ok(read) = file.read_at(&mut content, offset) else { return };
    content.truncate(read);
    if let Ok(copy) = fs.open(&folder.join(format!("{name}-{offset}")), Open::Create) {
        let _ = copy.write_at(&content, 0).and_then(|()| copy.sync_data());
        let _ = fs.sync_dir(&folder);
    }
}

/// Moves a whole file to the quarantine, durably: a rename, which needs no room and fits whatever is there. A file of that name
/// which is there already stays. It may be gone already.
pub(super) fn set_aside(fs: &dyn Filesystem, directory: &Path, name: &str) -> io::Result<()> {
    let folder = directory.join(QUARANTINE);
    fs.create_dir(&folder)?;
    let there: Vec<String> = fs.list(&folder)?.into_iter().map(|entry| entry.name).collect();
    let mut target = name.to_owned();
    for number in 1.. {
        if !there.contains(&target) {
            break;
        }
        target = format!("{name}.{number}");
    }
    match fs.rename(&directory.join(name), &folder.join(target)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    fs.sync_dir(&folder)?;
    fs.sync_dir(directory)
}
