//! What every runtime with tasks does with a stream, over what they differ in.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Instant,
};

use crate::client::{Client, ClientNext};

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
            ClientNext::Run { .. } | ClientNext::ShutDown | ClientNext::Wait => dialling = None,
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
            if state.poll(cx, stream, next == ClientNext::ShutDown).is_err() {
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

/// Read at once.
const BUFFER_LEN: usize = 16 << 10;
