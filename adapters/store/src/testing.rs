//! Makes stores fail and wait, for tests of what is built upon them.
//!
//! ```
//! use yrs_websocket::RoomName;
//! use yrs_websocket_store::{MemoryStore, Store, StoreError, testing::FlakyStore};
//!
//! let (mut store, faults) = FlakyStore::new(MemoryStore::new());
//! let room = RoomName::new("notes")?;
//! faults.fail_next(1, StoreError::Full);
//! assert_eq!(store.load(&room), Err(StoreError::Full));
//! assert_eq!(store.load(&room), Ok(vec![]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod conformance;
mod disk;

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use yrs_websocket::RoomName;

use crate::{Store, StoreError, Write};

pub use disk::{Fate, Operation, SimulatedDisk, SimulatedFile, Step, Unsynced};

/// Wraps a store, and does with each call what its [`Faults`] say.
#[derive(Debug)]
pub struct FlakyStore<S> {
    store: S,
    faults: Faults,
}

impl<S: Store> FlakyStore<S> {
    /// Wraps a store, which works until the [`Faults`] say otherwise.
    pub fn new(store: S) -> (Self, Faults) {
        let faults = Faults(Arc::default());
        (Self { store, faults: faults.clone() }, faults)
    }
}

impl<S: Store> Store for FlakyStore<S> {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        self.faults.pass(&Call::Load(room))?;
        self.store.load(room)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.faults.pass(&Call::Commit(writes))?;
        self.store.commit(writes)
    }

    fn unload(&mut self, room: &RoomName) {
        self.store.unload(room);
    }
}

/// Decides what becomes of the calls to a [`FlakyStore`]. Clones decide together.
///
/// A call first waits while the store is held, then asks the script whether it fails. A call that fails
/// does not reach the wrapped store.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Shared>);

/// Is one call to a store.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// [`Store::load`].
    Load(&'a RoomName),
    /// [`Store::commit`].
    Commit(&'a [Write]),
}

impl Faults {
    /// Lets the next `count` calls fail, and those after them work.
    pub fn fail_next(&self, count: usize, error: StoreError) {
        let mut left = count;
        self.script(move |_| {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            Err(error.clone())
        });
    }

    /// Lets every call fail until [`heal`](Self::heal).
    pub fn fail(&self, error: StoreError) {
        self.script(move |_| Err(error.clone()));
    }

    /// Lets `script` decide about each call, until [`heal`](Self::heal). It may panic: then so does the store.
    pub fn script(&self, script: impl FnMut(&Call<'_>) -> Result<(), StoreError> + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// Lets every call work from now on.
    pub fn heal(&self) {
        self.lock().script = None;
    }

    /// Lets every call wait until [`release`](Self::release).
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Lets the calls go on.
    pub fn release(&self) {
        self.lock().held = false;
        self.0.changed.notify_all();
    }

    /// Whether the store is held: for who must not wait.
    pub fn is_held(&self) -> bool {
        self.lock().held
    }

    /// Blocks until a call waits because the store is held.
    pub fn wait_until_held(&self) {
        let mut state = self.lock();
        while !(state.held && state.waiting) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How many transactions were asked for, those that failed included.
    pub fn commits(&self) -> usize {
        self.lock().commits
    }

    /// How many loads were asked for, those that failed included.
    pub fn loads(&self) -> usize {
        self.lock().loads
    }

    fn pass(&self, call: &Call<'_>) -> Result<(), StoreError> {
        let mut state = self.lock();
        match call {
            Call::Load(_) => state.loads += 1,
            Call::Commit(_) => state.commits += 1,
        }
        while state.held {
            state.waiting = true;
            self.0.changed.notify_all();
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting = false;
        state.script.as_mut().map_or(Ok(()), |script| script(call))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A script that panics poisons the lock; what it guards is whole all the same.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    script: Option<Box<Script>>,
    held: bool,
    /// Whether a call waits; a store has one at a time.
    waiting: bool,
    commits: usize,
    loads: usize,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("held", &self.held).finish_non_exhaustive()
    }
}

type Script = dyn FnMut(&Call<'_>) -> Result<(), StoreError> + Send;
