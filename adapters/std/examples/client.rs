//! Joins a room, prints its text as it changes, appends what is typed.
//!
//! `cargo run -p yrs-websocket-std --example std-client -- 127.0.0.1:1234 notes Ada`

use std::{
    env, io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use yrs::{Doc, GetString, Observable, Text, Transact};
use yrs_websocket_std::{Client, ClientOptions, PresenceState};

#[allow(clippy::disallowed_methods, reason = "a program touches the world")]
fn main() -> io::Result<()> {
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
    let running = thread::spawn(move || client.run(&address));

    for line in io::stdin().lines() {
        let line = line?;
        text.push(&mut doc.transact_mut(), &format!("{line}\n"));
    }
    handle.leave(Instant::now() + Duration::from_secs(5));
    if running.join().unwrap_or(true) {
        eprintln!("not everything has reached the server");
    }
    Ok(())
}
