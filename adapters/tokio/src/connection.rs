use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    net::Shutdown,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time,
};
use yrs_websocket::ConnectionId;
use yrs_websocket_host::{Admitted, Next, Options, Upgrade, rfc6455::Refusal};

use crate::service::Shard;

thread_local! {
    /// Where all connections of a thread read to: an idle connection holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_LEN]);
}

/// The host's end of a connection.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Written where frames arise; `None` for a stream that only its own task can write.
    stream: Option<Arc<TcpStream>>,
    notify: Arc<Notify>,
}

impl yrs_websocket_host::Socket for Socket {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.stream {
            Some(stream) => stream.try_write_vectored(buffers),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn wake(&mut self) {
        self.notify.notify_one();
    }
}

/// Reads the head of a request; `None` where it was answered otherwise, or ended.
pub(crate) async fn read_request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    options: &Options,
) -> io::Result<Option<Admitted>> {
    let reading = async {
        let mut upgrade = Upgrade::new(options);
        let mut buffer = [0; HEAD_BUFFER_LEN];
        loop {
            let len = stream.read(&mut buffer).await?;
            if len == 0 {
                return Ok(None);
            }
            match upgrade.receive(&buffer[..len]) {
                Ok(None) => {}
                Ok(Some(admitted)) => return Ok(Some(admitted)),
                Err(refusal) => return refuse(stream, &refusal).await.map(|()| None),
            }
        }
    };
    time::timeout(options.limits.handshake_timeout, reading).await.unwrap_or(Ok(None))
}

/// Serves a TCP connection on the thread of its shard.
pub(crate) async fn serve_tcp(shard: Arc<Shard>, stream: std::net::TcpStream, admitted: Admitted) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let stream = Arc::new(stream);
    let notify = Arc::new(Notify::new());
    let socket = Socket { stream: Some(Arc::clone(&stream)), notify: Arc::clone(&notify) };
    let id = match shard.with(|host, now| host.connect(now, socket, admitted)) {
        Ok(id) => id,
        Err((socket, refusal)) => {
            drop(socket);
            if let Some(mut stream) = Arc::into_inner(stream) {
                let _ = refuse(&mut stream, &refusal).await;
            }
            return;
        }
    };
    // A task that ends before its connection, by a panic or with its runtime, leaves no ghost behind.
    let _forget = Forget { shard: &shard, id };
    let mut is_shut_down = false;
    loop {
        let write = match shard.with(|host, _| host.next(id)) {
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
        let interest = if write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            ready = stream.ready(interest) => {
                let Ok(ready) = ready else { return shard.with(|host, now| host.ended(now, id)) };
                if write && ready.is_writable() {
                    shard.with(|host, now| host.writable(now, id));
                }
                if ready.is_readable() {
                    read_tcp(&shard, &stream, id);
                }
            }
            () = notify.notified() => {}
        }
    }
}

fn read_tcp(shard: &Shard, stream: &TcpStream, id: ConnectionId) {
    SCRATCH.with_borrow_mut(|scratch| match stream.try_read(scratch) {
        Ok(0) => shard.with(|host, now| host.ended(now, id)),
        Ok(len) => shard.with(|host, now| host.received(now, id, &mut scratch[..len])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => shard.with(|host, now| host.ended(now, id)),
    });
}

/// Serves any stream on the caller's runtime.
pub(crate) async fn serve_stream(
    shard: Arc<Shard>,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    admitted: Admitted,
) -> io::Result<()> {
    let notify = Arc::new(Notify::new());
    let socket = Socket { stream: None, notify: Arc::clone(&notify) };
    let id = match shard.with(|host, now| host.connect(now, socket, admitted)) {
        Ok(id) => id,
        Err((_, refusal)) => return refuse(&mut stream, &refusal).await,
    };
    // A caller that drops this future must not leave a ghost behind.
    let _forget = Forget { shard: &shard, id };
    let mut is_flushed = true;
    let mut is_shut_down = false;
    loop {
        let next = shard.with(|host, _| host.next(id));
        let write = match next {
            Next::Run { write } => write,
            Next::ShutDown => false,
            Next::Drop => return Ok(()),
        };
        let mut notified = pin!(notify.notified());
        let progress = poll_fn(|cx| {
            if notified.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if write {
                is_flushed = false;
                poll_write(cx, &shard, id, &mut stream)?;
                if shard.with(|host, _| host.next(id)) != next {
                    return Poll::Ready(Ok(()));
                }
            }
            // Layers such as TLS keep what they have taken until they are flushed, which takes as long as
            // the peer does. So does the end; meanwhile the host may give the connection up.
            if next == Next::ShutDown && !is_shut_down {
                is_shut_down = Pin::new(&mut stream).poll_shutdown(cx)?.is_ready();
            } else if !is_flushed {
                is_flushed = Pin::new(&mut stream).poll_flush(cx)?.is_ready();
            }
            poll_read(cx, &shard, id, &mut stream)
        });
        progress.await?;
    }
}

fn poll_write(
    cx: &mut Context<'_>,
    shard: &Shard,
    id: ConnectionId,
    stream: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    shard.with(|host, now| {
        host.write_by(now, id, |slices| match Pin::new(&mut *stream).poll_write_vectored(cx, slices) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        })
    })
}

fn poll_read(
    cx: &mut Context<'_>,
    shard: &Shard,
    id: ConnectionId,
    stream: &mut (impl AsyncRead + Unpin),
) -> Poll<io::Result<()>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                shard.with(|host, now| host.received(now, id, buffer.filled_mut()));
            }
            // The end of the stream, or its failure.
            Poll::Ready(_) => shard.with(|host, now| host.ended(now, id)),
        }
        Poll::Ready(Ok(()))
    })
}

struct Forget<'a> {
    shard: &'a Shard,
    id: ConnectionId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shard.with(|host, now| host.ended(now, self.id));
    }
}

/// Writes a refusal, and ends so that the client can read it.
async fn refuse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), refusal: &Refusal) -> io::Result<()> {
    let refusing = async {
        stream.write_all(&refusal.to_bytes()).await?;
        stream.shutdown().await?;
        let mut buffer = [0; HEAD_BUFFER_LEN];
        while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
        Ok(())
    };
    time::timeout(REFUSAL_LINGER, refusing).await.unwrap_or(Ok(()))
}

/// Read at once.
const SCRATCH_LEN: usize = 64 << 10;

/// Heads are a few hundred bytes.
const HEAD_BUFFER_LEN: usize = 2 << 10;

/// How long a client that was refused may take to read why, and to close.
const REFUSAL_LINGER: time::Duration = time::Duration::from_secs(2);
