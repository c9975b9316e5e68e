//! Clients that are not ours: tungstenite for the WebSocket, yrs for the document.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Error},
};
use yrs::updates::encoder::Encode;
use yrs::{Doc, GetString, ReadTxn, StateVector, Text, Transact, Update, updates::decoder::Decode};
use yrs_websocket::{Event, RoomName, message::Message};
use yrs_websocket_store::{MemoryStore, Store, StoreError, Write};
use yrs_websocket_tokio::{Options, Service};

/// Runs a test on both kinds of runtime.
pub(crate) fn on_both_runtimes<F: Future<Output = ()>>(test: impl Fn() -> F) {
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    let several = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    several.unwrap().block_on(test());
}

/// Serves on a port of the system's choice.
pub(crate) async fn serve(service: &Service) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = service.clone();
    (address, tokio::spawn(async move { service.serve(listener).await }))
}

/// Options whose events can be waited for; failed writes are tried again at once.
pub(crate) fn options() -> (Options, Events) {
    let (heard, events) = mpsc::unbounded_channel();
    let mut options = Options::default();
    options.config.retry_delay_min = Duration::from_millis(1);
    options.config.retry_delay_max = Duration::from_millis(2);
    options.hooks.on_event = Some(Arc::new(move |event| {
        let _ = heard.send(event.clone());
    }));
    (options, Events(events))
}

pub(crate) struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    /// Waits for an event; returns those that came before it.
    pub(crate) async fn until(&mut self, is_it: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut before = Vec::new();
        loop {
            let event = self.0.recv().await.expect("the service runs");
            if is_it(&event) {
                return before;
            }
            before.push(event);
        }
    }
}

/// A store that outlives its service, as a disk does.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<MemoryStore>>);

impl Disk {
    /// What a new service would find.
    pub(crate) fn text(&self, room: &str) -> String {
        let doc = Doc::with_client_id(999);
        let room = RoomName::new(room).unwrap();
        for update in self.0.lock().unwrap().load(&room).unwrap() {
            doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
        }
        text_of(&doc)
    }
}

impl Store for Disk {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        self.0.lock().unwrap().load(room)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.0.lock().unwrap().commit(writes)
    }
}

pub(crate) fn deadline(after: Duration) -> Instant {
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    now + after
}

/// What a client hears, one at a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Message(Message),
    /// The code of a close frame.
    Closed(u16),
    /// The stream ended without one.
    Cut,
}

/// A client: its end of a WebSocket and its replica of the document.
pub(crate) struct Client<S> {
    socket: WebSocketStream<S>,
    doc: Doc,
    /// How many frames it has received.
    pub(crate) frames: usize,
}

impl Client<TcpStream> {
    pub(crate) async fn connect(address: SocketAddr, room: &str, id: u64) -> Self {
        Self::try_connect(address, room, id).await.unwrap()
    }

    pub(crate) async fn try_connect(address: SocketAddr, room: &str, id: u64) -> Result<Self, Error> {
        Self::over(TcpStream::connect(address).await?, room, id).await
    }

    /// A client for whom the system keeps as little as it can.
    pub(crate) async fn connect_narrow(address: SocketAddr, room: &str, id: u64) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        Self::over(socket.connect(address).await.unwrap(), room, id).await.unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn over(stream: S, room: &str, id: u64) -> Result<Self, Error> {
        let (socket, _) = client_async(format!("ws://127.0.0.1/{room}"), stream).await?;
        Ok(Self { socket, doc: Doc::with_client_id(id), frames: 0 })
    }

    /// Asks for the document, and waits for the answer.
    pub(crate) async fn sync(&mut self) {
        let known = self.doc.transact().state_vector().encode_v1();
        self.send(Message::SyncStep1(known.into())).await;
        self.until_heard(|heard| matches!(heard, Heard::Message(Message::SyncStep2(_)))).await;
    }

    /// Inserts at the end, and sends the update.
    pub(crate) async fn edit(&mut self, text: &str) {
        let update = {
            let root = self.doc.get_or_insert_text("text");
            let mut transaction = self.doc.transact_mut();
            let len = root.len(&transaction);
            root.insert(&mut transaction, len, text);
            transaction.encode_update_v1()
        };
        self.send(Message::Update(update.into())).await;
    }

    /// Says that it is here.
    pub(crate) async fn announce(&mut self, clock: u8) {
        let id = u8::try_from(self.doc.client_id().get()).unwrap();
        assert!(id < 128, "one byte on the wire");
        self.send(Message::Awareness(Bytes::from(vec![1, id, clock, 2, b'{', b'}']))).await;
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.send_raw(message.encode()).await;
    }

    pub(crate) async fn send_raw(&mut self, frame: Bytes) {
        self.socket.send(tungstenite::Message::Binary(frame)).await.unwrap();
    }

    /// Hears the next message, and does what a provider does with it.
    pub(crate) async fn hear(&mut self) -> Heard {
        loop {
            // What takes longer never comes.
            let next = tokio::time::timeout(Duration::from_secs(60), self.socket.next());
            let frame = match next.await.expect("nothing comes") {
                Some(Ok(tungstenite::Message::Binary(frame))) => frame,
                Some(Ok(tungstenite::Message::Close(Some(frame)))) => {
                    return Heard::Closed(frame.code.into());
                }
                Some(Ok(tungstenite::Message::Close(None))) => return Heard::Closed(1005),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return Heard::Cut,
            };
            self.frames += 1;
            let mut messages = Message::decode(&frame);
            let message = messages.next().expect("no frame is empty").expect("the server speaks well");
            assert_eq!(messages.next(), None, "one message per frame: stock clients read only the first");
            match &message {
                Message::SyncStep1(known) => {
                    let known = StateVector::decode_v1(known).unwrap();
                    let update = self.doc.transact().encode_diff_v1(&known);
                    self.send(Message::SyncStep2(update.into())).await;
                }
                Message::SyncStep2(update) | Message::Update(update) => {
                    let update = Update::decode_v1(update).unwrap();
                    self.doc.transact_mut().apply_update(update).unwrap();
                }
                _ => {}
            }
            return Heard::Message(message);
        }
    }

    pub(crate) async fn until_heard(&mut self, is_it: impl Fn(&Heard) -> bool) -> Heard {
        loop {
            let heard = self.hear().await;
            if is_it(&heard) {
                return heard;
            }
            assert!(matches!(heard, Heard::Message(_)), "ended: {heard:?}");
        }
    }

    pub(crate) async fn until_text(&mut self, text: &str) {
        while self.text() != text {
            let heard = self.hear().await;
            assert!(matches!(heard, Heard::Message(_)), "ended: {heard:?}");
        }
    }

    /// Waits for the echo of an edit: the acknowledgement of `@y/websocket` 4.
    pub(crate) async fn until_echo(&mut self) {
        self.until_heard(|heard| matches!(heard, Heard::Message(Message::Update(_)))).await;
    }

    /// Hears the rest; says how the connection ended.
    pub(crate) async fn end(&mut self) -> Heard {
        let end = self.until_end().await;
        // The server ends the stream first, and waits for the client to do the same.
        while self.socket.next().await.is_some_and(|next| next.is_ok()) {}
        let _ = self.socket.get_mut().shutdown().await;
        end
    }

    async fn until_end(&mut self) -> Heard {
        loop {
            match self.hear().await {
                Heard::Message(_) => {}
                end => return end,
            }
        }
    }

    /// Leaves as a browser does.
    pub(crate) async fn leave(mut self) {
        self.socket.close(None).await.unwrap();
        self.end().await;
    }

    pub(crate) fn text(&self) -> String {
        text_of(&self.doc)
    }

    pub(crate) fn into_stream(self) -> S {
        self.socket.into_inner()
    }
}

pub(crate) fn is_presence(heard: &Heard) -> bool {
    matches!(heard, Heard::Message(Message::Awareness(_)))
}

fn text_of(doc: &Doc) -> String {
    let root = doc.get_or_insert_text("text");
    root.get_string(&doc.transact())
}
