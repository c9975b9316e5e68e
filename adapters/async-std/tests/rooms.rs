//! Clients and a server of this adapter, over TCP, on smol and on async-std.

use std::{
    io::{self, IoSlice},
    net::{Shutdown, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_std::net::TcpStream;
use bytes::Bytes;
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use yrs::{Doc, GetString, Text, Transact, Update, updates::decoder::Decode};
use yrs_websocket::{
    RoomName,
    provider::{Event, PresenceState},
};
use yrs_websocket_async_std::{Client, ClientHandle, ClientOptions, Options, Runtime, Service};
use yrs_websocket_store::{MemoryStore, Store, StoreError, Write as StoreWrite};

/// Both runtimes do each of these.
macro_rules! on_both_runtimes {
    ($($test:ident)*) => {
        mod smol_does {
            $(#[test] fn $test() { super::$test(super::Smol); })*
        }
        mod async_std_does {
            $(#[test] fn $test() { super::$test(super::AsyncStd); })*
        }
    };
}

on_both_runtimes! {
    two_clients_converge_and_see_each_other
    a_server_that_is_drained_or_killed_and_started_again_is_found
    who_leaves_is_stored_first
    who_reads_nothing_disturbs_nobody_and_catches_up
    what_is_no_upgrade_is_answered
}

fn two_clients_converge_and_see_each_other(runtime: impl Net) {
    let service = Service::in_memory(runtime.clone(), Options::default(), 2);
    let (address, _) = serve(&runtime, &service, None);
    let alice = Peer::connect(&runtime, address, 1);
    let bob = Peer::connect(&runtime, address, 2);
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
    let mut read = String::new();
    service
        .read(&RoomName::new("notes").unwrap(), |transaction| {
            read = yrs::ReadTxn::get_text(transaction, "text").unwrap().get_string(transaction);
        })
        .unwrap();
    assert_eq!(read, bob.text());
}

fn a_server_that_is_drained_or_killed_and_started_again_is_found(runtime: impl Net) {
    let disk = Disk::default();
    let start = || Service::with_store(runtime.clone(), Options::default(), 2, disk.clone()).unwrap();
    let service = start();
    let (address, serving) = serve(&runtime, &service, None);
    let alice = Peer::connect(&runtime, address, 1);
    let bob = Peer::connect(&runtime, address, 2);
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
        let drained = runtime.block_on(old.drain(deadline(if round % 2 == 0 { 5000 } else { 0 })));
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
        let (_, serving) = serve(&runtime, &new, Some(address));
        running = Some((new, serving));
        alice.until_len(len);
        bob.until_len(len);
        assert_eq!(alice.text(), bob.text());
    }
    assert!(!alice.leave() && !bob.leave());
}

fn who_leaves_is_stored_first(runtime: impl Net) {
    let disk = Disk::default();
    let service = Service::with_store(runtime.clone(), Options::default(), 1, disk.clone()).unwrap();
    let (address, _) = serve(&runtime, &service, None);
    for id in 1..10u32 {
        let peer = Peer::connect(&runtime, address, id.into());
        // Perhaps before it is connected.
        peer.edit("x");
        assert!(!peer.leave());
        assert_eq!(disk.text("notes").len(), id as usize);
    }
}

fn who_reads_nothing_disturbs_nobody_and_catches_up(runtime: impl Net) {
    let mut options = Options::default();
    options.config.flush_interval = Duration::ZERO;
    options.limits.outbox_bytes_max = 100_000;
    let service = Service::in_memory(runtime.clone(), options, 1);
    let (address, _) = serve(&runtime, &service, None);
    let alice = Peer::connect(&runtime, address, 1);
    let bob = Peer::connect(&runtime, address, 2);
    let mut slow = runtime.block_on(runtime.connect(address)).unwrap();
    let request = "GET /notes HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    runtime.block_on(slow.write_all(request.as_bytes())).unwrap();
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
    let mut tail = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    while !tail.windows(4).any(|window| window == b"last") {
        let len = runtime.block_on(slow.read(&mut buffer)).unwrap();
        assert!(len > 0);
        tail.extend_from_slice(&buffer[..len]);
        tail.drain(..tail.len().saturating_sub(buffer.len() + 4));
    }
}

fn what_is_no_upgrade_is_answered(runtime: impl Net) {
    let service = Service::in_memory(runtime.clone(), Options::default(), 1);
    let (address, _) = serve(&runtime, &service, None);
    runtime.block_on(async {
        let mut stream = runtime.connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    });
}

/// A runtime with its own sockets.
trait Net: Runtime {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    type Listener: Send + 'static;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T;
    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn listen(&self, address: SocketAddr) -> io::Result<(Self::Listener, SocketAddr)>;
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

#[derive(Clone)]
struct Smol;

impl Runtime for Smol {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        smol::spawn(task).detach();
    }

    async fn sleep_until(&self, at: Instant) {
        smol::Timer::at(at).await;
    }
}

impl Net for Smol {
    type Stream = smol::net::TcpStream;
    type Listener = smol::net::TcpListener;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        smol::block_on(future)
    }

    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send {
        smol::net::TcpStream::connect(address)
    }

    fn listen(&self, address: SocketAddr) -> io::Result<(Self::Listener, SocketAddr)> {
        let listener = smol::block_on(smol::net::TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Stream> {
        Ok(listener.accept().await?.0)
    }
}

#[derive(Clone)]
struct AsyncStd;

impl Runtime for AsyncStd {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        async_std::task::spawn(task);
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        async_std::task::sleep(at.saturating_duration_since(deadline(0)))
    }
}

impl Net for AsyncStd {
    type Stream = Closing;
    type Listener = async_std::net::TcpListener;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        async_std::task::block_on(future)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream> {
        Ok(Closing(TcpStream::connect(address).await?))
    }

    fn listen(&self, address: SocketAddr) -> io::Result<(Self::Listener, SocketAddr)> {
        let listener = async_std::task::block_on(async_std::net::TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Stream> {
        Ok(Closing(listener.accept().await?.0))
    }
}

/// Shuts down the write side when it is closed, which the streams of async-std do not.
struct Closing(TcpStream);

impl AsyncRead for Closing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Closing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown(Shutdown::Write))
    }
}

fn serve<N: Net>(
    runtime: &N,
    service: &Service<N>,
    address: Option<SocketAddr>,
) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = runtime.listen(address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into())).unwrap();
    let (runtime, service) = (runtime.clone(), service.clone());
    let serving = move || runtime.block_on(service.serve(|| N::accept(&listener)));
    (address, thread::Builder::new().spawn(serving).unwrap())
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
    fn connect<N: Net>(runtime: &N, address: SocketAddr, id: u64) -> Self {
        let doc = Doc::with_client_id(id);
        let (changed, changes) = channel();
        doc.observe_update_v1("test", move |_, _| _ = changed.send(())).unwrap();
        let (heard, events) = channel();
        let mut options = ClientOptions::new(address.to_string(), "notes");
        options.provider.retry_delay_min = Duration::from_millis(1);
        options.provider.retry_delay_max = Duration::from_millis(20);
        options.on_event = Some(Arc::new(move |event| _ = heard.send(event.clone())));
        let mut client = Client::new(runtime.clone(), doc.clone(), options);
        let handle = client.handle();
        let runtime = runtime.clone();
        let run = move || runtime.block_on(client.run(|| runtime.connect(address)));
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
