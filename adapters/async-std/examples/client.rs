//! Joins a room on smol, prints its text as it changes, appends what is typed.
//!
//! `cargo run -p yrs-websocket-async-std --example async-std-client -- 127.0.0.1:1234 notes Ada`

use std::{
    env, io,
    sync::Arc,
    time::{Duration, Instant},
};

use smol::{Timer, Unblock, io::AsyncBufReadExt, io::BufReader, net::TcpStream, stream::StreamExt};
use yrs::{Doc, GetString, Observable, Text, Transact};
use yrs_websocket_async_std::{Client, ClientOptions, PresenceState, Runtime};

#[derive(Clone)]
struct Smol;

impl Runtime for Smol {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        smol::spawn(task).detach();
    }

    async fn sleep_until(&self, at: Instant) {
        Timer::at(at).await;
    }
}

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
    let mut client = Client::new(Smol, doc.clone(), options);
    let handle = client.handle();
    handle.set_presence(PresenceState::new(&format!("{{\"user\":{{\"name\":{name:?}}}}}")).ok());
    smol::block_on(async {
        let running = smol::spawn(async move { client.run(|| TcpStream::connect(&address)).await });
        let mut lines = BufReader::new(Unblock::new(io::stdin())).lines();
        while let Some(line) = lines.next().await {
            text.push(&mut doc.transact_mut(), &format!("{}\n", line?));
        }
        handle.leave(Instant::now() + Duration::from_secs(5));
        if running.await {
            eprintln!("not everything has reached the server");
        }
        Ok(())
    })
}
