//! A server on async-std whose documents live as long as it does.
//!
//! `cargo run -p yrs-websocket-async-std --example async-std-server -- 127.0.0.1:1234`

use std::{env, io, net::Shutdown, time::Instant};

use async_std::{net::TcpListener, task};
use yrs_websocket_async_std::{Closing, Options, Runtime, Service};

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
            Ok(Closing::new(stream, |stream| stream.shutdown(Shutdown::Write)))
        };
        service.serve(accept).await;
        Ok(())
    })
}
