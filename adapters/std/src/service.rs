use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    ops::Deref,
    sync::Arc,
    task::Wake,
    thread,
    time::{Duration, Instant},
};

use yrs_websocket_host::{ACCEPT_RETRY_DELAY, Drained, Options, Shards, seed};
use yrs_websocket_store::Store;

use crate::connection::{self, Socket};

/// A running server: rooms on shards, and their store. [`Shards`] has what else it can do.
///
/// Dropping the last handle ends it as a crash would, with all its connections: what is not durable is
/// lost, and was not acknowledged. [`Service::drain`] ends it well.
#[derive(Clone, Debug)]
pub struct Service(Arc<Running>);

#[derive(Debug)]
struct Running {
    shards: Arc<Shards<Socket>>,
}

/// Ends an accept, which nothing but a connection does.
struct Knock(SocketAddr);

impl Wake for Knock {
    fn wake(self: Arc<Self>) {
        let Self(mut address) = *self;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let _ = TcpStream::connect_timeout(&address, KNOCK_TIMEOUT);
    }
}

impl Service {
    /// Starts a server that keeps its documents in memory.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn in_memory(options: Options, shards: usize) -> io::Result<Self> {
        #[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
        Self::start(Shards::in_memory(options, shards, Instant::now, seed()))
    }

    /// Starts a server over a store, which gets a thread of its own.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn with_store(options: Options, shards: usize, store: impl Store) -> io::Result<Self> {
        #[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
        Self::start(Shards::with_store(options, shards, Instant::now, seed(), store)?)
    }

    fn start(shards: Arc<Shards<Socket>>) -> io::Result<Self> {
        // Where a later thread cannot be started, the drop of this ends the earlier ones.
        let running = Running { shards };
        for shard in 0..running.shards.len() {
            let shards = Arc::clone(&running.shards);
            thread::Builder::new().name(format!("yrs-shard-{shard}")).spawn(move || {
                loop {
                    let next = shards.arm(shard);
                    shards.bell(shard).wait(next.map(|next| next.saturating_duration_since(shards.now())));
                    if !shards.keep_time(shard) {
                        return;
                    }
                }
            })?;
        }
        Ok(Self(Arc::new(running)))
    }

    /// Accepts connections until [`Service::drain`] or [`Shards::stop`] is called. A listener that fails to
    /// accept, for want of file descriptors say, is asked again a moment later.
    pub fn serve(&self, listener: &TcpListener) {
        if let Ok(address) = listener.local_addr() {
            self.0.shards.start_accepting(Arc::new(Knock(address)).into());
        }
        while self.0.shards.is_accepting() {
            let accepted = listener.accept().and_then(|(stream, _)| {
                let shards = Arc::clone(&self.0.shards);
                thread::Builder::new().name("yrs-connection".into()).spawn(move || {
                    // What fails here is the stream of somebody who has gone.
                    let _ = connection::serve(&shards, stream);
                })
            });
            if accepted.is_err() {
                self.0.shards.accept_failed();
                thread::park_timeout(ACCEPT_RETRY_DELAY);
            }
        }
    }

    /// Refuses connections from now on, makes everything durable, sends everybody away one after
    /// another, and ends the threads; about a second after the deadline if it comes to that.
    pub fn drain(&self, deadline: Instant) -> Drained {
        self.0.shards.drain_and_wait(deadline)
    }
}

impl Deref for Service {
    type Target = Shards<Socket>;

    fn deref(&self) -> &Shards<Socket> {
        &self.0.shards
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shards.stop();
    }
}

/// Where that takes longer, connections are coming in, which end an accept as well.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(500);
