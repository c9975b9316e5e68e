//! What the adapters differ in.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener},
    time::Instant,
};

use smol::io::{AsyncRead, AsyncWrite};
use yrs::{Doc, Transaction, TransactionMut};
use yrs_websocket::{Access, RoomName, view::ViewError};
use yrs_websocket_async_std::{self as futures, Closing, Runtime};
use yrs_websocket_host::{
    ClientHandle, ClientOptions, ConnectionId, Counters, Drained, Options, Shards, Socket,
};

use crate::TestStore;

/// A runtime with a server and a client.
pub trait Adapter: Sync {
    /// Makes a server over a store.
    fn server(&self, options: Options, store: TestStore) -> Box<dyn Server>;

    /// Makes a client of a server, and what runs it until it stops.
    fn client(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Run);
}

/// Runs a client on the thread that calls; says whether there are changes that are not acknowledged.
pub type Run = Box<dyn FnOnce() -> bool + Send>;

/// A server of some adapter. What takes time holds up the thread that calls.
pub trait Server: Send + Sync {
    /// Accepts connections until it is drained or stopped.
    fn serve(&self, listener: TcpListener);

    /// Ends it well.
    fn drain(&self, deadline: Instant) -> Drained;

    /// Its rooms.
    fn rooms(&self) -> &dyn Rooms;
}

/// What is the same for all of them.
pub trait Rooms {
    /// See [`Shards::edit`].
    fn edit(&self, room: &RoomName, f: &mut dyn FnMut(&mut TransactionMut<'_>)) -> Result<(), ViewError>;

    /// See [`Shards::read`].
    fn read(&self, room: &RoomName, f: &mut dyn FnMut(&Transaction<'_>)) -> Result<(), ViewError>;

    /// See [`Shards::set_access`].
    fn set_access(&self, connection: ConnectionId, access: Access);

    /// See [`Shards::counters`].
    fn counters(&self) -> Counters;

    /// See [`Shards::stop`].
    fn stop(&self);
}

impl<S: Socket + Send + 'static> Rooms for Shards<S> {
    fn edit(&self, room: &RoomName, f: &mut dyn FnMut(&mut TransactionMut<'_>)) -> Result<(), ViewError> {
        self.edit(room, f)
    }

    fn read(&self, room: &RoomName, f: &mut dyn FnMut(&Transaction<'_>)) -> Result<(), ViewError> {
        self.read(room, f)
    }

    fn set_access(&self, connection: ConnectionId, access: Access) {
        self.set_access(connection, access, None);
    }

    fn counters(&self) -> Counters {
        self.counters()
    }

    fn stop(&self) {
        self.stop();
    }
}

/// `yrs-websocket-tokio`.
#[derive(Clone, Copy, Debug)]
pub struct Tokio;

impl Adapter for Tokio {
    fn server(&self, options: Options, store: TestStore) -> Box<dyn Server> {
        Box::new(yrs_websocket_tokio::Service::with_store(options, SHARDS, store).unwrap())
    }

    fn client(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Run) {
        let mut client = yrs_websocket_tokio::Client::new(doc, options);
        let handle = client.handle();
        (handle, Box::new(move || on_tokio(client.run(&address.to_string()))))
    }
}

impl Server for yrs_websocket_tokio::Service {
    fn serve(&self, listener: TcpListener) {
        on_tokio(async {
            listener.set_nonblocking(true).unwrap();
            self.serve(tokio::net::TcpListener::from_std(listener).unwrap()).await;
        });
    }

    fn drain(&self, deadline: Instant) -> Drained {
        on_tokio(self.drain(deadline))
    }

    fn rooms(&self) -> &dyn Rooms {
        &**self
    }
}

fn on_tokio<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// `yrs-websocket-std`.
#[derive(Clone, Copy, Debug)]
pub struct Std;

impl Adapter for Std {
    fn server(&self, options: Options, store: TestStore) -> Box<dyn Server> {
        Box::new(yrs_websocket_std::Service::with_store(options, SHARDS, store).unwrap())
    }

    fn client(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Run) {
        let mut client = yrs_websocket_std::Client::new(doc, options);
        let handle = client.handle();
        (handle, Box::new(move || client.run(&address.to_string())))
    }
}

impl Server for yrs_websocket_std::Service {
    fn serve(&self, listener: TcpListener) {
        self.serve(&listener);
    }

    fn drain(&self, deadline: Instant) -> Drained {
        self.drain(deadline)
    }

    fn rooms(&self) -> &dyn Rooms {
        &**self
    }
}

/// A runtime that `yrs-websocket-async-std` runs on, with its sockets.
trait Net: Runtime {
    type Listener: TryFrom<TcpListener, Error: std::fmt::Debug> + Send;
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T;
    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl<N: Net> Adapter for N {
    fn server(&self, options: Options, store: TestStore) -> Box<dyn Server> {
        let service = futures::Service::with_store(self.clone(), options, SHARDS, store).unwrap();
        Box::new(OnNet { net: self.clone(), service })
    }

    fn client(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Run) {
        let mut client = futures::Client::new(self.clone(), doc, options);
        let (handle, net) = (client.handle(), self.clone());
        (handle, Box::new(move || net.block_on(client.run(|| net.connect(address)))))
    }
}

struct OnNet<N> {
    net: N,
    service: futures::Service<N>,
}

impl<N: Net> Server for OnNet<N> {
    fn serve(&self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = N::Listener::try_from(listener).unwrap();
        self.net.block_on(self.service.serve(|| N::accept(&listener)));
    }

    fn drain(&self, deadline: Instant) -> Drained {
        self.net.block_on(self.service.drain(deadline))
    }

    fn rooms(&self) -> &dyn Rooms {
        &*self.service
    }
}

/// `yrs-websocket-async-std` on smol.
#[derive(Clone, Copy, Debug)]
pub struct Smol;

impl Runtime for Smol {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        smol::spawn(task).detach();
    }

    async fn sleep_until(&self, at: Instant) {
        smol::Timer::at(at).await;
    }
}

impl Net for Smol {
    type Listener = smol::Async<TcpListener>;
    type Stream = smol::Async<std::net::TcpStream>;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        smol::block_on(future)
    }

    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send {
        Self::Stream::connect(address)
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Stream> {
        Ok(listener.accept().await?.0)
    }
}

/// `yrs-websocket-async-std` on async-std.
#[derive(Clone, Copy, Debug)]
pub struct AsyncStd;

impl Runtime for AsyncStd {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        async_std::task::spawn(task);
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        async_std::task::sleep(at.saturating_duration_since(crate::now()))
    }
}

impl Net for AsyncStd {
    type Listener = async_std::net::TcpListener;
    type Stream = Closing<async_std::net::TcpStream>;

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        async_std::task::block_on(future)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Self::Stream> {
        let stream = async_std::net::TcpStream::connect(address).await?;
        Ok(Closing::new(stream, |stream| stream.shutdown(Shutdown::Write)))
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Stream> {
        let (stream, _) = listener.accept().await?;
        Ok(Closing::new(stream, |stream| stream.shutdown(Shutdown::Write)))
    }
}

const SHARDS: usize = 2;
