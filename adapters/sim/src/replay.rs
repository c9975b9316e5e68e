//! Replays what was recorded of a live server.

use std::{
    any::Any,
    collections::BTreeMap,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::updates::decoder::Decode;
use yrs_websocket::{Input, Output, Outputs, Server};
use yrs_websocket_host::record::{Record, Recording, RecordingError, fingerprint};

/// What came of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// The version that wrote the recording. Another one may answer differently, and be right.
    pub version: String,
    /// How many steps were replayed.
    pub steps: u64,
    /// How the replay ended.
    pub end: ReplayEnd,
}

/// How a replay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayEnd {
    /// All steps gave the outputs that were recorded.
    Same,
    /// So did all up to where the file is torn.
    Torn,
    /// The file was changed behind the last step that was replayed.
    Damaged,
    /// This step gave other outputs than were recorded: the first is 1.
    Different {
        /// Which step.
        step: u64,
        /// What it was.
        what: String,
    },
    /// This step panics.
    Panicked {
        /// Which step.
        step: u64,
        /// What it was.
        what: String,
        /// What the panic said.
        message: String,
    },
}

/// Feeds a recording to a new [`Server`], and compares what comes out with what came out then. Writes the
/// steps, if there is a place for it.
///
/// # Errors
///
/// If the file is no recording.
pub fn replay(file: Bytes, mut log: Option<&mut dyn Write>) -> Result<Replayed, RecordingError> {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary start: only distances from it matter")]
    let epoch = Instant::now();
    let mut recording = Recording::read(file, epoch)?;
    let mut server = Server::new(recording.config.clone(), recording.seed);
    let mut squashes = BTreeMap::new();
    let mut replayed = Replayed { version: recording.version.clone(), steps: 0, end: ReplayEnd::Same };
    let mut last = (0, String::new());
    for record in recording.by_ref() {
        let Ok(record) = record else {
            replayed.end = ReplayEnd::Damaged;
            return Ok(replayed);
        };
        if let Record::Outputs { fingerprint } = record {
            if last.0 != fingerprint {
                replayed.end = ReplayEnd::Different { step: replayed.steps, what: last.1 };
                return Ok(replayed);
            }
            continue;
        }
        replayed.steps += 1;
        let what = describe(&record, epoch);
        if let Some(log) = &mut log {
            // A log that cannot be written is not worth losing the result for.
            let _ = writeln!(log, "{:>6} {what}", replayed.steps);
        }
        // What a live server died of is what a recording is for; nothing of the server is used after it.
        let step = AssertUnwindSafe(|| match record {
            Record::Input { now, input } => server.handle(now, input),
            Record::Compacted { now, room, seq } => match squashes.remove(&(room.clone(), seq)) {
                Some(squash) => {
                    let squash: yrs_websocket::journal::Squash = squash;
                    server.handle(now, Input::Compacted { room, seq, squashed: squash.run() })
                }
                None => Outputs::default(),
            },
            Record::Edit { now, room, update } => {
                let edited = server.edit(now, &room, |transaction| {
                    let update = yrs::Update::decode_v1(&update).ok()?;
                    transaction.apply_update(update).ok()
                });
                edited.map(|(_, outputs)| outputs).unwrap_or_default()
            }
            Record::Read { now, room } => {
                let _ = server.read(now, &room, |_| ());
                Outputs::default()
            }
            _ => Outputs::default(),
        });
        let outputs = match catch_unwind(step) {
            Ok(outputs) => outputs,
            Err(panic) => {
                let message = panic_message(&*panic);
                replayed.end = ReplayEnd::Panicked { step: replayed.steps, what, message };
                return Ok(replayed);
            }
        };
        last = (fingerprint(&outputs), what);
        for output in outputs {
            if let Output::Compact { room, seq, squash } = output {
                squashes.insert((room, seq), squash);
            }
        }
    }
    if recording.is_torn() {
        replayed.end = ReplayEnd::Torn;
    }
    Ok(replayed)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn describe(record: &Record, epoch: Instant) -> String {
    let at = |now: &Instant| now.saturating_duration_since(epoch);
    let line = |now: Duration, what: String| format!("{:>12.6} {what}", now.as_secs_f64());
    match record {
        Record::Input { now, input } => line(at(now), format!("{input:?}")),
        Record::Compacted { now, room, seq } => line(at(now), format!("Compacted {room} {seq}")),
        Record::Edit { now, room, update } => line(at(now), format!("Edit {room} {update:?}")),
        Record::Read { now, room } => line(at(now), format!("Read {room}")),
        _ => format!("{record:?}"),
    }
}
