use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::Disk;

/// Is a disk in memory on which a script decides what each step does: work, fail, or be the last one before
/// the power fails.
///
/// Like a real one it forgets what was not synced, or a part of it, when the power fails: see
/// [`restart`](Self::restart). Clones are handles to the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

/// Is one step of a [`SimulatedDisk`] that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// Counts the steps of the disk from 0.
    pub number: usize,
    /// What is done.
    pub operation: Operation,
    /// To which file.
    pub path: &'a Path,
}

/// Is what a [`Step`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Disk::create`].
    Create,
    /// [`Disk::write`], of so many bytes.
    Write(usize),
    /// [`Disk::truncate`].
    Truncate,
    /// [`Disk::sync`].
    Sync,
    /// [`Disk::sync_names`].
    SyncNames,
    /// [`Disk::rename`], to the step's path.
    Rename,
    /// [`Disk::keep`], under the step's path.
    Keep,
    /// [`Disk::remove`].
    Remove,
}

/// Decides what becomes of a [`Step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Work,
    /// It fails. A write has taken this many bytes before.
    Fail {
        /// How the step fails.
        kind: ErrorKind,
        /// How much of a write is done.
        bytes: usize,
    },
    /// The power fails. A write has taken this many bytes before, anything else nothing. Every later call fails.
    PowerCut {
        /// How much of a write is done.
        bytes: usize,
    },
}

/// Says what becomes of bytes that were written and not synced when the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// They are gone, and the file is as it was when it was synced last.
    Lost,
    /// They are there.
    Kept,
    /// The file has its length, but zeros in their place.
    Zeroed,
}

impl SimulatedDisk {
    /// Makes an empty disk, on which every step works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `script` decide about each step from now on.
    pub fn script(&self, script: impl FnMut(&Step<'_>) -> Fate + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// Lets every step work from now on.
    pub fn heal(&self) {
        self.lock().script = None;
    }

    /// How many steps were asked for.
    pub fn steps(&self) -> usize {
        self.lock().steps
    }

    /// Whether the power has failed.
    pub fn is_down(&self) -> bool {
        self.lock().is_down
    }

    /// How many names were given, taken or changed and are not durable.
    pub fn unsynced_names(&self) -> usize {
        self.lock().changes.len()
    }

    /// What is on the disk when the power is back: a disk of its own.
    ///
    /// Of the changes of names that are not durable the first `names` are kept.
    #[must_use]
    pub fn restart(&self, unsynced: Unsynced, names: usize) -> Self {
        let state = self.lock();
        let mut after = State { durable_names: state.durable_names.clone(), ..State::default() };
        for change in state.changes.iter().take(names) {
            change.apply(&mut after.durable_names);
        }
        after.names = after.durable_names.clone();
        after.files = state.files.iter().map(|file| file.after(unsynced)).collect();
        Self(Arc::new(Mutex::new(after)))
    }

    /// Puts a file on the disk, durably.
    pub fn put(&self, path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        let (mut state, path, bytes) = (self.lock(), path.into(), bytes.into());
        let index = state.files.len();
        state.files.push(Content { durable: bytes.clone(), bytes });
        state.names.insert(path.clone(), index);
        state.durable_names.insert(path, index);
    }

    /// The bytes of a file, as a program sees them.
    pub fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(path.as_ref()).map(|&index| state.files[index].bytes.clone())
    }

    /// Asks the script about a step; with an error answers how many bytes it has written all the same.
    fn step(&self, path: &Path, operation: Operation) -> Result<MutexGuard<'_, State>, (io::Error, usize)> {
        let mut state = self.lock();
        if state.is_down {
            return Err((io::Error::other("the power has failed"), 0));
        }
        let step = Step { number: state.steps, operation, path };
        state.steps += 1;
        match state.script.as_mut().map_or(Fate::Work, |script| script(&step)) {
            Fate::Work => Ok(state),
            Fate::Fail { kind, bytes } => Err((kind.into(), bytes)),
            Fate::PowerCut { bytes } => {
                state.is_down = true;
                Err((io::Error::other("the power has failed"), bytes))
            }
        }
    }

    fn simple_step(&self, path: &Path, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        self.step(path, operation).map_err(|(error, _)| error)
    }

    fn up(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.is_down { Err(io::Error::other("the power has failed")) } else { Ok(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A script that panics poisons the lock; what it guards is whole all the same.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let state = self.up()?;
        Ok(state.names.get(path).map(|&index| state.files[index].bytes.clone()))
    }

    fn open(&self, path: &Path) -> io::Result<Option<SimulatedFile>> {
        let state = self.up()?;
        Ok(state.names.get(path).map(|&index| SimulatedFile { index, path: path.to_owned() }))
    }

    fn create(&self, path: &Path) -> io::Result<SimulatedFile> {
        let mut state = self.simple_step(path, Operation::Create)?;
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let index = state.files.len();
        state.files.push(Content::default());
        state.change(Change::Put(path.to_owned(), index));
        Ok(SimulatedFile { index, path: path.to_owned() })
    }

    fn len(&self, file: &SimulatedFile) -> io::Result<u64> {
        Ok(self.up()?.files[file.index].bytes.len() as u64)
    }

    fn write(&self, file: &mut SimulatedFile, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let at = usize::try_from(at).expect("the disk is in memory");
        let (result, mut state, bytes) = match self.step(&file.path, Operation::Write(bytes.len())) {
            Ok(state) => (Ok(bytes.len()), state, bytes),
            Err((error, done)) => (Err(error), self.lock(), &bytes[..done.min(bytes.len())]),
        };
        let content = &mut state.files[file.index].bytes;
        if !bytes.is_empty() {
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(bytes);
        }
        result
    }

    fn truncate(&self, file: &SimulatedFile, len: u64) -> io::Result<()> {
        let mut state = self.simple_step(&file.path, Operation::Truncate)?;
        let len = usize::try_from(len).expect("the disk is in memory");
        state.files[file.index].bytes.resize(len, 0);
        Ok(())
    }

    fn sync(&self, file: &SimulatedFile) -> io::Result<()> {
        let mut state = self.simple_step(&file.path, Operation::Sync)?;
        let content = &mut state.files[file.index];
        content.durable = content.bytes.clone();
        Ok(())
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.simple_step(path, Operation::SyncNames)?;
        let folder = path.parent();
        let (synced, others) = std::mem::take(&mut state.changes)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.is_in(folder));
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        state.changes = others;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.simple_step(to, Operation::Rename)?;
        let index = *state.names.get(from).ok_or(ErrorKind::NotFound)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned(), index));
        Ok(())
    }

    fn keep(&self, path: &Path, second: &Path) -> io::Result<()> {
        let mut state = self.simple_step(second, Operation::Keep)?;
        if state.names.contains_key(second) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let index = *state.names.get(path).ok_or(ErrorKind::NotFound)?;
        state.change(Change::Put(second.to_owned(), index));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.simple_step(path, Operation::Remove)?;
        if state.names.contains_key(path) {
            state.change(Change::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        Ok(self.up()?.names.keys().cloned().collect())
    }
}

/// Is an open file of a [`SimulatedDisk`].
#[derive(Debug)]
pub struct SimulatedFile {
    index: usize,
    path: PathBuf,
}

#[derive(Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// What happened to names and is not durable, in its order.
    changes: Vec<Change>,
    script: Option<Box<Script>>,
    steps: usize,
    is_down: bool,
}

impl State {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("names", &self.names)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

impl Content {
    fn after(&self, unsynced: Unsynced) -> Self {
        let durable = match unsynced {
            Unsynced::Lost => self.durable.clone(),
            Unsynced::Kept => self.bytes.clone(),
            Unsynced::Zeroed => {
                let same = self.durable.iter().zip(&self.bytes).take_while(|(a, b)| a == b).count();
                let mut zeroed = self.bytes[..same].to_vec();
                zeroed.resize(self.bytes.len(), 0);
                zeroed
            }
        };
        Self { bytes: durable.clone(), durable }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Put(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Put(path, index) => drop(names.insert(path.clone(), *index)),
            Self::Rename(from, to, index) => {
                names.remove(from);
                names.insert(to.clone(), *index);
            }
            Self::Remove(path) => drop(names.remove(path)),
        }
    }

    fn is_in(&self, folder: Option<&Path>) -> bool {
        match self {
            Self::Put(path, _) | Self::Remove(path) => path.parent() == folder,
            Self::Rename(from, to, _) => from.parent() == folder || to.parent() == folder,
        }
    }
}

type Script = dyn FnMut(&Step<'_>) -> Fate + Send;
