//! A filesystem in memory that does what a bad day does to a disk. For tests only.
//!
//! # The fault model
//! - *Crash* (kill -9): nothing is lost that was written; the page cache survives. So: drop what is open and open again.
//! - *Power loss* ([`MemFs::power_loss`]): of every write and change of length since the last successful sync of its file,
//!   each on its own is kept, dropped, or torn: only some of its 512-byte sectors arrive. Files do not wait for each other, so
//!   a later write to one may survive an earlier write to another. The order of what survives within a file is kept.
//! - Entries of a directory (creation, renaming, removal) since the last sync of the directory: each on its own is kept or
//!   dropped, in order. So a synced file may have no name, and a removed one may be back.
//! - *No room*: a write beyond the capacity writes what fits and fails with ENOSPC; the counter of free space may say that there
//!   is more ([`MemFs::set_overstated`]). With *copy on write* also a write in place needs
//!   room for all of it, for a moment.
//! - *Failed sync*: EIO, and what was not synced is then as after a power loss, though the reader of the page cache still sees it:
//!   the pages count as clean, so the next sync succeeds and saves nothing of them.
//! - *Failed write*: half of it is written, then EIO. *Failed read*: EIO.
//! - *Read-only*: EROFS for whatever changes.
//! - *Flipped bits* ([`MemFs::corrupt`]): durable, silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Entry, File, Filesystem, Lock, Open};

const SECTOR: usize = 512;
const EIO: i32 = 5;

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => {
                if to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                to[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(bytes) => to.resize(*bytes, 0),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What is read back: all changes applied.
    seen: Vec<u8>,
    /// What is on the disk for certain.
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum EntryChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    directories: BTreeSet<PathBuf>,
    entries: BTreeMap<PathBuf, u64>,
    durable_entries: BTreeMap<PathBuf, u64>,
    pending_entries: Vec<EntryChange>,
    locks: BTreeSet<PathBuf>,
    next_inode: u64,
    capacity: Option<u64>,
    overstated: u64,
    copy_on_write: bool,
    read_only: bool,
    fail_syncs_after: Option<u32>,
    fail_writes_after: Option<u32>,
    fail_reads: bool,
    syncs: u64,
    written: u64,
    random: u64,
}

impl State {
    /// splitmix64: enough for choosing what survives.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn used(&self) -> u64 {
        self.entries.values().map(|inode| self.inodes[inode].seen.len() as u64).sum()
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// What remains of the changes when they were never synced.
    fn survivors(&mut self, pending: &[Change]) -> Vec<Change> {
        let mood = self.random() % 4;
        let mut kept = Vec::new();
        for change in pending {
            let fate = match mood {
                0 => 0,
                1 => 1,
                _ => self.random() % 3,
            };
            match (fate, change) {
                (0, _) => {}
                (1, change) => kept.push(change.clone()),
                (_, Change::Length(_)) => {}
                (_, Change::Write { at, bytes }) => {
                    // Sectors are aligned in the file, not in the write.
                    let mut from = 0;
                    while from < bytes.len() {
                        let to = (from + SECTOR - (at + from) % SECTOR).min(bytes.len());
                        if self.random().is_multiple_of(2) {
                            kept.push(Change::Write { at: at + from, bytes: bytes[from..to].to_vec() });
                        }
                        from = to;
                    }
                }
            }
        }
        kept
    }

    fn change_entries(&mut self, change: EntryChange) {
        apply_entry(&change, &mut self.entries);
        self.pending_entries.push(change);
    }
}

fn apply_entry(change: &EntryChange, to: &mut BTreeMap<PathBuf, u64>) {
    match change {
        EntryChange::Set(path, inode) => {
            to.insert(path.clone(), *inode);
        }
        EntryChange::Remove(path) => {
            to.remove(path);
        }
        EntryChange::Rename(from, target, inode) => {
            to.remove(from);
            to.insert(target.clone(), *inode);
        }
    }
}

/// See the module head. Clones share the disk.
#[derive(Debug, Clone, Default)]
pub struct MemFs(Arc<Mutex<State>>);

impl MemFs {
    /// An empty disk; the seed decides what survives power losses.
    pub fn new(seed: u64) -> MemFs {
        let fs = MemFs::default();
        fs.state().random = seed;
        fs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power goes and comes back. What was open must be dropped first.
    pub fn power_loss(&self) {
        let mut state = self.state();
        let inodes: Vec<u64> = state.inodes.keys().copied().collect();
        for id in inodes {
            let pending = std::mem::take(&mut state.inodes.get_mut(&id).unwrap().pending);
            let kept = state.survivors(&pending);
            let inode = state.inodes.get_mut(&id).unwrap();
            for change in &kept {
                change.apply(&mut inode.durable);
            }
            inode.seen = inode.durable.clone();
        }
        let pending = std::mem::take(&mut state.pending_entries);
        let mood = state.random() % 3;
        for change in pending {
            if mood == 0 || (mood == 1 && state.random().is_multiple_of(2)) {
                apply_entry(&change, &mut state.durable_entries);
            }
        }
        state.entries = state.durable_entries.clone();
        state.locks.clear();
    }

    /// Room of the disk, bytes; None is endless.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// By how much the counter of free space is too high, bytes.
    pub fn set_overstated(&self, bytes: u64) {
        self.state().overstated = bytes;
    }

    /// Bytes in files.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Bytes written since the beginning.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// Syncs of files and directories since the beginning.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// After this many more successful ones, one sync fails.
    pub fn fail_sync_after(&self, successes: u32) {
        self.state().fail_syncs_after = Some(successes);
    }

    /// After this many more successful ones, one write fails with EIO.
    pub fn fail_write_after(&self, successes: u32) {
        self.state().fail_writes_after = Some(successes);
    }

    /// Takes back faults that have not happened yet.
    pub fn heal(&self) {
        let mut state = self.state();
        state.fail_syncs_after = None;
        state.fail_writes_after = None;
        state.fail_reads = false;
        state.read_only = false;
        state.capacity = None;
        state.overstated = 0;
    }

    /// Whether reads fail.
    pub fn set_fail_reads(&self, fail: bool) {
        self.state().fail_reads = fail;
    }

    /// Whether what is written in place needs room.
    pub fn set_copy_on_write(&self, copy: bool) {
        self.state().copy_on_write = copy;
    }

    /// Whether the disk is mounted read-only.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// Flips bits of one byte, durably; false if the file is not that long.
    pub fn corrupt(&self, path: &Path, at: usize, bits: u8) -> bool {
        let mut state = self.state();
        let Some(id) = state.entries.get(path).copied() else { return false };
        let inode = state.inodes.get_mut(&id).unwrap();
        let Some(byte) = inode.seen.get_mut(at) else { return false };
        *byte ^= bits;
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= bits;
        }
        true
    }

    /// Writes a whole file, durably: for setting a scene.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(id, Inode { seen: bytes.to_vec(), durable: bytes.to_vec(), pending: Vec::new() });
        state.entries.insert(path.to_owned(), id);
        state.durable_entries.insert(path.to_owned(), id);
        state.directories.extend(path.parent().map(Path::to_owned));
    }

    /// A whole file, as it is seen.
    pub fn get(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.entries.get(path).map(|id| state.inodes[id].seen.clone())
    }
}

#[derive(Debug)]
struct MemFile {
    fs: MemFs,
    inode: u64,
    writable: bool,
}

impl File for MemFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.fs.state().inodes[&self.inode].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.fs.state();
        if state.fail_reads {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let seen = &state.inodes[&self.inode].seen;
        let rest = seen.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.fs.state();
        state.writable()?;
        assert!(self.writable, "written through a handle for reading");
        let at = usize::try_from(offset).unwrap();
        let mut fits = bytes.len();
        let mut failure = None;
        if let Some(capacity) = state.capacity {
            let grows = |n: usize, seen: usize| (at + n).saturating_sub(seen).min(n) as u64;
            let seen = if state.copy_on_write { 0 } else { state.inodes[&self.inode].seen.len() };
            let room = capacity.saturating_sub(state.used());
            if grows(bytes.len(), seen) > room {
                fits =
                    bytes.len() - usize::try_from(grows(bytes.len(), seen) - room).unwrap().min(bytes.len());
                failure = Some(ErrorKind::StorageFull.into());
            }
        }
        match state.fail_writes_after {
            Some(0) => {
                state.fail_writes_after = None;
                fits = fits.min(bytes.len() / 2);
                failure = Some(io::Error::from_raw_os_error(EIO));
            }
            Some(left) => state.fail_writes_after = Some(left - 1),
            None => {}
        }
        let change = Change::Write { at, bytes: bytes[..fits].to_vec() };
        state.written += fits as u64;
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        if fits > 0 {
            change.apply(&mut inode.seen);
            inode.pending.push(change);
        }
        failure.map_or(Ok(()), Err)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.fs.state();
        state.writable()?;
        let change = Change::Length(usize::try_from(bytes).unwrap());
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        change.apply(&mut inode.seen);
        inode.pending.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.fs.state();
        state.writable()?;
        let pending = std::mem::take(&mut state.inodes.get_mut(&self.inode).unwrap().pending);
        match state.fail_syncs_after {
            Some(0) => {
                state.fail_syncs_after = None;
                let kept = state.survivors(&pending);
                let inode = state.inodes.get_mut(&self.inode).unwrap();
                for change in &kept {
                    change.apply(&mut inode.durable);
                }
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Some(left) => state.fail_syncs_after = Some(left - 1),
            None => {}
        }
        state.syncs += 1;
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        for change in &pending {
            change.apply(&mut inode.durable);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemLock {
    fs: MemFs,
    path: PathBuf,
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.fs.state().locks.remove(&self.path);
    }
}

impl Filesystem for MemFs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.directories.contains(path) {
            state.writable()?;
            state.directories.insert(path.to_owned());
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state();
        if !state.directories.contains(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let inside = |at: &Path| at.parent() == Some(path);
        let directories = state.directories.iter().filter(|at| inside(at));
        let directories = directories.map(|at| Entry { name: name(at), directory: true, bytes: 0 });
        let files = state.entries.iter().filter(|(at, _)| inside(at)).map(|(at, inode)| {
            let bytes = state.inodes[inode].seen.len() as u64;
            Entry { name: name(at), directory: false, bytes }
        });
        let mut found: Vec<Entry> = directories.chain(files).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let known = state.entries.get(path).copied();
        let inode = match (how, known) {
            (Open::Read, Some(inode)) => inode,
            (Open::Write, Some(inode)) => {
                state.writable()?;
                inode
            }
            (Open::Create, None) => {
                state.writable()?;
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change_entries(EntryChange::Set(path.to_owned(), inode));
                inode
            }
            (Open::Create, Some(_)) => return Err(ErrorKind::AlreadyExists.into()),
            (_, None) => return Err(ErrorKind::NotFound.into()),
        };
        Ok(Box::new(MemFile { fs: self.clone(), inode, writable: how != Open::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        let Some(inode) = state.entries.get(from).copied() else { return Err(ErrorKind::NotFound.into()) };
        state.change_entries(EntryChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        if !state.entries.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        state.change_entries(EntryChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        match state.fail_syncs_after {
            Some(0) => {
                state.fail_syncs_after = None;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Some(left) => state.fail_syncs_after = Some(left - 1),
            None => {}
        }
        state.syncs += 1;
        let inside = |at: &Path| at.parent() == Some(path);
        let (synced, rest) =
            std::mem::take(&mut state.pending_entries).into_iter().partition(|change| match change {
                EntryChange::Set(at, _) | EntryChange::Remove(at) => inside(at),
                EntryChange::Rename(from, to, _) => inside(from) || inside(to),
            });
        state.pending_entries = rest;
        let synced: Vec<EntryChange> = synced;
        for change in &synced {
            apply_entry(change, &mut state.durable_entries);
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.state();
        let free = state.capacity.map(|capacity| capacity.saturating_sub(state.used()));
        Ok(free.map_or(u64::MAX / 2, |free| free + state.overstated))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut state = self.state();
        if state.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        if !state.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(MemLock { fs: self.clone(), path: path.to_owned() })))
    }
}
