//! Joins a room, prints its text as it changes, appends what is typed.
//!
//! `cargo run -p yrs-websocket-tokio --example client -- 127.0.0.1:1234 notes Ada`

use std::{
    env, io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use yrs::{Doc, GetString, Observable, Text, Transact};
use yrs_websocket_tokio::{Client, ClientOptions, PresenceState};

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::disallowed_methods, reason = "a program touches the world")]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1234".into());
    let room = env::args().nth(2).unwrap_or_else(|| "notes".into());
    let name = env::args().nth(3).unwrap_or_else(|| "somebody".into());
    let doc = Doc::new();
    let text = doc.get_or_insert_text("text");
    text.observe("print", {
        let text = text.clone();
        move |transaction, _| println!("--\n{}", text.get_string(transaction))
    });
    let mut options = ClientOptions::new(&address, &room);
    options.on_event = Some(Arc::new(|event| eprintln!("{event:?}")));
    options.on_dial_error = Some(Arc::new(|error| eprintln!("{error}")));
    let mut client = Client::new(doc.clone(), options);
    let handle = client.handle();
    handle.set_presence(PresenceState::new(&format!("{{\"user\":{{\"name\":{name:?}}}}}")).ok());
    let running = tokio::spawn(async move { client.run(&address).await });

    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut transaction = doc.transact_mut();
        text.push(&mut transaction, &format!("{line}\n"));
    }
    handle.leave(Instant::now() + Duration::from_secs(5));
    if running.await? {
        eprintln!("not everything has reached the server");
    }
    Ok(())
}
