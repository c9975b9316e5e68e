use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    ops::ControlFlow,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use yrs_websocket::{
    RoomName,
    journal::{Journal, JournalLimits},
    update::{SquashOptions, Update, UpdateError},
};

use crate::{Store, StoreError, Write, compression::scan, file::format};

/// Looks into what a store keeps: lists it, goes back in it, carries it elsewhere, proves it, makes it
/// smaller.
///
/// A room's records are what was appended and not yet squashed, oldest first, each with the time of its
/// writing and with metadata. Records are handed out one at a time, however many there are.
///
/// For tools and applications, beside or instead of a server. [`compact`](Self::compact) loads the room, and
/// so begins a new numbering of its writes: give a store that serves the room a second store on the same
/// database.
///
/// **Exported rooms** are in the format of Python's `FileYStore`, version 2, which is simple and has all of
/// it: the line `VERSION:2`, then per record the update, the metadata and 8 bytes of time (seconds since
/// 1970, IEEE 754 double, little endian), each behind its length (LEB128).
pub trait History: Store {
    /// All rooms, in the order of their names.
    fn rooms(&mut self) -> Result<Vec<RoomSummary>, StoreError>;

    /// Visits the records of a room, oldest first, until `visit` breaks; none for a room never written.
    ///
    /// A checkpoint, which repeats what is before it, is visited at its place in time. What cannot be read
    /// is a record like others, with its [`Damage`]: only a store that answers nothing more is an error.
    fn records(
        &mut self,
        room: &RoomName,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// Adds records as they are, in one transaction: with their metadata, and with their times. A store that
    /// orders by time gives those a later one that are not newer than all that the room has.
    fn restore(&mut self, room: &RoomName, entries: &[Entry]) -> Result<(), StoreError>;

    /// The document as it was, as updates that together are all of it: one, and more only if something in
    /// it contradicts something else. Deleted content is kept, so that Yjs can show it.
    fn document(&mut self, room: &RoomName, moment: Moment) -> Result<Vec<Bytes>, HistoryError> {
        let mut journal = Journal::new(JournalLimits::default());
        let mut damaged = None;
        self.records(room, &mut |record| {
            match moment {
                Moment::Record(number) if record.number > number => return ControlFlow::Break(()),
                // Where the clock has stepped back, a later record is of an earlier time.
                Moment::Time(time) if record.timestamp > time => return ControlFlow::Continue(()),
                Moment::Now | Moment::Record(_) | Moment::Time(_) => {}
            }
            match record.proven() {
                Ok(update) => journal.restore(&update),
                Err(damage) => {
                    damaged = Some((record.number, damage));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some((record, damage)) = damaged {
            return Err(HistoryError::Damaged { room: room.clone(), record, damage });
        }
        Ok(squashed(&journal, SquashOptions { collect: false }))
    }

    /// Writes all records of a room to `to`, and says how many they were. Checkpoints are records there.
    ///
    /// `damaged` hears of those that are left out because they cannot be read. What can is written as it is.
    fn export(
        &mut self,
        room: &RoomName,
        to: &mut dyn io::Write,
        damaged: &mut dyn FnMut(u64, Damage),
    ) -> Result<u64, HistoryError> {
        let mut to = io::BufWriter::new(to);
        let mut done = to.write_all(format::HEADER).map(|()| 0).map_err(HistoryError::io);
        self.records(room, &mut |record| {
            let Ok(count) = done else { return ControlFlow::Break(()) };
            match record.update {
                Ok(update) => {
                    let entry = Entry { update, metadata: record.metadata, timestamp: record.timestamp };
                    done = entry.write(&mut to).map(|()| count + 1).map_err(HistoryError::io);
                }
                Err(damage) => damaged(record.number, damage),
            }
            ControlFlow::Continue(())
        })?;
        to.flush().map_err(HistoryError::io)?;
        done
    }

    /// Adds what was exported, also by Python's `FileYStore` (versions 1 and 2), and says how many records
    /// that were. Each is proven first; `damaged` hears of those that are not taken because they are no
    /// updates. A file that ends in the middle of a record is an error after all before that is stored.
    fn import(
        &mut self,
        room: &RoomName,
        from: &mut dyn Read,
        damaged: &mut dyn FnMut(u64, Damage),
    ) -> Result<u64, HistoryError> {
        let mut count = 0;
        let mut batch = Batch::default();
        let mut end = Ok(());
        for (number, entry) in (1..).zip(Entries::new(from)?) {
            match entry.map(|entry| scan(entry.update.clone()).map(|_| entry)) {
                Ok(Ok(entry)) => batch.push(entry),
                Ok(Err(error)) => damaged(number, Damage::Malformed(error)),
                Err(error) => end = Err(error),
            }
            if batch.is_full() {
                count += batch.store(self, room)?;
            }
        }
        count += batch.store(self, room)?;
        end.map(|()| count)
    }

    /// Proves every record of a room; `damaged` hears of those that are none. Says how many there are.
    fn verify(&mut self, room: &RoomName, damaged: &mut dyn FnMut(u64, Damage)) -> Result<u64, StoreError> {
        let mut count = 0;
        self.records(room, &mut |record| {
            count += 1;
            if let Err(damage) = record.proven() {
                damaged(record.number, damage);
            }
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Squashes a room to as few records as can say the same, mostly one. What cannot be read is an error, and
    /// everything stays.
    fn compact(&mut self, room: &RoomName, options: SquashOptions) -> Result<Compaction, HistoryError> {
        let mut done = Compaction::default();
        let mut damaged = None;
        self.records(room, &mut |record| {
            done.records_before += 1;
            match record.proven() {
                Ok(update) => done.bytes_before += update.bytes().len() as u64,
                Err(damage) => damaged = damaged.take().or(Some((record.number, damage))),
            }
            ControlFlow::Continue(())
        })?;
        (done.records_after, done.bytes_after) = (done.records_before, done.bytes_before);
        if done.records_before <= 1 && damaged.is_none() {
            return Ok(done);
        }
        let mut journal = Journal::new(JournalLimits::default());
        // Read again, as what is loaded now is what the write below replaces.
        for update in self.load(room)? {
            match scan(update) {
                Ok(update) => journal.restore(&update),
                // Only if it has come since.
                Err(error) => {
                    let record = done.records_before + 1;
                    damaged = damaged.take().or(Some((record, Damage::Malformed(error))));
                }
            }
        }
        if let Some((record, damage)) = damaged {
            return Err(HistoryError::Damaged { room: room.clone(), record, damage });
        }
        let state = squashed(&journal, options);
        done.records_after = state.len() as u64;
        done.bytes_after = state.iter().map(|update| update.len() as u64).sum();
        // All that was loaded is covered by the number 0: see `Write::Compact`.
        self.commit(&[Write::Compact { room: room.clone(), seq: 0, state }])?;
        self.unload(room);
        Ok(done)
    }
}

/// Is what a store has of a room.
#[derive(Debug, Clone, PartialEq)]
pub struct RoomSummary {
    /// The room.
    pub room: RoomName,
    /// How many records it has, a checkpoint included.
    pub records: u64,
    /// What they take, as stored.
    pub bytes: u64,
    /// When the newest was written, in seconds since 1970.
    pub newest: f64,
}

/// Is one record of a room's history.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its number, from 1, in the order of the room. Squashing numbers anew.
    pub number: u64,
    /// When it was written, in seconds since 1970.
    pub timestamp: f64,
    /// What the application stored beside it; mostly nothing.
    pub metadata: Bytes,
    /// The update, or what has become of it. It is proven only by [`proven`](Self::proven).
    pub update: Result<Bytes, Damage>,
    /// Whether it repeats what is before it.
    pub is_checkpoint: bool,
}

impl Record {
    /// Proves the update.
    pub fn proven(&self) -> Result<Update, Damage> {
        scan(self.update.clone()?).map_err(Damage::Malformed)
    }
}

/// Is a record on its way from one store to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The update.
    pub update: Bytes,
    /// What the application stored beside it.
    pub metadata: Bytes,
    /// When it was written, in seconds since 1970.
    pub timestamp: f64,
}

impl Entry {
    fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        let mut record = Vec::new();
        format::write(&mut record, &self.update, &self.metadata, self.timestamp);
        to.write_all(&record)
    }
}

/// Says how far back to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// All there is.
    Now,
    /// After the record of this number.
    Record(u64),
    /// At this time, in seconds since 1970: all records that are not younger.
    Time(f64),
}

impl Moment {
    /// Whether a record was there by then.
    pub fn includes(self, record: &Record) -> bool {
        match self {
            Self::Now => true,
            Self::Record(number) => record.number <= number,
            Self::Time(time) => record.timestamp <= time,
        }
    }
}

/// Says what [`History::compact`] has gained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compaction {
    /// How many records there were.
    pub records_before: u64,
    /// How many there are.
    pub records_after: u64,
    /// The bytes of the updates before, without compression.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
}

/// Says what is wrong with a record. The operator restores a backup, or lives without the record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The store holds something else in the place of bytes.
    #[error("it holds no bytes")]
    NoBytes,
    /// It is marked as compressed, and does not decompress.
    #[error("it is compressed with {codec}, and cannot be decompressed: configure {codec}, if it is not")]
    Compressed {
        /// The name of the compression.
        codec: String,
    },
    /// Only in databases of ypy-websocket before 0.5, where metadata are rows like updates: there are as many
    /// of each, or no metadata, unless some updates are damaged.
    #[error("the room has {updates} updates and {others} other rows: some of these may be damaged updates")]
    Unpaired {
        /// How many rows are updates.
        updates: u64,
        /// How many are not.
        others: u64,
    },
    /// It is no Yjs update.
    #[error("it is no Yjs update: {0}")]
    Malformed(UpdateError),
}

/// Says why history could not be looked into or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record that is needed cannot be read. Nothing was changed.
    #[error("record {record} of room {room:?} is damaged: {damage}")]
    Damaged {
        /// The room.
        room: RoomName,
        /// The number of the record.
        record: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The file of an export could not be written or read.
    #[error("the exported file could not be read or written: {message}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// What the operating system said.
        message: String,
    },
    /// A file to be imported is not in the format. Give another one.
    #[error(
        "the file is no export of a room, nor of FileYStore: it does not begin with VERSION:1 or VERSION:2"
    )]
    NoExport,
    /// A file to be imported ends too early. All that was whole is imported.
    #[error("the file ends in the middle of record {record}; what is before it was imported")]
    Truncated {
        /// The number of the record.
        record: u64,
    },
    /// A file to be imported goes on with something else. All before that is imported.
    #[error("what follows record {} of the file is no record; what is before it was imported", record - 1)]
    NoRecord {
        /// The number of what should be a record.
        record: u64,
    },
}

impl HistoryError {
    fn io(error: io::Error) -> Self {
        Self::Io { kind: error.kind(), message: error.to_string() }
    }
}

/// Reads an exported room, record for record. Ends with the first error.
struct Entries<R> {
    from: BufReader<R>,
    has_time: bool,
    /// The number of the next record.
    record: u64,
    is_over: bool,
}

impl<R: Read> Entries<R> {
    fn new(from: R) -> Result<Self, HistoryError> {
        let mut from = BufReader::new(from);
        let mut header = [0; format::HEADER.len()];
        from.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => HistoryError::NoExport,
            _ => HistoryError::io(error),
        })?;
        let has_time = match &header[..] {
            format::HEADER => true,
            format::HEADER_1 => false,
            _ => return Err(HistoryError::NoExport),
        };
        Ok(Self { from, has_time, record: 1, is_over: false })
    }

    fn entry(&mut self) -> Result<Option<Entry>, HistoryError> {
        if self.from.fill_buf().map_err(HistoryError::io)?.is_empty() {
            return Ok(None);
        }
        let update = self.part()?;
        let metadata = self.part()?;
        let timestamp = if self.has_time {
            let time = self.part()?;
            let time =
                time.as_ref().try_into().map_err(|_| HistoryError::NoRecord { record: self.record })?;
            f64::from_le_bytes(time)
        } else {
            0.0
        };
        self.record += 1;
        Ok(Some(Entry { update, metadata, timestamp }))
    }

    fn part(&mut self) -> Result<Bytes, HistoryError> {
        let mut len = 0u64;
        for shift in (0..).step_by(7) {
            let mut byte = [0];
            self.from.read_exact(&mut byte).map_err(|error| self.error(error))?;
            if shift > 35 {
                return Err(HistoryError::NoRecord { record: self.record });
            }
            len |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                break;
            }
        }
        // Grows with what is there, not with what is announced.
        let mut part = Vec::new();
        self.from.by_ref().take(len).read_to_end(&mut part).map_err(HistoryError::io)?;
        if part.len() as u64 != len {
            return Err(HistoryError::Truncated { record: self.record });
        }
        Ok(part.into())
    }

    fn error(&self, error: io::Error) -> HistoryError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => HistoryError::Truncated { record: self.record },
            _ => HistoryError::io(error),
        }
    }
}

impl<R: Read> Iterator for Entries<R> {
    type Item = Result<Entry, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.entry().transpose();
        self.is_over = !matches!(entry, Some(Ok(_)));
        entry
    }
}

/// Gathers records for one transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Batch {
    pub(crate) const RECORDS: usize = 1000;
    pub(crate) const BYTES: usize = 4 << 20;

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.update.len() + entry.metadata.len();
        self.entries.push(entry);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= Self::RECORDS || self.bytes >= Self::BYTES
    }

    fn store<S: History + ?Sized>(&mut self, to: &mut S, room: &RoomName) -> Result<u64, StoreError> {
        let count = self.entries.len() as u64;
        if count > 0 {
            to.restore(room, &self.entries)?;
        }
        *self = Self::default();
        Ok(count)
    }
}

/// All that a journal holds, as few updates.
pub(crate) fn squashed(journal: &Journal, options: SquashOptions) -> Vec<Bytes> {
    journal.squash(options).run().updates().cloned().collect()
}

/// The time of a record that is newer than `newest`, whatever the clock says.
pub(crate) fn newer(now: f64, newest: Option<f64>) -> f64 {
    // A clock that answers with no number, or an endless one, counts as one that stands still.
    let now = if now.is_finite() { now } else { 0.0 };
    newest.map_or(now, |newest| now.max(newest.next_up()))
}

/// Reads the system's clock.
#[allow(clippy::disallowed_methods, reason = "records carry the time of day, for Python and for people")]
pub(crate) fn unix_time() -> f64 {
    // A clock before 1970 is a clock that was never set.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
