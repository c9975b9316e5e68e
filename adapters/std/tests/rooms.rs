//! Clients and a server of this adapter, over TCP.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, GetString, Text, Transact, Update, updates::decoder::Decode};
use yrs_websocket::{
    RoomName,
    provider::{Event, PresenceState},
};
use yrs_websocket_std::{Client, ClientHandle, ClientOptions, Options, Service};
use yrs_websocket_store::{MemoryStore, Store, StoreError, Write as StoreWrite};

#[test]
fn two_clients_converge_and_see_each_other() {
    let service = Service::in_memory(Options::default(), 2).unwrap();
    let (address, _) = serve(&service, None);
    let alice = Peer::connect(address, 1);
    let bob = Peer::connect(address, 2);
    alice.handle.set_presence(Some(PresenceState::new("{\"name\":\"alice\"}").unwrap()));
    bob.until(|event| matches!(event, Event::Presence { state: Some(_), .. }));
    for _ in 0..20 {
        alice.edit("a");
        bob.edit("b");
    }
    alice.until_len(40);
    bob.until_len(40);
    assert_eq!(alice.text(), bob.text());
    assert!(!alice.leave());
    bob.until(|event| matches!(event, Event::Presence { state: None, .. }));
    assert_eq!(service.counters().connections, 1);
    let read = service.read(&RoomName::new("notes").unwrap(), |transaction| {
        yrs::ReadTxn::get_text(transaction, "text").unwrap().get_string(transaction)
    });
    assert_eq!(read, Ok(bob.text()));
}

#[test]
fn a_server_that_is_drained_or_killed_and_started_again_is_found() {
    let disk = Disk::default();
    let start = || Service::with_store(Options::default(), 2, disk.clone()).unwrap();
    let service = start();
    let (address, serving) = serve(&service, None);
    let alice = Peer::connect(address, 1);
    let bob = Peer::connect(address, 2);
    let mut running = Some((service, serving));
    let mut len = 0;
    for round in 0..4 {
        alice.edit("a");
        bob.edit("b");
        len += 2;
        alice.until_len(len);
        bob.until_len(len);
        alice.acknowledged();
        bob.acknowledged();
        let text = alice.text();
        let (old, serving) = running.take().unwrap();
        // Ends the thread that accepts, too.
        let drained = old.drain(deadline(if round % 2 == 0 { 5000 } else { 0 }));
        assert!(drained.durable);
        serving.join().unwrap();
        drop(old);
        assert_eq!(disk.text("notes"), text, "acknowledged, and not stored");
        alice.until(|event| matches!(event, Event::Disconnected { .. }));
        bob.until(|event| matches!(event, Event::Disconnected { .. }));
        alice.edit("offline");
        bob.edit("too");
        len += 10;
        let new = start();
        let (_, serving) = serve(&new, Some(address));
        running = Some((new, serving));
        alice.until_len(len);
        bob.until_len(len);
        assert_eq!(alice.text(), bob.text());
    }
    assert!(!alice.leave() && !bob.leave());
}

#[test]
fn who_leaves_is_stored_first() {
    let disk = Disk::default();
    let service = Service::with_store(Options::default(), 1, disk.clone()).unwrap();
    let (address, _) = serve(&service, None);
    for id in 1..10u32 {
        let peer = Peer::connect(address, id.into());
        // Perhaps before it is connected.
        peer.edit("x");
        assert!(!peer.leave());
        assert_eq!(disk.text("notes").len(), id as usize);
    }
}

#[test]
fn who_reads_nothing_disturbs_nobody_and_catches_up() {
    let mut options = Options::default();
    options.config.flush_interval = Duration::ZERO;
    options.limits.outbox_bytes_max = 100_000;
    let service = Service::in_memory(options, 1).unwrap();
    let (address, _) = serve(&service, None);
    let alice = Peer::connect(address, 1);
    let bob = Peer::connect(address, 2);
    let mut slow = TcpStream::connect(address).unwrap();
    let request = "GET /notes HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    slow.write_all(request.as_bytes()).unwrap();
    let mut len = 0;
    // More than the buffers of the system take.
    while service.counters().congestions == 0 {
        alice.edit(&"x".repeat(200_000));
        len += 200_000;
        bob.until_len(len);
        assert!(len < 200_000_000);
    }
    alice.edit("last");
    bob.until_len(len + 4);
    // It reads everything: what was missed comes as one.
    slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut tail = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    while !tail.windows(4).any(|window| window == b"last") {
        let len = slow.read(&mut buffer).unwrap();
        assert!(len > 0);
        tail.extend_from_slice(&buffer[..len]);
        tail.drain(..tail.len().saturating_sub(buffer.len() + 4));
    }
    let mut peer = [0; 1];
    // A frame that is not masked ends it.
    slow.write_all(&[0x82, 0]).unwrap();
    while slow.read(&mut peer).is_ok_and(|len| len > 0) {}
}

#[test]
fn what_is_no_upgrade_is_answered() {
    let service = Service::in_memory(Options::default(), 1).unwrap();
    let (address, _) = serve(&service, None);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
}

fn serve(service: &Service, address: Option<SocketAddr>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into())).unwrap();
    let address = listener.local_addr().unwrap();
    let service = service.clone();
    (address, thread::Builder::new().spawn(move || service.serve(&listener)).unwrap())
}

fn deadline(millis: u64) -> Instant {
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    now + Duration::from_millis(millis)
}

/// A store that outlives its service, as a disk does.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<MemoryStore>>);

impl Disk {
    fn text(&self, room: &str) -> String {
        let doc = Doc::with_client_id(999);
        let text = doc.get_or_insert_text("text");
        for update in self.0.lock().unwrap().load(&RoomName::new(room).unwrap()).unwrap() {
            doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
        }
        text.get_string(&doc.transact())
    }
}

impl Store for Disk {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        self.0.lock().unwrap().load(room)
    }

    fn commit(&mut self, writes: &[StoreWrite]) -> Result<(), StoreError> {
        self.0.lock().unwrap().commit(writes)
    }
}

/// A client, and what happens to it.
struct Peer {
    doc: Doc,
    handle: ClientHandle,
    events: Receiver<Event>,
    changes: Receiver<()>,
    running: JoinHandle<bool>,
}

impl Peer {
    fn connect(address: SocketAddr, id: u64) -> Self {
        let doc = Doc::with_client_id(id);
        let (changed, changes) = channel();
        doc.observe_update_v1("test", move |_, _| _ = changed.send(())).unwrap();
        let (heard, events) = channel();
        let mut options = ClientOptions::new(address.to_string(), "notes");
        options.provider.retry_delay_min = Duration::from_millis(1);
        options.provider.retry_delay_max = Duration::from_millis(20);
        options.on_event = Some(Arc::new(move |event| _ = heard.send(event.clone())));
        let mut client = Client::new(doc.clone(), options);
        let handle = client.handle();
        let run = move || client.run(&address.to_string());
        Self { doc, handle, events, changes, running: thread::Builder::new().spawn(run).unwrap() }
    }

    fn edit(&self, text: &str) {
        let root = self.doc.get_or_insert_text("text");
        root.push(&mut self.doc.transact_mut(), text);
    }

    fn text(&self) -> String {
        let root = self.doc.get_or_insert_text("text");
        root.get_string(&self.doc.transact())
    }

    fn until(&self, is_it: impl Fn(&Event) -> bool) {
        while !is_it(&self.events.recv().unwrap()) {}
    }

    fn until_len(&self, len: usize) {
        while self.text().len() < len {
            self.changes.recv().unwrap();
        }
        assert_eq!(self.text().len(), len);
    }

    fn acknowledged(&self) {
        while !self.handle.is_synced() || self.handle.has_unacknowledged() {
            self.events.recv().unwrap();
        }
    }

    fn leave(self) -> bool {
        self.handle.leave(deadline(60_000));
        self.running.join().unwrap()
    }
}
