//! A server on async-std whose documents live as long as it does.
//!
//! `cargo run -p yrs-websocket-async-std --example async-std-server -- 127.0.0.1:1234`

use std::{
    env,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use async_std::{
    net::{TcpListener, TcpStream},
    task,
};
use smol::io::{AsyncRead, AsyncWrite};
use yrs_websocket_async_std::{Options, Runtime, Service};

#[derive(Clone)]
struct AsyncStd;

impl Runtime for AsyncStd {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        task::spawn(task);
    }

    #[allow(clippy::disallowed_methods, reason = "a program touches the world")]
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        task::sleep(at.saturating_duration_since(Instant::now()))
    }
}

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1234".into());
    task::block_on(async {
        let listener = TcpListener::bind(&address).await?;
        println!("serving on ws://{}", listener.local_addr()?);
        let service = Service::in_memory(AsyncStd, Options::default(), 2);
        let accept = || async {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Closing(stream))
        };
        service.serve(accept).await;
        Ok(())
    })
}

/// Shuts down the write side when it is closed, which the streams of async-std do not.
struct Closing(TcpStream);

impl AsyncRead for Closing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Closing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown(Shutdown::Write))
    }
}
