use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process, thread,
};

use crate::StoreError;

/// Is what [`FileStore`](crate::FileStore) needs of a file system: one folder, with paths relative to it.
///
/// [`Folder`] is the real one, and [`SimulatedDisk`](crate::testing::SimulatedDisk) one that loses power when
/// a test says so. A name, and what is in a file, are durable each by itself: `sync` is for the bytes,
/// `sync_names` for the name.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: Send + Sync;

    /// Reads a whole file; `None` if there is none.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Opens a file for writing; `None` if there is none.
    fn open(&self, path: &Path) -> io::Result<Option<Self::File>>;

    /// Makes a file, and the folders it is in; `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// The length of a file in bytes.
    fn len(&self, file: &Self::File) -> io::Result<u64>;

    /// Writes bytes at a place, as one call to the system; answers how many it took.
    fn write(&self, file: &mut Self::File, at: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Cuts a file off.
    fn truncate(&self, file: &Self::File, len: u64) -> io::Result<()>;

    /// Makes the bytes of a file durable.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Makes the bytes of several files durable, and answers for each.
    ///
    /// One after another, unless the disk is faster when it is asked for all at once.
    fn sync_all(&self, files: &[Self::File]) -> Vec<io::Result<()>> {
        files.iter().map(|file| self.sync(file)).collect()
    }

    /// Makes the names durable that were given, taken or changed in the folder that `path` is in.
    fn sync_names(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, atomically; a file that had it is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Keeps a file under a second name, too; `AlreadyExists` if there is a file of that name.
    fn keep(&self, path: &Path, second: &Path) -> io::Result<()>;

    /// Deletes a file; without one nothing happens.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The paths of all files, in any order.
    fn paths(&self) -> io::Result<Vec<PathBuf>>;
}

/// Is a folder of the real file system, locked for this process as long as it lives.
///
/// The lock is advisory (`flock` and its like), on a file of its own in the folder. It keeps two
/// stores apart, not the Python libraries, which take none.
pub struct Folder {
    path: PathBuf,
    /// Dropped, it unlocks.
    _lock: File,
}

impl Folder {
    /// Locks a folder, which is made if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        let failed = |error: &io::Error| FolderError::Store(store_error(error, &path.to_string_lossy()));
        make_folders(&path).map_err(|error| failed(&error))?;
        // Who made it may have died before. If it cannot be opened, its names are not this store's matter.
        let _ = path.parent().map(sync_folder);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Some systems do not let what is locked be read: then nobody knows.
                let process = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(FolderError::Locked { folder: path, process });
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        // For who comes next. On a full disk it goes without.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(process::id().to_string().as_bytes()));
        Ok(Self { path, _lock: lock })
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn collect(&self, folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(self.path.join(folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            // Links are not followed: they may lead in a circle.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.collect(&path, paths)?;
            } else if kind.is_file() {
                paths.push(path);
            }
        }
        Ok(())
    }
}

impl Disk for Folder {
    type File = File;

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.path.join(path)))
    }

    fn open(&self, path: &Path) -> io::Result<Option<File>> {
        found(OpenOptions::new().read(true).write(true).open(self.path.join(path)))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let path = self.path.join(path);
        if let Some(folder) = path.parent() {
            make_folders(folder)?;
        }
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn write(&self, file: &mut File, at: u64, bytes: &[u8]) -> io::Result<usize> {
        file.seek(SeekFrom::Start(at))?;
        file.write(bytes)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_all(&self, files: &[File]) -> Vec<io::Result<()>> {
        // File systems with a journal make durable at once what waits for it at the same time. One thread is this.
        let part = files.len().div_ceil(SYNC_THREADS_MAX).max(1);
        let sync = |files: &[File]| files.iter().map(|file| file.sync_data()).collect::<Vec<_>>();
        let mut parts = files.chunks(part);
        let own = parts.next().unwrap_or_default();
        thread::scope(|scope| {
            let threads: Vec<_> = parts
                .map(|files| (files, thread::Builder::new().spawn_scoped(scope, move || sync(files))))
                .collect();
            let mut synced = sync(own);
            for (files, thread) in threads {
                // Without the thread it takes longer.
                synced.extend(match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    Err(_) => sync(files),
                });
            }
            synced
        })
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        // The folders that it is in, too: who made them may have died before their names were durable.
        path.ancestors().skip(1).try_for_each(|folder| sync_folder(&self.path.join(folder)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn keep(&self, path: &Path, second: &Path) -> io::Result<()> {
        let (path, second) = (self.path.join(path), self.path.join(second));
        match fs::hard_link(&path, &second) {
            // A file system without links, such as FAT.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                let mut copy = OpenOptions::new().write(true).create_new(true).open(second)?;
                io::copy(&mut File::open(path)?, &mut copy)?;
                copy.sync_all()
            }
            linked => linked,
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        found(fs::remove_file(self.path.join(path))).map(drop)
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        self.collect(Path::new(""), &mut paths)?;
        Ok(paths)
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folder").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Says why a folder cannot be used as a store. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Another store has the folder open. The operator ends the process, or gives another folder.
    #[error(
        "another process{} uses the folder {}: end it, or give another folder",
        .process.map(|id| format!(" ({id})")).unwrap_or_default(), .folder.display()
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// The id of the process, if it is known; it may be this one.
        process: Option<u32>,
    },
    /// It could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) fn store_error(error: &io::Error, path: &str) -> StoreError {
    let message = format!("{path}: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreError::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { message },
        _ => StoreError::Io { message },
    }
}

/// Makes a folder and those it is in, and makes their names durable.
fn make_folders(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or_else(|| Path::new(""));
    make_folders(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_folder(parent)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // Elsewhere a folder cannot be opened, and its names are durable by themselves.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many files are synced at the same time.
const SYNC_THREADS_MAX: usize = 32;

/// The file that is locked, and says by whom.
const LOCK: &str = ".yrs-websocket.lock";
