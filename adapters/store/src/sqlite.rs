use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params,
    types::ValueRef,
};
use yrs_websocket::RoomName;

use crate::{Store, StoreError, Write};

/// Keeps documents in a SQLite database, in the schema that ypy-websocket, pycrdt-websocket and pycrdt-store use.
///
/// They read what this writes, and the other way round: opening their database is all there is to
/// a migration. Databases of ypy-websocket 0.7.0 and newer are opened as they are. One whose `ycheckpoints`
/// table is missing gets it, so that pycrdt-store can load it, which otherwise finds such a database empty.
///
/// **Durable means on the disk**: WAL with `synchronous = FULL`, so a transaction is fsynced before it
/// counts as committed. A lock that another process holds is waited for, 5 s by default
/// ([`with_busy_timeout`](Self::with_busy_timeout)), and then reported as [`StoreError::Busy`].
///
/// **Order.** Python reads rows by their timestamp, and none that is older than the checkpoint. A row written
/// here is therefore always newer than all that its room has, whatever the clock says. Loading takes the
/// checkpoint *and all rows*: if a clock stepped back, Python's own rows are older than its checkpoint and yet
/// not in it.
///
/// **Compaction** deletes the rows that this store has loaded or written itself, one by one, and the
/// checkpoint it has loaded. What another process wrote meanwhile stays.
///
/// **File size.** A database made here has `auto_vacuum = FULL`, as pycrdt-store's have, so it shrinks as
/// rooms are compacted. One made without is left so.
pub struct SqliteStore {
    connection: Connection,
    path_of: fn(&RoomName) -> String,
    clock: Box<dyn FnMut() -> f64 + Send>,
    rooms: BTreeMap<RoomName, Known>,
}

impl SqliteStore {
    /// Opens the database in a file, or makes it.
    ///
    /// A file that is not a store's is an error and is left as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        // Without SQLITE_OPEN_URI: a file name is a file name.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::new(Connection::open_with_flags(path, flags).map_err(open_error)?)
    }

    /// Makes a database in memory: it is gone when the store is dropped.
    pub fn in_memory() -> Result<Self, OpenError> {
        Self::new(Connection::open_in_memory().map_err(open_error)?)
    }

    /// Says which key (`path` column) a room has in the database; by default its name.
    ///
    /// Two rooms must not have the same key. For a Jupyter database the key of a notebook is
    /// `.notebook:<uuid>.y`.
    #[must_use]
    pub fn with_paths(mut self, path_of: fn(&RoomName) -> String) -> Self {
        self.path_of = path_of;
        self
    }

    /// Takes the time, in seconds since 1970, from `clock` instead of the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> f64 + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Waits this long for a lock that another process holds, instead of 5 s.
    pub fn with_busy_timeout(self, timeout: Duration) -> Result<Self, StoreError> {
        self.connection.busy_timeout(timeout).map_err(store_error)?;
        Ok(self)
    }

    fn new(mut connection: Connection) -> Result<Self, OpenError> {
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open_error)?;
        // Looked at before anything is changed: a journal mode is a change, too. In one transaction, as another
        // process may be making the tables.
        let found = inspect(&connection.transaction().map_err(open_error)?)?;
        if found == Found::Nothing {
            // Takes effect only before the first table.
            connection.pragma_update(None, "auto_vacuum", "FULL").map_err(open_error)?;
        }
        write_ahead(&connection).map_err(open_error)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open_error)?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open_error)?;
        // Again, under the lock: another process may have made it since.
        inspect(&transaction)?.complete(&transaction).map_err(open_error)?;
        transaction.commit().map_err(open_error)?;
        Ok(Self {
            connection,
            path_of: |room| room.as_str().to_owned(),
            clock: Box::new(unix_time),
            rooms: BTreeMap::new(),
        })
    }
}

impl Store for SqliteStore {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let path = (self.path_of)(room);
        // One transaction, so that checkpoint and rows are of the same moment.
        let transaction = self.connection.transaction().map_err(store_error)?;
        let (updates, known) = load(&transaction, &path)?;
        transaction.commit().map_err(store_error)?;
        self.rooms.insert(room.clone(), known);
        Ok(updates)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        // Immediate: the lock is waited for here, where waiting is possible, and not half-way through.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(store_error)?;
        // What is known changes with the transaction, and only if it succeeds.
        let mut changes = BTreeMap::<&RoomName, Change>::new();
        let nothing = Known::default();
        for write in writes {
            let path = (self.path_of)(write.room());
            let known = self.rooms.get(write.room()).unwrap_or(&nothing);
            let change = changes.entry(write.room()).or_default();
            let now = (self.clock)();
            match write {
                Write::Append { seq, update, .. } => {
                    change.added.push(insert(&transaction, &path, *seq, update, now).map_err(store_error)?);
                }
                Write::Compact { seq, state, .. } => {
                    for row in known.rows.iter().chain(&change.added).filter(|row| row.seq <= *seq) {
                        delete(&transaction, &path, row).map_err(store_error)?;
                    }
                    if let Some(timestamp) = known.checkpoint {
                        transaction
                            .prepare_cached(DELETE_CHECKPOINT)
                            .and_then(|mut delete| delete.execute(params![path, timestamp]))
                            .map_err(store_error)?;
                    }
                    change.added.retain(|row| row.seq > *seq);
                    change.compacted = change.compacted.max(Some(*seq));
                    for state in state {
                        let row = insert(&transaction, &path, *seq, state, now).map_err(store_error)?;
                        change.added.push(row);
                    }
                }
            }
        }
        transaction.commit().map_err(store_error)?;
        for (room, change) in changes {
            let known = self.rooms.entry(room.clone()).or_default();
            if let Some(compacted) = change.compacted {
                known.rows.retain(|row| row.seq > compacted);
                known.checkpoint = None;
            }
            known.rows.extend(change.added);
        }
        Ok(())
    }

    fn unload(&mut self, room: &RoomName) {
        self.rooms.remove(room);
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Says why a database cannot be used as a store. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is no SQLite database at all. The operator gives the path of another file, or of none yet.
    #[error("the file is not a SQLite database: give another path")]
    NotADatabase,
    /// The database belongs to another program: it is not empty, and has no `yupdates` table. The operator
    /// gives the path of another file, or of none yet.
    #[error("the database belongs to another program: it has no table `yupdates`; give another path")]
    Foreign,
    /// A newer library than this one wrote the database. The operator updates this program.
    #[error("the database has version {found}, newer than 2, the newest known: update this program")]
    Version {
        /// Its `user_version`.
        found: i64,
    },
    /// A table has other columns than version 2 of the format: ypy-websocket before 0.7.0 wrote it, or
    /// somebody changed it. The operator lets that version of the library export the documents, or imports them.
    #[error(
        "the table `{table}` has the columns ({columns}), which is not version 2 of the format: \
         import the database (ypy-websocket before 0.7 wrote other versions) or give another path"
    )]
    Layout {
        /// Which table.
        table: &'static str,
        /// Its columns.
        columns: String,
    },
    /// It could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Is what this store knows of a room: the rows whose content it has handed out or was handed.
#[derive(Debug, Default)]
struct Known {
    rows: Vec<Row>,
    /// The timestamp of the checkpoint that was loaded.
    checkpoint: Option<f64>,
}

/// Is what a transaction does to what is known of a room.
#[derive(Debug, Default)]
struct Change {
    /// What is known up to this write is deleted.
    compacted: Option<u64>,
    added: Vec<Row>,
}

/// Names one row of `yupdates`.
///
/// The row id alone does not: SQLite gives that of a deleted row away again, and `VACUUM` renumbers. With
/// the timestamp it is never another's.
#[derive(Debug)]
struct Row {
    /// The number of the write since the last load; 0 for what was loaded.
    seq: u64,
    id: i64,
    timestamp: f64,
}

/// Turns the write-ahead log on, which stays on in the file.
#[allow(clippy::disallowed_methods, reason = "waits for a lock where SQLite does not")]
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        // Answers with the mode that is: `memory` for a database in memory. A file system without shared memory
        // keeps the old mode, which is as durable.
        let mode =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode {
            // The change needs the file for itself, and SQLite does not wait for that by itself.
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < BUSY_TIMEOUT =>
            {
                thread::sleep(RETRY_DELAY);
                waited += RETRY_DELAY;
            }
            mode => return mode.map(drop),
        }
    }
}

fn load(transaction: &Transaction<'_>, path: &str) -> Result<(Vec<Bytes>, Known), StoreError> {
    let mut updates = Vec::new();
    let mut known = Known::default();
    let mut select = transaction.prepare_cached(SELECT_CHECKPOINT).map_err(store_error)?;
    let checkpoint = select
        .query_row([path], |row| Ok((bytes(row.get_ref(0)?), row.get(1)?)))
        .optional()
        .map_err(store_error)?;
    if let Some((checkpoint, timestamp)) = checkpoint {
        updates.push(checkpoint.ok_or_else(|| not_a_blob("the checkpoint", path))?);
        known.checkpoint = Some(timestamp);
    }
    let mut select = transaction.prepare_cached(SELECT_UPDATES).map_err(store_error)?;
    let mut rows = select.query([path]).map_err(store_error)?;
    while let Some(row) = rows.next().map_err(store_error)? {
        let id = row.get(0).map_err(store_error)?;
        let update = bytes(row.get_ref(1).map_err(store_error)?)
            .ok_or_else(|| not_a_blob(&format!("row {id} of `yupdates`"), path))?;
        let timestamp = row.get(2).map_err(store_error)?;
        known.rows.push(Row { seq: 0, id, timestamp });
        updates.push(update);
    }
    // Python stores updates in which nothing happened by the thousand.
    updates.retain(|update| update != NOTHING);
    Ok((updates, known))
}

/// Takes a blob; anything else in its place is damage, and skipping it would lose it.
fn bytes(value: ValueRef<'_>) -> Option<Bytes> {
    match value {
        ValueRef::Blob(blob) => Some(Bytes::copy_from_slice(blob)),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
    }
}

fn not_a_blob(what: &str, path: &str) -> StoreError {
    StoreError::Corrupt { message: format!("{what} (path {path:?}) holds no update") }
}

/// Adds a row that is newer than all that the path has.
fn insert(
    transaction: &Transaction<'_>,
    path: &str,
    seq: u64,
    update: &[u8],
    now: f64,
) -> rusqlite::Result<Row> {
    let newest = transaction.prepare_cached(SELECT_NEWEST)?.query_row([path], |row| {
        Ok([row.get::<_, Option<f64>>(0)?, row.get(1)?].into_iter().flatten().reduce(f64::max))
    })?;
    // A clock that answers with no number, or an endless one, counts as one that stands still.
    let now = if now.is_finite() { now } else { 0.0 };
    let timestamp = newest.map_or(now, |newest| now.max(newest.next_up()));
    transaction.prepare_cached(INSERT)?.execute(params![path, update, timestamp])?;
    Ok(Row { seq, id: transaction.last_insert_rowid(), timestamp })
}

fn delete(transaction: &Transaction<'_>, path: &str, row: &Row) -> rusqlite::Result<usize> {
    // None is deleted if another process has squashed it: then its content is in a row that stays.
    transaction.prepare_cached(DELETE)?.execute(params![row.id, path, row.timestamp])
}

/// Is what a database holds before it is opened as a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// The updates, and what else of the schema.
    Updates {
        index: bool,
        checkpoints: bool,
        version: i64,
    },
}

impl Found {
    /// Adds what is missing, in the Python libraries' own words.
    fn complete(self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let (updates, index, checkpoints, version) = match self {
            Self::Nothing => (false, false, false, 0),
            Self::Updates { index, checkpoints, version } => (true, index, checkpoints, version),
        };
        for (there, statement) in
            [(updates, CREATE_UPDATES), (index, CREATE_INDEX), (checkpoints, CREATE_CHECKPOINTS)]
        {
            if !there {
                transaction.execute(statement, [])?;
            }
        }
        if version != VERSION {
            // Left at 0 or 1, Python would rename the file and begin an empty one.
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        Ok(())
    }
}

fn inspect(connection: &Transaction<'_>) -> Result<Found, OpenError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version").map_err(open_error)?;
    let application = pragma("application_id").map_err(open_error)?;
    let exists = |name: &str| {
        connection.query_row("SELECT count(*) FROM sqlite_master WHERE name = ?1", [name], |row| {
            row.get::<_, i64>(0).map(|count| count > 0)
        })
    };
    if !exists("yupdates").map_err(open_error)? {
        let objects = connection
            .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0))
            .map_err(open_error)?;
        return match (objects, version, application) {
            (0, 0, 0) => Ok(Found::Nothing),
            _ => Err(OpenError::Foreign),
        };
    }
    if !(0..=VERSION).contains(&version) {
        return Err(OpenError::Version { found: version });
    }
    check_columns(connection, "yupdates", UPDATES_COLUMNS)?;
    let checkpoints = exists("ycheckpoints").map_err(open_error)?;
    if checkpoints {
        check_columns(connection, "ycheckpoints", CHECKPOINTS_COLUMNS)?;
    }
    let index = exists("idx_yupdates_path_timestamp").map_err(open_error)?;
    Ok(Found::Updates { index, checkpoints, version })
}

fn check_columns(connection: &Connection, table: &'static str, expected: &str) -> Result<(), OpenError> {
    let mut select = connection
        .prepare("SELECT name || ' ' || upper(type) FROM pragma_table_info(?1) ORDER BY cid")
        .map_err(open_error)?;
    let columns = select
        .query_map([table], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .map_err(open_error)?
        .join(", ");
    if columns != expected {
        return Err(OpenError::Layout { table, columns });
    }
    Ok(())
}

fn open_error(error: rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase,
        _ => OpenError::Store(store_error(error)),
    }
}

fn store_error(error: rusqlite::Error) -> StoreError {
    let message = error.to_string();
    if matches!(error, rusqlite::Error::InvalidColumnType(..)) {
        return StoreError::Corrupt { message };
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::ReadOnly { message },
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => StoreError::Io { message },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { message },
        _ => StoreError::Other { message },
    }
}

/// Reads the system's clock.
#[allow(clippy::disallowed_methods, reason = "rows carry the time of day, for Python and for people")]
fn unix_time() -> f64 {
    // A clock before 1970 is a clock that was never set.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Python's own default, too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const RETRY_DELAY: Duration = Duration::from_millis(20);

/// The `user_version` of the schema below.
const VERSION: i64 = 2;

/// The update in which nothing happened: no structs, no deletes.
const NOTHING: &[u8] = &[0, 0];

// The text is pycrdt-store's, to the letter: SQLite keeps it.
const CREATE_UPDATES: &str =
    "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp REAL NOT NULL)";
const CREATE_INDEX: &str = "CREATE INDEX idx_yupdates_path_timestamp ON yupdates (path, timestamp)";
const CREATE_CHECKPOINTS: &str = "CREATE TABLE ycheckpoints (path TEXT NOT NULL, checkpoint BLOB NOT NULL, timestamp REAL NOT NULL, PRIMARY KEY(path))";
const UPDATES_COLUMNS: &str = "path TEXT, yupdate BLOB, metadata BLOB, timestamp REAL";
const CHECKPOINTS_COLUMNS: &str = "path TEXT, checkpoint BLOB, timestamp REAL";

const SELECT_CHECKPOINT: &str = "SELECT checkpoint, timestamp FROM ycheckpoints WHERE path = ?1";
const SELECT_UPDATES: &str =
    "SELECT rowid, yupdate, timestamp FROM yupdates WHERE path = ?1 ORDER BY timestamp, rowid";
const SELECT_NEWEST: &str = "SELECT (SELECT max(timestamp) FROM yupdates WHERE path = ?1), \
                             (SELECT timestamp FROM ycheckpoints WHERE path = ?1)";
/// Metadata is an empty blob, as Python's is without a callback; NULL breaks some of its readers.
const INSERT: &str = "INSERT INTO yupdates VALUES (?1, ?2, x'', ?3)";
const DELETE: &str = "DELETE FROM yupdates WHERE rowid = ?1 AND path = ?2 AND timestamp = ?3";
const DELETE_CHECKPOINT: &str = "DELETE FROM ycheckpoints WHERE path = ?1 AND timestamp = ?2";

#[cfg(test)]
mod tests {
    use super::*;

    // Through the store's own connection, as both limits are a connection's.

    #[test]
    fn a_full_database_is_full_and_nothing_is_lost() {
        let mut store = store();
        let pages = store.connection.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        store.connection.pragma_update(None, "max_page_count", pages.unwrap() + 4).unwrap();
        assert_eq!(store.commit(&[append(2, &[7; 100]), append(3, &[7; 100_000])]), Err(StoreError::Full));
        assert_eq!(store.load(&room()), Ok(vec![Bytes::from_static(&[1])]));
        store.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        assert_eq!(store.commit(&[append(2, &[2])]), Ok(()));
        assert_eq!(store.load(&room()).unwrap().len(), 2);
    }

    #[test]
    fn a_read_only_database_says_so_and_can_be_read() {
        let mut store = store();
        store.connection.pragma_update(None, "query_only", true).unwrap();
        let failed = store.commit(&[append(2, &[2])]);
        assert!(matches!(failed, Err(StoreError::ReadOnly { .. })), "{failed:?}");
        assert_eq!(store.load(&room()), Ok(vec![Bytes::from_static(&[1])]));
    }

    #[test]
    fn durable_means_fsynced() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("store.db")).unwrap();
        let pragma = |name| store.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        assert_eq!(pragma("synchronous"), Ok(2), "FULL");
        assert_eq!(pragma("busy_timeout"), Ok(5000));
        let mode = store.connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        assert_eq!(mode, Ok("wal".into()));
    }

    #[test]
    fn every_search_uses_an_index() {
        let store = store();
        for sql in [SELECT_CHECKPOINT, SELECT_UPDATES, SELECT_NEWEST, DELETE, DELETE_CHECKPOINT] {
            let mut explain = store.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let parameters = vec!["x"; explain.parameter_count()];
            let plan = explain
                .query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3))
                .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
                .unwrap();
            let scans = plan.iter().filter(|step| step.contains("SCAN y") || step.contains("TEMP B-TREE"));
            assert_eq!(scans.count(), 0, "{sql}: {plan:?}");
        }
    }

    fn store() -> SqliteStore {
        let mut store = SqliteStore::in_memory().unwrap();
        store.commit(&[append(1, &[1])]).unwrap();
        store
    }

    fn room() -> RoomName {
        RoomName::new("room").unwrap()
    }

    fn append(seq: u64, update: &[u8]) -> Write {
        Write::Append { room: room(), seq, update: Bytes::copy_from_slice(update) }
    }
}
