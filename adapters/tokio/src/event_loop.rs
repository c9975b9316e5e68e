use std::{
    io::{self, IoSlice, Read as _, Write as _},
    mem,
    net::Shutdown,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Context, Wake},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Registry, Token, event::Event, net::TcpStream};
use yrs_websocket_host::{Admitted, Bell, Host, Next, Shards, rfc6455::Refusal, slot_of_connection};

/// The host's end of a connection.
#[derive(Debug)]
pub struct Socket(pub(crate) End);

#[derive(Debug)]
pub(crate) enum End {
    /// Read by the event loop of its shard, written where frames arise.
    Tcp(TcpStream),
    /// Read and written by a task, which waits for this.
    Task(Arc<Bell>),
}

impl yrs_websocket_host::Socket for Socket {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match (&mut self.0, buffers) {
            // The kernel takes one piece by a shorter way than several.
            (End::Tcp(stream), [piece]) => stream.write(piece),
            (End::Tcp(stream), pieces) => stream.write_vectored(pieces),
            (End::Task(_), _) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn wake(&mut self, next: Next) {
        match &self.0 {
            End::Tcp(stream) if next == Next::ShutDown => _ = stream.shutdown(Shutdown::Write),
            // Its event loop hears of the socket when that can be written again.
            End::Tcp(_) => {}
            End::Task(bell) => bell.ring(),
        }
    }
}

/// A thread that reads the TCP connections of a shard and keeps its time.
#[derive(Debug)]
pub(crate) struct EventLoop {
    shard: usize,
    registry: Registry,
}

impl EventLoop {
    /// Starts the thread, which ends when the server is stopped.
    pub(crate) fn start(shards: &Arc<Shards<Socket>>, shard: usize) -> io::Result<(Self, JoinHandle<()>)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let caller = Caller {
            waker: mio::Waker::new(&registry, CALLED)?,
            is_called: AtomicBool::new(true),
            is_waiting: AtomicBool::new(false),
        };
        let running = Running {
            shards: Arc::clone(shards),
            shard,
            caller: Arc::new(caller),
            ready: Vec::new(),
            unread: Vec::new(),
            scratch: vec![0; SCRATCH_LEN],
        };
        let thread = thread::Builder::new().name(format!("yrs-shard-{shard}"));
        let thread = thread.spawn(move || running.run(poll))?;
        Ok((Self { shard, registry }, thread))
    }

    /// Lets a connection in; the event loop reads it from then on.
    ///
    /// # Errors
    ///
    /// Those of [`Shards::connect`].
    pub(crate) fn connect(
        &self,
        shards: &Shards<Socket>,
        stream: std::net::TcpStream,
        admitted: Admitted,
    ) -> Result<(), (std::net::TcpStream, Refusal)> {
        let id = match shards.connect(Socket(End::Tcp(TcpStream::from_std(stream))), admitted) {
            Ok(id) => id,
            Err((Socket(End::Tcp(stream)), refusal)) => return Err((stream.into(), refusal)),
            Err((Socket(End::Task(_)), _)) => return Ok(()),
        };
        shards.with(self.shard, |host, now| {
            let Some(Socket(End::Tcp(stream))) = host.socket_mut(id) else { return };
            // Not before: only now is its slot known. What has come meanwhile is told all the same.
            let token = Token(slot_of_connection(id));
            if self.registry.register(stream, token, Interest::READABLE | Interest::WRITABLE).is_err() {
                host.ended(now, id);
            }
        });
        Ok(())
    }
}

/// Wakes the thread of an event loop, by a system call only where it waits.
#[derive(Debug)]
struct Caller {
    waker: mio::Waker,
    is_called: AtomicBool,
    is_waiting: AtomicBool,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.is_called.store(true, Ordering::SeqCst);
        if self.is_waiting.load(Ordering::SeqCst) {
            // It fails where the thread is gone.
            let _ = self.waker.wake();
        }
    }
}

/// What the system has said of the connection in a slot. Only a hint: meanwhile another may have the slot.
#[derive(Clone, Copy, Debug)]
struct Ready {
    slot: usize,
    is_readable: bool,
    is_writable: bool,
    /// Reading ends with the end of the stream, of which the system does not speak again.
    is_ended: bool,
}

impl From<&Event> for Ready {
    fn from(event: &Event) -> Self {
        Self {
            slot: event.token().0,
            is_readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            is_writable: event.is_writable(),
            is_ended: event.is_read_closed() || event.is_error(),
        }
    }
}

/// The thread of an event loop. When it ends, by a panic perhaps, the server is stopped: of its connections none must
/// stay that nobody reads.
struct Running {
    shards: Arc<Shards<Socket>>,
    shard: usize,
    caller: Arc<Caller>,
    ready: Vec<Ready>,
    /// Of which the last read has not taken everything.
    unread: Vec<Ready>,
    /// Where all connections are read to: an idle connection holds no buffer.
    scratch: Vec<u8>,
}

impl Running {
    fn run(mut self, mut poll: Poll) {
        let waker = task::Waker::from(Arc::clone(&self.caller));
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut rest = None;
        loop {
            // Who calls from here on wakes the thread; who has called before is heard now, and then whether it is over.
            self.caller.is_waiting.store(true, Ordering::SeqCst);
            while self.caller.is_called.load(Ordering::SeqCst) {
                self.caller.is_called.store(false, Ordering::SeqCst);
                while self.shards.bell(self.shard).poll(&mut Context::from_waker(&waker)).is_ready() {}
                rest = self.shards.turn(self.shard, |_, _| {});
            }
            if self.shards.is_stopped() {
                return;
            }
            let timeout = if self.unread.is_empty() { rest } else { Some(Duration::ZERO) };
            let polled = poll.poll(&mut events, timeout);
            self.caller.is_waiting.store(false, Ordering::Relaxed);
            match polled {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(()) => {}
            }
            mem::swap(&mut self.ready, &mut self.unread);
            let unread = self.ready.len();
            for event in events.iter().filter(|event| event.token() != CALLED) {
                let ready = Ready::from(event);
                match self.ready[..unread].iter_mut().find(|unread| unread.slot == ready.slot) {
                    Some(unread) => {
                        unread.is_writable |= ready.is_writable;
                        unread.is_ended |= ready.is_ended;
                    }
                    None => self.ready.push(ready),
                }
            }
            rest = self.serve_all();
        }
    }

    /// Serves who is ready, does what is due, and says for how long nothing is.
    fn serve_all(&mut self) -> Option<Duration> {
        let Self { shards, shard, ready, unread, scratch, .. } = self;
        if ready.is_empty() {
            return shards.turn(*shard, |_, _| {});
        }
        let mut rest = None;
        // Each by itself, that others get at the host in between.
        for ready in ready.drain(..) {
            rest = shards.turn(*shard, |host, now| {
                if serve(host, now, ready, scratch) {
                    unread.push(Ready { is_writable: false, ..ready });
                }
            });
        }
        rest
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shards.stop();
        self.shards.keep_time(self.shard);
    }
}

/// Serves a connection, and says whether there is more to be read. A panic ends that connection alone.
fn serve(host: &mut Host<Socket>, now: Instant, ready: Ready, scratch: &mut [u8]) -> bool {
    let Some(id) = host.connection_in(ready.slot) else { return false };
    let serving = catch_unwind(AssertUnwindSafe(|| {
        if ready.is_writable && host.next(id) == (Next::Run { write: true }) {
            host.writable(now, id);
        }
        let Some(Socket(End::Tcp(stream))) = host.socket_mut(id).filter(|_| ready.is_readable) else {
            return false;
        };
        match stream.read(scratch) {
            Ok(0) => host.ended(now, id),
            Ok(len) => {
                host.received(now, id, &mut scratch[..len]);
                return len == scratch.len() || ready.is_ended || !PARTIAL_READ_IS_LAST;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => host.ended(now, id),
        }
        false
    }));
    serving.unwrap_or_else(|_| {
        host.ended(now, id);
        false
    })
}

/// Where a read that does not fill the buffer has taken everything, and the next byte makes the stream readable
/// again: epoll and kqueue. To ask once more would cost a system call for each message.
const PARTIAL_READ_IS_LAST: bool = cfg!(unix);

/// That the caller was heard.
const CALLED: Token = Token(usize::MAX);

/// Told at once.
const EVENTS_MAX: usize = 256;

/// Read at once.
const SCRATCH_LEN: usize = 64 << 10;
