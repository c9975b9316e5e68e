use std::{
    io::{self, IoSlice, Read as _, Write as _},
    mem,
    net::Shutdown,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Context, Wake},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Registry, Token, event::Event, net::TcpStream};
use tokio::runtime;
use yrs_websocket_host::{Admitted, Bell, Host, Next, Shards, rfc6455::Refusal, slot_of_connection, stream};

use crate::{service::sleep_until, stream::Stream};

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

/// The way of connections to the thread that serves a shard.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// `None` once nobody takes them any more.
    waiting: Mutex<Option<Vec<Connecting>>>,
    caller: Arc<Caller>,
}

#[derive(Debug)]
struct Connecting {
    stream: std::net::TcpStream,
    admitted: Admitted,
    /// Where it is refused if it comes to that: whoever is refused may take his time.
    runtime: runtime::Handle,
}

impl Incoming {
    /// Hands a connection over. Where the server is stopped, that ends it.
    pub(crate) fn push(&self, stream: std::net::TcpStream, admitted: Admitted) {
        if let Some(waiting) = &mut *self.waiting() {
            waiting.push(Connecting { stream, admitted, runtime: runtime::Handle::current() });
        }
        self.caller.call();
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Connecting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the thread of an event loop, by a system call only where it waits.
#[derive(Debug)]
struct Caller {
    waker: mio::Waker,
    is_called: AtomicBool,
    is_waiting: AtomicBool,
}

impl Caller {
    fn call(&self) {
        self.is_called.store(true, Ordering::SeqCst);
        if self.is_waiting.load(Ordering::SeqCst) {
            // It fails where the thread is gone.
            let _ = self.waker.wake();
        }
    }
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.call();
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

/// The thread that serves the TCP connections of a shard and keeps its time.
pub(crate) struct EventLoop {
    shards: Arc<Shards<Socket>>,
    shard: usize,
    registry: Registry,
    incoming: Arc<Incoming>,
    ready: Vec<Ready>,
    /// Of which the last read has not taken everything.
    unread: Vec<Ready>,
    /// Where all connections are read to: an idle connection holds no buffer.
    scratch: Vec<u8>,
}

impl EventLoop {
    /// Starts the thread, which ends when the server is stopped.
    pub(crate) fn start(
        shards: &Arc<Shards<Socket>>,
        shard: usize,
    ) -> io::Result<(Arc<Incoming>, JoinHandle<()>)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let caller = Caller {
            waker: mio::Waker::new(&registry, CALLED)?,
            is_called: AtomicBool::new(true),
            is_waiting: AtomicBool::new(false),
        };
        let incoming = Arc::new(Incoming { waiting: Mutex::new(Some(Vec::new())), caller: Arc::new(caller) });
        let mut event_loop = Self {
            shards: Arc::clone(shards),
            shard,
            registry,
            incoming: Arc::clone(&incoming),
            ready: Vec::new(),
            unread: Vec::new(),
            scratch: vec![0; SCRATCH_LEN],
        };
        let thread = thread::Builder::new().name(format!("yrs-shard-{shard}"));
        let thread = thread.spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(|| event_loop.run(poll)));
            // Even after a panic: no connection must stay that nobody reads. Half a server would be worse than none.
            event_loop.shards.stop();
            *event_loop.incoming.waiting() = None;
            let _ = catch_unwind(AssertUnwindSafe(|| event_loop.shards.keep_time(shard)));
        })?;
        Ok((incoming, thread))
    }

    fn run(&mut self, mut poll: Poll) {
        let waker = task::Waker::from(Arc::clone(&self.incoming.caller));
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut rest = None;
        loop {
            // Who calls from here on ends the wait below; who has called before is heard now, and then whether it is
            // over.
            let caller = &self.incoming.caller;
            caller.is_waiting.store(true, Ordering::SeqCst);
            if caller.is_called.load(Ordering::SeqCst) {
                caller.is_called.store(false, Ordering::SeqCst);
                while self.shards.bell(self.shard).poll(&mut Context::from_waker(&waker)).is_ready() {}
                let connecting = self.incoming.waiting().as_mut().map(mem::take).unwrap_or_default();
                connecting.into_iter().for_each(|connecting| self.connect(connecting));
                rest = self.shards.turn(self.shard, |_, _| {});
            }
            if self.shards.is_stopped() {
                return;
            }
            let timeout = if self.unread.is_empty() { rest } else { Some(Duration::ZERO) };
            let polled = poll.poll(&mut events, timeout.map(|timeout| timeout.min(WAIT_MAX)));
            caller.is_waiting.store(false, Ordering::Relaxed);
            match polled {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    panic!("the system does not tell what its sockets do: {error}")
                }
                // Where it was interrupted there are no events, and the time is looked at anew.
                Ok(()) | Err(_) => {}
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

    fn connect(&self, Connecting { stream, admitted, runtime }: Connecting) {
        let socket = Socket(End::Tcp(TcpStream::from_std(stream)));
        match self.shards.connect(socket, admitted) {
            Ok(id) => self.shards.with(self.shard, |host, now| {
                let Some(Socket(End::Tcp(stream))) = host.socket_mut(id) else { return };
                // Only now is its slot known. What has come meanwhile is told all the same.
                let token = Token(slot_of_connection(id));
                if self.registry.register(stream, token, Interest::READABLE | Interest::WRITABLE).is_err() {
                    host.ended(now, id);
                }
            }),
            Err((Socket(End::Tcp(stream)), refusal)) => {
                drop(runtime.spawn(refuse(Arc::clone(&self.shards), stream.into(), refusal)));
            }
            Err((Socket(End::Task(_)), _)) => unreachable!("what is given back is what was given"),
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

async fn refuse(shards: Arc<Shards<Socket>>, stream: std::net::TcpStream, refusal: Refusal) {
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
    let linger = sleep_until(shards.now() + stream::REFUSAL_LINGER);
    let _ = stream::refuse(&mut Stream(stream), &refusal, linger).await;
}

/// Serves a connection, and says whether there is more to be read. A panic ends that connection, as it would a task.
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
const PARTIAL_READ_IS_LAST: bool = cfg!(any(
    target_os = "android",
    target_os = "freebsd",
    target_os = "illumos",
    target_os = "linux",
    target_os = "netbsd",
    target_os = "openbsd",
    target_vendor = "apple",
));

/// That somebody has called.
const CALLED: Token = Token(usize::MAX);

/// Some systems refuse to wait for years.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Told at once.
const EVENTS_MAX: usize = 256;

/// Read at once.
const SCRATCH_LEN: usize = 64 << 10;
