//! What is acknowledged survives SIGKILL: clients in 50 rooms write as fast as they are acknowledged, the
//! program is killed in the midst of it, and its database is compared with what the clients were told.
//!
//! Eight kills by default. All 200, standing alone:
//!
//! ```sh
//! KILLS=200 cargo test --release -p yrs-websocket-server --test kill -- --nocapture
//! ```

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use yrs::{Doc, GetString as _, Text as _, Transact as _, Update, updates::decoder::Decode as _};
use yrs_websocket::{RoomName, provider::Event};
use yrs_websocket_store::{SqliteStore, Store as _};
use yrs_websocket_tokio::{Client, ClientHandle, ClientOptions};

#[test]
fn every_acknowledged_edit_in_fifty_rooms_survives_each_kill() {
    let kills = env::var("KILLS").map_or(8, |kills| kills.parse().expect("KILLS is a number"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(kill_and_compare(kills));
}

async fn kill_and_compare(kills: u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut server = Server::start("127.0.0.1:0".parse().unwrap(), &path);
    let mut writers: Vec<_> = (0..ROOMS).map(|index| Writer::start(index, server.address)).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut compared = 0;
    for kill in 1..=kills {
        // At some moment of the work: after so many more acknowledgements, and some microseconds.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let enough = total(&writers) + 1 + (random >> 33) % 1500;
        while total(&writers) < enough {
            let written = writers.iter_mut().map(|writer| Box::pin(writer.acknowledged.changed()));
            first(written).await;
        }
        spin(Duration::from_micros((random >> 20) % 3000));
        server.kill();
        // No acknowledgement comes any more once everybody has noticed.
        for writer in &mut writers {
            writer.notice().await;
        }
        let mut store = SqliteStore::open(&path).unwrap();
        for writer in &writers {
            let acknowledged = *writer.acknowledged.borrow();
            let stored = text(&store.load(&writer.room).unwrap());
            let written = writer.text();
            assert!(
                stored.len() as u64 >= acknowledged,
                "kill {kill}: of {} letters acknowledged in {} there are {}",
                acknowledged,
                writer.room,
                stored.len()
            );
            assert!(written.starts_with(&stored), "kill {kill}: {} holds what nobody wrote", writer.room);
            compared += acknowledged;
        }
        drop(store);
        server = Server::start(server.address, &path);
    }
    for writer in &mut writers {
        writer.stop().await;
    }
    server.kill();
    let mut store = SqliteStore::open(&path).unwrap();
    for writer in &writers {
        assert_eq!(text(&store.load(&writer.room).unwrap()), writer.text());
    }
    assert_eq!(store.check(), Ok(vec![]));
    let letters = total(&writers);
    println!("{kills} kills, {ROOMS} rooms, {letters} acknowledged letters, {compared} compared, none lost");
}

/// The program on a database.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(listen: SocketAddr, path: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_yrs-websocket-server"))
            .args(["--log", "error", "--listen", &listen.to_string()])
            .args(["--store", &format!("sqlite:{}", path.display())])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().rsplit_once("ws://").expect("it says where it listens").1;
        Self { address: address.parse().unwrap(), process }
    }

    /// By SIGKILL: it has no time for anything.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that writes letters to a room of its own, a few at a time, whenever all are acknowledged.
struct Writer {
    room: RoomName,
    doc: Doc,
    handle: ClientHandle,
    /// How many letters are.
    acknowledged: watch::Receiver<u64>,
    /// Grows whenever a connection has ended or could not be made.
    ended: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Writer {
    fn start(index: usize, address: SocketAddr) -> Self {
        let doc = Doc::with_client_id(index as u64 + 1);
        let room = RoomName::new(&format!("room-{index}")).unwrap();
        let (heard, mut events) = mpsc::unbounded_channel();
        let (count_end, ended) = watch::channel(0);
        let mut options = ClientOptions::new(address.to_string(), room.as_str());
        options.provider.retry_delay_min = Duration::from_millis(5);
        options.provider.retry_delay_max = Duration::from_millis(50);
        options.on_event = Some(Arc::new(move |event| {
            if let Event::Disconnected { .. } = event {
                count_end.send_modify(|count| *count += 1);
            }
            // The writer may have stopped.
            let _ = heard.send(());
        }));
        let mut client = Client::new(doc.clone(), options);
        let handle = client.handle();
        tokio::spawn(async move { client.run(&address.to_string()).await });
        let (acknowledge, acknowledged) = watch::channel(0);
        let (stop, mut stopped) = watch::channel(false);
        let writing = (doc.clone(), handle.clone());
        let running = tokio::spawn(async move {
            let (doc, handle) = writing;
            let text = doc.get_or_insert_text("text");
            let mut len = 0;
            while !*stopped.borrow_and_update() {
                for n in 0..1 + (len + index as u64) % 4 {
                    let letter = char::from(b'a' + ((len + n) % 26) as u8);
                    text.push(&mut doc.transact_mut(), &letter.to_string());
                }
                len = text.len(&doc.transact()).into();
                while handle.has_unacknowledged() {
                    events.recv().await.expect("the client runs");
                }
                acknowledge.send_replace(len);
            }
        });
        Self { room, doc, handle, acknowledged, ended, stop, running: Some(running) }
    }

    /// Waits until the client knows that the server is gone.
    async fn notice(&mut self) {
        self.ended.borrow_and_update();
        if self.handle.is_connected() {
            self.ended.changed().await.expect("the client runs");
        }
    }

    /// Waits until everything is acknowledged.
    async fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(running) = self.running.take() {
            running.await.unwrap();
        }
    }

    fn text(&self) -> String {
        let text = self.doc.get_or_insert_text("text");
        text.get_string(&self.doc.transact())
    }
}

fn total(writers: &[Writer]) -> u64 {
    writers.iter().map(|writer| *writer.acknowledged.borrow()).sum()
}

/// Waits for the first of several to be done.
async fn first<F: Future + Unpin>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<_> = futures.collect();
    std::future::poll_fn(|context| {
        let is_ready = futures.iter_mut().any(|future| std::pin::Pin::new(future).poll(context).is_ready());
        if is_ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Lets a moment pass that is shorter than what a timer can do.
#[allow(clippy::disallowed_methods, reason = "the moment of a kill is any")]
fn spin(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn text(updates: &[Bytes]) -> String {
    let doc = Doc::with_client_id(1000);
    for update in updates {
        doc.transact_mut().apply_update(Update::decode_v1(update).unwrap()).unwrap();
    }
    let text = doc.get_or_insert_text("text");
    text.get_string(&doc.transact())
}

const ROOMS: usize = 50;
