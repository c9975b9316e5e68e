//! A server whose documents live as long as it does.
//!
//! `cargo run -p yrs-websocket-tokio --example server -- 127.0.0.1:1234`

use std::{env, io};

use tokio::net::TcpListener;
use yrs_websocket_tokio::{Options, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1234".into());
    let listener = TcpListener::bind(&address).await?;
    println!("serving on ws://{}", listener.local_addr()?);
    serve(listener, Options::default()).await
}
