use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rusqlite::{Connection, types::ValueRef};

use super::{
    CHECKPOINTS_COLUMNS, NOTHING, OpenError, SqliteStore, UPDATES_COLUMNS, VERSION, WriteTransaction, bytes,
    columns, insert, newest, open_error, open_to_read, store_error,
};
use crate::{
    Damage, StoreError,
    compression::scan,
    history::{Batch, newer},
};

impl SqliteStore {
    /// Adds all that another database holds to this one, under the same keys, and says how many records that
    /// were. The other one is only read.
    ///
    /// It may be of any version that the Python libraries have written:
    ///
    /// | ypy-websocket | columns | what is in them |
    /// |---|---|---|
    /// | 0.1.10 - 0.1.13 | `path, yupdate` | updates |
    /// | 0.2.0 - 0.4.0 | the same | updates and their metadata by turns, or, of writes at once, mixed |
    /// | 0.5.0 | `path, yupdate, metadata` | |
    /// | 0.6.0 | `path, yupdate, metadata, timestamp` | times as text, taken for UTC |
    /// | 0.7.0 and later | the same | what [`open`](Self::open) opens as it is |
    ///
    /// Of rows that may be either, the scan proves which are updates. Records without a time get that of their
    /// import. `on_row` hears of every row: `Err` is one that was not taken. Calling this twice keeps
    /// everything twice, which does no harm and is what a squash makes one of again.
    pub fn import_database(
        &mut self,
        path: impl AsRef<Path>,
        on_row: &mut dyn FnMut(Result<(), OldRecord>),
    ) -> Result<u64, OpenError> {
        let old = open_to_read(path.as_ref()).map_err(open_error)?;
        let layout = Layout::of(&old)?;
        let mut select = old.prepare(layout.select).map_err(open_error)?;
        let mut rows = select.query([]).map_err(open_error)?;
        let mut count = 0;
        let mut room: Option<Room> = None;
        while let Some(row) = rows.next().map_err(open_error)? {
            let column = |index| row.get_ref(index).map_err(open_error);
            let ValueRef::Text(key) = column(0)? else {
                let damage = Damage::NoBytes;
                on_row(Err(OldRecord { key: String::new(), row: row.get(4).map_err(open_error)?, damage }));
                continue;
            };
            let key = String::from_utf8_lossy(key).into_owned();
            if room.as_ref().is_none_or(|room| room.key != key)
                && let Some(room) = room.replace(Room::new(key.clone()))
            {
                count += room.finish(self, on_row)?;
            }
            let Some(room) = &mut room else { continue };
            let id = row.get(4).map_err(open_error)?;
            let metadata = bytes(column(2)?).unwrap_or_default();
            let timestamp = row.get(3).map_err(open_error)?;
            let update = bytes(column(1)?).ok_or(Damage::NoBytes);
            let update = update.map(|update| self.codecs.read_unmarked(update));
            on_row(room.take(update, metadata, timestamp, layout.is_mixed).map_err(|damage| OldRecord {
                key,
                row: id,
                damage,
            }));
            count += room.store(self, false)?;
        }
        if let Some(room) = room {
            count += room.finish(self, on_row)?;
        }
        Ok(count)
    }

    /// Adds records under a key, in one transaction. Those without a time get the clock's.
    fn restore_key(&mut self, key: &str, entries: &[(Bytes, Bytes, Option<f64>)]) -> Result<(), StoreError> {
        let transaction = WriteTransaction::begin(&self.connection).map_err(store_error)?;
        for (update, metadata, timestamp) in entries {
            let timestamp = timestamp.unwrap_or_else(|| (self.clock)());
            newest(&transaction, key)
                .and_then(|newest| {
                    let timestamp = newer(timestamp, newest);
                    insert(&transaction, key, update, metadata, timestamp, &self.codecs)
                })
                .map_err(store_error)?;
        }
        transaction.commit().map_err(store_error)
    }
}

/// Is a row of an old database that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldRecord {
    /// The room's key in the database.
    pub key: String,
    /// The row id.
    pub row: i64,
    /// Why not.
    pub damage: Damage,
}

/// Copies a database, with what is in its write-ahead log, to the first free name of `store(1).db`,
/// `store(2).db`, ..., and returns that. Nothing is ever overwritten, and the database is only read.
///
/// For before a migration: it works on databases of newer versions, too, which cannot be opened.
pub fn backup(path: impl AsRef<Path>) -> Result<PathBuf, OpenError> {
    let path = path.as_ref();
    let database = open_to_read(path).map_err(open_error)?;
    let copy = free_name(path).map_err(io_error)?;
    let text = copy.to_str().ok_or_else(|| io_error("the path is not UTF-8"))?;
    let copied = database.execute("VACUUM INTO ?1", [text]).map_err(open_error);
    let synced = copied.and_then(|_| File::open(&copy).and_then(|file| file.sync_all()).map_err(io_error));
    if let Err(error) = synced {
        // It was made here, and is empty or half of something.
        let _ = fs::remove_file(&copy);
        return Err(error);
    }
    Ok(copy)
}

/// Makes an empty file under a name that was free, so that nobody else takes it.
fn free_name(path: &Path) -> io::Result<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
    for number in 1u64.. {
        let name = format!("{stem}({number}){}", extension.as_deref().unwrap_or_default());
        let free = path.with_file_name(name);
        match File::options().write(true).create_new(true).open(&free) {
            Ok(_) => return Ok(free),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn io_error(error: impl ToString) -> OpenError {
    OpenError::Store(StoreError::Io { message: error.to_string() })
}

/// How a database keeps records: path, update, metadata, time and row, by room and in their order.
struct Layout {
    select: &'static str,
    /// Whether the rows may be metadata as well as updates.
    is_mixed: bool,
}

impl Layout {
    fn of(old: &Connection) -> Result<Self, OpenError> {
        let version = old.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let version = version.map_err(open_error)?;
        if !(0..=VERSION).contains(&version) {
            return Err(OpenError::Version { found: version });
        }
        let found = columns(old, "yupdates").map_err(open_error)?;
        let checkpoints = columns(old, "ycheckpoints").map_err(open_error)?;
        let select = match (found.as_str(), checkpoints.as_str()) {
            ("", _) => return Err(OpenError::Foreign),
            ("path TEXT, yupdate BLOB", _) => SELECT_BARE,
            ("path TEXT, yupdate BLOB, metadata BLOB", _) => SELECT_UNTIMED,
            ("path TEXT, yupdate BLOB, metadata BLOB, timestamp TEXT", _) => SELECT_TEXT,
            (UPDATES_COLUMNS, "") => SELECT_UPDATES,
            (UPDATES_COLUMNS, CHECKPOINTS_COLUMNS) => SELECT_ALL,
            (UPDATES_COLUMNS, _) => {
                return Err(OpenError::Layout { table: "ycheckpoints", columns: checkpoints });
            }
            _ => return Err(OpenError::Layout { table: "yupdates", columns: found }),
        };
        Ok(Self { select, is_mixed: select == SELECT_BARE })
    }
}

/// Is the room whose rows are being read.
struct Room {
    key: String,
    /// What waits for a transaction.
    entries: Vec<(Bytes, Bytes, Option<f64>)>,
    bytes: usize,
    /// Updates whose metadata may still come.
    unpaired: VecDeque<Bytes>,
    updates: u64,
    /// Rows that are no updates.
    others: u64,
}

impl Room {
    fn new(key: String) -> Self {
        Self { key, entries: Vec::new(), bytes: 0, unpaired: VecDeque::new(), updates: 0, others: 0 }
    }

    fn take(
        &mut self,
        update: Result<Bytes, Damage>,
        metadata: Bytes,
        timestamp: Option<f64>,
        is_mixed: bool,
    ) -> Result<(), Damage> {
        let update = update?;
        match scan(update.clone()) {
            Ok(_) if is_mixed => {
                self.updates += 1;
                self.unpaired.push_back(update);
                // Writes are not mixed over such a distance: there is no metadata.
                if self.unpaired.len() > UNPAIRED_MAX
                    && let Some(update) = self.unpaired.pop_front()
                {
                    self.push(update, Bytes::new(), None);
                }
            }
            Ok(_) => self.push(update, metadata, timestamp),
            Err(error) if is_mixed => {
                self.others += 1;
                let unpaired = self.unpaired.pop_front().ok_or(Damage::Malformed(error))?;
                self.push(unpaired, update, None);
            }
            Err(error) => return Err(Damage::Malformed(error)),
        }
        Ok(())
    }

    fn push(&mut self, update: Bytes, metadata: Bytes, timestamp: Option<f64>) {
        // Python stores updates in which nothing happened by the thousand.
        if update != NOTHING {
            self.bytes += update.len() + metadata.len();
            self.entries.push((update, metadata, timestamp));
        }
    }

    fn store(&mut self, to: &mut SqliteStore, is_last: bool) -> Result<u64, StoreError> {
        let is_due = is_last || self.entries.len() >= Batch::RECORDS || self.bytes >= Batch::BYTES;
        if !is_due || self.entries.is_empty() {
            return Ok(0);
        }
        to.restore_key(&self.key, &self.entries)?;
        let count = self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
        Ok(count)
    }

    fn finish(
        mut self,
        to: &mut SqliteStore,
        on_row: &mut dyn FnMut(Result<(), OldRecord>),
    ) -> Result<u64, StoreError> {
        while let Some(update) = self.unpaired.pop_front() {
            self.push(update, Bytes::new(), None);
        }
        if self.others > 0 && self.others != self.updates {
            let damage = Damage::Unpaired { updates: self.updates, others: self.others };
            on_row(Err(OldRecord { key: self.key.clone(), row: 0, damage }));
        }
        self.store(to, true)
    }
}

const SELECT_BARE: &str = "SELECT path, yupdate, NULL, NULL, rowid FROM yupdates ORDER BY path, rowid";
const SELECT_UNTIMED: &str = "SELECT path, yupdate, metadata, NULL, rowid FROM yupdates ORDER BY path, rowid";
/// 2440587.5 is the Julian day on which 1970 began.
const SELECT_TEXT: &str = "SELECT path, yupdate, metadata, (julianday(timestamp) - 2440587.5) * 86400.0, rowid \
     FROM yupdates ORDER BY path, rowid";
const SELECT_UPDATES: &str = "SELECT path, yupdate, metadata, CAST(timestamp AS REAL), rowid \
     FROM yupdates ORDER BY path, timestamp, rowid";
const SELECT_ALL: &str = "SELECT path, yupdate, metadata, CAST(timestamp AS REAL), rowid AS id FROM yupdates \
     UNION ALL SELECT path, checkpoint, x'', CAST(timestamp AS REAL), 0 FROM ycheckpoints \
     ORDER BY path, 4, id";

const UNPAIRED_MAX: usize = 1000;
