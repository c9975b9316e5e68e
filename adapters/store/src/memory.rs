use std::{fmt, ops::ControlFlow};

use bytes::Bytes;
use yrs_websocket::RoomName;

use crate::{
    Entry, History, Record, RoomSummary, Store, StoreError, Write,
    history::{newer, unix_time},
};

/// Keeps documents in memory: they are gone when the process ends.
///
/// Rooms can be unloaded and loaded again all the same. Cloning the bytes shares them, so a room costs what
/// its updates cost, once.
pub struct MemoryStore {
    rooms: Rooms,
    clock: Box<dyn FnMut() -> f64 + Send>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the time, in seconds since 1970, from `clock` instead of the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> f64 + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { rooms: Rooms::default(), clock: Box::new(unix_time) }
    }
}

impl Store for MemoryStore {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let Some(kept) = self.rooms.get_mut(room) else {
            return Ok(Vec::new());
        };
        Ok(kept
            .records
            .iter_mut()
            .map(|(seq, entry)| {
                // The numbering begins anew: all of this was loaded.
                *seq = 0;
                entry.update.clone()
            })
            .collect())
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        for write in writes {
            let now = (self.clock)();
            let kept = self.rooms.entry(write.room().clone()).or_default();
            let timestamp = kept.time(now);
            let entry = |update: &Bytes| Entry { update: update.clone(), metadata: Bytes::new(), timestamp };
            match write {
                Write::Append { seq, update, .. } => kept.records.push((*seq, entry(update))),
                Write::Compact { seq, state, .. } => {
                    kept.records.retain(|(written, _)| written > seq);
                    kept.records.splice(0..0, state.iter().map(|state| (*seq, entry(state))));
                }
            }
        }
        Ok(())
    }
}

impl History for MemoryStore {
    fn rooms(&mut self) -> Result<Vec<RoomSummary>, StoreError> {
        let written = self.rooms.iter().filter(|(_, kept)| !kept.records.is_empty());
        let mut rooms: Vec<_> = written
            .map(|(room, Kept { records, newest })| RoomSummary {
                room: room.clone(),
                records: records.len() as u64,
                bytes: records.iter().map(|(_, entry)| entry.update.len() as u64).sum(),
                newest: newest.unwrap_or_default(),
            })
            .collect();
        rooms.sort_by(|a, b| a.room.cmp(&b.room));
        Ok(rooms)
    }

    fn records(
        &mut self,
        room: &RoomName,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let kept = self.rooms.get(room).map_or(&[][..], |kept| &kept.records);
        let mut records: Vec<_> = kept.iter().map(|(_, entry)| entry).collect();
        // A state is kept in front of what it was not made of, though it is younger.
        records.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
        for (number, entry) in (1..).zip(records) {
            let Entry { update, metadata, timestamp } = entry.clone();
            let record = Record { number, timestamp, metadata, update: Ok(update), is_checkpoint: false };
            if visit(record).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn restore(&mut self, room: &RoomName, entries: &[Entry]) -> Result<(), StoreError> {
        let kept = self.rooms.entry(room.clone()).or_default();
        for entry in entries {
            let timestamp = kept.time(entry.timestamp);
            // Not known to whoever numbers the writes: no compaction covers it before the next load.
            kept.records.push((u64::MAX, Entry { timestamp, ..entry.clone() }));
        }
        Ok(())
    }
}

/// Found without a look at the names of others. Nothing depends on the order: rooms are listed by name.
#[allow(clippy::disallowed_types, reason = "see above")]
type Rooms = std::collections::HashMap<RoomName, Kept>;

/// Is what is kept of a room.
#[derive(Debug, Default)]
struct Kept {
    /// With each record the number of its write since the last load, and 0 for what was there before.
    records: Vec<(u64, Entry)>,
    newest: Option<f64>,
}

impl Kept {
    fn time(&mut self, now: f64) -> f64 {
        *self.newest.insert(newer(now, self.newest))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("rooms", &self.rooms).finish_non_exhaustive()
    }
}
