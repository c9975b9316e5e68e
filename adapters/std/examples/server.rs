//! A server whose documents live as long as it does.
//!
//! `cargo run -p yrs-websocket-std --example std-server -- 127.0.0.1:1234`

use std::{env, io, net::TcpListener, thread};

use yrs_websocket_std::{Options, Service};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1234".into());
    let listener = TcpListener::bind(&address)?;
    println!("serving on ws://{}", listener.local_addr()?);
    let shards = thread::available_parallelism().map_or(1, Into::into);
    Service::in_memory(Options::default(), shards)?.serve(&listener);
    Ok(())
}
