use std::{
    future::Future,
    io::{self, IoSlice},
    ops::Deref,
    sync::Arc,
    time::Instant,
};

use futures_io::{AsyncRead, AsyncWrite};
use yrs_websocket_host::{Admitted, Bell, Drained, Next, Options, Shards, seed, stream};
use yrs_websocket_store::Store;

use crate::{Runtime, Stream, now};

/// A running server: rooms on shards, and their store. [`Shards`] has what else it can do.
///
/// Dropping the last handle ends it as a crash would, with all its connections: what is not durable is
/// lost, and was not acknowledged. [`Service::drain`] ends it well.
#[derive(Clone, Debug)]
pub struct Service<R> {
    runtime: R,
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    shards: Arc<Shards<Socket>>,
}

/// The host's end of a connection: its task writes.
#[derive(Debug)]
pub struct Socket(Arc<Bell>);

impl<R: Runtime> Service<R> {
    /// Starts a server that keeps its documents in memory.
    pub fn in_memory(runtime: R, options: Options, shards: usize) -> Self {
        Self::start(runtime, Shards::in_memory(options, shards, now, seed()))
    }

    /// Starts a server over a store, which gets a thread of its own.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn with_store(runtime: R, options: Options, shards: usize, store: impl Store) -> io::Result<Self> {
        Ok(Self::start(runtime, Shards::with_store(options, shards, now, seed(), store)?))
    }

    fn start(runtime: R, shards: Arc<Shards<Socket>>) -> Self {
        for shard in 0..shards.len() {
            let (shards, sleeper) = (Arc::clone(&shards), runtime.clone());
            runtime.spawn(async move {
                stream::keep_time(&shards, shard, |at| sleeper.sleep_until(at)).await;
            });
        }
        Self { runtime, running: Arc::new(Running { shards }) }
    }

    /// Serves what `accept` brings, each on a task of its own, until [`Service::drain`] or [`Shards::stop`]
    /// is called. If it fails, for want of file descriptors say, it is asked again a moment later.
    pub async fn serve<S, A>(&self, accept: impl FnMut() -> A)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Future<Output = io::Result<S>>,
    {
        let serve = |stream| {
            // Not a handle: the last one that the application drops ends the server.
            let (shards, runtime) = (Arc::clone(&self.running.shards), self.runtime.clone());
            // What fails here is the stream of somebody who has gone.
            self.runtime.spawn(async move { _ = accept_stream(&shards, &runtime, stream).await });
        };
        let sleep = |at| self.runtime.sleep_until(at);
        stream::accept(&self.running.shards, accept, serve, sleep).await;
    }

    /// Serves a connection that may be anything; reads its request first.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn accept_stream(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        accept_stream(&self.running.shards, &self.runtime, stream).await
    }

    /// Serves a connection whose upgrade somebody else has made, or only read.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        admitted: Admitted,
    ) -> io::Result<()> {
        serve_stream(&self.running.shards, &self.runtime, &mut Stream(stream), admitted).await
    }

    /// Refuses connections from now on, makes everything durable, and sends everybody away one after
    /// another; about a second after the deadline if it comes to that.
    pub async fn drain(&self, deadline: Instant) -> Drained {
        stream::drain(&self.running.shards, deadline, |at| self.runtime.sleep_until(at)).await
    }
}

impl<R> Deref for Service<R> {
    type Target = Shards<Socket>;

    fn deref(&self) -> &Shards<Socket> {
        &self.running.shards
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shards.stop();
    }
}

impl yrs_websocket_host::Socket for Socket {
    fn try_write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn wake(&mut self, _: Next) {
        self.0.ring();
    }
}

async fn accept_stream<R: Runtime>(
    shards: &Shards<Socket>,
    runtime: &R,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut stream = Stream(stream);
    match stream::read_request(shards, &mut stream, |at| runtime.sleep_until(at)).await? {
        Some(admitted) => serve_stream(shards, runtime, &mut stream, admitted).await,
        None => Ok(()),
    }
}

async fn serve_stream<R: Runtime>(
    shards: &Shards<Socket>,
    runtime: &R,
    stream: &mut Stream<impl AsyncRead + AsyncWrite + Unpin>,
    admitted: Admitted,
) -> io::Result<()> {
    let bell = Arc::new(Bell::default());
    let socket = Socket(Arc::clone(&bell));
    stream::serve(shards, socket, &bell, stream, admitted, |at| runtime.sleep_until(at)).await
}
