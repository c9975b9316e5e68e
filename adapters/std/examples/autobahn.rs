//! The client of the Autobahn|Testsuite: runs every case that a fuzzing server has, echoing, as our client role.
//!
//! `cargo run --release -p yrs-websocket-std --example autobahn-client -- 127.0.0.1:9001`

use std::{
    env,
    io::{self, Read, Write},
    net::TcpStream,
    time::Instant,
};

use yrs_websocket_std::rfc6455::{
    ClientHandshake, ClientRequest, Config, Connection, Deflate, Event, HandshakeLimits, Role,
};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    let mut count = String::new();
    run(&address, "/getCaseCount", 0, |_, event| {
        if let Event::Text(text) = event {
            count = text.as_str().into();
        }
    })?;
    let count: u64 = count.parse().map_err(io::Error::other)?;
    for case in 1..=count {
        run(
            &address,
            &format!("/runCase?case={case}&agent={AGENT}"),
            case,
            |connection, event| match event {
                Event::Binary(payload) => connection.send_binary(payload),
                Event::Text(text) => connection.send_text(text.as_str()),
                Event::Ping(_) | Event::Pong(_) | Event::Closed(_) => {}
            },
        )?;
    }
    run(&address, &format!("/updateReports?agent={AGENT}"), 0, |_, _| {})?;
    println!("ran {count} cases");
    Ok(())
}

/// Connects, and shows each event to `on_event`, to the end of the connection.
///
/// The seeds of a client in production cannot be guessed; here they let a case run again as it ran.
#[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
fn run(
    address: &str,
    target: &str,
    seed: u64,
    mut on_event: impl FnMut(&mut Connection, &Event),
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let request = ClientRequest { host: address.into(), target: target.into(), ..ClientRequest::default() };
    let handshake =
        ClientHandshake::new(request, HandshakeLimits::default(), seed).map_err(io::Error::other)?;
    let mut handshake = handshake.with_deflate(Some(DEFLATE));
    stream.write_all(handshake.request())?;
    let mut buffer = vec![0; 64 << 10];
    let upgraded = loop {
        let len = stream.read(&mut buffer)?;
        match handshake.receive(&buffer[..len]).map_err(io::Error::other)? {
            Some(upgraded) => break upgraded,
            None if len == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    };
    let connection = Connection::new(Role::Client { mask_seed: seed }, Config::default(), Instant::now());
    let mut connection = connection.with_deflate(upgraded.deflate);
    let mut rest = upgraded.into_rest();
    let mut input = &mut rest[..];
    loop {
        while let Some(event) = connection.receive(Instant::now(), &mut input) {
            on_event(&mut connection, &event);
            while let Some(output) = connection.next_output() {
                // The server may have ended a case that it has seen enough of.
                if stream.write_all(&output).is_err() {
                    return Ok(());
                }
            }
        }
        // The server closes the stream, after a close frame or without one.
        match stream.read(&mut buffer) {
            Ok(len) if len > 0 => input = &mut buffer[..len],
            _ => return Ok(()),
        }
    }
}

const AGENT: &str = "yrs-websocket";

/// The suite measures compression: everything is compressed, where the server agrees.
const DEFLATE: Deflate = Deflate { level: 1, len_min: 0 };
