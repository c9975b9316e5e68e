//! No input makes the core allocate more than a small multiple of its own length, and of what it has to
//! answer with. Measured by an allocator that counts, in crafted frames and in simulated worlds.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    mem,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use yrs_websocket::{Access, Config, ConnectionId, Input, Join, Outputs, RoomName, Server};
use yrs_websocket_host::{Observer, Step};
use yrs_websocket_sim::{Plan, Setup, run_with};

/// Times the bytes of a frame: twice what was measured is not reached by chance.
const FACTOR: usize = 24;

/// The same for structs that wait for others: each is kept track of, up to `Config::parked_bytes_max`.
const FACTOR_PARKED: usize = 128;

/// What even the smallest input may take.
const BASE: usize = 16 << 10;

#[test]
fn crafted_frames_take_a_small_multiple_of_their_length() {
    for (name, frame) in crafted() {
        let peak = peak_of(&frame);
        println!("{peak:>8} bytes for {:>6}: {name}", frame.len());
        let factor = if name.ends_with("beyond a gap") { FACTOR_PARKED } else { FACTOR };
        assert!(peak <= factor * frame.len() + BASE, "{name}: {peak} bytes for {}", frame.len());
        assert!(peak <= 2 * Config::default().parked_bytes_max, "{name}: {peak} bytes");
    }
}

#[test]
fn steps_of_simulated_worlds_take_a_small_multiple_of_what_they_are_about() {
    let measured = Arc::new(Mutex::new(Vec::new()));
    for seed in 0..100 {
        let mut setup = Setup::default();
        let measured = Arc::clone(&measured);
        setup.hooks.observer = Some(Arc::new(move |_, _, _| {
            let measured = Arc::clone(&measured);
            let meter =
                Meter { seed, step: String::new(), len: 0, live: 0, waiting: 0, presence: 0, measured };
            Some(Box::new(meter) as Box<dyn Observer>)
        }));
        let _ = run_with(&Plan::new(seed), setup);
    }
    let mut measured = mem::take(&mut *measured.lock().unwrap());
    measured.sort_by_key(|(peak, len, _)| (FACTOR * len + BASE) as isize - *peak as isize);
    for (peak, len, step) in measured.iter().take(5) {
        println!("{peak:>8} bytes for {len:>6}: {step}");
    }
    let (peak, len, step) = &measured[0];
    assert!(*peak <= FACTOR * len + BASE, "{step}: {peak} bytes for {len}");
}

/// Measures what each step of a core takes.
#[derive(Debug)]
struct Meter {
    seed: u64,
    step: String,
    len: usize,
    live: isize,
    /// Bytes of frames that may wait for a room to be loaded.
    waiting: usize,
    /// Bytes of the longest frame of presence.
    presence: usize,
    /// The peak and what it was for; small ones are left out.
    measured: Arc<Mutex<Vec<(usize, usize, String)>>>,
}

impl Observer for Meter {
    fn before(&mut self, _: Instant, server: &Server, step: Step<'_>) {
        let input = match step {
            Step::Input(Input::Received { frame, .. }) => {
                if server.rooms().any(|room| !room.is_live()) {
                    // The queue, too, grows at times.
                    self.waiting += frame.len() + 40;
                }
                self.presence = self.presence.max(if frame.first() == Some(&1) { frame.len() } else { 0 });
                frame.len() + self.waiting
            }
            Step::Input(Input::Loaded { updates, .. }) => {
                mem::take(&mut self.waiting) + updates.iter().map(Bytes::len).sum::<usize>()
            }
            Step::Input(_) | Step::Edit { .. } | Step::Read { .. } => 0,
        };
        let rooms = server.rooms().map(|room| room.journal().len_bytes() + room.unstored_bytes());
        // For each who is connected there may be an answer, and presence.
        self.len = input + rooms.sum::<usize>() + (200 + self.presence) * server.connections();
        self.step = format!("seed {}: {:.100}", self.seed, format!("{step:?}"));
        self.live = start();
    }

    fn after(&mut self, _: &Server, _: &Outputs) {
        let peak = peak_since(self.live);
        if peak > BASE / 2 {
            self.measured.lock().unwrap().push((peak, self.len, self.step.clone()));
        }
    }
}

/// What a room with two connections takes for a frame, at its peak.
fn peak_of(frame: &[u8]) -> usize {
    let mut server = Server::new(Config::default(), 7);
    #[allow(clippy::disallowed_methods, reason = "an instant to count from")]
    let now = Instant::now();
    let room = RoomName::new("room").unwrap();
    for id in [1, 2] {
        let join = Join::new(ConnectionId(id), room.clone(), Access::Write);
        let _ = server.handle(now, Input::Connected(join));
    }
    let _ = server.handle(now, Input::Loaded { room, updates: Vec::new() });
    let input = Input::Received { connection: ConnectionId(1), frame: Bytes::copy_from_slice(frame) };
    let live = start();
    let outputs = server.handle(now, input);
    let peak = peak_since(live);
    drop(outputs);
    peak
}

/// Frames that promise much, or make much of little.
fn crafted() -> Vec<(&'static str, Vec<u8>)> {
    const MANY: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let sync = |kind: u8, payload: Vec<u8>| [vec![0, kind], with_len(payload)].concat();
    let awareness = |payload: Vec<u8>| [vec![1], with_len(payload)].concat();
    let text_at = |clock: usize| [vec![1, 1, 1], uint(clock), vec![4, 1, 4, b't', b'e', b'x', b't']].concat();
    let gcs = |count: usize, clock: usize| {
        [vec![1], uint(count), vec![1], uint(clock), [0, 1].repeat(count), vec![0]].concat()
    };
    let deletes = |count: usize| {
        let ranges: Vec<u8> = (0..count).flat_map(|range| [uint(3 * range), vec![1]].concat()).collect();
        [vec![0, 1, 1], uint(count), ranges].concat()
    };
    let sections = |count: usize| {
        let all: Vec<u8> = (0..count)
            .rev()
            .flat_map(|client| [vec![1], uint(client), vec![0, 8, 1, 1, b'a', 1, 126]].concat())
            .collect();
        [uint(count), all, vec![0]].concat()
    };
    let entries = |count: usize| {
        let all: Vec<u8> =
            (0..count).flat_map(|client| [uint(client), vec![1, 4], b"null".to_vec()].concat()).collect();
        [uint(count), all].concat()
    };
    let known = |count: usize| {
        let all: Vec<u8> = (0..count).flat_map(|client| [uint(client), vec![1]].concat()).collect();
        [uint(count), all].concat()
    };
    let nested = [vec![1, 1, 1, 0, 8, 1, 1, b'a', 1], [117, 1].repeat(20_000)].concat();
    vec![
        ("a state vector that promises 2^32 clients", sync(0, [&MANY[..], &[1, 1]].concat())),
        ("an update that promises 2^32 clients", sync(2, [&MANY[..], &[1, 1, 0]].concat())),
        ("an update that promises 2^32 structs", sync(2, [&[1], &MANY[..], &[1, 0, 0, 1]].concat())),
        ("an update that promises 2^32 deletes", sync(2, [&[0, 1, 1], &MANY[..], &[1]].concat())),
        ("an update that promises a long string", sync(2, [text_at(0), MANY.to_vec()].concat())),
        ("awareness that promises 2^32 entries", awareness([&MANY[..], &[1, 1, 1]].concat())),
        ("a frame that promises a long message", [&[0, 2], &MANY[..]].concat()),
        ("a long text", sync(2, [text_at(0), with_len(vec![b'a'; 100_000]), vec![0]].concat())),
        ("a long text beyond a gap", sync(2, [text_at(9), with_len(vec![b'a'; 100_000]), vec![0]].concat())),
        ("many small structs", sync(2, gcs(50_000, 0))),
        ("many small structs beyond a gap", sync(2, gcs(15_000, 9))),
        ("more small structs than may wait beyond a gap", sync(2, gcs(50_000, 9))),
        ("many small deletes", sync(2, deletes(30_000))),
        ("many clients", sync(2, sections(10_000))),
        ("many clients in a state vector", sync(0, known(100_000))),
        ("many entries of presence", awareness(entries(250))),
        ("too many entries of presence", awareness(entries(20_000))),
        ("many questions", [0, 0, 1, 0].repeat(20_000)),
        ("many questions about presence", [3].repeat(50_000)),
        ("many messages that say nothing", [0, 2, 2, 0, 0].repeat(20_000)),
        ("many messages of unknown type", [99, 0].repeat(30_000)),
        ("deep nesting", sync(2, nested)),
        ("deep JSON", awareness([vec![1, 1, 1], with_len(b"[".repeat(50_000))].concat())),
        ("zeros", vec![0; 100_000]),
    ]
}

fn with_len(payload: Vec<u8>) -> Vec<u8> {
    [uint(payload.len()), payload].concat()
}

fn uint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Starts measuring on this thread; what is live now counts as nothing.
fn start() -> isize {
    let live = LIVE.get();
    PEAK.set(live);
    live
}

fn peak_since(live: isize) -> usize {
    usize::try_from(PEAK.get() - live).unwrap_or(0)
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends frees without being counted.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

#[allow(
    unsafe_code,
    reason = "an allocator cannot be written otherwise; all it does is to hand on and count"
)]
// SAFETY: each call is handed to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is that of `System`.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Where it moves, both are there for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is that of `System`.
        unsafe { System.realloc(place, layout, size) }
    }
}
