use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    ops::Deref,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use futures_io::{AsyncRead, AsyncWrite};
use yrs_websocket_host::{Admitted, Bell, Options, Shards, stream};
use yrs_websocket_store::Store;

use crate::{Runtime, Stream, now, seed};

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
    /// Rings for whom accepts; `None` once nobody is to.
    accepting: Mutex<Option<Vec<Arc<Bell>>>>,
}

/// The host's end of a connection: its task writes.
#[derive(Debug)]
pub struct Socket(Arc<Bell>);

/// What came of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether every edit that was received is durable. If not, those that are not were not
    /// acknowledged either, and their authors still have them.
    pub durable: bool,
}

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
        Self { runtime, running: Arc::new(Running { shards, accepting: Mutex::new(Some(Vec::new())) }) }
    }

    /// Serves what `accept` brings, each on a task of its own, until [`Service::drain`] is called. If it
    /// fails, for want of file descriptors say, it is asked again a moment later.
    pub async fn serve<S, A>(&self, mut accept: impl FnMut() -> A)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Future<Output = io::Result<S>>,
    {
        let bell = Arc::new(Bell::default());
        match &mut *self.running.accepting() {
            Some(accepting) => accepting.push(Arc::clone(&bell)),
            None => return,
        }
        loop {
            let mut accepting = pin!(accept());
            let accepted = poll_fn(|cx| match bell.poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => accepting.as_mut().poll(cx).map(Some),
            });
            match accepted.await {
                None => return,
                Some(Ok(stream)) => {
                    // Not a handle: the last one that the application drops ends the server.
                    let (shards, runtime) = (Arc::clone(&self.running.shards), self.runtime.clone());
                    // What fails here is the stream of somebody who has gone.
                    self.runtime.spawn(async move { _ = accept_stream(&shards, &runtime, stream).await });
                }
                Some(Err(_)) => {
                    self.running.shards.accept_failed();
                    self.runtime.sleep_until(now() + ACCEPT_RETRY_DELAY).await;
                }
            }
        }
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
        for bell in self.running.accepting().take().into_iter().flatten() {
            bell.ring();
        }
        let sleep = |at| self.runtime.sleep_until(at);
        Drained { durable: stream::drain(&self.running.shards, deadline, sleep).await }
    }
}

impl<R> Deref for Service<R> {
    type Target = Shards<Socket>;

    fn deref(&self) -> &Shards<Socket> {
        &self.running.shards
    }
}

impl Running {
    fn accepting(&self) -> std::sync::MutexGuard<'_, Option<Vec<Arc<Bell>>>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn wake(&mut self) {
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

/// Time to look for a file descriptor again.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
