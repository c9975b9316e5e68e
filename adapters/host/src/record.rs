//! Recordings: everything that the [`Server`] of a live host was told, to be replayed.
//!
//! The core is a function of its configuration, its seed and its inputs, so a recording replays to the
//! same outputs, byte for byte: `yrs-websocket-sim --replay FILE`. A recording is for bug reports. It
//! holds **the contents of all documents** and everything that clients sent.
//!
//! To record, give [`Hooks::observer`](crate::Hooks::observer) something that makes a [`Recorder`]:
//!
//! ```
//! use std::{fs::File, sync::Arc};
//! use yrs_websocket_host::{Observer, Options, record::Recorder};
//!
//! let mut options = Options::default();
//! options.hooks.observer = Some(Arc::new(|shard, config, seed| {
//!     let file = File::create(format!("/tmp/recording.{shard}")).ok()?;
//!     Some(Box::new(Recorder::new(file, config, seed)) as Box<dyn Observer>)
//! }));
//! ```
//!
//! # Format
//!
//! A file starts with the eight bytes `yws-rec1`. Records follow:
//!
//! ```text
//! record  = len (4 bytes)  check (8 bytes)  body (len bytes)
//! check   = fingerprint of the check before and of the body
//! body    = kind (1 byte)  fields
//! ```
//!
//! `len` and `check` are little-endian; numbers in bodies are variable-length as in lib0, times are
//! nanoseconds since the first step, zigzag; what has a length of its own is preceded by it. The first
//! record says which version of this crate wrote the file, the seed, and the configuration. Then for
//! each step: what went in, before it is handled, and the fingerprint of what came out. A squash is
//! not written out, because it follows from the inputs. A file that ends within a record was torn
//! there; all before it is good.

use std::{
    fmt,
    io::Write,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{
    Access, Config, ConnectionId, Echo, Input, Join, Output, Outputs, RoomName, RoomNameError, Server,
};

use crate::{Observer, Step};

/// Writes a recording.
///
/// Each step is one write, made before the core handles it, so that what makes it panic is in the file.
/// After a write that fails nothing more is written: a server is not to stop because its recording does.
#[derive(Debug)]
pub struct Recorder<W: Write> {
    /// None once a write has failed.
    file: Option<W>,
    /// Records that are not written yet.
    pending: Vec<u8>,
    check: u64,
    start: Option<Instant>,
}

impl<W: Write> Recorder<W> {
    /// Starts a recording of a [`Server`] that was made with this configuration and seed.
    pub fn new(file: W, config: &Config, seed: u64) -> Self {
        let mut recorder = Self { file: Some(file), pending: MAGIC.to_vec(), check: 0, start: None };
        recorder.put(|body| {
            body.push(KIND_START);
            put_bytes(body, env!("CARGO_PKG_VERSION").as_bytes());
            put_uint(body, seed);
            let mut config = config.clone();
            let settings = settings(&mut config);
            put_uint(body, settings.len() as u64);
            settings.iter().for_each(|setting| setting.put(body));
        });
        recorder
    }

    fn put(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let head = self.pending.len();
        self.pending.extend_from_slice(&[0; HEAD_LEN]);
        fill(&mut self.pending);
        let (before, body) = self.pending.split_at_mut(head + HEAD_LEN);
        self.check = check(self.check, body);
        // A frame cannot be longer: its limit is far below.
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        before[head..head + 4].copy_from_slice(&len.to_le_bytes());
        before[head + 4..].copy_from_slice(&self.check.to_le_bytes());
    }

    fn write(&mut self) {
        if self.file.as_mut().is_some_and(|file| file.write_all(&self.pending).is_err()) {
            self.file = None;
        }
        self.pending.clear();
    }
}

impl<W: Write + Send + fmt::Debug> Observer for Recorder<W> {
    fn before(&mut self, now: Instant, _: &Server, step: Step<'_>) {
        if self.file.is_none() {
            return;
        }
        let start = *self.start.get_or_insert(now);
        self.put(|body| {
            body.push(match &step {
                Step::Input(input) => kind(input),
                Step::Edit { .. } => KIND_EDIT,
                Step::Read { .. } => KIND_READ,
            });
            put_time(body, start, now);
            match step {
                Step::Input(input) => put_input(body, start, input),
                Step::Edit { room, update } => {
                    put_bytes(body, room.as_str().as_bytes());
                    put_bytes(body, update);
                }
                Step::Read { room } => put_bytes(body, room.as_str().as_bytes()),
            }
        });
        self.write();
    }

    fn after(&mut self, _: &Server, outputs: &Outputs) {
        if self.file.is_none() {
            return;
        }
        self.put(|body| {
            body.push(KIND_OUTPUTS);
            body.extend_from_slice(&fingerprint(outputs).to_le_bytes());
        });
    }
}

impl<W: Write> Drop for Recorder<W> {
    fn drop(&mut self) {
        self.write();
        if let Some(file) = &mut self.file {
            // Nobody is left to be told.
            let _ = file.flush();
        }
    }
}

/// A recording that is read; iterates over what follows the start.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The version of this crate that wrote it.
    pub version: String,
    /// The seed of the server.
    pub seed: u64,
    /// The configuration of the server.
    pub config: Config,
    rest: Bytes,
    check: u64,
    epoch: Instant,
    torn: bool,
}

/// One record of a recording.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Record {
    /// An input was handled.
    Input {
        /// When.
        now: Instant,
        /// The input.
        input: Input,
    },
    /// A squash came back; its result is that of the [`Output::Compact`] with the same number.
    Compacted {
        /// When.
        now: Instant,
        /// Which room.
        room: RoomName,
        /// The number.
        seq: u64,
    },
    /// The application edited a document.
    Edit {
        /// When.
        now: Instant,
        /// Which room.
        room: RoomName,
        /// What the edit changed.
        update: Bytes,
    },
    /// The application read a document.
    Read {
        /// When.
        now: Instant,
        /// Which room.
        room: RoomName,
    },
    /// What the step before gave out.
    Outputs {
        /// As [`fingerprint`] has it.
        fingerprint: u64,
    },
}

/// Says why a recording cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file is none, or was written by another version of the format.
    #[error("this is no recording, or one of another version")]
    NotARecording,
    /// A record is not what was written.
    #[error("a record is damaged")]
    Damaged,
}

impl Recording {
    /// Reads the start of a recording. Its times count from `epoch`.
    ///
    /// # Errors
    ///
    /// If the file is no recording, or damaged, or torn before there is anything to replay.
    pub fn read(file: Bytes, epoch: Instant) -> Result<Self, RecordingError> {
        let rest = file.strip_prefix(MAGIC).ok_or(RecordingError::NotARecording)?;
        let rest = file.slice_ref(rest);
        let mut recording = Self {
            version: String::new(),
            seed: 0,
            config: Config::default(),
            rest,
            check: 0,
            epoch,
            torn: false,
        };
        let mut body = recording.next_body().ok_or(RecordingError::NotARecording)??;
        recording.take_start(&mut body).ok_or(RecordingError::Damaged)?;
        Ok(recording)
    }

    /// Whether the file ends within a record. Known once all before it has been read.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn take_start(&mut self, body: &mut Body) -> Option<()> {
        (body.take_byte()? == KIND_START).then_some(())?;
        self.version = String::from_utf8(body.take_bytes()?.to_vec()).ok()?;
        self.seed = body.take_uint()?;
        let mut settings = settings(&mut self.config);
        (body.take_uint()? == settings.len() as u64).then_some(())?;
        settings.iter_mut().try_for_each(|setting| setting.take(body))?;
        body.is_empty().then_some(())
    }

    fn next_body(&mut self) -> Option<Result<Body, RecordingError>> {
        let Some((head, rest)) = self.rest.split_first_chunk::<HEAD_LEN>() else {
            self.torn |= !self.rest.is_empty();
            return None;
        };
        let (len, written) = head.split_at(4);
        let len = u32::from_le_bytes(len.try_into().expect("four of twelve")) as usize;
        let written = u64::from_le_bytes(written.try_into().expect("eight of twelve"));
        if len > rest.len() {
            self.torn = true;
            return None;
        }
        let body = self.rest.slice(HEAD_LEN..HEAD_LEN + len);
        self.check = check(self.check, &body);
        if self.check != written {
            // What follows cannot be trusted either.
            self.rest.clear();
            return Some(Err(RecordingError::Damaged));
        }
        self.rest = self.rest.slice(HEAD_LEN + len..);
        Some(Ok(Body(body)))
    }

    fn take_record(&self, body: &mut Body) -> Option<Record> {
        let kind = body.take_byte()?;
        if kind == KIND_OUTPUTS {
            let fingerprint = body.0.as_ref().try_into().ok().map(u64::from_le_bytes)?;
            return Some(Record::Outputs { fingerprint });
        }
        let now = body.take_time(self.epoch)?;
        let record = match kind {
            KIND_EDIT => Record::Edit { now, room: body.take_room()?, update: body.take_bytes()? },
            KIND_READ => Record::Read { now, room: body.take_room()? },
            KIND_COMPACTED => Record::Compacted { now, room: body.take_room()?, seq: body.take_uint()? },
            _ => Record::Input { now, input: body.take_input(kind, self.epoch)? },
        };
        body.is_empty().then_some(record)
    }
}

impl Iterator for Recording {
    type Item = Result<Record, RecordingError>;

    /// The next record; none at the end, and where the file is torn.
    fn next(&mut self) -> Option<Self::Item> {
        Some(
            self.next_body()?.and_then(|mut body| self.take_record(&mut body).ok_or(RecordingError::Damaged)),
        )
    }
}

/// Stands for all that was given out in a step.
pub fn fingerprint(outputs: &Outputs) -> u64 {
    let mut hash = Fingerprint::default();
    for output in outputs.iter() {
        match output {
            Output::Send { to, frame } => {
                hash.add_number(0);
                hash.add_number(to.len() as u64);
                to.iter().for_each(|to| hash.add_number(to.0));
                hash.add(frame);
            }
            Output::Close { connection, reason } => {
                hash.add_number(1);
                hash.add_number(connection.0);
                hash.add(format!("{reason:?}").as_bytes());
            }
            Output::Load { room } => {
                hash.add_number(2);
                hash.add(room.as_str().as_bytes());
            }
            Output::Append { room, seq, update } => {
                hash.add_number(3);
                hash.add(room.as_str().as_bytes());
                hash.add_number(*seq);
                hash.add(update);
            }
            Output::Compact { room, seq, .. } => {
                hash.add_number(4);
                hash.add(room.as_str().as_bytes());
                hash.add_number(*seq);
            }
            Output::Event(event) => {
                hash.add_number(5);
                hash.add(format!("{event:?}").as_bytes());
            }
        }
    }
    hash.value()
}

/// A fast hash of bytes that is the same in every process, for telling traces apart. No defence against
/// whoever wants two of them to be equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Adds bytes, and where they end.
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_number(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            self.add_number(u64::from_le_bytes(word.try_into().expect("they are eight")));
        }
        words.remainder().iter().for_each(|byte| self.add_number(u64::from(*byte)));
    }

    /// Adds a number.
    pub fn add_number(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(FACTOR);
        self.0 = mixed ^ (mixed >> 29);
    }

    /// The hash of all that was added.
    pub fn value(&self) -> u64 {
        self.0
    }
}

fn check(before: u64, body: &[u8]) -> u64 {
    let mut hash = Fingerprint(before);
    hash.add(body);
    hash.value()
}

/// A field of the configuration.
enum Setting<'a> {
    Switch(&'a mut bool),
    Number(&'a mut usize),
    Time(&'a mut Duration),
    Echo(&'a mut Echo),
}

/// All fields, in an order that is part of the format.
fn settings(config: &mut Config) -> [Setting<'_>; 26] {
    use Setting::{Number, Switch, Time};
    [
        Setting::Echo(&mut config.echo),
        Time(&mut config.flush_interval),
        Time(&mut config.awareness_interval),
        Number(&mut config.flush_bytes),
        Time(&mut config.keepalive),
        Time(&mut config.awareness_timeout),
        Number(&mut config.awareness_ids_max),
        Number(&mut config.awareness_bytes_max),
        Switch(&mut config.awareness_own_ids_only),
        Number(&mut config.rooms_max),
        Number(&mut config.peers_per_room_max),
        Number(&mut config.frame_len_max),
        Number(&mut config.state_vector_len_max),
        Number(&mut config.depth_max),
        Switch(&mut config.weak_links),
        Number(&mut config.loading_bytes_max),
        Number(&mut config.parked_bytes_max),
        Number(&mut config.unstored_bytes_max),
        Time(&mut config.congestion_timeout),
        Time(&mut config.idle_delay),
        Time(&mut config.view_delay),
        Time(&mut config.retry_delay_min),
        Time(&mut config.retry_delay_max),
        Number(&mut config.squash_count),
        Number(&mut config.squash_bytes),
        Switch(&mut config.collect),
    ]
}

impl Setting<'_> {
    fn put(&self, body: &mut Vec<u8>) {
        let number = match self {
            Self::Switch(switch) => u64::from(**switch),
            Self::Number(number) => **number as u64,
            Self::Time(time) => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            Self::Echo(Echo::Durable) => 0,
            Self::Echo(Echo::Immediate) => 1,
            Self::Echo(Echo::Off) => 2,
        };
        put_uint(body, number);
    }

    fn take(&mut self, body: &mut Body) -> Option<()> {
        let number = body.take_uint()?;
        match self {
            Self::Switch(switch) => **switch = number != 0,
            Self::Number(into) => **into = usize::try_from(number).unwrap_or(usize::MAX),
            Self::Time(time) => **time = Duration::from_nanos(number),
            Self::Echo(echo) => {
                **echo = *[Echo::Durable, Echo::Immediate, Echo::Off].get(usize::try_from(number).ok()?)?;
            }
        }
        Some(())
    }
}

fn kind(input: &Input) -> u8 {
    match input {
        Input::Connected(_) => 1,
        Input::Received { .. } => 2,
        Input::Congested { .. } => 3,
        Input::Writable { .. } => 4,
        Input::Disconnected { .. } => 5,
        Input::AccessChanged { .. } => 6,
        Input::Loaded { .. } => 7,
        Input::LoadFailed { .. } => 8,
        Input::Stored { .. } => 9,
        Input::Compacted { .. } => KIND_COMPACTED,
        Input::StoreFailed { .. } => 11,
        Input::Drain { .. } => 12,
        Input::Timeout => 13,
        // One that this crate does not know yet: the recording ends before it.
        _ => u8::MAX,
    }
}

fn put_input(body: &mut Vec<u8>, start: Instant, input: &Input) {
    match input {
        Input::Connected(join) => {
            put_uint(body, join.connection.0);
            put_bytes(body, join.room.as_str().as_bytes());
            put_access(body, start, join.access, join.expires_at);
        }
        Input::Received { connection, frame } => {
            put_uint(body, connection.0);
            put_bytes(body, frame);
        }
        Input::Congested { connection }
        | Input::Writable { connection }
        | Input::Disconnected { connection } => put_uint(body, connection.0),
        Input::AccessChanged { connection, access, expires_at } => {
            put_uint(body, connection.0);
            put_access(body, start, *access, *expires_at);
        }
        Input::Loaded { room, updates } => {
            put_bytes(body, room.as_str().as_bytes());
            put_uint(body, updates.len() as u64);
            updates.iter().for_each(|update| put_bytes(body, update));
        }
        Input::LoadFailed { room } => put_bytes(body, room.as_str().as_bytes()),
        Input::Stored { room, seq }
        | Input::Compacted { room, seq, .. }
        | Input::StoreFailed { room, seq } => {
            put_bytes(body, room.as_str().as_bytes());
            put_uint(body, *seq);
        }
        Input::Drain { deadline } => put_time(body, start, *deadline),
        Input::Timeout => {}
        _ => {}
    }
}

fn put_access(body: &mut Vec<u8>, start: Instant, access: Access, expires_at: Option<Instant>) {
    let read_only = u8::from(access == Access::ReadOnly);
    body.push(read_only | u8::from(expires_at.is_some()) << 1);
    if let Some(expires_at) = expires_at {
        put_time(body, start, expires_at);
    }
}

/// Times before the start exist: access may have expired long ago.
fn put_time(body: &mut Vec<u8>, start: Instant, time: Instant) {
    let distance = |from: Instant, to: Instant| {
        u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX).min(u64::MAX >> 1)
    };
    let number = if time >= start { distance(start, time) << 1 } else { distance(time, start) << 1 | 1 };
    put_uint(body, number);
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    put_uint(body, bytes.len() as u64);
    body.extend_from_slice(bytes);
}

fn put_uint(body: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        body.push(number as u8 | 0x80);
        number >>= 7;
    }
    body.push(number as u8);
}

/// What is left of a record.
struct Body(Bytes);

impl Body {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take_input(&mut self, kind: u8, epoch: Instant) -> Option<Input> {
        Some(match kind {
            1 => {
                let (connection, room) = (self.take_connection()?, self.take_room()?);
                let (access, expires_at) = self.take_access(epoch)?;
                let mut join = Join::new(connection, room, access);
                join.expires_at = expires_at;
                Input::Connected(join)
            }
            2 => Input::Received { connection: self.take_connection()?, frame: self.take_bytes()? },
            3 => Input::Congested { connection: self.take_connection()? },
            4 => Input::Writable { connection: self.take_connection()? },
            5 => Input::Disconnected { connection: self.take_connection()? },
            6 => {
                let connection = self.take_connection()?;
                let (access, expires_at) = self.take_access(epoch)?;
                Input::AccessChanged { connection, access, expires_at }
            }
            7 => {
                let room = self.take_room()?;
                let count = self.take_uint()?;
                let updates = (0..count).map(|_| self.take_bytes()).collect::<Option<_>>()?;
                Input::Loaded { room, updates }
            }
            8 => Input::LoadFailed { room: self.take_room()? },
            9 => Input::Stored { room: self.take_room()?, seq: self.take_uint()? },
            11 => Input::StoreFailed { room: self.take_room()?, seq: self.take_uint()? },
            12 => Input::Drain { deadline: self.take_time(epoch)? },
            13 => Input::Timeout,
            _ => return None,
        })
    }

    fn take_access(&mut self, epoch: Instant) -> Option<(Access, Option<Instant>)> {
        let flags = self.take_byte()?;
        let access = if flags & 1 == 0 { Access::Write } else { Access::ReadOnly };
        let expires_at = if flags & 2 == 0 { None } else { Some(self.take_time(epoch)?) };
        Some((access, expires_at))
    }

    fn take_connection(&mut self) -> Option<ConnectionId> {
        self.take_uint().map(ConnectionId)
    }

    fn take_room(&mut self) -> Option<RoomName> {
        let bytes = self.take_bytes()?;
        let name: Result<RoomName, RoomNameError> = RoomName::new(std::str::from_utf8(&bytes).ok()?);
        name.ok()
    }

    fn take_time(&mut self, epoch: Instant) -> Option<Instant> {
        let number = self.take_uint()?;
        let distance = Duration::from_nanos(number >> 1);
        if number & 1 == 0 {
            epoch.checked_add(distance)
        } else {
            epoch.checked_sub(distance).or(Some(epoch))
        }
    }

    fn take_bytes(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.take_uint()?).ok()?;
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn take_uint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.take_byte()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take_byte(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.0.split_to(1)[0])
    }
}

const MAGIC: &[u8] = b"yws-rec1";

/// The length and the check of a record.
const HEAD_LEN: usize = 12;

const KIND_START: u8 = 0;
const KIND_COMPACTED: u8 = 10;
const KIND_EDIT: u8 = 14;
const KIND_READ: u8 = 15;
const KIND_OUTPUTS: u8 = 16;

/// Odd, and its bits are no pattern.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not recorded would be replayed with its default.
    #[test]
    fn every_setting_is_recorded() {
        let mut config = Config::default();
        let fields = format!("{config:#?}").lines().filter(|line| line.starts_with("    ")).count();
        assert_eq!(settings(&mut config).len(), fields);

        for setting in &mut settings(&mut config) {
            match setting {
                Setting::Switch(switch) => **switch = !**switch,
                Setting::Number(number) => **number += 1,
                Setting::Time(time) => **time += Duration::from_nanos(1),
                Setting::Echo(echo) => **echo = Echo::Immediate,
            }
        }
        let recorder = Recorder::new(Vec::new(), &config, 7);
        #[allow(clippy::disallowed_methods, reason = "an instant to count from")]
        let epoch = Instant::now();
        let recording = Recording::read(Bytes::from(recorder.pending.clone()), epoch).unwrap();
        assert_eq!((recording.config, recording.seed), (config, 7));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "instants to tell apart")]
    fn times_before_the_start_are_kept() {
        let start = Instant::now() + Duration::from_secs(10);
        for time in [start, start + Duration::from_nanos(1), start - Duration::from_secs(3)] {
            let mut body = Vec::new();
            put_time(&mut body, start, time);
            assert_eq!(Body(body.into()).take_time(start), Some(time));
        }
    }
}
