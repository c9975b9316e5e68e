//! What every runtime with tasks does with a stream, over what they differ in.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use yrs_websocket::ConnectionId;
use yrs_websocket_rfc6455::Refusal;

use crate::{
    ACCEPT_RETRY_DELAY, Admitted, Bell, Client, ClientNext, Drained, Next, Shards, Socket, Upgrade,
    shards::DRAIN_GRACE,
};

thread_local! {
    /// Where all connections of a thread read to: an idle connection holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_LEN]);
}

/// A stream of bytes of some runtime.
pub trait Stream: Unpin {
    /// Reads some bytes; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes some bytes.
    fn poll_write(&mut self, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Writes what layers such as TLS keep.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Shuts down the write side.
    fn poll_shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Keeps the time of a host, until the server is stopped. Then its connections are forgotten.
pub async fn keep_time<S: Socket + Send + 'static, T: Future<Output = ()>>(
    shards: &Shards<S>,
    shard: usize,
    sleep: impl Fn(Instant) -> T,
) {
    loop {
        let next = shards.arm(shard);
        let rung = poll_fn(|cx| shards.bell(shard).poll(cx));
        match next {
            Some(next) => _ = before(sleep(next), rung).await,
            None => rung.await,
        }
        if !shards.keep_time(shard) {
            return;
        }
    }
}

/// Gives what `accept` brings to `serve`, until the server drains or is stopped. If it fails, for want of
/// file descriptors say, it is asked again a moment later.
pub async fn accept<S: Socket + Send + 'static, C, A, T>(
    shards: &Shards<S>,
    mut accept: impl FnMut() -> A,
    mut serve: impl FnMut(C),
    sleep: impl Fn(Instant) -> T,
) where
    A: Future<Output = io::Result<C>>,
    T: Future<Output = ()>,
{
    let ended = Arc::new(Bell::default());
    if !shards.start_accepting(Arc::clone(&ended).into()) {
        return;
    }
    while shards.is_accepting() {
        match before(poll_fn(|cx| ended.poll(cx)), accept()).await {
            None => return,
            Some(Ok(connection)) => serve(connection),
            Some(Err(_)) => {
                shards.accept_failed();
                sleep(shards.now() + ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Refuses connections from now on, makes everything durable, sends everybody away one after another, and
/// stops; about a second after the deadline if it comes to that.
pub async fn drain<S: Socket + Send + 'static, T: Future<Output = ()>>(
    shards: &Arc<Shards<S>>,
    deadline: Instant,
    sleep: impl Fn(Instant) -> T,
) -> Drained {
    let wait = async |until, is_over: fn(&Shards<S>) -> bool| {
        let over = async {
            while !is_over(shards) {
                poll_fn(|cx| shards.drained().poll(cx)).await;
            }
        };
        before(sleep(until), over).await;
    };
    shards.drain(deadline);
    wait(deadline + DRAIN_GRACE, Shards::is_drained).await;
    let durable = shards.is_durable();
    shards.stop();
    shards.end_store();
    wait(deadline + 2 * DRAIN_GRACE, Shards::is_store_ended).await;
    Drained { durable }
}

/// Reads the head of a request; `None` where it was answered otherwise, or ended.
///
/// # Errors
///
/// Those of the stream.
pub async fn read_request<S: Socket + Send + 'static, T: Future<Output = ()>>(
    shards: &Shards<S>,
    stream: &mut impl Stream,
    sleep: impl Fn(Instant) -> T,
) -> io::Result<Option<Admitted>> {
    let mut upgrade = Upgrade::new(shards.options());
    let reading = async {
        loop {
            let received = poll_fn(|cx| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let read = stream.poll_read(cx, scratch);
                    read.map_ok(|len| (len > 0).then(|| upgrade.receive(&scratch[..len])))
                })
            });
            match received.await?.map(Result::transpose) {
                None => return io::Result::Ok(None),
                Some(None) => {}
                Some(upgraded) => return Ok(upgraded),
            }
        }
    };
    let deadline = shards.now() + shards.options().limits.handshake_timeout;
    match before(sleep(deadline), reading).await.unwrap_or(Ok(None))? {
        Some(Ok(admitted)) => Ok(Some(admitted)),
        Some(Err(refusal)) => {
            refuse(stream, &refusal, sleep(shards.now() + REFUSAL_LINGER)).await.map(|()| None)
        }
        None => Ok(None),
    }
}

/// Writes a refusal, and ends so that the client can read it; `linger` is how long that may take.
///
/// # Errors
///
/// Those of the stream.
pub async fn refuse(
    stream: &mut impl Stream,
    refusal: &Refusal,
    linger: impl Future<Output = ()>,
) -> io::Result<()> {
    let refusing = async {
        let bytes = refusal.to_bytes();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(rest)])).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                len => rest = &rest[len..],
            }
        }
        poll_fn(|cx| stream.poll_flush(cx)).await?;
        poll_fn(|cx| stream.poll_shut_down(cx)).await?;
        while poll_fn(|cx| SCRATCH.with_borrow_mut(|scratch| stream.poll_read(cx, scratch)))
            .await
            .is_ok_and(|len| len > 0)
        {}
        Ok(())
    };
    before(linger, refusing).await.unwrap_or(Ok(()))
}

/// Serves a stream that only its own task writes: the host's end of it, `socket`, takes nothing, and
/// rings `bell` when it is to wake the task. Returns when the connection ends.
///
/// # Errors
///
/// Those of the stream.
pub async fn serve<S: Socket + Send + 'static, T: Future<Output = ()>>(
    shards: &Shards<S>,
    socket: S,
    bell: &Bell,
    stream: &mut impl Stream,
    admitted: Admitted,
    sleep: impl Fn(Instant) -> T,
) -> io::Result<()> {
    let shard = shards.of(admitted.room());
    let id = match shards.connect(socket, admitted) {
        Ok(id) => id,
        Err((_, refusal)) => return refuse(stream, &refusal, sleep(shards.now() + REFUSAL_LINGER)).await,
    };
    // A caller that drops this future must not leave a ghost behind.
    let _forget = Forget::new(shards, shard, id);
    let mut state = WriteState::default();
    loop {
        let next = shards.next(shard, id);
        if next == Next::Drop {
            return Ok(());
        }
        let progress = poll_fn(|cx| -> Poll<io::Result<()>> {
            if bell.poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if next == (Next::Run { write: true }) {
                state.is_flushed = false;
                let is_other = shards.with(shard, |host, now| {
                    host.write_by(now, id, |slices| would_block(stream.poll_write(cx, slices)))?;
                    io::Result::Ok(host.next(id) != next)
                })?;
                if is_other {
                    return Poll::Ready(Ok(()));
                }
            }
            // Meanwhile the host may give the connection up.
            state.poll(cx, stream, next == Next::ShutDown)?;
            SCRATCH.with_borrow_mut(|scratch| {
                match stream.poll_read(cx, scratch) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(len)) if len > 0 => {
                        shards.with(shard, |host, now| host.received(now, id, &mut scratch[..len]));
                    }
                    // The end of the stream, or its failure.
                    Poll::Ready(_) => shards.with(shard, |host, now| host.ended(now, id)),
                }
                Poll::Ready(Ok(()))
            })
        });
        progress.await?;
    }
}

/// Lets the host forget a connection when this is dropped, with the future that serves it perhaps.
#[derive(Debug)]
struct Forget<'a, S: Socket + Send + 'static> {
    shards: &'a Shards<S>,
    shard: usize,
    id: ConnectionId,
}

impl<'a, S: Socket + Send + 'static> Forget<'a, S> {
    fn new(shards: &'a Shards<S>, shard: usize, id: ConnectionId) -> Self {
        Self { shards, shard, id }
    }
}

impl<S: Socket + Send + 'static> Drop for Forget<'_, S> {
    fn drop(&mut self) {
        self.shards.with(self.shard, |host, now| host.ended(now, self.id));
    }
}

/// What comes of a future, unless the other one is ready first.
async fn before<T>(end: impl Future<Output = ()>, future: impl Future<Output = T>) -> Option<T> {
    let mut end = pin!(end);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Runs a client until it stops: dials by `dial`, sleeps by `sleep`, reads the time by `now`. Says
/// whether there are changes that the server has not acknowledged.
///
/// The future may be dropped at any time, which ends the connection as a crash would.
pub async fn run_client<S: Stream, D: Future<Output = io::Result<S>>, T: Future<Output = ()>>(
    client: &mut Client,
    mut dial: impl FnMut() -> D,
    mut sleep: impl FnMut(Instant) -> T,
    now: impl Fn() -> Instant,
) -> bool {
    let mut dialling: Option<Pin<Box<D>>> = None;
    let mut stream: Option<S> = None;
    let mut state = WriteState::default();
    let mut buffer = vec![0; BUFFER_LEN];
    client.start();
    client.wake(now());
    loop {
        let next = client.next();
        match next {
            ClientNext::Stopped { unacknowledged } => return unacknowledged,
            ClientNext::Drop => {
                stream = None;
                client.dropped(now());
                continue;
            }
            ClientNext::Dial => _ = dialling.get_or_insert_with(|| Box::pin(dial())),
            ClientNext::Run { .. } | ClientNext::Wait => dialling = None,
        }
        let timeout = client.next_timeout();
        let mut due = pin!(async {
            match timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        });
        poll_fn(|cx| {
            if client.poll_bell(cx).is_ready() | due.as_mut().poll(cx).is_ready() {
                client.wake(now());
                return Poll::Ready(());
            }
            if let Some(future) = &mut dialling {
                let Poll::Ready(dialled) = future.as_mut().poll(cx) else { return Poll::Pending };
                dialling = None;
                match dialled {
                    Ok(opened) => {
                        stream = Some(opened);
                        state = WriteState::default();
                        client.dialled(now());
                    }
                    Err(error) => client.dial_failed(now(), error),
                }
                return Poll::Ready(());
            }
            let Some(stream) = &mut stream else { return Poll::Pending };
            if next == (ClientNext::Run { write: true }) {
                state.is_flushed = false;
                let written = client.write_by(now(), |slices| would_block(stream.poll_write(cx, slices)));
                if written.is_err() || client.next() != next {
                    return Poll::Ready(());
                }
            }
            if state.poll(cx, stream, false).is_err() {
                client.ended(now());
                return Poll::Ready(());
            }
            match stream.poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(len)) if len > 0 => client.received(now(), &mut buffer[..len]),
                Poll::Ready(_) => client.ended(now()),
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Whether what was written has left, and whether the write side is shut down.
#[derive(Debug)]
struct WriteState {
    is_flushed: bool,
    is_shut_down: bool,
}

impl Default for WriteState {
    fn default() -> Self {
        Self { is_flushed: true, is_shut_down: false }
    }
}

impl WriteState {
    /// Layers such as TLS keep what they have taken until they are flushed, which takes as long as the
    /// peer does. So does the end.
    fn poll(&mut self, cx: &mut Context<'_>, stream: &mut impl Stream, ends: bool) -> io::Result<()> {
        let polled = if ends && !self.is_shut_down {
            stream.poll_shut_down(cx).map_ok(|()| self.is_shut_down = true)
        } else if !self.is_flushed {
            stream.poll_flush(cx).map_ok(|()| self.is_flushed = true)
        } else {
            return Ok(());
        };
        match polled {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

/// What a poll means to who writes without waiting.
fn would_block(written: Poll<io::Result<usize>>) -> io::Result<usize> {
    match written {
        Poll::Ready(written) => written,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Read at once by a client.
const BUFFER_LEN: usize = 16 << 10;

/// Read at once by a server.
const SCRATCH_LEN: usize = 64 << 10;

/// How long a client that was refused may take to read why, and to close.
pub const REFUSAL_LINGER: Duration = Duration::from_secs(2);
