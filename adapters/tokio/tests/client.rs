//! Our clients over streams that are not TCP; what they do over TCP is in `tests/matrix`.

mod common;

use std::time::Duration;

use common::{deadline, on_both_runtimes};
use tokio::{io::duplex, sync::mpsc, task::JoinHandle};
use yrs::{Doc, Text, Transact};
use yrs_websocket_tokio::{Client, ClientHandle, ClientOptions, Options, Service};

#[test]
fn over_a_pipe_of_a_few_bytes_everything_arrives() {
    on_both_runtimes(|| async {
        let service = Service::in_memory(Options::default(), 1).unwrap();
        let (alice, bob) = (Doc::with_client_id(1), Doc::with_client_id(2));
        let (changed, mut changes) = mpsc::unbounded_channel();
        bob.observe_update_v1("test", move |_, _| _ = changed.send(())).unwrap();
        let ends = [connect(&service, &alice), connect(&service, &bob)];
        alice.get_or_insert_text("text").push(&mut alice.transact_mut(), &"x".repeat(50_000));
        let text = bob.get_or_insert_text("text");
        while text.len(&bob.transact()) < 50_000 {
            changes.recv().await.expect("the document is there");
        }
        for (handle, running) in ends {
            handle.leave(deadline(Duration::from_secs(60)));
            assert!(!running.await.unwrap());
        }
    });
}

fn connect(service: &Service, doc: &Doc) -> (ClientHandle, JoinHandle<bool>) {
    let mut client = Client::new(doc.clone(), ClientOptions::new("localhost", "notes"));
    let (handle, service) = (client.handle(), service.clone());
    let dial = move || {
        let (near, far) = duplex(16);
        let service = service.clone();
        tokio::spawn(async move { service.accept_stream(far).await });
        async move { Ok(near) }
    };
    (handle, tokio::spawn(async move { client.run_over(dial).await }))
}
