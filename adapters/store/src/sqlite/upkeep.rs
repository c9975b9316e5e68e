use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use rusqlite::{Connection, params, types::ValueRef};
use yrs_websocket::{
    RoomName,
    journal::{Journal, JournalLimits},
    update::SquashOptions,
};

use super::{
    DELETE_CHECKPOINT, Known, Marks, Row, SELECT_CHECKPOINT, SELECT_UPDATES, delete, insert, newest, written,
};
use crate::{
    compression::{Codecs, Compression, scan},
    history::{newer, squashed},
};

/// What a [`SqliteStore`](super::SqliteStore) does besides keeping what it is given. All of it is off by
/// default: the core squashes rooms by itself.
///
/// Squashing makes one record of many, by the core's own algebra, which keeps updates that miss others. It
/// happens in the transaction of the write that brings it about, so it is done with that or not at all, and
/// never to a room with a record that cannot be read. A record made so has the time of the newest one in it.
#[non_exhaustive]
pub struct SqliteOptions {
    /// Squashes a room when it is written to for the first time after so long, as Python's `document_ttl` and
    /// `squash_after_inactivity_of` do.
    pub squash_after_inactivity_of: Option<Duration>,
    /// Squashes what of a room is older than this, as Python's `squash_history_older_than` does, when the
    /// room is written to.
    pub squash_history_older_than: Option<Duration>,
    /// Squashes a room for the two reasons above no more often than this; 60 s by default, as in Python.
    pub squash_no_more_often_than: Duration,
    /// Squashes a room with more records than this since it was squashed.
    pub squash_above_records: Option<u64>,
    /// Squashes a room with more bytes than this since it was squashed, and more than that left.
    pub squash_above_bytes: Option<u64>,
    /// Whether squashing drops deleted content. By default it stays, for applications that show history.
    pub drop_deleted: bool,
    /// Stores a checkpoint after this many records of a room, as pycrdt-store does (there by default 100):
    /// it reads the checkpoint and what is younger, and so loads faster. This store reads everything, so it
    /// gains nothing by them.
    pub checkpoint_every: Option<u64>,
    /// Squashes rooms before a write when the database is larger than this, in bytes: the least recently
    /// written first, until 90 % are left. Nothing but history is lost, so it may stay larger.
    pub size_max: Option<u64>,
    /// Is called for every record that is written, for the metadata that is stored beside it.
    pub metadata: Option<Box<MetadataOf>>,
    /// Compresses what is written; each record, whatever its length, as pycrdt-store does. Python reads such
    /// a database with the same compression registered, and only so. Records are marked as compressed in
    /// a table of its own, `ycompressed`; what is not marked and no update is tried with this compression,
    /// [`decompression`](Self::decompression) and zlib, and taken if an update comes of it.
    pub compression: Option<Arc<dyn Compression>>,
    /// What to try besides, for records that were compressed differently.
    pub decompression: Vec<Arc<dyn Compression>>,
    /// Makes a database shrink as records are deleted. Those made here do; one that Python made before
    /// pycrdt-store is written anew once, which needs its size on the disk again and time.
    pub auto_vacuum: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            squash_after_inactivity_of: None,
            squash_history_older_than: None,
            squash_no_more_often_than: Duration::from_secs(60),
            squash_above_records: None,
            squash_above_bytes: None,
            drop_deleted: false,
            checkpoint_every: None,
            size_max: None,
            metadata: None,
            compression: None,
            decompression: Vec::new(),
            auto_vacuum: false,
        }
    }
}

/// Makes the metadata of a record.
pub(super) type MetadataOf = dyn FnMut(&RoomName) -> Bytes + Send;

impl fmt::Debug for SqliteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOptions")
            .field("squash_after_inactivity_of", &self.squash_after_inactivity_of)
            .field("squash_history_older_than", &self.squash_history_older_than)
            .field("squash_no_more_often_than", &self.squash_no_more_often_than)
            .field("squash_above_records", &self.squash_above_records)
            .field("squash_above_bytes", &self.squash_above_bytes)
            .field("drop_deleted", &self.drop_deleted)
            .field("checkpoint_every", &self.checkpoint_every)
            .field("size_max", &self.size_max)
            .field("auto_vacuum", &self.auto_vacuum)
            .finish_non_exhaustive()
    }
}

/// Is what a room has grown by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tail {
    /// Since it was squashed.
    pub(super) rows: u64,
    bytes: u64,
    /// What it was squashed to, in bytes.
    base_bytes: u64,
    /// When it was, in seconds since 1970.
    squashed_at: Option<f64>,
    /// How many records have come since the last checkpoint.
    since_checkpoint: u64,
}

impl Tail {
    pub(super) fn add(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes as u64;
        self.since_checkpoint += 1;
    }
}

/// Is what a transaction does to what is known of a room.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// What was known up to this write is deleted,
    compacted: Option<u64>,
    /// and what was known up to this time.
    squashed: Option<f64>,
    pub(super) added: Vec<Row>,
    /// The checkpoint, where it has become another.
    pub(super) checkpoint: Option<Option<f64>>,
    pub(super) tail: Tail,
}

impl Change {
    /// Whether a row that was known before is still there.
    pub(super) fn leaves(&self, row: &Row) -> bool {
        self.compacted.is_none_or(|seq| row.seq > seq)
            && self.squashed.is_none_or(|time| row.timestamp > time)
    }

    /// Forgets what a squash takes the place of.
    fn replace(&mut self, content: &Content, state: &[Bytes]) {
        let until = content.rows.iter().map(|row| row.timestamp).fold(f64::NEG_INFINITY, f64::max);
        self.added.retain(|row| row.timestamp > until);
        self.squashed = Some(self.squashed.unwrap_or(until).max(until));
        if content.checkpoint.is_some() {
            self.checkpoint = Some(None);
        }
        self.tail.rows = 0;
        self.tail.bytes = 0;
        self.tail.base_bytes = state.iter().map(|update| update.len() as u64).sum();
    }
}

/// Is one transaction of writes.
pub(super) struct Work<'a> {
    pub(super) transaction: &'a Connection,
    pub(super) path_of: fn(&RoomName) -> String,
    pub(super) options: &'a mut SqliteOptions,
    pub(super) codecs: &'a Codecs,
    pub(super) rooms: &'a BTreeMap<RoomName, Known>,
    pub(super) changes: BTreeMap<RoomName, Change>,
}

impl Work<'_> {
    /// Adds a row that is newer than all that the room has.
    pub(super) fn insert(
        &mut self,
        room: &RoomName,
        seq: u64,
        update: &[u8],
        now: f64,
    ) -> rusqlite::Result<()> {
        let path = (self.path_of)(room);
        let timestamp = newer(now, newest(self.transaction, &path)?);
        let row = self.insert_row(Some(room), &path, seq, update, timestamp)?;
        let change = self.change(room);
        change.added.push(row);
        change.tail.add(update.len());
        Ok(())
    }

    /// Replaces what is known of a room up to a write.
    pub(super) fn compact(
        &mut self,
        room: &RoomName,
        seq: u64,
        state: &[Bytes],
        now: f64,
    ) -> rusqlite::Result<()> {
        let path = (self.path_of)(room);
        for row in self.known_rows(room).filter(|row| row.seq <= seq) {
            delete(self.transaction, &path, row)?;
        }
        if let Some(timestamp) = self.checkpoint_of(room) {
            self.transaction.prepare_cached(DELETE_CHECKPOINT)?.execute(params![path, timestamp])?;
        }
        let change = self.change(room);
        change.added.retain(|row| row.seq > seq);
        change.compacted = change.compacted.max(Some(seq));
        change.checkpoint = Some(None);
        change.tail = Tail {
            rows: change.added.len() as u64,
            base_bytes: state.iter().map(|update| update.len() as u64).sum(),
            squashed_at: change.tail.squashed_at,
            ..Tail::default()
        };
        for update in state {
            let timestamp = newer(now, newest(self.transaction, &path)?);
            let row = self.insert_row(Some(room), &path, seq, update, timestamp)?;
            self.change(room).added.push(row);
        }
        Ok(())
    }

    /// Squashes a room that was left alone for long, or what of it is old.
    pub(super) fn squash_by_time(&mut self, room: &RoomName, now: f64) -> rusqlite::Result<()> {
        let (inactivity, age) =
            (self.options.squash_after_inactivity_of, self.options.squash_history_older_than);
        if inactivity.is_none() && age.is_none() {
            return Ok(());
        }
        let squashed_at = self.change(room).tail.squashed_at;
        let interval = self.options.squash_no_more_often_than.as_secs_f64();
        if squashed_at.is_some_and(|squashed_at| now - squashed_at <= interval) {
            return Ok(());
        }
        let path = (self.path_of)(room);
        let (oldest, newest) = self.transaction.prepare_cached(SELECT_AGES)?.query_row([&path], |row| {
            Ok((row.get::<_, Option<f64>>(0)?.unwrap_or(now), row.get::<_, Option<f64>>(1)?.unwrap_or(now)))
        })?;
        let is_past =
            |time: f64, limit: Option<Duration>| limit.is_some_and(|limit| now - time > limit.as_secs_f64());
        let until = if is_past(newest, inactivity) {
            None
        } else if is_past(oldest, age) {
            age.map(|age| now - age.as_secs_f64())
        } else {
            return Ok(());
        };
        if self.squash(Some(room), &path, until)? {
            self.change(room).tail.squashed_at = Some(now);
        }
        Ok(())
    }

    /// Squashes a room that has grown.
    pub(super) fn squash_by_size(&mut self, room: &RoomName) -> rusqlite::Result<()> {
        let Tail { rows, bytes, base_bytes, .. } = self.change(room).tail;
        let too_many = self.options.squash_above_records.is_some_and(|max| rows > max);
        // Or every write would squash a room whose document alone is larger.
        let too_large = self.options.squash_above_bytes.is_some_and(|max| bytes > max.max(base_bytes));
        if too_many || too_large {
            let path = (self.path_of)(room);
            self.squash(Some(room), &path, None)?;
            // Also if it could not be done: it is tried again when it has grown as much again.
            self.change(room).tail.rows = 0;
            self.change(room).tail.bytes = 0;
        }
        Ok(())
    }

    /// Stores the document as the checkpoint of a room, if it is time.
    pub(super) fn checkpoint(&mut self, room: &RoomName) -> rusqlite::Result<()> {
        let Some(every) = self.options.checkpoint_every else { return Ok(()) };
        if self.change(room).tail.since_checkpoint < every {
            return Ok(());
        }
        self.change(room).tail.since_checkpoint = 0;
        let path = (self.path_of)(room);
        let Some(content) = Content::read(self.transaction, &path, None, self.codecs)? else { return Ok(()) };
        // A checkpoint is one update. What contradicts it, mostly nothing, is in the rows.
        let Some(state) = content.squash(SquashOptions { collect: false }).into_iter().next() else {
            return Ok(());
        };
        // Python reads rows of the checkpoint's time or later: of none of these it needs any.
        let timestamp = newer(0.0, newest(self.transaction, &path)?);
        let stored = written(self.transaction, &path, &state, timestamp, self.codecs)?;
        self.transaction.prepare_cached(REPLACE_CHECKPOINT)?.execute(params![
            path,
            &stored[..],
            timestamp
        ])?;
        // One that was not loaded may say more than the rows: then so does this one, and it stays.
        if content.checkpoint.is_none() || content.checkpoint == self.checkpoint_of(room) {
            self.change(room).checkpoint = Some(Some(timestamp));
        }
        Ok(())
    }

    /// Squashes rooms while the database is too large. Returns the size below which it need not be tried again.
    pub(super) fn limit_size(&mut self, squashed_to_bytes: u64) -> rusqlite::Result<u64> {
        let Some(max) = self.options.size_max else { return Ok(0) };
        let enough = max / 10 * 9;
        let size = self.size()?;
        if size <= max.max(squashed_to_bytes + squashed_to_bytes / 10) {
            return Ok(squashed_to_bytes);
        }
        let mut select = self.transaction.prepare(SELECT_LEAST_RECENT)?;
        let paths =
            select.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        // A room that is known must know what becomes of its rows.
        let known =
            self.rooms.keys().map(|room| ((self.path_of)(room), room.clone())).collect::<BTreeMap<_, _>>();
        for path in paths {
            self.squash(known.get(&path), &path, None)?;
            if self.size()? <= enough {
                return Ok(0);
            }
        }
        self.size()
    }

    /// Squashes a path, or what of it is not younger than `until`. False if there is nothing to be gained, or
    /// a record cannot be read. `room` is whose path it is, if anything is known of one.
    fn squash(&mut self, room: Option<&RoomName>, path: &str, until: Option<f64>) -> rusqlite::Result<bool> {
        let Some(content) = Content::read(self.transaction, path, until, self.codecs)? else {
            return Ok(false);
        };
        if content.is_squashed() {
            return Ok(false);
        }
        let state = content.squash(SquashOptions { collect: self.options.drop_deleted });
        let seq = room.and_then(|room| self.seq_of(room, &content));
        content.delete(self.transaction, path)?;
        if let Some(room) = room {
            self.change(room).replace(&content, &state);
        }
        let name = room.cloned().or_else(|| RoomName::new(path).ok());
        let mut timestamp = content.newest();
        for update in &state {
            let row = self.insert_row(name.as_ref(), path, seq.unwrap_or(0), update, timestamp)?;
            if let (Some(room), Some(_)) = (room, seq) {
                self.change(room).added.push(row);
            }
            timestamp = timestamp.next_down();
        }
        Ok(true)
    }

    /// The number of the last write in what is there, so that no compaction deletes what is made of it and
    /// does not cover that. `None` if something in it was never seen here: then no compaction covers it.
    fn seq_of(&self, room: &RoomName, content: &Content) -> Option<u64> {
        if content.checkpoint.is_some() && content.checkpoint != self.checkpoint_of(room) {
            return None;
        }
        let known = self.known_rows(room).map(|row| ((row.id, row.timestamp.to_bits()), row.seq));
        let known = known.collect::<BTreeMap<_, _>>();
        let seqs = content.rows.iter().map(|row| known.get(&(row.id, row.timestamp.to_bits())).copied());
        seqs.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    fn insert_row(
        &mut self,
        room: Option<&RoomName>,
        path: &str,
        seq: u64,
        update: &[u8],
        timestamp: f64,
    ) -> rusqlite::Result<Row> {
        let metadata = match (&mut self.options.metadata, room) {
            (Some(metadata), Some(room)) => metadata(room),
            (Some(_) | None, _) => Bytes::new(),
        };
        let id = insert(self.transaction, path, update, &metadata, timestamp, self.codecs)?;
        Ok(Row { seq, id, timestamp })
    }

    fn size(&self) -> rusqlite::Result<u64> {
        let size: i64 = self.transaction.query_row(SELECT_SIZE, [], |row| row.get(0))?;
        Ok(size.unsigned_abs())
    }

    fn known_rows(&self, room: &RoomName) -> impl Iterator<Item = &Row> {
        let change = self.changes.get(room);
        let before = self.rooms.get(room).map_or(&[][..], |known| &known.rows);
        let before = before.iter().filter(move |row| change.is_none_or(|change| change.leaves(row)));
        before.chain(change.map_or(&[][..], |change| &change.added))
    }

    fn checkpoint_of(&self, room: &RoomName) -> Option<f64> {
        match self.changes.get(room).and_then(|change| change.checkpoint) {
            Some(checkpoint) => checkpoint,
            None => self.rooms.get(room)?.checkpoint,
        }
    }

    fn change(&mut self, room: &RoomName) -> &mut Change {
        if !self.changes.contains_key(room) {
            let tail = self.rooms.get(room).map(|known| known.tail).unwrap_or_default();
            self.changes.insert(room.clone(), Change { tail, ..Change::default() });
        }
        self.changes.get_mut(room).expect("it was inserted if it was not there")
    }
}

/// Is all that a room has, proven.
struct Content {
    journal: Journal,
    rows: Vec<Row>,
    /// The time of the checkpoint, if that is part of it.
    checkpoint: Option<f64>,
}

impl Content {
    /// Reads the rows not younger than `until`; or all of them, and the checkpoint. `None` if one of them is
    /// damaged: what cannot be read must stay as it is.
    fn read(
        transaction: &Connection,
        path: &str,
        until: Option<f64>,
        codecs: &Codecs,
    ) -> rusqlite::Result<Option<Self>> {
        let marks = Marks::of(transaction, path)?;
        let mut journal = Journal::new(JournalLimits::default());
        let mut take = |value: ValueRef<'_>, timestamp| {
            let update = marks.read(value, timestamp, codecs).ok().and_then(|update| scan(update).ok())?;
            journal.restore(&update);
            Some(())
        };
        let mut checkpoint = None;
        if until.is_none() {
            let mut select = transaction.prepare_cached(SELECT_CHECKPOINT)?;
            let mut found = select.query([path])?;
            if let Some(row) = found.next()? {
                let timestamp = row.get(1)?;
                checkpoint = Some(timestamp);
                if take(row.get_ref(0)?, timestamp).is_none() {
                    return Ok(None);
                }
            }
        }
        let mut rows = Vec::new();
        let mut select = transaction.prepare_cached(SELECT_UPDATES)?;
        let mut found = select.query([path])?;
        while let Some(row) = found.next()? {
            let (id, timestamp) = (row.get(0)?, row.get(2)?);
            if until.is_some_and(|until| timestamp > until) {
                break;
            }
            if take(row.get_ref(1)?, timestamp).is_none() {
                return Ok(None);
            }
            rows.push(Row { seq: 0, id, timestamp });
        }
        Ok(Some(Self { journal, rows, checkpoint }))
    }

    fn is_squashed(&self) -> bool {
        self.rows.len() <= 1 && self.checkpoint.is_none()
    }

    fn squash(&self, options: SquashOptions) -> Vec<Bytes> {
        squashed(&self.journal, options)
    }

    fn delete(&self, transaction: &Connection, path: &str) -> rusqlite::Result<()> {
        for row in &self.rows {
            delete(transaction, path, row)?;
        }
        if let Some(timestamp) = self.checkpoint {
            transaction.prepare_cached(DELETE_CHECKPOINT)?.execute(params![path, timestamp])?;
        }
        Ok(())
    }

    fn newest(&self) -> f64 {
        let rows = self.rows.iter().map(|row| row.timestamp);
        rows.reduce(f64::max).or(self.checkpoint).unwrap_or_default()
    }
}

const SELECT_AGES: &str = "SELECT min(timestamp), max(timestamp) FROM yupdates WHERE path = ?1";
/// What could be squashed.
const SELECT_LEAST_RECENT: &str = "SELECT path FROM \
     (SELECT path, timestamp FROM yupdates UNION ALL SELECT path, timestamp FROM ycheckpoints) \
     GROUP BY path HAVING count(*) > 1 ORDER BY max(timestamp)";
/// Pages that were freed count as gone, whether or not the file has shrunk yet.
const SELECT_SIZE: &str = "SELECT (page_count - freelist_count) * page_size \
     FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
const REPLACE_CHECKPOINT: &str = "INSERT INTO ycheckpoints VALUES (?1, ?2, ?3) ON CONFLICT (path) DO UPDATE \
     SET checkpoint = excluded.checkpoint, timestamp = excluded.timestamp";
