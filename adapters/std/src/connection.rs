use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use yrs_websocket_host::{
    Admitted, ConnectionId, Next, Shards, Upgrade, rfc6455::Refusal, stream::REFUSAL_LINGER,
};

/// The host's end of a connection. Its drop ends the thread that reads.
#[derive(Debug)]
pub struct Socket(Arc<Link>);

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    /// Known once the host knows the connection.
    place: OnceLock<(Weak<Shards<Socket>>, usize, ConnectionId)>,
    /// Whether the stream takes nothing now; both change only while the host is locked.
    is_full: AtomicBool,
    /// Whether a thread waits for it.
    has_writer: AtomicBool,
}

impl yrs_websocket_host::Socket for Socket {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.0.has_writer.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = not_in_time((&self.0.stream).write_vectored(buffers));
        let is_full = matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.0.is_full.store(is_full, Ordering::Relaxed);
        written
    }

    fn wake(&mut self, _: Next) {
        write_rest(&self.0);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }
}

/// Serves a connection on the thread that calls.
pub(crate) fn serve(shards: &Arc<Shards<Socket>>, stream: TcpStream) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let Some(admitted) = read_request(shards, &stream)? else { return Ok(()) };
    let shard = shards.of(admitted.room());
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let link = Arc::new(Link {
        stream,
        place: OnceLock::new(),
        is_full: AtomicBool::new(false),
        has_writer: AtomicBool::new(false),
    });
    let id = match shards.connect(Socket(Arc::clone(&link)), admitted) {
        Ok(id) => id,
        Err((socket, refusal)) => {
            let refused = refuse(shards, &link.stream, &refusal);
            drop::<Socket>(socket);
            return refused;
        }
    };
    shards.with(shard, |_, _| {
        let _ = link.place.set((Arc::downgrade(shards), shard, id));
        // What did not fit until now.
        write_rest(&link);
    });
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match shards.next(shard, id) {
            Next::Run { .. } => {}
            Next::ShutDown => _ = link.stream.shutdown(Shutdown::Write),
            Next::Drop => return Ok(()),
        }
        match (&link.stream).read(&mut buffer) {
            Ok(len) if len > 0 => shards.with(shard, |host, now| host.received(now, id, &mut buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => shards.with(shard, |host, now| host.ended(now, id)),
        }
    }
}

/// Starts the thread that waits for a full socket. The host is locked.
fn write_rest(link: &Arc<Link>) {
    let Some((shards, shard, id)) = link.place.get() else { return };
    if !link.is_full.load(Ordering::Relaxed) || link.has_writer.swap(true, Ordering::Relaxed) {
        return;
    }
    let (link, shards, shard, id) = (Arc::clone(link), Weak::clone(shards), *shard, *id);
    let stream = Arc::clone(&link);
    let writer = move || {
        let mut chunk = Vec::new();
        loop {
            let Some(shards) = shards.upgrade() else { return };
            chunk.clear();
            shards.with(shard, |host, now| {
                let _ = host.write_by(now, id, |slices| {
                    let before = chunk.len();
                    for slice in slices.iter().filter(|_| before < BUFFER_LEN) {
                        chunk.extend_from_slice(slice);
                    }
                    if chunk.len() == before {
                        Err(io::ErrorKind::WouldBlock.into())
                    } else {
                        Ok(chunk.len() - before)
                    }
                });
                if chunk.is_empty() {
                    if host.next(id) == Next::ShutDown {
                        let _ = link.stream.shutdown(Shutdown::Write);
                    }
                    link.is_full.store(false, Ordering::Relaxed);
                    link.has_writer.store(false, Ordering::Relaxed);
                }
            });
            if chunk.is_empty() {
                return;
            }
            // As long as it takes: the host gives up who takes too long, which ends the stream.
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                match not_in_time((&link.stream).write(rest)) {
                    Ok(len) => rest = &rest[len..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return shards.with(shard, |host, now| host.ended(now, id)),
                }
            }
        }
    };
    if thread::Builder::new().name("yrs-writer".into()).spawn(writer).is_err() {
        let _ = stream.stream.shutdown(Shutdown::Both);
    }
}

/// Reads the head of a request; `None` where it was answered otherwise, or ended.
fn read_request(shards: &Shards<Socket>, mut stream: &TcpStream) -> io::Result<Option<Admitted>> {
    let mut upgrade = Upgrade::new(shards.options());
    let mut buffer = [0; HEAD_BUFFER_LEN];
    let deadline = shards.now() + shards.options().limits.handshake_timeout;
    loop {
        set_read_deadline(stream, deadline, shards.now())?;
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(None);
        }
        match upgrade.receive(&buffer[..len]) {
            Ok(None) => {}
            Ok(Some(admitted)) => return Ok(Some(admitted)),
            Err(refusal) => return refuse(shards, stream, &refusal).map(|()| None),
        }
    }
}

/// Writes a refusal, and ends so that the client can read it.
fn refuse(shards: &Shards<Socket>, mut stream: &TcpStream, refusal: &Refusal) -> io::Result<()> {
    let deadline = shards.now() + REFUSAL_LINGER;
    stream.set_write_timeout(Some(REFUSAL_LINGER))?;
    stream.write_all(&refusal.to_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut buffer = [0; HEAD_BUFFER_LEN];
    loop {
        set_read_deadline(stream, deadline, shards.now())?;
        if stream.read(&mut buffer)? == 0 {
            return Ok(());
        }
    }
}

fn set_read_deadline(stream: &TcpStream, deadline: Instant, now: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(now);
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))
}

/// A write that took too long says so in two ways, which differ with the system.
pub(crate) fn not_in_time(written: io::Result<usize>) -> io::Result<usize> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => io::ErrorKind::WouldBlock.into(),
        _ => error,
    })
}

/// The shortest there is; systems make a tick of it.
const WRITE_TIMEOUT: Duration = Duration::from_micros(1);

/// Read and written at once.
pub(crate) const BUFFER_LEN: usize = 16 << 10;

/// Heads are a few hundred bytes.
const HEAD_BUFFER_LEN: usize = 2 << 10;
