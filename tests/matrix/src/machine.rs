//! The real world: threads, sockets of the loopback, and waiting.

use std::{
    fmt,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use yrs::Doc;
use yrs_websocket_host::{ClientHandle, ClientOptions, Options};
use yrs_websocket_store::testing::Faults;

use crate::{Adapter, Place, Pulse, Rooms, Server, Stopped, Stream, TestStore, Valve, World, lock, now};

/// Servers of one adapter and clients of another, on this machine.
pub struct Machine {
    servers: &'static dyn Adapter,
    clients: &'static dyn Adapter,
    pulse: Arc<Pulse>,
}

impl Machine {
    /// Makes a world of a pair.
    pub fn new(servers: &'static dyn Adapter, clients: &'static dyn Adapter) -> Self {
        Self { servers, clients, pulse: Arc::default() }
    }
}

impl World for Machine {
    fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    fn now(&self) -> Instant {
        now()
    }

    fn patience(&self) -> Duration {
        // Others may work on the same machine.
        Duration::from_secs(60)
    }

    fn wait(&self, beats: &mut u64, deadline: Instant) -> bool {
        let next = self.pulse.wait(*beats, deadline);
        *beats = next.unwrap_or(*beats);
        next.is_some()
    }

    fn place(&self) -> Box<dyn Place> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Box::new(Port { servers: self.servers, listener, running: None })
    }

    fn join(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Stopped) {
        let (handle, run) = self.clients.client(doc, options, address);
        let running = thread(run);
        (handle, Box::new(move || running.join().unwrap()))
    }

    fn connect(&self, address: SocketAddr) -> Box<dyn Stream> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(self.patience())).unwrap();
        Box::new(stream)
    }

    fn valve(&self, server: SocketAddr) -> Box<dyn Valve> {
        Box::new(Proxy::new(server))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// Stays open when the server ends, so that nobody else gets it: who comes meanwhile waits.
struct Port {
    servers: &'static dyn Adapter,
    listener: TcpListener,
    running: Option<(Arc<dyn Server>, JoinHandle<()>)>,
}

impl Place for Port {
    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn start(&mut self, options: Options, store: TestStore, _faults: &Faults) {
        let server: Arc<dyn Server> = self.servers.server(options, store).into();
        let (serving, listener) = (Arc::clone(&server), self.listener.try_clone().unwrap());
        self.running = Some((server, thread(move || serving.serve(listener))));
    }

    fn drain(&mut self, deadline: Instant) -> bool {
        let (server, serving) = self.running.take().expect("it runs");
        let drained = server.drain(deadline);
        serving.join().unwrap();
        drained.durable
    }

    fn stop(&mut self) {
        let (server, serving) = self.running.take().expect("it runs");
        server.rooms().stop();
        serving.join().unwrap();
    }

    fn rooms(&self) -> Option<&dyn Rooms> {
        self.running.as_ref().map(|(server, _)| server.rooms())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some((server, _)) = self.running.take() {
            server.rooms().stop();
        }
    }
}

impl Stream for TcpStream {
    fn cut(&mut self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// A proxy between clients and a server.
#[derive(Debug)]
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_shut: bool,
    is_over: bool,
    streams: Vec<TcpStream>,
}

impl Proxy {
    fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let shared = Arc::clone(&proxy.shared);
        thread(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                far.set_recv_buffer_size(4 << 10).unwrap();
                far.connect(&server.into()).unwrap();
                let far = TcpStream::from(far);
                {
                    let mut state = lock(&shared.state);
                    if state.is_over {
                        return;
                    }
                    state.streams.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                }
                let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                thread(move || copy(from, to, || ()));
                let shared = Arc::clone(&shared);
                thread(move || copy(far, near, || shared.wait_until_open()));
            }
        });
        proxy
    }
}

impl Valve for Proxy {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn shut(&self) {
        lock(&self.shared.state).is_shut = true;
    }

    fn open(&self) {
        lock(&self.shared.state).is_shut = false;
        self.shared.changed.notify_all();
    }

    fn cut(&self) {
        for stream in lock(&self.shared.state).streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.open();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.shared.state).is_over = true;
        self.cut();
        // Ends the accept.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn wait_until_open(&self) {
        let state = lock(&self.state);
        drop(self.changed.wait_while(state, |state| state.is_shut).unwrap_or_else(PoisonError::into_inner));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, wait: impl Fn()) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        wait();
        match from.read(&mut buffer) {
            Ok(len) if len > 0 && to.write_all(&buffer[..len]).is_ok() => {}
            Ok(_) | Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().spawn(f).unwrap()
}
