pub(crate) mod format;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, ErrorKind},
    mem,
    ops::ControlFlow,
    path::{Component, Path, PathBuf},
    slice,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use yrs_websocket::RoomName;

use self::format::{Contents, HEADER, Version};
use crate::{
    Disk, Entry, Folder, FolderError, History, RoomSummary, Store, StoreError, Write,
    disk::store_error,
    history::{self, unix_time},
};

/// Keeps each room in a file of its own, in the format of the FileYStore of ypy-websocket and pycrdt-store.
///
/// They read what this writes, and the other way round. Files of their earlier versions (0, 1, and that
/// without metadata) are read as they are, and rewritten when they are first written to; the earlier file is
/// kept beside the new one as `NAME(1).y`, or under the first number that is free.
///
/// **Durable means on the disk**: every append is one write and one `fdatasync`, before it counts as committed;
/// see [`Fsync`] for less. What a commit writes to one room is one write, however much it is.
///
/// **A commit is not one transaction**: there is none over several files. If it fails, what it appended
/// is taken back, and if the disk does not let that happen, some of it may be kept though the answer is `Err`:
/// the caller writes again, and an update kept twice is harmless. What was there before is whole in any case.
///
/// **Compaction** writes a new file, makes it durable, and gives it the name of the old one.
///
/// **A torn tail**, which a crash in the middle of a write leaves, is not read. When the file is first written to
/// it is cut off, and [reported](Self::with_reports). It was never acknowledged. A tail is torn if no whole record
/// is found behind the place where reading stops; otherwise the file is damaged in the middle, which is
/// [`StoreError::Corrupt`], and nothing is cut. A whole record is one whose lengths fit, with a timestamp from 1970
/// to the year 5000, and a well-formed update that says something. Damage of the last record cannot be told from
/// a torn tail: so what is cut off is kept, as `NAME(1).y.torn`.
///
/// **One process** can have a folder open: see [`Folder`]. The Python libraries take no lock. Whatever they append
/// meanwhile is kept and not written over, but one of theirs must not run at the same time.
///
/// **Names.** `notes` is kept in `notes.y`; every byte but lower-case letters, digits, `-`, `_` and
/// `.` is `%` and two hexadecimal digits, so names differ even where case does not count, and none leads out of
/// the folder. [`with_paths`](Self::with_paths) is for folders that are named otherwise.
pub struct FileStore<D: Disk = Folder> {
    disk: Arc<D>,
    fsync: Fsync,
    syncer: Option<Syncer>,
    path_of: fn(&RoomName) -> PathBuf,
    room_of: fn(&Path) -> Option<RoomName>,
    clock: Box<dyn FnMut() -> f64 + Send>,
    on_report: Arc<OnReport>,
    rooms: BTreeMap<RoomName, Known>,
}

/// Says when what was appended is made durable.
///
/// Compaction makes its file durable before the old one goes, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Before it counts as committed.
    #[default]
    Always,
    /// At most this long after it was committed, by a thread of its own. **What was acknowledged in the
    /// meantime is lost if the power fails**, and may leave a hole in a file, which is then
    /// [`StoreError::Corrupt`]. The end of the process alone loses nothing.
    Interval(Duration),
    /// When the operating system sees fit: the same, with some half a minute on Linux.
    Never,
}

/// Is something about a file that the operator should know, though the store goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// The end of a file was not whole, and was cut off: a write was interrupted. It was not acknowledged, unless
    /// the disk has lost what it had promised to keep.
    TornTail {
        /// The file, inside the folder.
        path: PathBuf,
        /// How much of it is whole, in bytes.
        end: u64,
        /// How many bytes were cut off.
        cut: u64,
        /// Where they are now, by themselves or in the backup of the whole file.
        kept: PathBuf,
    },
    /// A file of an earlier version of the format was rewritten.
    Upgraded {
        /// The file, inside the folder.
        path: PathBuf,
        /// Where the earlier file is now.
        backup: PathBuf,
    },
    /// What was acknowledged under [`Fsync::Interval`] could not be made durable.
    SyncFailed {
        /// The file, inside the folder.
        path: PathBuf,
        /// Why.
        error: StoreError,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornTail { path, end, cut, kept } => {
                let (path, kept) = (path.display(), kept.display());
                write!(
                    f,
                    "{path}: cut off {cut} bytes behind byte {end}, as an interrupted write leaves; see {kept}"
                )
            }
            Self::Upgraded { path, backup } => {
                write!(f, "{}: rewritten in version 2; as it was it is {}", path.display(), backup.display())
            }
            Self::SyncFailed { path, error } => {
                write!(f, "{}: what was acknowledged last may be lost: {error}", path.display())
            }
        }
    }
}

impl FileStore {
    /// Opens the store in a folder, which is made if it is not there.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, FolderError> {
        Ok(Self::on(Folder::open(folder)?))
    }

    /// The file inside the folder that a room has, unless [`with_paths`](Self::with_paths) gives it another.
    pub fn default_path(room: &RoomName) -> PathBuf {
        names::path_of(room)
    }

    /// The room of a file inside the folder; `None` for a file that [`default_path`](Self::default_path)
    /// gives to no room.
    pub fn default_room(path: &Path) -> Option<RoomName> {
        names::room_of(path)
    }
}

impl<D: Disk> FileStore<D> {
    /// Makes a store on any disk.
    pub fn on(disk: D) -> Self {
        Self {
            disk: Arc::new(disk),
            fsync: Fsync::Always,
            syncer: None,
            path_of: names::path_of,
            room_of: names::room_of,
            clock: Box::new(unix_time),
            on_report: Arc::new(|_| {}),
            rooms: BTreeMap::new(),
        }
    }

    /// Says when what was appended is made durable, instead of always.
    pub fn with_fsync(mut self, fsync: Fsync) -> Result<Self, StoreError> {
        self.fsync = fsync;
        self.syncer = match fsync {
            Fsync::Always | Fsync::Never => None,
            Fsync::Interval(interval) => Some(
                Syncer::start(Arc::clone(&self.disk), interval, Arc::clone(&self.on_report))
                    .map_err(|error| store_error(&error, "the thread that syncs"))?,
            ),
        };
        Ok(self)
    }

    /// Calls `on_report` with what the operator should know. It must not panic. To be called before
    /// [`with_fsync`](Self::with_fsync), whose thread reports, too.
    #[must_use]
    pub fn with_reports(mut self, on_report: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        self.on_report = Arc::new(on_report);
        self
    }

    /// Says which file inside the folder a room has, and the other way round, for [`rooms`](Self::rooms).
    ///
    /// Two rooms must not have the same file. A path that is not inside the folder fails the room's loads
    /// and writes; so does a name that begins with `.yrs-websocket.`, which the store needs for itself.
    #[must_use]
    pub fn with_paths(
        mut self,
        path_of: fn(&RoomName) -> PathBuf,
        room_of: fn(&Path) -> Option<RoomName>,
    ) -> Self {
        (self.path_of, self.room_of) = (path_of, room_of);
        self
    }

    /// Takes the time, in seconds since 1970, from `clock` instead of the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> f64 + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// The rooms that have a file, sorted.
    pub fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        let paths = self.disk.paths().map_err(|error| store_error(&error, "the folder"))?;
        let mut rooms: Vec<_> = paths.iter().filter_map(|path| (self.room_of)(path)).collect();
        rooms.sort();
        Ok(rooms)
    }

    fn path(&self, room: &RoomName) -> Result<PathBuf, StoreError> {
        let path = (self.path_of)(room);
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)))
            && !path.as_os_str().is_empty()
            && !path.to_string_lossy().starts_with(OURS);
        if is_inside {
            return Ok(path);
        }
        let message = format!("room {room:?} cannot be kept in {}: give it another path", path.display());
        Err(StoreError::Other { message })
    }

    /// Makes durable what was found in a file. False if it may not be written, so that nobody has.
    fn sync_found(&self, path: &Path) -> io::Result<bool> {
        match self.disk.open(path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                Ok(false)
            }
            file => {
                file?.map_or(Ok(()), |file| self.disk.sync(&file))?;
                self.disk.sync_names(path)?;
                Ok(true)
            }
        }
    }

    /// Opens a room's file to write to it, at its end; `None` if there is no file.
    ///
    /// Afterwards the file is one of version 2 without a torn tail, and its records are known.
    fn open_file(&mut self, room: &RoomName, path: &Path) -> Result<Option<(D::File, u64)>, StoreError> {
        let failed = failed(path);
        let known = self.rooms.entry(room.clone()).or_default();
        let Some(file) = self.disk.open(path).map_err(failed)? else {
            *known = Known::default();
            return Ok(None);
        };
        let len = self.disk.len(&file).map_err(failed)?;
        match known.end {
            End::Whole(end) if end == len => return Ok(Some((file, len))),
            End::Overhang(end) => {
                self.disk.truncate(&file, end).map_err(failed)?;
                known.end = End::Whole(end);
                return Ok(Some((file, end)));
            }
            End::Whole(_) | End::Unseen => known.end = End::Unseen,
        }
        let bytes = Bytes::from(self.disk.read(path).map_err(failed)?.unwrap_or_default());
        let contents = read(&bytes, path)?;
        known.count(contents.records.len());
        let end = contents.end as u64;
        let is_torn = contents.end < bytes.len();
        let report_torn = |kept| {
            let path = path.to_owned();
            (self.on_report)(&Report::TornTail { path, end, cut: (bytes.len() - contents.end) as u64, kept });
        };
        let (file, len) = if contents.version == Version::Two {
            if is_torn {
                let cut = &bytes[contents.end..];
                let kept = keep_torn(&*self.disk, path, cut, self.fsync).map_err(failed)?;
                self.disk.truncate(&file, end).map_err(failed)?;
                report_torn(kept);
            }
            (file, end)
        } else {
            let mut upgraded = HEADER.to_vec();
            for record in contents.records {
                format::write(&mut upgraded, &bytes[record.update], &bytes[record.metadata], (self.clock)());
            }
            let (backup, ()) = beside(path, "", |backup| self.disk.keep(path, backup)).map_err(failed)?;
            replace(&*self.disk, path, &upgraded)?;
            self.disk.sync_names(path).map_err(failed)?;
            known.named = false;
            if is_torn {
                report_torn(backup.clone());
            }
            (self.on_report)(&Report::Upgraded { path: path.to_owned(), backup });
            let Some(file) = self.disk.open(path).map_err(failed)? else { return Ok(None) };
            (file, upgraded.len() as u64)
        };
        known.end = End::Whole(len);
        Ok(Some((file, len)))
    }

    /// Writes to the end of a room's file, as one write.
    fn append(&mut self, room: &RoomName, writes: &[&Write]) -> Result<(D::File, Appended), StoreError> {
        let mut records = Vec::new();
        let mut seqs = Vec::with_capacity(writes.len());
        for write in writes {
            let Write::Append { seq, update, .. } = write else { unreachable!("compactions are rewritten") };
            format::write(&mut records, update, b"", (self.clock)());
            seqs.push(Some(*seq));
        }
        self.append_records(room, &records, seqs)
    }

    fn append_records(
        &mut self,
        room: &RoomName,
        records: &[u8],
        seqs: Vec<Option<u64>>,
    ) -> Result<(D::File, Appended), StoreError> {
        let path = self.path(room)?;
        let (mut file, before, is_new) = match self.open_file(room, &path)? {
            Some((file, len)) => (file, len, false),
            None => (self.disk.create(&path).map_err(failed(&path))?, 0, true),
        };
        let mut bytes = if before == 0 { HEADER.to_vec() } else { Vec::new() };
        bytes.extend_from_slice(records);
        let after = before + bytes.len() as u64;
        let written = write_all(&*self.disk, &mut file, before, &bytes).map_err(failed(&path));
        let appended = Appended { room: room.clone(), path, is_new, before, after, seqs };
        match written {
            Ok(()) => Ok((file, appended)),
            Err(error) => {
                self.take_back(appended);
                Err(error)
            }
        }
    }

    /// Makes what was appended durable, as far as is asked for.
    fn make_durable(&mut self, appended: &[Appended], files: &[D::File]) -> Result<(), StoreError> {
        match self.fsync {
            Fsync::Always => {}
            Fsync::Interval(_) => {
                if let Some(syncer) = &self.syncer {
                    syncer.shared.add(appended.iter().map(|appended| appended.path.clone()));
                }
                return Ok(());
            }
            Fsync::Never => return Ok(()),
        }
        // One path of each folder in which a name may not be durable.
        let mut folders = BTreeMap::new();
        for (Appended { room, path, .. }, synced) in appended.iter().zip(self.disk.sync_all(files)) {
            synced.map_err(failed(path))?;
            if !self.rooms.get(room).is_some_and(|known| known.named) {
                folders.insert(path.parent(), path);
            }
        }
        folders.values().try_for_each(|path| self.disk.sync_names(path).map_err(failed(path)))?;
        for Appended { room, .. } in appended {
            self.rooms.entry(room.clone()).or_default().named = true;
        }
        Ok(())
    }

    /// Takes notice of an append that is done.
    fn keep(&mut self, appended: Appended) {
        let known = self.rooms.entry(appended.room).or_default();
        known.end = End::Whole(appended.after);
        appended.seqs.into_iter().for_each(|seq| known.push(seq, 1));
    }

    /// Undoes an append.
    fn take_back(&mut self, appended: Appended) {
        let Appended { room, path, is_new, before, .. } = appended;
        let taken = self.disk.open(&path).and_then(|file| {
            file.map_or(Ok(()), |file| self.disk.truncate(&file, before))?;
            // An empty file is none to Python, which gives it another name.
            if is_new { self.disk.remove(&path) } else { Ok(()) }
        });
        let known = self.rooms.entry(room).or_default();
        known.end = match taken {
            Ok(()) => End::Whole(before),
            // Before anything else is written to it. Bytes that the disk has refused to make durable must not
            // come to stand in the middle of the file.
            Err(_) => End::Overhang(before),
        };
    }

    /// Writes a room's file anew: what is written to it contains a compaction.
    fn rewrite(&mut self, room: &RoomName, writes: &[&Write]) -> Result<(), StoreError> {
        let path = self.path(room)?;
        let file = match self.open_file(room, &path)? {
            Some(_) => Bytes::from(self.disk.read(&path).map_err(failed(&path))?.unwrap_or_default()),
            None => Bytes::new(),
        };
        let known = self.rooms.entry(room.clone()).or_default();
        let contents = read(&file, &path)?;
        known.count(contents.records.len());
        let seqs = known.runs.iter().flat_map(|run| (0..run.records).map(|_| run.seq));
        let mut records: Vec<_> =
            seqs.zip(contents.records).map(|(seq, record)| (seq, file.slice(record.whole))).collect();
        let mut encode = |update: &Bytes| {
            let mut record = Vec::with_capacity(update.len() + RECORD_OVERHEAD);
            format::write(&mut record, update, b"", (self.clock)());
            Bytes::from(record)
        };
        for write in writes {
            match write {
                Write::Append { seq, update, .. } => records.push((Some(*seq), encode(update))),
                Write::Compact { seq, state, .. } => {
                    records.retain(|(written, _)| written.is_none_or(|written| written > *seq));
                    records.splice(0..0, state.iter().map(|update| (Some(*seq), encode(update))));
                }
            }
        }
        let mut new = HEADER.to_vec();
        records.iter().for_each(|(_, record)| new.extend_from_slice(record));
        replace(&*self.disk, &path, &new)?;
        // From here on this is the file, even if its name does not become durable.
        *known = Known { end: End::Whole(new.len() as u64), named: false, runs: Vec::new() };
        records.iter().for_each(|&(seq, _)| known.push(seq, 1));
        self.disk.sync_names(&path).map_err(failed(&path))?;
        known.named = true;
        Ok(())
    }
}

impl<D: Disk> Store for FileStore<D> {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let path = self.path(room)?;
        let Some(file) = self.disk.read(&path).map_err(failed_to_read(&path))? else {
            self.rooms.remove(room);
            return Ok(Vec::new());
        };
        let mut file = Bytes::from(file);
        let (overhang, mut named) = match self.rooms.get(room) {
            Some(&Known { end: End::Overhang(end), named, .. }) => (Some(end), named),
            Some(known) => (None, known.named),
            None => (None, false),
        };
        if let Some(end) = overhang {
            file.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        }
        if !named && self.fsync == Fsync::Always {
            // Who wrote it may have died before it was durable, and what is loaded counts as stored.
            named = self.sync_found(&path).map_err(failed_to_read(&path))?;
        }
        let Contents { version, records, end } = read(&file, &path)?;
        let end = match overhang {
            Some(end) => End::Overhang(end),
            None if version == Version::Two && end == file.len() => End::Whole(end as u64),
            None => End::Unseen,
        };
        let mut known = Known { end, named, runs: Vec::new() };
        known.push(Some(0), records.len());
        self.rooms.insert(room.clone(), known);
        // Python stores updates in which nothing happened by the thousand.
        let updates = records.into_iter().map(|record| file.slice(record.update));
        Ok(updates.filter(|update| update != NOTHING).collect())
    }

    /// Appends to every room that is only appended to, makes that durable, and then rewrites those that are
    /// compacted, each by itself.
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut by_room = BTreeMap::<_, Vec<_>>::new();
        for write in writes {
            by_room.entry(write.room()).or_default().push(write);
        }
        let is_append = |write: &&Write| matches!(write, Write::Append { .. });
        let (appends, compactions): (Vec<_>, Vec<_>) =
            by_room.into_iter().partition(|(_, writes)| writes.iter().all(is_append));
        let mut appended = Vec::with_capacity(appends.len());
        let done = (|| {
            for appends in appends.chunks(OPEN_FILES_MAX) {
                let before = appended.len();
                let mut files = Vec::with_capacity(appends.len());
                for (room, writes) in appends {
                    let (file, append) = self.append(room, writes)?;
                    files.push(file);
                    appended.push(append);
                }
                self.make_durable(&appended[before..], &files)?;
            }
            compactions.into_iter().try_for_each(|(room, writes)| self.rewrite(room, &writes))
        })();
        for appended in appended {
            if done.is_err() {
                self.take_back(appended);
                continue;
            }
            self.keep(appended);
        }
        done
    }

    fn unload(&mut self, room: &RoomName) {
        // What must be cut must not be forgotten.
        if self.rooms.get(room).is_some_and(|known| !matches!(known.end, End::Overhang(_))) {
            self.rooms.remove(room);
        }
    }
}

impl<D: Disk> History for FileStore<D> {
    /// Reads every file.
    fn rooms(&mut self) -> Result<Vec<RoomSummary>, StoreError> {
        let mut summaries = Vec::new();
        for room in Self::rooms(self)? {
            let mut summary = RoomSummary { room: room.clone(), records: 0, bytes: 0, newest: 0.0 };
            self.records(&room, &mut |record| {
                summary.records += 1;
                summary.bytes += record.update.as_ref().map_or(0, |update| update.len() as u64);
                summary.newest = summary.newest.max(record.timestamp);
                ControlFlow::Continue(())
            })?;
            summaries.push(summary);
        }
        Ok(summaries)
    }

    /// In the order of the file. Files of earlier versions have no times: these are 0.
    fn records(
        &mut self,
        room: &RoomName,
        visit: &mut dyn FnMut(history::Record) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let path = self.path(room)?;
        let Some(file) = self.disk.read(&path).map_err(failed_to_read(&path))? else { return Ok(()) };
        let mut file = Bytes::from(file);
        if let Some(&Known { end: End::Overhang(end), .. }) = self.rooms.get(room) {
            file.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        }
        let Contents { version, records, .. } = read(&file, &path)?;
        for (number, record) in (1..).zip(records) {
            let timestamp = match version {
                Version::Two => {
                    file[..record.whole.end].last_chunk().map_or(0.0, |time| f64::from_le_bytes(*time))
                }
                Version::Updates | Version::Zero | Version::One => 0.0,
            };
            let record = history::Record {
                number,
                timestamp,
                metadata: file.slice(record.metadata),
                update: Ok(file.slice(record.update)),
                is_checkpoint: false,
            };
            if visit(record).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// With their times as they are: the order is that of the file.
    fn restore(&mut self, room: &RoomName, entries: &[Entry]) -> Result<(), StoreError> {
        let mut records = Vec::new();
        for Entry { update, metadata, timestamp } in entries {
            format::write(&mut records, update, metadata, *timestamp);
        }
        let (file, appended) = self.append_records(room, &records, vec![None; entries.len()])?;
        if let Err(error) = self.make_durable(slice::from_ref(&appended), slice::from_ref(&file)) {
            self.take_back(appended);
            return Err(error);
        }
        self.keep(appended);
        Ok(())
    }
}

impl<D: Disk> fmt::Debug for FileStore<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("fsync", &self.fsync).finish_non_exhaustive()
    }
}

/// Keeps rooms in files of a temporary folder that is this store's own, and is deleted with it.
#[derive(Debug)]
pub struct TempFileStore {
    // Dropped before the folder is deleted.
    store: FileStore,
    folder: TempDir,
}

impl TempFileStore {
    /// Makes a new folder where the system keeps temporary ones, and the store in it.
    pub fn new() -> Result<Self, FolderError> {
        let folder = TempDir::with_prefix("yrs-websocket-")
            .map_err(|error| store_error(&error, "the system's temporary folder"))?;
        Ok(Self { store: FileStore::open(folder.path())?, folder })
    }

    /// Configures the store inside, as in `TempFileStore::new()?.try_map(|store| store.with_fsync(Fsync::Never))?`.
    pub fn try_map<E>(self, configure: impl FnOnce(FileStore) -> Result<FileStore, E>) -> Result<Self, E> {
        Ok(Self { store: configure(self.store)?, folder: self.folder })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Closes the store and leaves its folder there.
    pub fn into_path(self) -> PathBuf {
        drop(self.store);
        self.folder.keep()
    }
}

impl Store for TempFileStore {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        self.store.load(room)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.store.commit(writes)
    }

    fn unload(&mut self, room: &RoomName) {
        self.store.unload(room);
    }
}

impl History for TempFileStore {
    fn rooms(&mut self) -> Result<Vec<RoomSummary>, StoreError> {
        History::rooms(&mut self.store)
    }

    fn records(
        &mut self,
        room: &RoomName,
        visit: &mut dyn FnMut(history::Record) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.store.records(room, visit)
    }

    fn restore(&mut self, room: &RoomName, entries: &[Entry]) -> Result<(), StoreError> {
        self.store.restore(room, entries)
    }
}

/// Is what this store knows of a room's file.
#[derive(Debug, Default)]
struct Known {
    end: End,
    /// Whether the file's name is durable.
    named: bool,
    /// Who has written the records, in the file's order.
    runs: Vec<Run>,
}

/// Says what is at the end of a file.
#[derive(Debug, Clone, Copy, Default)]
enum End {
    /// It is to be looked at before it is written to.
    #[default]
    Unseen,
    /// At this length, a whole record, or nothing yet.
    Whole(u64),
    /// Behind this length, bytes that could not be taken back: they are to be cut off first.
    Overhang(u64),
}

/// Is some records that came by writes of one number.
#[derive(Debug)]
struct Run {
    /// The number of the write since the last load; 0 for what was loaded. `None` if it was neither
    /// loaded nor written by this store: no compaction covers it.
    seq: Option<u64>,
    records: usize,
}

impl Known {
    fn push(&mut self, seq: Option<u64>, records: usize) {
        match self.runs.last_mut() {
            Some(last) if last.seq == seq => last.records += records,
            _ if records == 0 => {}
            _ => self.runs.push(Run { seq, records }),
        }
    }

    /// Takes notice of how many records there are.
    fn count(&mut self, records: usize) {
        let known = self.runs.iter().map(|run| run.records).sum();
        match records.checked_sub(known) {
            Some(more) => self.push(None, more),
            // Somebody has replaced the file.
            None => self.runs = vec![Run { seq: None, records }],
        }
    }
}

/// Is an append that may have to be taken back.
struct Appended {
    room: RoomName,
    path: PathBuf,
    is_new: bool,
    before: u64,
    after: u64,
    /// As in [`Run`].
    seqs: Vec<Option<u64>>,
}

/// Syncs files some time after they were written to.
struct Syncer {
    shared: Arc<Unsynced>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Unsynced {
    state: Mutex<SyncerState>,
    changed: Condvar,
}

#[derive(Default)]
struct SyncerState {
    paths: BTreeSet<PathBuf>,
    closing: bool,
}

impl Syncer {
    fn start<D: Disk>(disk: Arc<D>, interval: Duration, on_report: Arc<OnReport>) -> io::Result<Self> {
        let shared = Arc::<Unsynced>::default();
        let unsynced = Arc::clone(&shared);
        let thread = thread::Builder::new().name("yrs-store-sync".into()).spawn(move || {
            while let Some(paths) = unsynced.wait(interval) {
                for path in paths {
                    let synced = disk.open(&path).and_then(|file| {
                        file.map_or(Ok(()), |file| disk.sync(&file))?;
                        disk.sync_names(&path)
                    });
                    if let Err(error) = synced {
                        let error = store_error(&error, &path.to_string_lossy());
                        on_report(&Report::SyncFailed { path, error });
                    }
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A report that panicked has ended it.
            let _ = thread.join();
        }
    }
}

impl Unsynced {
    fn add(&self, paths: impl Iterator<Item = PathBuf>) {
        self.lock().paths.extend(paths);
        self.changed.notify_all();
    }

    /// Waits for the first path, and then `interval` for others; `None` at the end.
    fn wait(&self, interval: Duration) -> Option<BTreeSet<PathBuf>> {
        let state = self.changed.wait_while(self.lock(), |state| state.paths.is_empty() && !state.closing);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let state = self.changed.wait_timeout_while(state, interval, |state| !state.closing);
        let (mut state, _) = state.unwrap_or_else(PoisonError::into_inner);
        let paths = mem::take(&mut state.paths);
        (!paths.is_empty()).then_some(paths)
    }

    fn lock(&self) -> MutexGuard<'_, SyncerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Bytes, path: &Path) -> Result<Contents, StoreError> {
    format::read(file).map_err(|damage| damage.error(&path.to_string_lossy()))
}

/// Puts a new file in the place of an old one. The new name is not yet durable.
fn replace<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = Path::new(NEW);
    let failed = failed(path);
    // What a crash has left.
    disk.remove(new).map_err(failed)?;
    let written = disk.create(new).and_then(|mut file| {
        write_all(disk, &mut file, 0, bytes)?;
        disk.sync(&file)
    });
    if let Err(error) = written {
        // To make room, if that is what there is none of.
        let _ = disk.remove(new);
        return Err(failed(error));
    }
    disk.rename(new, path).map_err(failed)
}

/// Keeps what will be cut off a file.
fn keep_torn<D: Disk>(disk: &D, path: &Path, cut: &[u8], fsync: Fsync) -> io::Result<PathBuf> {
    let (kept, mut file) = beside(path, ".torn", |kept| disk.create(kept))?;
    write_all(disk, &mut file, 0, cut)?;
    if fsync != Fsync::Never {
        disk.sync(&file)?;
        disk.sync_names(&kept)?;
    }
    Ok(kept)
}

/// Makes a file under the first name beside another that is free.
fn beside<T>(
    path: &Path,
    suffix: &str,
    mut make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    let mut number = 1_u32;
    loop {
        let mut free = numbered(path, number).into_os_string();
        free.push(suffix);
        match make(Path::new(&free)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => return made.map(|made| (free.into(), made)),
        }
    }
}

/// `notes.y` and 1 make `notes(1).y`, as in Python.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("({number})"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn write_all<D: Disk>(disk: &D, file: &mut D::File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    // One call, unless the system takes less than it is given: for more than 2 GB, or to say why with the next.
    while written < bytes.len() {
        match disk.write(file, at + written as u64, &bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + Copy + '_ {
    move |error| store_error(&error, &path.to_string_lossy())
}

/// Whatever keeps a file from being read, its store is not read-only for that.
fn failed_to_read(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| StoreError::Io { message: format!("{}: {error}", path.display()) }
}

type OnReport = dyn Fn(&Report) + Send + Sync;

/// The update in which nothing happened: no structs, no deletes.
const NOTHING: &[u8] = &[0, 0];

/// How names begin that no room's file may have.
const OURS: &str = ".yrs-websocket.";

/// Where a file is written before it takes the place of another. One is enough: a store writes one at a time.
const NEW: &str = ".yrs-websocket.new";

/// How many files a commit has open at the same time. Systems allow a process some hundreds, and its sockets
/// need most of them.
const OPEN_FILES_MAX: usize = 64;

/// Lengths and timestamp.
const RECORD_OVERHEAD: usize = 20;
