//! A WebSocket echo server on the WebSocket layer alone, as the Autobahn|Testsuite wants it.
//!
//! `cargo run --release -p yrs-websocket-async-std --example async-std-echo -- 127.0.0.1:9001`

use std::{env, io, net::Shutdown, time::Duration, time::Instant};

use async_std::{
    io::{ReadExt, WriteExt, timeout},
    net::{TcpListener, TcpStream},
    task,
};
use yrs_websocket_async_std::rfc6455::{Acceptor, Config, Connection, Deflate, Event, HandshakeLimits, Role};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    task::block_on(async {
        let listener = TcpListener::bind(&address).await?;
        println!("echoing on ws://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            task::spawn(async { echo(stream).await.unwrap_or_else(|error| eprintln!("{error}")) });
        }
    })
}

#[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(DEFLATE));
    let request = loop {
        let len = stream.read(&mut buffer).await?;
        match acceptor.receive(&buffer[..len]) {
            Ok(Some(request)) => break request,
            Ok(None) if len == 0 => return Ok(()),
            Ok(None) => {}
            Err(refusal) => return stream.write_all(&refusal.to_bytes()).await,
        }
    };
    stream.write_all(&request.accept(None, &[]).map_err(io::Error::other)?).await?;
    let connection = Connection::new(Role::Server, Config::default(), Instant::now());
    let mut connection = connection.with_deflate(request.deflate());
    let mut input = &mut request.into_rest()[..];
    loop {
        while let Some(event) = connection.receive(Instant::now(), &mut input) {
            match event {
                Event::Binary(payload) => connection.send_binary(&payload),
                Event::Text(text) => connection.send_text(text.as_str()),
                Event::Ping(_) | Event::Pong(_) | Event::Closed(_) => {}
            }
            // After each event: an answer leaves before the close frame that a later frame may provoke.
            while let Some(output) = connection.next_output() {
                stream.write_all(&output).await?;
            }
        }
        let mut patience = YEAR;
        if connection.is_closed() {
            stream.shutdown(Shutdown::Write)?;
            patience = Duration::from_secs(5);
        }
        match timeout(patience, stream.read(&mut buffer)).await? {
            0 => return Ok(()),
            len => input = &mut buffer[..len],
        }
    }
}

/// The suite measures compression: everything is compressed, for who offers it.
const DEFLATE: Deflate = Deflate { level: 1, len_min: 0 };
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
