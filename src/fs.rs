//! Files: the only place that touches them. A trait, the real one, and (for tests) one that loses power.
//!
//! What the spool may rely on, and what a disk may do to it, is the fault model at the head of `simulation`. In short:
//! - only [`File::sync_data`] makes the content and the length of a file durable, and only [`Filesystem::sync_dir`] makes the
//!   creation, renaming and removal of an entry durable. What was not synced may be lost, kept or torn, in any order
//!   between files;
//! - a sync that failed says nothing about what is on the disk, and the next one that succeeds does not mend it (Linux
//!   forgets dirty pages after reporting the error once);
//! - a rename replaces its target whole, or not at all.
//!
//! Knows nothing of formats. Paths are given by the caller, errors are the operating system's.

use std::fmt::Debug;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, FlockOperation, access, flock, statvfs};

/// Permissions of files: what is in the spool is nobody else's business.
const FILE_MODE: u32 = 0o600;
/// Permissions of directories.
const DIRECTORY_MODE: u32 = 0o700;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must exist; only read.
    Read,
    /// It must exist; read and written.
    Write,
    /// It must not exist; read and written; permissions 0600.
    Create,
}

/// What lies in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name; what is no UTF-8 is shown with replacement characters, and so is never taken for one of ours.
    pub name: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Its length, bytes.
    pub bytes: u64,
}

/// Keeps other processes out until it is dropped.
pub trait Lock: Send + Debug {}

/// An open file. Positions are explicit: there is no cursor to disagree about.
pub trait File: Send + Debug {
    /// Its length, bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn bytes(&self) -> io::Result<u64>;
    /// Reads until the buffer is full or the file ends; gives how much was read.
    ///
    /// # Errors
    /// The operating system's, such as EIO for a bad sector.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all. After an error any part of it may be there.
    ///
    /// # Errors
    /// The operating system's, such as ENOSPC.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends it.
    ///
    /// # Errors
    /// The operating system's.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Returns once content and length are on the disk (fdatasync).
    ///
    /// # Errors
    /// It is unknown what is on the disk, and stays unknown after a later success.
    fn sync_data(&self) -> io::Result<()>;
}

/// Where files live.
pub trait Filesystem: Send + Sync + Debug {
    /// Makes the directory (0700) and what is missing above it, durably. It may exist.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// What lies in a directory, by name.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn File>>;
    /// Renames within the filesystem; what has the new name is replaced. Durable after [`Filesystem::sync_dir`] of both directories.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after [`Filesystem::sync_dir`].
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns once the entries of a directory are on the disk.
    ///
    /// # Errors
    /// The operating system's; as with [`File::sync_data`].
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// What an unprivileged process may still write to the filesystem of this path, bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes the lock file at this path, creating it; None if another process has it.
    ///
    /// # Errors
    /// The operating system's.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
}

/// Whether the error means that there is no room (left, or allowed) to write.
pub fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The content of a file; None if it is longer than `bytes_max`.
///
/// # Errors
/// The file cannot be read.
pub fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// Whether this process can keep files in a directory; false where nothing is at that path yet. Asks only, writes nothing.
///
/// # Errors
/// Why it cannot, in words that follow the path.
pub fn is_writable_dir(path: &Path) -> io::Result<bool> {
    let reason = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    match fs::metadata(path) {
        Ok(about) if !about.is_dir() => {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(reason("it cannot be looked at", error)),
    }
    // The kernel is asked, not the permission bits: it knows of access lists and of what is mounted read-only.
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    access(path, needed).map_err(|error| reason("this user cannot read and write it", error.into()))?;
    Ok(true)
}

/// Device and inode of what a descriptor leads to.
///
/// # Errors
/// The operating system's.
pub fn identity_of(descriptor: impl AsFd) -> io::Result<(u64, u64)> {
    let about = fs::File::from(descriptor.as_fd().try_clone_to_owned()?).metadata()?;
    Ok((about.dev(), about.ino()))
}

/// Resident memory of this process, bytes; None where the system does not tell it.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdFs;

#[derive(Debug)]
struct StdFile(fs::File);

#[derive(Debug)]
struct StdLock(#[expect(dead_code, reason = "the lock lasts as long as the descriptor is open")] fs::File);

impl Lock for StdLock {}

impl File for StdFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Filesystem for StdFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
        for made in missing.iter().rev() {
            // The entry of a new directory is in the one above it; a relative path begins in the working directory.
            let above = made.parent().filter(|above| !above.as_os_str().is_empty());
            self.sync_dir(above.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let about = match entry.metadata() {
                Ok(about) => about,
                // Removed since it was listed: the command line reads beside a running gateway.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push(Entry { name, directory: about.is_dir(), bytes: about.len() });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        match how {
            Open::Read => {}
            Open::Write => {
                options.write(true);
            }
            Open::Create => {
                options.write(true).create_new(true);
            }
        }
        Ok(Box::new(StdFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let about = statvfs(path)?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(StdLock(file)))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
pub mod simulation;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_made_belongs_to_its_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let inner = home.path().join("a/b");
        StdFs.create_dir(&inner).unwrap();
        StdFs.open(&inner.join("file"), Open::Create).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&inner.join("file"))), (0o700, 0o600));
        assert!(StdFs.open(&inner.join("file"), Open::Create).is_err(), "Create does not take what is there");
    }

    #[test]
    fn a_directory_is_asked_for_without_being_made() {
        let home = tempfile::tempdir().unwrap();
        let (absent, file, closed) =
            (home.path().join("absent"), home.path().join("file"), home.path().join("closed"));
        assert!(is_writable_dir(home.path()).unwrap());
        assert!(!is_writable_dir(&absent).unwrap() && !absent.exists());
        fs::write(&file, "").unwrap();
        assert_eq!(is_writable_dir(&file).unwrap_err().to_string(), "it is not a directory");
        let below = is_writable_dir(&file.join("below")).unwrap_err().to_string();
        assert!(below.starts_with("it cannot be looked at: "), "{below}");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
        // Permissions do not bind root.
        let answer = is_writable_dir(&closed).map_err(|error| error.to_string());
        if rustix::process::geteuid().is_root() {
            assert_eq!(answer, Ok(true));
        } else {
            assert!(answer.unwrap_err().starts_with("this user cannot read and write it: "));
        }
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lock");
        let first = StdFs.lock(&path).unwrap();
        assert!(first.is_some());
        assert!(StdFs.lock(&path).unwrap().is_none());
        drop(first);
        assert!(StdFs.lock(&path).unwrap().is_some());
    }

    #[test]
    fn reads_stop_at_the_end_and_writes_are_where_they_were_asked_for() {
        let home = tempfile::tempdir().unwrap();
        let file = StdFs.open(&home.path().join("file"), Open::Create).unwrap();
        file.write_at(b"hello", 2).unwrap();
        file.sync_data().unwrap();
        let mut buffer = [9; 10];
        assert_eq!(file.read_at(&mut buffer, 1).unwrap(), 6);
        assert_eq!(&buffer[..6], b"\0hello");
        file.set_bytes(3).unwrap();
        assert_eq!(file.bytes().unwrap(), 3);
        assert!(StdFs.free_bytes(home.path()).unwrap() > 0);
    }
}
