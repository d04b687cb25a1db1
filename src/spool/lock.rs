//! One process per directory.

use std::path::Path;

use super::SpoolError;
use crate::fs::{Filesystem, Lock};

/// Name of the lock file. It is never removed: a process that waits on a removed file would lock nothing.
pub const NAME: &str = "lock";

/// Takes the directory, for as long as the value lives.
///
/// # Errors
/// [`SpoolError::Locked`], or [`SpoolError::Open`] where nothing can be written.
pub fn take(fs: &dyn Filesystem, directory: &Path) -> Result<Box<dyn Lock>, SpoolError> {
    match fs.lock(&directory.join(NAME)) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(SpoolError::Locked(directory.display().to_string())),
        Err(source) => Err(SpoolError::Open {
            directory: directory.display().to_string(),
            doing: "locking",
            file: NAME.to_owned(),
            source,
        }),
    }
}
