use std::{future::Future, io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};
use yrs::Doc;
use yrs_websocket_host::{ClientHandle, ClientOptions, seed, stream};

use crate::{
    service::{now, sleep_until},
    stream::Stream,
};

/// A document's connection to a room on a server: made again whenever it is lost, until it is left.
///
/// ```no_run
/// use yrs_websocket_tokio::{Client, ClientOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let doc = yrs::Doc::new();
/// let mut client = Client::new(doc.clone(), ClientOptions::new("127.0.0.1:1234", "notes"));
/// let handle = client.handle();
/// let running = tokio::spawn(async move { client.run("127.0.0.1:1234").await });
/// // ... edit `doc` as you like, and in the end:
/// handle.leave(std::time::Instant::now() + std::time::Duration::from_secs(5));
/// let unacknowledged = running.await.unwrap();
/// # }
/// ```
#[derive(Debug)]
pub struct Client(yrs_websocket_host::Client);

impl Client {
    /// Makes a client; it does nothing before it runs.
    pub fn new(doc: Doc, options: ClientOptions) -> Self {
        Self(yrs_websocket_host::Client::new(doc, options, seed()))
    }

    /// A handle for the application.
    pub fn handle(&self) -> ClientHandle {
        self.0.handle()
    }

    /// Runs over TCP to `host:port` until it is [left](ClientHandle::leave), or the server says to stay
    /// away. Says whether there are changes that the server has not acknowledged. May run again.
    pub async fn run(&mut self, address: &str) -> bool {
        self.run_over(|| connect(address)).await
    }

    /// The same over streams of any kind, TLS for example.
    pub async fn run_over<S, D>(&mut self, mut dial: impl FnMut() -> D) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
        D: Future<Output = io::Result<S>>,
    {
        let dial = || {
            let dialling = dial();
            async move { dialling.await.map(Stream) }
        };
        stream::run_client(&mut self.0, dial, sleep_until, now).await
    }
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
    let stream = TcpStream::connect(&addresses[..]).await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
