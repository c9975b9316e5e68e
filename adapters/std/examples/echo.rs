//! A WebSocket echo server on the WebSocket layer alone, as the Autobahn|Testsuite wants it.
//!
//! `cargo run --release -p yrs-websocket-std --example std-echo -- 127.0.0.1:9001`

use std::{
    env,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use yrs_websocket_std::rfc6455::{Acceptor, Config, Connection, Deflate, Event, HandshakeLimits, Role};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    let listener = TcpListener::bind(&address)?;
    println!("echoing on ws://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::Builder::new().spawn(|| echo(stream).unwrap_or_else(|error| eprintln!("{error}")))?;
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(DEFLATE));
    let request = loop {
        let len = stream.read(&mut buffer)?;
        match acceptor.receive(&buffer[..len]) {
            Ok(Some(request)) => break request,
            Ok(None) if len == 0 => return Ok(()),
            Ok(None) => {}
            Err(refusal) => return stream.write_all(&refusal.to_bytes()),
        }
    };
    stream.write_all(&request.accept(None, &[]).map_err(io::Error::other)?)?;
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
                stream.write_all(&output)?;
            }
        }
        if connection.is_closed() {
            stream.shutdown(Shutdown::Write)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            len => input = &mut buffer[..len],
        }
    }
}

/// The suite measures compression: everything is compressed, for who offers it.
const DEFLATE: Deflate = Deflate { level: 1, len_min: 0 };
