//! What a live server records replays to the same outputs, and what does not is named.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{Access, Config, ConnectionId, Input, Join, RoomName, Server};
use yrs_websocket_host::{
    Observer, Step,
    record::{Recorder, RecordingError},
};
use yrs_websocket_sim::{Plan, ReplayEnd, Setup, replay, run_with};

#[test]
fn a_recorded_world_replays_to_the_same_outputs() {
    let mut seen = String::new();
    for seed in 0..30 {
        for recording in record(seed) {
            let mut log = Vec::new();
            let replayed = replay(recording, Some(&mut log)).unwrap();
            assert_eq!(replayed.end, ReplayEnd::Same, "seed {seed}");
            seen.push_str(&String::from_utf8(log).unwrap());
        }
    }
    // All that a server can be told is among it.
    for kind in [
        "Connected",
        "Received",
        "Congested",
        "Writable",
        "Disconnected",
        "Loaded",
        "LoadFailed",
        "Stored",
        "StoreFailed",
        "Compacted",
        "Drain",
        "Timeout",
        "Edit",
    ] {
        assert!(seen.contains(&format!(" {kind}")), "no {kind}");
    }
}

#[test]
fn a_changed_byte_is_noticed() {
    let whole = record(SEED).swap_remove(0);
    for place in (0..whole.len()).step_by(whole.len() / 50).chain(0..40) {
        let mut changed = whole.to_vec();
        changed[place] ^= 1;
        let end = replay(changed.into(), None).map(|replayed| replayed.end);
        assert!(
            matches!(end, Err(_) | Ok(ReplayEnd::Damaged | ReplayEnd::Torn)),
            "byte {place} of {}: {end:?}",
            whole.len()
        );
    }
}

#[test]
fn a_torn_file_replays_up_to_its_tear() {
    let whole = record(SEED).swap_remove(0);
    let all = replay(whole.clone(), None).unwrap();
    assert_eq!(all.end, ReplayEnd::Same);
    let mut steps = 0;
    for len in (200..whole.len()).step_by(whole.len() / 50) {
        let torn = replay(whole.slice(..len), None).unwrap();
        assert!(matches!(torn.end, ReplayEnd::Torn | ReplayEnd::Same), "at {len}: {:?}", torn.end);
        assert!(torn.steps >= steps && torn.steps <= all.steps, "at {len}");
        steps = torn.steps;
    }
    assert!(steps > 50, "{steps} steps");
    assert_eq!(replay(whole.slice(..7), None), Err(RecordingError::NotARecording));
}

#[test]
fn the_first_step_with_other_outputs_is_named() {
    // The server that runs has another flush interval than the one that is recorded.
    let mut config = Config::default();
    config.flush_interval = Duration::ZERO;
    let mut server = Server::new(config, 7);
    let file = Shared::default();
    let mut recorder = Recorder::new(file.clone(), &Config::default(), 7);
    #[allow(clippy::disallowed_methods, reason = "an instant to count from")]
    let now = Instant::now();
    let room = RoomName::new("room").unwrap();
    let edit =
        |clock: u8| Bytes::from(vec![0, 2, 14, 1, 1, 1, clock, 4, 1, 4, b't', b'e', b'x', b't', 1, b'a', 0]);
    let join = |id| Input::Connected(Join::new(ConnectionId(id), room.clone(), Access::Write));
    let received = |frame| Input::Received { connection: ConnectionId(1), frame };
    let frame = Bytes::from_static(&[0, 0, 1, 0]);
    let asks = Input::Received { connection: ConnectionId(2), frame };
    let loaded = Input::Loaded { room: room.clone(), updates: Vec::new() };
    for input in [join(1), join(2), loaded, asks, received(edit(0)), received(edit(1))] {
        recorder.before(now, &server, Step::Input(&input));
        let outputs = server.handle(now, input);
        recorder.after(&server, &outputs);
    }
    drop(recorder);

    let replayed = replay(file.take(), None).unwrap();
    // The first edit goes out at once in any case, the second one after the flush interval.
    let ReplayEnd::Different { step: 6, what } = replayed.end else { panic!("{:?}", replayed.end) };
    assert!(what.contains("Received { connection: ConnectionId(1)"), "{what}");
}

/// Records a simulated world: one file for each life of its server.
fn record(seed: u64) -> Vec<Bytes> {
    let files: Arc<Mutex<Vec<Shared>>> = Arc::default();
    let mut setup = Setup::default();
    setup.hooks.observer = Some(Arc::new({
        let files = Arc::clone(&files);
        move |_, config, seed| {
            let file = Shared::default();
            files.lock().unwrap().push(file.clone());
            Some(Box::new(Recorder::new(file, config, seed)) as Box<dyn Observer>)
        }
    }));
    let _ = run_with(&Plan::new(seed), setup);
    let files = files.lock().unwrap();
    files.iter().map(Shared::take).collect()
}

/// A file that can be read while the recorder has it.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap()).into()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A small world whose server lives once.
const SEED: u64 = 2;
