//! yrs-websocket on `futures-io` streams: Yjs rooms and clients on smol, async-std and their like.
//!
//! async-std is no longer developed: its authors name [smol] as the successor. Both work; what is asked of
//! a runtime is [`Runtime`], to spawn and to sleep.
//!
//! ```no_run
//! use std::time::Instant;
//! use yrs_websocket_async_std::{Options, Runtime, Service};
//!
//! #[derive(Clone)]
//! struct Smol;
//!
//! impl Runtime for Smol {
//!     fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
//!         smol::spawn(task).detach();
//!     }
//!
//!     async fn sleep_until(&self, at: Instant) {
//!         smol::Timer::at(at).await;
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! smol::block_on(async {
//!     let listener = smol::net::TcpListener::bind("127.0.0.1:1234").await?;
//!     let service = Service::in_memory(Smol, Options::default(), 2);
//!     service.serve(|| async { Ok(listener.accept().await?.0) }).await;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! Closing a stream has to shut down its write side, or a client that waits for the end waits until the
//! server gives it up, 5 s later. smol's streams do so; around those of async-std goes [`Closing`].
//!
//! A stream is written by its own task only: a broadcast wakes the tasks of all who get it. Where that
//! matters, the adapters for tokio and `std` write directly.
//!
//! [smol]: https://docs.rs/smol

mod client;
mod service;

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

pub use client::Client;
use futures_io::{AsyncRead, AsyncWrite};
pub use service::{Service, Socket};
use yrs_websocket_host::stream;
pub use yrs_websocket_host::{
    Admission, Admitted, ClientHandle, ClientOptions, Counters, DialError, Drained, Hooks, Limits, Options,
    PresenceState, Shards, provider, rfc6455, target,
};

/// What is asked of a runtime.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Runs a task to its end.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);

    /// Is ready at this time.
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// A stream of `futures-io`.
struct Stream<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> stream::Stream for Stream<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// A stream whose write side is shut down by a function, because its own `poll_close` does not do so.
///
/// ```no_run
/// # use std::{io, net::Shutdown};
/// # use yrs_websocket_async_std::Closing;
/// # async fn accept(listener: async_std::net::TcpListener) -> io::Result<Closing<async_std::net::TcpStream>> {
/// let (stream, _) = listener.accept().await?;
/// Ok(Closing::new(stream, |stream| stream.shutdown(Shutdown::Write)))
/// # }
/// ```
#[derive(Debug)]
pub struct Closing<S> {
    stream: S,
    shut_down: fn(&S) -> io::Result<()>,
}

impl<S> Closing<S> {
    /// Puts it around a stream.
    pub fn new(stream: S, shut_down: fn(&S) -> io::Result<()>) -> Self {
        Self { stream, shut_down }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Closing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Closing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready((self.shut_down)(&self.stream))
    }
}

#[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
fn now() -> Instant {
    Instant::now()
}
