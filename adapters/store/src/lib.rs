//! Where `yrs-websocket` keeps documents.
//!
//! The core decides *what* is to be kept and says so with its outputs `Load`, `Append` and
//! `Compact`; this crate keeps it:
//!
//! * [`Store`] is what a place to keep documents must do. It blocks, so it is easy to write.
//! * [`StoreThread`] runs a store on a thread of its own, and makes everything that waits for the disk
//!   one transaction; [`GroupCommit`] is the same without the thread.
//! * [`SqliteStore`] keeps documents in a SQLite database that the Python libraries read and write too;
//!   [`SqliteOptions`] squash it by age and size, compress it, and so on.
//! * [`FileStore`] keeps each in a file of its own, in the format of the Python libraries' FileYStore;
//!   [`TempFileStore`] does so in a temporary folder.
//! * [`MemoryStore`] keeps them until the process ends.
//! * [`History`] is what tools and applications do with a store: list it, go back in it, export, import, verify
//!   and compact it. The program has it as `yrs-websocket-server store ...`.
//! * [`testing`] makes any store fail or wait when a test says so, says what every store must do, and has
//!   a disk that loses power.
//!
//! ```
//! use bytes::Bytes;
//! use yrs_websocket::RoomName;
//! use yrs_websocket_store::{MemoryStore, Store, Write};
//!
//! let mut store = MemoryStore::new();
//! let room = RoomName::new("notes")?;
//! let update = Bytes::from_static(&[1, 1, 1, 0, 4, 1, 4, 116, 101, 120, 116, 1, 97, 0]);
//! store.load(&room)?;
//! store.commit(&[Write::Append { room: room.clone(), seq: 1, update: update.clone() }])?;
//! assert_eq!(store.load(&room)?, [update]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Databases of the Python libraries
//!
//! Those of ypy-websocket 0.7 and later, pycrdt-websocket and pycrdt-store are opened as they are, and stay
//! readable for Python. Older ones are [imported](SqliteStore::import_database) into a new one:
//!
//! ```no_run
//! use yrs_websocket_store::{SqliteStore, backup};
//!
//! let copy = backup("ystore.db")?; // ystore(1).db, or the next number that is free
//! let mut store = SqliteStore::open("new.db")?;
//! let records = store.import_database(copy, &mut |row| {
//!     if let Err(old) = row {
//!         eprintln!("row {} of {:?} was not taken: {}", old.row, old.key, old.damage);
//!     }
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compression;
mod disk;
mod file;
mod history;
mod memory;
mod sqlite;
pub mod testing;
mod thread;

use bytes::Bytes;
use yrs_websocket::RoomName;

pub use compression::{Compression, Zlib};
pub use disk::{Disk, Folder, FolderError};
pub use file::{FileStore, Fsync, Report, TempFileStore};
pub use history::{Compaction, Damage, Entry, History, HistoryError, Moment, Record, RoomSummary};
pub use memory::MemoryStore;
pub use sqlite::{OldRecord, OpenError, SqliteOptions, SqliteStore, backup};
pub use thread::{Completion, GroupCommit, Job, Request, StoreThread};

/// Keeps the updates of rooms. Every call blocks until it is done.
///
/// A room's history is a list of Yjs updates (format v1). What they say together is the document: updates
/// commute and repeating one changes nothing, so a store may keep one twice, but never lose one. A
/// store does not look into updates: the core proves them as they come back.
///
/// ```text
///            load                 commit(Append)*            commit(Compact)
///  unknown ---------> [u1 u2] -----------------> [u1 u2 u3] ---------------> [state] ...
///     ^                                                                        |
///     '--------------------------------- unload -------------------------------'
/// ```
///
/// The caller loads a room before it writes to it, and numbers its writes from then on with a `seq` that
/// never falls. A new load starts a new numbering.
pub trait Store: Send + 'static {
    /// Returns all updates kept for a room, oldest first; none for a room that was never written.
    ///
    /// A checkpoint (the joined form of earlier updates) counts as the first. What cannot be read is an error,
    /// never a shorter list: an empty document over existing data would be the loss of that data.
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError>;

    /// Performs all writes as one transaction, in their order.
    ///
    /// With `Ok` all of them are durable, with `Err` none of them is kept. (Should a store fail in a way
    /// that leaves this open, it answers `Err`: the caller writes again, and an update kept twice is harmless.)
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError>;

    /// Takes notice that a room was unloaded: what is remembered about it besides its updates may be forgotten.
    fn unload(&mut self, room: &RoomName) {
        let _ = room;
    }
}

/// Is one change to what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Adds an update to a room.
    Append {
        /// The room.
        room: RoomName,
        /// The number of this write.
        seq: u64,
        /// The update, as the core handed it out.
        update: Bytes,
    },
    /// Replaces exactly what was loaded for a room and written to it up to `seq`.
    ///
    /// What somebody else wrote to the same room (another process on the same database) stays.
    Compact {
        /// The room.
        room: RoomName,
        /// The last write that `state` covers.
        seq: u64,
        /// What takes the place of the updates so far; normally one element.
        state: Vec<Bytes>,
    },
}

impl Write {
    /// The room that is written to.
    pub fn room(&self) -> &RoomName {
        match self {
            Self::Append { room, .. } | Self::Compact { room, .. } => room,
        }
    }

    /// The number of the write.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Append { seq, .. } | Self::Compact { seq, .. } => *seq,
        }
    }
}

/// Says why a store could not do what it was asked. No variant is the fault of a peer.
///
/// The core answers each of them alike: a failed write is tried again, a failed load closes those who
/// wait for it. The variants tell the operator where to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process held the lock for longer than the busy timeout. Trying again later is right; if it
    /// stays so, end the other process or its long transaction.
    #[error("the store is locked by another process: try again, or end the process that holds the lock")]
    Busy,
    /// There is no room left. The operator makes some; nothing that was stored is lost.
    #[error("the disk or the database is full: make room on it")]
    Full,
    /// The store may not be written. The operator gives this process the permission, or another place.
    #[error("the store is read-only: {message}")]
    ReadOnly {
        /// What the store said.
        message: String,
    },
    /// The operating system could not read or write: a broken disk, a lost mount, missing files.
    #[error("the store could not be read or written: {message}")]
    Io {
        /// What the store said.
        message: String,
    },
    /// What is stored is damaged or was not written by a Yjs store. The operator restores a backup.
    #[error("the store is damaged: {message}")]
    Corrupt {
        /// What is damaged.
        message: String,
    },
    /// A record is marked as compressed, and cannot be decompressed: the compression is not configured, or the
    /// record is damaged. The operator names the compression in the store's options.
    #[error("a record of {key:?} is compressed with {codec}, which is not configured, or is damaged")]
    Compressed {
        /// The name of the compression.
        codec: String,
        /// Which room's record it is, by the key in the store.
        key: String,
    },
    /// The store, or the job that makes a compact state, panicked: a defect, to be reported. It is
    /// contained: the store thread goes on.
    #[error("the store panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// Anything else.
    #[error("the store failed: {message}")]
    Other {
        /// What the store said.
        message: String,
    },
}
