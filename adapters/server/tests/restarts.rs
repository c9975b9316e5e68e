//! The program is ended and started again, by SIGTERM and by SIGKILL in turn, while twenty clients go on
//! editing: nothing acknowledged is lost, nothing is there twice, and they come back spread out.
//!
//! `RESTARTS=50 cargo test --release -p yrs-websocket-server --test restarts -- --nocapture` takes longer, and
//! prints the distribution of the attempts. Without `RESTARTS` there are six.

use std::{
    collections::BTreeMap,
    env, fmt,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{runtime, sync::watch, task::JoinHandle, time};
use yrs::{Any, Array, Doc, Transact, Update, types::ToJson, updates::decoder::Decode};
use yrs_websocket::{RoomName, provider::Event};
use yrs_websocket_store::{SqliteStore, Store};
use yrs_websocket_tokio::{Client, ClientHandle, ClientOptions};

const CLIENTS: usize = 20;
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_millis(400);

#[test]
fn nothing_acknowledged_is_lost_however_often_the_program_is_ended() {
    let restarts = env::var("RESTARTS").map_or(6, |text| text.parse().expect("RESTARTS is a number"));
    // The clients go on while the test waits for the program.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run(restarts));
}

async fn run(restarts: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite3");
    let (mut program, port) = Program::start_anywhere(&path);
    let all = Arc::new(All::default());
    let writers: Vec<_> = (0..CLIENTS).map(|index| Writer::start(&all, index, port)).collect();
    for restart in 0..restarts {
        let acknowledged = all.acknowledged();
        // Everybody is back; and not always at the same point of what they do.
        let sum = acknowledged.iter().sum::<usize>() + restart * 37 % 200;
        all.until(|all| {
            let is_back = all.lock().syncs.iter().all(|syncs| *syncs > restart);
            is_back && all.acknowledged().iter().sum::<usize>() > sum
        })
        .await;
        let signal = if restart % 2 == 0 { "TERM" } else { "KILL" };
        all.lock().stopped = Some((restart, now()));
        let status = program.end(signal);
        assert_eq!(status.success(), signal == "TERM", "after SIG{signal}: {status}");
        let acknowledged = all.acknowledged();
        let stored = Stored::read(&path);
        for (index, acknowledged) in acknowledged.iter().enumerate() {
            let stored = stored.of(index);
            assert!(stored >= *acknowledged, "{acknowledged} of {index} acknowledged, {stored} stored");
        }
        program = Program::start(&path, port).expect("the port is free again");
    }
    all.lock().is_over = true;
    for writer in writers {
        writer.leave(&all).await;
    }
    let written = all.acknowledged();
    assert!(program.end("TERM").success());
    let stored = Stored::read(&path);
    assert_eq!((0..CLIENTS).map(|index| stored.of(index)).collect::<Vec<_>>(), written);
    all.lock().attempts.print();
    all.lock().attempts.are_spread_out(restarts);
}

/// The program, with a process of its own.
struct Program(Child);

impl Program {
    /// Starts it on a port that systems give to no connection of their own: one of those could hold it when
    /// the program comes back, even one of a client to itself.
    fn start_anywhere(store: &Path) -> (Self, u16) {
        let first = 20_000 + (std::process::id() % 10_000) as u16;
        let mut ports = first..first + 100;
        ports.find_map(|port| Some((Self::start(store, port)?, port))).expect("one of a hundred is free")
    }

    fn start(store: &Path, port: u16) -> Option<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_yrs-websocket-server"))
            .args(["--listen", &format!("127.0.0.1:{port}"), "--log", "error"])
            .args(["--store", &format!("sqlite:{}", store.display())])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says where it listens, or ends.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            child.wait().unwrap();
            return None;
        }
        Some(Self(child))
    }

    fn end(mut self, signal: &str) -> ExitStatus {
        let kill = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status();
        assert!(kill.unwrap().success());
        self.0.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client that writes the numbers from 0 on into an array of its own, each when the one before is
/// acknowledged.
struct Writer {
    doc: Doc,
    handle: ClientHandle,
    running: JoinHandle<bool>,
    writing: JoinHandle<()>,
}

impl Writer {
    fn start(all: &Arc<All>, index: usize, port: u16) -> Self {
        let doc = Doc::with_client_id(1 + index as u64);
        let mut options = ClientOptions::new("localhost", "notes");
        options.provider.retry_delay_min = RETRY_DELAY_MIN;
        options.provider.retry_delay_max = RETRY_DELAY_MAX;
        let (heard, mut hears) = watch::channel(());
        options.on_event = Some(Arc::new({
            let all = Arc::clone(all);
            move |event| {
                all.hear(index, event);
                heard.send_replace(());
            }
        }));
        let changes = Arc::clone(all);
        doc.observe_update_v1("test", move |_, _| changes.changed.send_replace(())).unwrap();
        let mut client = Client::new(doc.clone(), options);
        let handle = client.handle();
        let running = tokio::spawn(async move { client.run(&format!("127.0.0.1:{port}")).await });
        let writing = tokio::spawn({
            let (all, doc, handle) = (Arc::clone(all), doc.clone(), handle.clone());
            async move {
                let array = doc.get_or_insert_array(array_of(index));
                for number in 0.. {
                    if all.lock().is_over {
                        return;
                    }
                    array.push_back(&mut doc.transact_mut(), number);
                    while handle.has_unacknowledged() {
                        hears.changed().await.expect("the client runs");
                    }
                    all.note(index, number as usize + 1);
                }
            }
        });
        Self { doc, handle, running, writing }
    }

    /// Leaves with what all have written.
    async fn leave(self, all: &All) {
        all.bounded(self.writing).await.unwrap();
        all.until(|all| {
            let written = all.acknowledged();
            (0..CLIENTS).all(|index| len_of(&self.doc, index) >= written[index])
        })
        .await;
        self.handle.leave(now() + WATCHDOG);
        assert!(!all.bounded(self.running).await.unwrap(), "everything is acknowledged");
    }
}

/// What is known of all clients.
#[derive(Default)]
struct All {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// How many numbers of each client are acknowledged.
    acknowledged: [usize; CLIENTS],
    /// How often each client has synced.
    syncs: [usize; CLIENTS],
    /// The last restart, and when the program was told to end.
    stopped: Option<(usize, Instant)>,
    attempts: Attempts,
    is_over: bool,
}

impl All {
    fn hear(&self, index: usize, event: &Event) {
        let mut state = self.lock();
        state.syncs[index] += usize::from(*event == Event::Synced);
        if let (Event::Disconnected { retry_in: Some(delay), .. }, Some((restart, at))) =
            (event, state.stopped)
        {
            let after = now().saturating_duration_since(at) + *delay;
            state.attempts.0.push(Attempt { restart, client: index, delay: *delay, after });
        }
        drop(state);
        self.changed.send_replace(());
    }

    fn note(&self, index: usize, acknowledged: usize) {
        self.lock().acknowledged[index] = acknowledged;
        self.changed.send_replace(());
    }

    fn acknowledged(&self) -> [usize; CLIENTS] {
        self.lock().acknowledged
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !is_so(self) {
            self.bounded(changed.changed()).await.expect("its sender is here");
        }
    }

    /// What takes longer hangs.
    async fn bounded<T>(&self, future: impl Future<Output = T>) -> T {
        match time::timeout(WATCHDOG, future).await {
            Ok(result) => result,
            Err(_) => panic!("nothing happens: {:?}", self.lock()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attempts to come back, in the order in which they were announced.
#[derive(Default)]
struct Attempts(Vec<Attempt>);

struct Attempt {
    restart: usize,
    client: usize,
    /// What was waited before it.
    delay: Duration,
    /// How long after the signal it was due.
    after: Duration,
}

impl Attempts {
    fn print(&self) {
        for restart in 0..=self.0.last().map_or(0, |last| last.restart) {
            let mut after: Vec<_> = self
                .0
                .iter()
                .filter(|attempt| attempt.restart == restart)
                .map(|attempt| attempt.after)
                .collect();
            after.sort_unstable();
            if let [first, .., last] = &after[..] {
                let median = after[after.len() / 2];
                println!(
                    "restart {restart:>2}, SIG{}: {:>3} attempts, {first:>9.1?} to {last:>9.1?} after the signal, \
                     half of them by {median:>9.1?}",
                    if restart % 2 == 0 { "TERM" } else { "KILL" },
                    after.len(),
                );
            }
        }
        print_histogram("first attempts, by their delay", self.first(), Duration::from_millis(5));
        let all = self.0.iter().map(|attempt| attempt.delay);
        print_histogram("all attempts, by their delay", all, Duration::from_millis(20));
        let after = self.0.iter().map(|attempt| attempt.after);
        print_histogram(
            "all attempts, by when they were due after the signal",
            after,
            Duration::from_millis(50),
        );
    }

    /// The delays of the first attempts after each restart.
    fn first(&self) -> impl Iterator<Item = Duration> {
        let mut first = BTreeMap::new();
        for attempt in &self.0 {
            first.entry((attempt.restart, attempt.client)).or_insert(attempt.delay);
        }
        first.into_values()
    }

    /// Of each delay a half is drawn: each quarter of that half has its part of the first attempts.
    fn are_spread_out(&self, restarts: usize) {
        let mut quarters = [0; 4];
        for delay in self.first() {
            let drawn = delay.checked_sub(RETRY_DELAY_MIN / 2).expect("half of it is not drawn");
            assert!(drawn <= RETRY_DELAY_MIN / 2, "{delay:?}");
            quarters[((drawn.as_micros() * 8 / RETRY_DELAY_MIN.as_micros()) as usize).min(3)] += 1;
        }
        assert_eq!(quarters.iter().sum::<usize>(), restarts * CLIENTS, "all were sent away each time");
        assert!(quarters.iter().all(|count| count * 16 >= restarts * CLIENTS), "{quarters:?}");
    }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempts", self.0.len())
    }
}

fn print_histogram(title: &str, delays: impl Iterator<Item = Duration>, width: Duration) {
    let mut buckets = BTreeMap::new();
    for delay in delays {
        *buckets.entry(delay.as_millis() / width.as_millis() * width.as_millis()).or_insert(0usize) += 1;
    }
    let most = buckets.values().copied().max().unwrap_or(1);
    println!("{title}: {} in all", buckets.values().sum::<usize>());
    for (millis, count) in buckets {
        println!("{millis:>6} ms {count:>5} {}", "#".repeat((count * 50).div_ceil(most)));
    }
}

/// What the store has once the program has ended.
struct Stored(Doc);

impl Stored {
    fn read(path: &Path) -> Self {
        let doc = Doc::with_client_id(999);
        let mut store = SqliteStore::open(path).unwrap();
        for update in store.load(&RoomName::new("notes").unwrap()).unwrap() {
            doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
        }
        Self(doc)
    }

    /// How many numbers of a client there are: all from 0 on, each once.
    fn of(&self, index: usize) -> usize {
        let len = len_of(&self.0, index);
        let numbers = self.0.get_or_insert_array(array_of(index)).to_json(&self.0.transact());
        let expected: Vec<Any> = (0..len).map(|number| Any::from(number as i64)).collect();
        assert_eq!(numbers, Any::from(expected), "client {index}");
        len
    }
}

fn len_of(doc: &Doc, index: usize) -> usize {
    doc.get_or_insert_array(array_of(index)).len(&doc.transact()) as usize
}

fn array_of(index: usize) -> String {
    format!("client {index}")
}

#[allow(clippy::disallowed_methods, reason = "the program runs in real time")]
fn now() -> Instant {
    Instant::now()
}

const WATCHDOG: Duration = Duration::from_secs(60);
