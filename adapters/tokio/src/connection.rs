use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice, Read as _},
    net::Shutdown,
    sync::Arc,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};
use yrs_websocket::ConnectionId;
use yrs_websocket_host::{Admitted, Bell, Next, Shards, stream};

use crate::{service::sleep_until, stream::Stream};

thread_local! {
    /// Where all connections of a thread read to: an idle connection holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_LEN]);
}

/// The host's end of a connection.
#[derive(Debug)]
pub struct Socket {
    /// Written where frames arise; `None` for a stream that only its own task can write.
    stream: Option<Arc<TcpStream>>,
    bell: Arc<Bell>,
}

impl yrs_websocket_host::Socket for Socket {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.stream {
            Some(stream) => send(stream, buffers),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn wake(&mut self) {
        self.bell.ring();
    }
}

/// Writes past tokio, which would first look whether it believes that the socket can be written: memory of each
/// connection that nothing else of a delivery touches, and so is cold.
#[cfg(target_os = "linux")]
fn send(stream: &TcpStream, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    let sent = match buffers {
        // The kernel takes one piece by a shorter way than several.
        [piece] => socket.send_with_flags(piece, libc::MSG_NOSIGNAL),
        pieces => socket.send_vectored_with_flags(pieces, libc::MSG_NOSIGNAL),
    };
    match sent {
        // That it is full tokio has to find out by itself, to say when it no longer is.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.try_write_vectored(buffers),
        sent => sent,
    }
}

#[cfg(not(target_os = "linux"))]
fn send(stream: &TcpStream, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    match buffers {
        [piece] => stream.try_write(piece),
        pieces => stream.try_write_vectored(pieces),
    }
}

/// Serves a TCP connection on the thread of its shard.
pub(crate) async fn serve_tcp(shards: Arc<Shards<Socket>>, stream: std::net::TcpStream, admitted: Admitted) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let stream = Arc::new(stream);
    let bell = Arc::new(Bell::default());
    let socket = Socket { stream: Some(Arc::clone(&stream)), bell: Arc::clone(&bell) };
    let shard = shards.of(admitted.room());
    let id = match shards.connect(socket, admitted) {
        Ok(id) => id,
        Err((socket, refusal)) => {
            drop(socket);
            if let Some(stream) = Arc::into_inner(stream) {
                let linger = sleep_until(shards.now() + stream::REFUSAL_LINGER);
                let _ = stream::refuse(&mut Stream(stream), &refusal, linger).await;
            }
            return;
        }
    };
    // A task that ends before its connection, by a panic or with its runtime, leaves no ghost behind.
    let _forget = stream::Forget::new(&shards, shard, id);
    let mut is_shut_down = false;
    loop {
        let write = match shards.next(shard, id) {
            Next::Run { write } => write,
            Next::ShutDown => {
                if !is_shut_down {
                    is_shut_down = true;
                    let _ = SockRef::from(&*stream).shutdown(Shutdown::Write);
                }
                false
            }
            Next::Drop => return,
        };
        match poll_fn(|cx| poll_ready(cx, &stream, write, &bell)).await {
            Ok(Ready { is_readable, is_writable }) => {
                if is_writable {
                    shards.with(shard, |host, now| host.writable(now, id));
                }
                if is_readable {
                    read_tcp(&shards, shard, &stream, id);
                }
            }
            Err(_) => return shards.with(shard, |host, now| host.ended(now, id)),
        }
    }
}

struct Ready {
    is_readable: bool,
    is_writable: bool,
}

/// Waits for the stream, or for the host, which has to be asked then what is next. By the two places that a stream
/// has for who polls it, which takes half of what the future of [`TcpStream::ready`] does.
fn poll_ready(cx: &mut Context<'_>, stream: &TcpStream, write: bool, bell: &Bell) -> Poll<io::Result<Ready>> {
    let is_readable = stream.poll_read_ready(cx)?.is_ready();
    let is_writable = write && stream.poll_write_ready(cx)?.is_ready();
    let is_rung = bell.poll(cx).is_ready();
    if is_readable || is_writable || is_rung {
        return Poll::Ready(Ok(Ready { is_readable, is_writable }));
    }
    Poll::Pending
}

fn read_tcp(shards: &Shards<Socket>, shard: usize, stream: &TcpStream, id: ConnectionId) {
    SCRATCH.with_borrow_mut(|scratch| match read_some(stream, scratch) {
        Ok(0) => shards.with(shard, |host, now| host.ended(now, id)),
        Ok(len) => shards.with(shard, |host, now| host.received(now, id, &mut scratch[..len])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => shards.with(shard, |host, now| host.ended(now, id)),
    });
}

/// Reads; where that is not all that the buffer can take, nothing is left to be read, and the next byte
/// makes the stream ready again. To ask for it would cost a system call for each message.
fn read_some(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = None;
    let tried = stream.try_io(Interest::READABLE, || {
        let len = (&*SockRef::from(stream)).read(buffer)?;
        read = Some(len);
        // This is how tokio is told that the stream is not ready any more.
        if len < buffer.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match read {
        Some(len) => Ok(len),
        None => tried.map(|()| 0),
    }
}

/// Serves any stream on the caller's runtime.
pub(crate) async fn serve_stream(
    shards: &Shards<Socket>,
    stream: &mut Stream<impl AsyncRead + AsyncWrite + Unpin>,
    admitted: Admitted,
) -> io::Result<()> {
    let bell = Arc::new(Bell::default());
    let socket = Socket { stream: None, bell: Arc::clone(&bell) };
    stream::serve(shards, socket, &bell, stream, admitted, sleep_until).await
}

/// Read at once.
const SCRATCH_LEN: usize = 64 << 10;
