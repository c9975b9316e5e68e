//! A line that can be shut, and cut.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use socket2::{Domain, Socket, Type};

use crate::{lock, thread};

/// A proxy between clients and a server. While it is shut, nothing that the server sends is read.
#[derive(Debug)]
pub struct Valve {
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

impl Valve {
    /// Puts one before a server; it is open.
    pub fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let valve = Self { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let shared = Arc::clone(&valve.shared);
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
        valve
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads nothing more of what the server sends.
    pub fn shut(&self) {
        lock(&self.shared.state).is_shut = true;
    }

    /// Reads again.
    pub fn open(&self) {
        lock(&self.shared.state).is_shut = false;
        self.shared.changed.notify_all();
    }

    /// Cuts all connections; new ones can be made.
    pub fn cut(&self) {
        for stream in lock(&self.shared.state).streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.open();
    }
}

impl Drop for Valve {
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
