use std::{future::Future, io};

use futures_io::{AsyncRead, AsyncWrite};
use yrs::Doc;
use yrs_websocket_host::{ClientHandle, ClientOptions, seed, stream};

use crate::{Runtime, Stream, now};

/// A document's connection to a room on a server: made again whenever it is lost, until it is left.
#[derive(Debug)]
pub struct Client<R> {
    client: yrs_websocket_host::Client,
    runtime: R,
}

impl<R: Runtime> Client<R> {
    /// Makes a client; it does nothing before it runs.
    pub fn new(runtime: R, doc: Doc, options: ClientOptions) -> Self {
        Self { client: yrs_websocket_host::Client::new(doc, options, seed()), runtime }
    }

    /// A handle for the application.
    pub fn handle(&self) -> ClientHandle {
        self.client.handle()
    }

    /// Runs over what `dial` opens until it is [left](ClientHandle::leave), or the server says to stay
    /// away. Says whether there are changes that the server has not acknowledged. May run again.
    pub async fn run<S, D>(&mut self, mut dial: impl FnMut() -> D) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
        D: Future<Output = io::Result<S>>,
    {
        let dial = || {
            let dialling = dial();
            async move { dialling.await.map(Stream) }
        };
        stream::run_client(&mut self.client, dial, |at| self.runtime.sleep_until(at), now).await
    }
}
