mod old;
mod upkeep;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    ops::{ControlFlow, Deref},
    path::Path,
    thread,
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, config::DbConfig, ffi, params,
    types::ValueRef,
};
use yrs_websocket::RoomName;

use self::upkeep::{Tail, Work};
pub use self::{
    old::{OldRecord, backup},
    upkeep::SqliteOptions,
};
use crate::{
    Damage, Entry, History, Record, RoomSummary, Store, StoreError, Write,
    compression::Codecs,
    history::{newer, unix_time},
};

/// Keeps documents in a SQLite database, in the schema that ypy-websocket, pycrdt-websocket and pycrdt-store use.
///
/// They read what this writes, and the other way round: opening their database is all there is to
/// a migration. Databases of ypy-websocket 0.7.0 and newer are opened as they are. One whose `ycheckpoints`
/// table is missing gets it, so that pycrdt-store can load it, which otherwise finds such a database empty.
///
/// **Durable means on the disk**: WAL with `synchronous = FULL`, so a transaction is synced before it
/// counts as committed. SQLite does that by `fsync`; built with `LIBSQLITE3_FLAGS=-DHAVE_FDATASYNC` in the
/// environment, as this workspace does, by the cheaper `fdatasync`. A lock that another process holds is waited for, 5 s by default
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
///
/// **Upkeep.** The core squashes its rooms by itself. What [`SqliteOptions`] add, all of it off by default, is
/// what the Python stores know: squashing by age, inactivity, count and size, checkpoints, metadata,
/// compression.
pub struct SqliteStore {
    connection: Connection,
    path_of: fn(&RoomName) -> String,
    clock: Box<dyn FnMut() -> f64 + Send>,
    options: SqliteOptions,
    codecs: Codecs,
    rooms: BTreeMap<RoomName, Known>,
    /// The size to which the database could not be made small enough; it must outgrow it to be tried again.
    squashed_to_bytes: u64,
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

    /// Opens the database in a file to look into it. Nothing in the file changes, whoever wrote it: neither
    /// tables nor version nor journal mode. Only what a crash left half written is rolled back, as by anybody who
    /// opens it next, and beside one in WAL mode there are its `-wal` and `-shm` until somebody who writes closes it.
    /// Every write is [`StoreError::ReadOnly`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let mut connection = open_to_read(path.as_ref()).map_err(open_error)?;
        let found = inspect(&connection.transaction().map_err(open_error)?)?;
        match found {
            Found::Nothing => return Err(OpenError::Foreign),
            Found::Updates { checkpoints: true, .. } => {}
            Found::Updates { checkpoints: false, .. } => {
                connection.pragma_update(None, "temp_store", "MEMORY").map_err(open_error)?;
                let create = CREATE_CHECKPOINTS.replacen("TABLE", "TEMP TABLE", 1);
                connection.execute(&create, []).map_err(open_error)?;
            }
        }
        Ok(Self::on(connection))
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

    /// Takes the options.
    ///
    /// With [`compression`](SqliteOptions::compression) this adds a table to the database, and with
    /// [`auto_vacuum`](SqliteOptions::auto_vacuum) it may rewrite all of it.
    pub fn with_options(mut self, options: SqliteOptions) -> Result<Self, StoreError> {
        self.codecs = Codecs { write: options.compression.clone(), read: options.decompression.clone() };
        self.options = options;
        if self.options.compression.is_some() {
            self.connection.execute_batch(CREATE_COMPRESSED).map_err(store_error)?;
        }
        let auto_vacuum = self.connection.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, i64>(0));
        if self.options.auto_vacuum && auto_vacuum.map_err(store_error)? != AUTO_VACUUM_FULL {
            self.connection.pragma_update(None, "auto_vacuum", "FULL").map_err(store_error)?;
            // A database with a write-ahead log takes the change only here.
            self.vacuum()?;
        }
        Ok(self)
    }

    /// Gives the space of what is deleted back to the file system, by writing the database anew. Meanwhile it
    /// is locked, and the disk needs room for a second one.
    pub fn vacuum(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("VACUUM").map_err(store_error)?;
        // Row ids are others now. What is known by the old ones stays until the room is loaded again.
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(store_error)
    }

    /// Lets SQLite look for damage in the file itself; an empty list if there is none.
    pub fn check(&mut self) -> Result<Vec<String>, StoreError> {
        let mut check = self.connection.prepare("PRAGMA integrity_check").map_err(store_error)?;
        let lines = check.query_map([], |row| row.get::<_, String>(0)).map_err(store_error)?;
        let lines = lines.collect::<rusqlite::Result<Vec<_>>>().map_err(store_error)?;
        Ok(if lines == ["ok"] { Vec::new() } else { lines })
    }

    /// Keys in the database that are no room names (empty, too long, with control characters): no server
    /// can serve them. [`History::rooms`] leaves them out.
    pub fn unnamed_keys(&mut self) -> Result<Vec<String>, StoreError> {
        let keys = self.keys()?.into_iter().map(|(key, ..)| key);
        Ok(keys.filter(|key| RoomName::new(key).is_err()).collect())
    }

    /// Every key, with the number of its records, their bytes and the time of the newest.
    fn keys(&mut self) -> Result<Vec<(String, u64, u64, f64)>, StoreError> {
        let mut select = self.connection.prepare(SELECT_KEYS).map_err(store_error)?;
        let keys = select.query_map([], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::unsigned_abs);
            Ok((row.get(0)?, number(1)?, number(2)?, row.get(3)?))
        });
        keys.and_then(Iterator::collect).map_err(store_error)
    }

    fn new(mut connection: Connection) -> Result<Self, OpenError> {
        configure(&connection).map_err(open_error)?;
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
        Ok(Self::on(connection))
    }

    fn on(connection: Connection) -> Self {
        Self {
            connection,
            path_of: |room| room.as_str().to_owned(),
            clock: Box::new(unix_time),
            options: SqliteOptions::default(),
            codecs: Codecs::default(),
            rooms: BTreeMap::new(),
            squashed_to_bytes: 0,
        }
    }
}

impl Store for SqliteStore {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let path = (self.path_of)(room);
        // One transaction, so that checkpoint and rows are of the same moment.
        let transaction = self.connection.transaction().map_err(store_error)?;
        let (updates, known) = load(&transaction, &path, &self.codecs)?;
        transaction.commit().map_err(store_error)?;
        self.rooms.insert(room.clone(), known);
        Ok(updates)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let transaction = WriteTransaction::begin(&self.connection).map_err(store_error)?;
        let mut work = Work {
            transaction: &transaction,
            path_of: self.path_of,
            options: &mut self.options,
            codecs: &self.codecs,
            rooms: &self.rooms,
            changes: BTreeMap::new(),
        };
        let squashed_to_bytes = work.limit_size(self.squashed_to_bytes).map_err(store_error)?;
        for write in writes {
            let now = (self.clock)();
            match write {
                Write::Append { room, seq, update } => {
                    work.squash_by_time(room, now).map_err(store_error)?;
                    work.insert(room, *seq, update, now).map_err(store_error)?;
                    work.squash_by_size(room).map_err(store_error)?;
                    work.checkpoint(room).map_err(store_error)?;
                }
                Write::Compact { room, seq, state } => {
                    work.compact(room, *seq, state, now).map_err(store_error)?;
                }
            }
        }
        let changes = work.changes;
        transaction.commit().map_err(store_error)?;
        // What is known changes with the transaction, and only if it succeeds.
        self.squashed_to_bytes = squashed_to_bytes;
        for (room, change) in changes {
            let known = self.rooms.entry(room).or_default();
            known.rows.retain(|row| change.leaves(row));
            if let Some(checkpoint) = change.checkpoint {
                known.checkpoint = checkpoint;
            }
            known.tail = change.tail;
            known.rows.extend(change.added);
        }
        Ok(())
    }

    fn unload(&mut self, room: &RoomName) {
        self.rooms.remove(room);
    }
}

impl History for SqliteStore {
    /// Leaves out keys that are no room's. After [`with_paths`](Self::with_paths) these are all that it maps to:
    /// look into such a database with a store that maps nothing, and names rooms by their keys.
    fn rooms(&mut self) -> Result<Vec<RoomSummary>, StoreError> {
        let keys = self.keys()?.into_iter();
        let named = keys.filter_map(|(key, records, bytes, newest)| {
            let room = RoomName::new(&key).ok().filter(|room| (self.path_of)(room) == key)?;
            Some(RoomSummary { room, records, bytes, newest })
        });
        Ok(named.collect())
    }

    fn records(
        &mut self,
        room: &RoomName,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let path = (self.path_of)(room);
        let transaction = self.connection.transaction().map_err(store_error)?;
        let marks = Marks::of(&transaction, &path).map_err(store_error)?;
        let mut select = transaction.prepare_cached(SELECT_RECORDS).map_err(store_error)?;
        let mut rows = select.query([path]).map_err(store_error)?;
        for number in 1.. {
            let Some(row) = rows.next().map_err(store_error)? else { break };
            let column = |index| row.get_ref(index).map_err(store_error);
            let timestamp = row.get(2).map_err(store_error)?;
            let record = Record {
                number,
                timestamp,
                // NULL in rows that pycrdt-store's size cleanup has made.
                metadata: bytes(column(1)?).unwrap_or_default(),
                update: marks.read(column(0)?, timestamp, &self.codecs),
                is_checkpoint: row.get(3).map_err(store_error)?,
            };
            if visit(record).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn restore(&mut self, room: &RoomName, entries: &[Entry]) -> Result<(), StoreError> {
        let path = (self.path_of)(room);
        let transaction = WriteTransaction::begin(&self.connection).map_err(store_error)?;
        for Entry { update, metadata, timestamp } in entries {
            let timestamp = newest(&transaction, &path).map(|newest| newer(*timestamp, newest));
            timestamp
                .and_then(|timestamp| insert(&transaction, &path, update, metadata, timestamp, &self.codecs))
                .map_err(store_error)?;
        }
        transaction.commit().map_err(store_error)
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
    /// A newer library than this one wrote the database. The operator updates this program, or gives another
    /// path; [`backup`] copies the database. (Python moves it away and begins an empty one.)
    #[error(
        "the database has version {found}, newer than 2, the newest known: update this program, or give another path"
    )]
    Version {
        /// Its `user_version`.
        found: i64,
    },
    /// A table has other columns than version 2 of the format: ypy-websocket before 0.7.0 wrote it, or
    /// somebody changed it. The operator [imports](SqliteStore::import_database) it into a new one.
    #[error(
        "the table `{table}` has the columns ({columns}), which is not version 2 of the format: \
         if ypy-websocket before 0.7 wrote it, import it into a new database (`store import`); or give another path"
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
    /// The timestamp of the checkpoint that was loaded or written.
    checkpoint: Option<f64>,
    tail: Tail,
}

/// Names one row of `yupdates`.
///
/// The row id alone does not: SQLite gives that of a deleted row away again, and `VACUUM` renumbers. With
/// the timestamp it is never another's.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// The number of the write since the last load; 0 for what was loaded.
    seq: u64,
    id: i64,
    timestamp: f64,
}

/// A transaction that holds the lock from its start; it is rolled back unless it is committed. Unlike rusqlite's
/// own it leaves its statements prepared: every update begins one and ends one.
struct WriteTransaction<'a>(&'a Connection);

impl<'a> WriteTransaction<'a> {
    fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached(BEGIN)?.execute([])?;
        Ok(Self(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.prepare_cached(COMMIT)?.execute([]).map(drop)
    }
}

impl Deref for WriteTransaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl Drop for WriteTransaction<'_> {
    fn drop(&mut self) {
        if !self.is_autocommit() {
            let _ = self.execute_batch("ROLLBACK");
        }
    }
}

/// Opens a database to read it. What a crash left half written, only who may write can roll back.
fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let open = |access| {
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        configure(&connection)?;
        // SQLite reads the file only now.
        connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        Ok(connection)
    };
    open(OpenFlags::SQLITE_OPEN_READ_ONLY).or_else(|error| match &error {
        rusqlite::Error::SqliteFailure(code, _) if code.extended_code == ffi::SQLITE_READONLY_ROLLBACK => {
            open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            open(OpenFlags::SQLITE_OPEN_READ_ONLY)
        }
        _ => Err(error),
    })
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Or each search is prepared anew for each room that is looked for.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
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

fn load(transaction: &Connection, path: &str, codecs: &Codecs) -> Result<(Vec<Bytes>, Known), StoreError> {
    let mut updates = Vec::new();
    let mut known = Known::default();
    let marks = Marks::of(transaction, path).map_err(store_error)?;
    let read = |value: ValueRef<'_>, timestamp, what: &dyn fmt::Display| {
        marks.read(value, timestamp, codecs).map_err(|damage| unreadable(damage, what, path))
    };
    let mut select = transaction.prepare_cached(SELECT_CHECKPOINT).map_err(store_error)?;
    let mut rows = select.query([path]).map_err(store_error)?;
    if let Some(row) = rows.next().map_err(store_error)? {
        let timestamp = row.get(1).map_err(store_error)?;
        updates.push(read(row.get_ref(0).map_err(store_error)?, timestamp, &"the checkpoint")?);
        known.checkpoint = Some(timestamp);
    }
    let mut select = transaction.prepare_cached(SELECT_UPDATES).map_err(store_error)?;
    let mut rows = select.query([path]).map_err(store_error)?;
    while let Some(row) = rows.next().map_err(store_error)? {
        let id = row.get(0).map_err(store_error)?;
        let timestamp = row.get(2).map_err(store_error)?;
        let update =
            read(row.get_ref(1).map_err(store_error)?, timestamp, &format_args!("row {id} of `yupdates`"))?;
        known.tail.add(update.len());
        known.rows.push(Row { seq: 0, id, timestamp });
        updates.push(update);
    }
    // The first may be all that was squashed.
    known.tail.rows = known.tail.rows.saturating_sub(1);
    // Python stores updates in which nothing happened by the thousand.
    updates.retain(|update| update != NOTHING);
    Ok((updates, known))
}

/// Which records of a room this store has written compressed, by their times: Python tells nobody, but a
/// record that was written here is never taken for something else.
///
/// A trigger takes the mark away with its row, whoever deletes that.
#[derive(Debug, Default)]
struct Marks(BTreeMap<u64, String>);

impl Marks {
    fn of(connection: &Connection, path: &str) -> rusqlite::Result<Self> {
        if !connection.prepare_cached(HAS_COMPRESSED)?.exists([])? {
            return Ok(Self::default());
        }
        let mut select = connection.prepare_cached(SELECT_COMPRESSED)?;
        let marks = select.query_map([path], |row| Ok((row.get::<_, f64>(0)?.to_bits(), row.get(1)?)))?;
        marks.collect::<rusqlite::Result<_>>().map(Self)
    }

    /// Reads a record; what is not marked is decompressed if that alone makes an update of it.
    fn read(&self, value: ValueRef<'_>, timestamp: f64, codecs: &Codecs) -> Result<Bytes, Damage> {
        // Anything else in the place of bytes is damage, and skipping it would lose it.
        let record = bytes(value).ok_or(Damage::NoBytes)?;
        match self.0.get(&timestamp.to_bits()) {
            Some(codec) => {
                codecs.read_marked(&record, codec).ok_or_else(|| Damage::Compressed { codec: codec.clone() })
            }
            None => Ok(codecs.read_unmarked(record)),
        }
    }
}

fn bytes(value: ValueRef<'_>) -> Option<Bytes> {
    match value {
        ValueRef::Blob(blob) => Some(Bytes::copy_from_slice(blob)),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
    }
}

fn unreadable(damage: Damage, what: &dyn fmt::Display, path: &str) -> StoreError {
    match damage {
        Damage::Compressed { codec } => StoreError::Compressed { codec, key: path.to_owned() },
        Damage::NoBytes | Damage::Unpaired { .. } | Damage::Malformed(_) => {
            StoreError::Corrupt { message: format!("{what} (path {path:?}) holds no update") }
        }
    }
}

/// The time of the newest record of a path, the checkpoint included.
fn newest(connection: &Connection, path: &str) -> rusqlite::Result<Option<f64>> {
    connection.prepare_cached(SELECT_NEWEST)?.query_row([path], |row| {
        Ok([row.get::<_, Option<f64>>(0)?, row.get(1)?].into_iter().flatten().reduce(f64::max))
    })
}

/// Adds a row at a time that no other row of the path has, and returns its id.
fn insert(
    connection: &Connection,
    path: &str,
    update: &[u8],
    metadata: &[u8],
    timestamp: f64,
    codecs: &Codecs,
) -> rusqlite::Result<i64> {
    let stored = written(connection, path, update, timestamp, codecs)?;
    connection.prepare_cached(INSERT)?.execute(params![path, &stored[..], metadata, timestamp])?;
    Ok(connection.last_insert_rowid())
}

/// What is stored for an update, marked if it is compressed.
fn written<'a>(
    connection: &Connection,
    path: &str,
    update: &'a [u8],
    timestamp: f64,
    codecs: &Codecs,
) -> rusqlite::Result<Cow<'a, [u8]>> {
    let Some(codec) = &codecs.write else { return Ok(Cow::Borrowed(update)) };
    connection.prepare_cached(INSERT_COMPRESSED)?.execute(params![path, timestamp, codec.name()])?;
    Ok(Cow::Owned(codec.compress(update)))
}

/// Deletes a row. It is gone already if another process has squashed it: then its content is in one that stays.
fn delete(connection: &Connection, path: &str, row: &Row) -> rusqlite::Result<usize> {
    connection.prepare_cached(DELETE)?.execute(params![row.id, path, row.timestamp])
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
    let columns = columns(connection, table).map_err(open_error)?;
    if columns != expected {
        return Err(OpenError::Layout { table, columns });
    }
    Ok(())
}

/// The columns of a table with their types; nothing for a table that is not there.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<String> {
    let mut select =
        connection.prepare("SELECT name || ' ' || upper(type) FROM pragma_table_info(?1) ORDER BY cid")?;
    let columns = select.query_map([table], |row| row.get::<_, String>(0))?;
    Ok(columns.collect::<rusqlite::Result<Vec<_>>>()?.join(", "))
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

/// Python's own default, too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// As the pragma reads.
const AUTO_VACUUM_FULL: i64 = 1;

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

/// Immediate: the lock is waited for here, where waiting is possible, and not half-way through.
const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";
const SELECT_CHECKPOINT: &str = "SELECT checkpoint, timestamp FROM ycheckpoints WHERE path = ?1";
const SELECT_UPDATES: &str =
    "SELECT rowid, yupdate, timestamp FROM yupdates WHERE path = ?1 ORDER BY timestamp, rowid";
const SELECT_NEWEST: &str = "SELECT (SELECT max(timestamp) FROM yupdates WHERE path = ?1), \
                             (SELECT timestamp FROM ycheckpoints WHERE path = ?1)";
/// Metadata is an empty blob where there is none, as Python's is; NULL breaks some of its readers.
const INSERT: &str = "INSERT INTO yupdates VALUES (?1, ?2, ?3, ?4)";
const DELETE: &str = "DELETE FROM yupdates WHERE rowid = ?1 AND path = ?2 AND timestamp = ?3";
/// At equal times the checkpoint is first: Python gives its time to the row that comes after it.
const SELECT_RECORDS: &str = "SELECT yupdate, metadata, timestamp, 0 AS is_checkpoint, rowid AS id FROM yupdates WHERE path = ?1 \
     UNION ALL SELECT checkpoint, x'', timestamp, 1, 0 FROM ycheckpoints WHERE path = ?1 \
     ORDER BY timestamp, is_checkpoint DESC, id";
const SELECT_KEYS: &str = "SELECT path, count(*), sum(bytes), max(timestamp) FROM \
     (SELECT path, coalesce(length(yupdate), 0) AS bytes, timestamp FROM yupdates \
      UNION ALL SELECT path, length(checkpoint), timestamp FROM ycheckpoints) \
     GROUP BY path ORDER BY path";
/// Python does not look at this table, and its own deletes take the marks along.
const CREATE_COMPRESSED: &str = "\
     CREATE TABLE IF NOT EXISTS ycompressed \
         (path TEXT NOT NULL, timestamp REAL NOT NULL, codec TEXT NOT NULL, PRIMARY KEY (path, timestamp)) \
         WITHOUT ROWID;
     CREATE TRIGGER IF NOT EXISTS ycompressed_delete AFTER DELETE ON yupdates BEGIN \
         DELETE FROM ycompressed WHERE path = OLD.path AND timestamp = OLD.timestamp; END;
     CREATE TRIGGER IF NOT EXISTS ycompressed_update AFTER UPDATE ON yupdates BEGIN \
         DELETE FROM ycompressed WHERE path = OLD.path AND timestamp = OLD.timestamp; END;
     CREATE TRIGGER IF NOT EXISTS ycompressed_checkpoint_delete AFTER DELETE ON ycheckpoints BEGIN \
         DELETE FROM ycompressed WHERE path = OLD.path AND timestamp = OLD.timestamp; END;
     CREATE TRIGGER IF NOT EXISTS ycompressed_checkpoint_update AFTER UPDATE ON ycheckpoints BEGIN \
         DELETE FROM ycompressed WHERE path = OLD.path AND timestamp = OLD.timestamp; END;";
const HAS_COMPRESSED: &str = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'ycompressed'";
const SELECT_COMPRESSED: &str = "SELECT timestamp, codec FROM ycompressed WHERE path = ?1";
const INSERT_COMPRESSED: &str = "INSERT OR REPLACE INTO ycompressed VALUES (?1, ?2, ?3)";
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
