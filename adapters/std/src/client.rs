use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use yrs::Doc;
use yrs_websocket_host::{Bell, ClientHandle, ClientNext, ClientOptions, seed};

use crate::connection::{BUFFER_LEN, not_in_time};

/// A document's connection to a room on a server: made again whenever it is lost, until it is left.
///
/// ```no_run
/// use yrs_websocket_std::{Client, ClientOptions};
///
/// let doc = yrs::Doc::new();
/// let mut client = Client::new(doc.clone(), ClientOptions::new("127.0.0.1:1234", "notes"));
/// let handle = client.handle();
/// let running = std::thread::spawn(move || client.run("127.0.0.1:1234"));
/// // ... edit `doc` as you like, and in the end:
/// handle.leave(std::time::Instant::now() + std::time::Duration::from_secs(5));
/// let unacknowledged = running.join().unwrap();
/// ```
#[derive(Debug)]
pub struct Client {
    client: yrs_websocket_host::Client,
    connect_timeout: Duration,
}

/// A stream, and what its thread has read.
struct Link {
    stream: TcpStream,
    read: Receiver<Vec<u8>>,
}

impl Client {
    /// Makes a client; it does nothing before it runs.
    pub fn new(doc: Doc, options: ClientOptions) -> Self {
        let connect_timeout = options.provider.connect_timeout;
        Self { client: yrs_websocket_host::Client::new(doc, options, seed()), connect_timeout }
    }

    /// A handle for the application.
    pub fn handle(&self) -> ClientHandle {
        self.client.handle()
    }

    /// Runs over TCP to `host:port` until it is [left](ClientHandle::leave), or the server says to stay
    /// away. Says whether there are changes that the server has not acknowledged. May run again.
    ///
    /// While it connects it does nothing else: to leave may take until then.
    #[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
    pub fn run(&mut self, address: &str) -> bool {
        let client = &mut self.client;
        let bell = Arc::clone(client.bell());
        let mut link: Option<Link> = None;
        client.start();
        client.wake(Instant::now());
        loop {
            let next = client.next();
            let mut is_waiting = true;
            match (next, &link) {
                (ClientNext::Stopped { unacknowledged }, _) => return unacknowledged,
                (ClientNext::Dial, _) => match Link::dial(address, self.connect_timeout, &bell) {
                    Ok(dialled) => {
                        link = Some(dialled);
                        client.dialled(Instant::now());
                        continue;
                    }
                    Err(error) => {
                        client.dial_failed(Instant::now(), error);
                        continue;
                    }
                },
                (ClientNext::Drop, _) => {
                    link = None;
                    client.dropped(Instant::now());
                    continue;
                }
                (ClientNext::Run { write: true }, Some(link)) => {
                    let mut write = &link.stream;
                    let _ =
                        client.write_by(Instant::now(), |slices| not_in_time(write.write_vectored(slices)));
                    is_waiting = client.next() == (ClientNext::Run { write: false });
                }
                (ClientNext::Run { .. } | ClientNext::Wait, _) => {}
            }
            match link.as_ref().map(|link| link.read.try_recv()) {
                Some(Ok(mut bytes)) => client.received(Instant::now(), &mut bytes),
                Some(Err(TryRecvError::Disconnected)) => client.ended(Instant::now()),
                Some(Err(TryRecvError::Empty)) | None if is_waiting => {
                    let due = client.next_timeout();
                    bell.wait(due.map(|due| due.saturating_duration_since(Instant::now())));
                }
                Some(Err(TryRecvError::Empty)) | None => {}
            }
            client.wake(Instant::now());
        }
    }
}

impl Link {
    fn dial(address: &str, timeout: Duration, bell: &Arc<Bell>) -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for address in address.to_socket_addrs()? {
            result = TcpStream::connect_timeout(&address, timeout);
            if result.is_ok() {
                break;
            }
        }
        let stream = result?;
        let _ = stream.set_nodelay(true);
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let mut reader = stream.try_clone()?;
        let bell = Arc::clone(bell);
        // What is not yet taken holds the server up, not this process.
        let (sender, read) = sync_channel(READ_AHEAD);
        thread::Builder::new().name("yrs-client".into()).spawn(move || {
            let mut buffer = vec![0; BUFFER_LEN];
            loop {
                match reader.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(len) if len > 0 && sender.send(buffer[..len].to_vec()).is_ok() => bell.ring(),
                    Ok(_) | Err(_) => break,
                }
            }
            drop(sender);
            bell.ring();
        })?;
        Ok(Self { stream, read })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// How long a write may hold up what was read.
const WRITE_TIMEOUT: Duration = Duration::from_millis(10);

/// Reads that wait to be taken.
const READ_AHEAD: usize = 4;
