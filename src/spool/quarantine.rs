//! The folder of what was damaged: copies of bytes that are no frame, and whole segments that could not be read.

use std::io;
use std::path::Path;

use crate::fs::{File, Filesystem, Open};

/// Its name.
pub const QUARANTINE: &str = "quarantine";
/// Copies of damage take no more than this, bytes: damage is counted all the same.
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
    let held: u64 = fs.list(&folder).unwrap_or_default().iter().map(|entry| entry.bytes).sum();
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

/// Moves a segment that cannot be read to the quarantine, durably. It may be gone already.
pub(super) fn set_aside(fs: &dyn Filesystem, directory: &Path, name: &str) -> io::Result<()> {
    let folder = directory.join(QUARANTINE);
    fs.create_dir(&folder)?;
    match fs.rename(&directory.join(name), &folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    fs.sync_dir(&folder)?;
    fs.sync_dir(directory)
}
