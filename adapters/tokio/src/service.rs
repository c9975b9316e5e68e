use std::{
    io, mem,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time,
};
use yrs_websocket_host::{Admitted, Bell, Drained, Options, Shards, seed, stream};
use yrs_websocket_store::Store;

use crate::{
    event_loop::{End, EventLoop, Incoming, Socket},
    stream::Stream,
};

/// Serves Yjs rooms on a listener, kept in memory, for as long as the future lives.
///
/// # Errors
///
/// If the threads cannot be started.
pub async fn serve(listener: TcpListener, options: Options) -> io::Result<()> {
    let shards = thread::available_parallelism().map_or(1, Into::into);
    Service::in_memory(options, shards)?.serve(listener).await;
    Ok(())
}

/// A running server: rooms on shards, and their store. [`Shards`] has what else it can do.
///
/// Dropping the last handle ends it as a crash would, with all its connections: what is not durable is
/// lost, and was not acknowledged. [`Service::drain`] ends it well.
#[derive(Clone, Debug)]
pub struct Service(Arc<Running>);

#[derive(Debug)]
struct Running {
    shards: Arc<Shards<Socket>>,
    /// To the thread of each shard.
    incoming: Vec<Arc<Incoming>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Service {
    /// Starts a server that keeps its documents in memory.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn in_memory(options: Options, shards: usize) -> io::Result<Self> {
        Self::start(Shards::in_memory(options, shards, now, seed()))
    }

    /// Starts a server over a store, which gets a thread of its own.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn with_store(options: Options, shards: usize, store: impl Store) -> io::Result<Self> {
        Self::start(Shards::with_store(options, shards, now, seed(), store)?)
    }

    fn start(shards: Arc<Shards<Socket>>) -> io::Result<Self> {
        // Where a later thread cannot be started, the drop of this ends the earlier ones.
        let mut running = Running { shards, incoming: Vec::new(), threads: Mutex::new(Vec::new()) };
        for shard in 0..running.shards.len() {
            let (incoming, thread) = EventLoop::start(&running.shards, shard)?;
            running.incoming.push(incoming);
            running.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(Self(Arc::new(running)))
    }

    /// Accepts connections until [`Service::drain`] or [`Shards::stop`] is called. A listener that fails to
    /// accept, for want of file descriptors say, is asked again a moment later;
    /// [`Counters::accept_failures`](crate::Counters::accept_failures) counts that.
    pub async fn serve(&self, listener: TcpListener) {
        let serve = |(stream, _)| drop(tokio::spawn(self.clone().serve_tcp(stream)));
        stream::accept(&self.0.shards, || listener.accept(), serve, sleep_until).await;
    }

    /// Serves a connection that may be anything; reads its request first.
    ///
    /// # Errors
    ///
    /// Those of the stream before the upgrade; afterwards the end of the stream is the end.
    pub async fn accept_stream(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stream = Stream(stream);
        match stream::read_request(&self.0.shards, &mut stream, sleep_until).await? {
            Some(admitted) => self.serve_task(&mut stream, admitted).await,
            None => Ok(()),
        }
    }

    /// Serves a connection whose upgrade has been made, or only read:
    /// [`Admitted::after_upgrade`], or a [`yrs_websocket_host::Upgrade`]. Returns when it ends.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        admitted: Admitted,
    ) -> io::Result<()> {
        self.serve_task(&mut Stream(stream), admitted).await
    }

    /// Refuses connections from now on, makes everything durable, sends everybody away one after
    /// another, and ends the threads; about a second after the deadline if it comes to that.
    pub async fn drain(&self, deadline: Instant) -> Drained {
        let drained = stream::drain(&self.0.shards, deadline, sleep_until).await;
        let threads = mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (ended, all_ended) = oneshot::channel();
        // Not one of the runtime's blocking threads, whose end it would wait for.
        let _ = thread::Builder::new().name("yrs-drain".into()).spawn(move || {
            for thread in threads {
                let _ = thread.join();
            }
            let _ = ended.send(());
        });
        let _ = time::timeout_at((deadline + THREADS_GRACE).into(), all_ended).await;
        drained
    }

    async fn serve_tcp(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut stream = Stream(stream);
        let shards = &self.0.shards;
        let Ok(Some(admitted)) = stream::read_request(shards, &mut stream, sleep_until).await else {
            return;
        };
        let Ok(stream) = stream.0.into_std() else { return };
        self.0.incoming[shards.of(admitted.room())].push(stream, admitted);
    }

    async fn serve_task(
        &self,
        stream: &mut Stream<impl AsyncRead + AsyncWrite + Unpin>,
        admitted: Admitted,
    ) -> io::Result<()> {
        let bell = Arc::new(Bell::default());
        let socket = Socket(End::Task(Arc::clone(&bell)));
        stream::serve(&self.0.shards, socket, &bell, stream, admitted, sleep_until).await
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

pub(crate) async fn sleep_until(at: Instant) {
    time::sleep_until(at.into()).await;
}

#[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What the end of the threads may take beyond the deadline of a drain.
const THREADS_GRACE: Duration = Duration::from_secs(1);
