use std::collections::BTreeMap;

use bytes::Bytes;
use yrs_websocket::RoomName;

use crate::{Store, StoreError, Write};

/// Keeps documents in memory: they are gone when the process ends.
///
/// Rooms can be unloaded and loaded again all the same. Cloning the bytes shares them, so a room costs what
/// its updates cost, once.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// With each update the number of its write since the last load, and 0 for what was there before.
    rooms: BTreeMap<RoomName, Vec<(u64, Bytes)>>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let Some(updates) = self.rooms.get_mut(room) else {
            return Ok(Vec::new());
        };
        Ok(updates
            .iter_mut()
            .map(|(seq, update)| {
                // The numbering begins anew: all of this was loaded.
                *seq = 0;
                update.clone()
            })
            .collect())
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        for write in writes {
            let updates = self.rooms.entry(write.room().clone()).or_default();
            match write {
                Write::Append { seq, update, .. } => updates.push((*seq, update.clone())),
                Write::Compact { seq, state, .. } => {
                    updates.retain(|(written, _)| written > seq);
                    updates.splice(0..0, state.iter().map(|state| (*seq, state.clone())));
                }
            }
        }
        Ok(())
    }
}
