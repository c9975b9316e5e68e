//! Our clients and a service, over TCP and over pipes.

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use common::{Disk, deadline, on_both_runtimes, options, serve};
use tokio::{
    io::duplex,
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
};
use yrs::{Doc, GetString, Text, Transact};
use yrs_websocket::provider::{Event, PresenceState};
use yrs_websocket_tokio::{Admission, Client, ClientHandle, ClientOptions, Options, Service, target};

#[test]
fn two_clients_converge_and_see_each_other() {
    on_both_runtimes(|| async {
        let service = Service::in_memory(Options::default(), 2).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Peer::connect(address, 1);
        let mut bob = Peer::connect(address, 2);
        alice.handle.set_presence(Some(PresenceState::new("{\"name\":\"alice\"}").unwrap()));
        bob.until(|event| matches!(event, Event::Presence { state: Some(_), .. })).await;
        assert_eq!(bob.handle.presence().len(), 1);
        for _ in 0..20 {
            alice.edit("a");
            bob.edit("b");
        }
        alice.until_len(40).await;
        bob.until_len(40).await;
        assert_eq!(alice.text(), bob.text());
        assert!(!alice.leave().await);
        bob.until(|event| matches!(event, Event::Presence { state: None, .. })).await;
        assert_eq!(service.counters().connections, 1);
    });
}

#[test]
fn a_server_that_is_killed_and_started_again_is_found_and_what_was_written_meanwhile_merged() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let start = || Service::with_store(options().0, 2, disk.clone()).unwrap();
        let service = start();
        let (address, serving) = serve(&service).await;
        let mut alice = Peer::connect(address, 1);
        let mut bob = Peer::connect(address, 2);
        let mut len = 0;
        let mut service = Some((service, serving));
        for round in 0..5 {
            alice.edit("a");
            bob.edit("b");
            len += 2;
            alice.until_len(len).await;
            bob.until_len(len).await;
            alice.acknowledged(&mut Vec::new()).await;
            bob.acknowledged(&mut Vec::new()).await;
            let text = alice.text();
            let (old, serving) = service.take().unwrap();
            serving.abort();
            let _ = serving.await;
            if round % 2 == 0 {
                old.drain(deadline(Duration::from_secs(5))).await;
            }
            drop(old);
            alice.until(|event| matches!(event, Event::Disconnected { .. })).await;
            bob.until(|event| matches!(event, Event::Disconnected { .. })).await;
            assert_eq!(disk.text("notes"), text, "acknowledged, and not stored");
            alice.edit("offline");
            bob.edit("too");
            len += 10;
            let new = start();
            let listener = TcpListener::bind(address).await.unwrap();
            let serving = tokio::spawn({
                let new = new.clone();
                async move { new.serve(listener).await }
            });
            service = Some((new, serving));
            alice.until_len(len).await;
            bob.until_len(len).await;
            assert_eq!(alice.text(), bob.text());
        }
        assert!(!alice.leave().await && !bob.leave().await);
        assert_eq!(disk.text("notes"), alice.text());
    });
}

#[test]
fn twenty_clients_edit_while_the_server_crashes_fifty_times_and_nothing_acknowledged_is_lost() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let start = || Service::with_store(options().0, 2, disk.clone()).unwrap();
        let service = start();
        let (address, serving) = serve(&service).await;
        let mut service = Some((service, serving));
        let patient = |options: &mut ClientOptions| {
            options.provider.retry_delay_min = Duration::from_millis(40);
            options.provider.retry_delay_max = Duration::from_millis(160);
        };
        let mut peers: Vec<_> = (1..=20).map(|id| Peer::connect_with(address, id, patient)).collect();
        let letter = |index: usize| char::from(b'a' + index as u8);
        let count = |text: &str, index: usize| text.chars().filter(|found| *found == letter(index)).count();
        let mut delays = Vec::new();
        for round in 0..50 {
            for (index, peer) in peers.iter().enumerate() {
                peer.edit(&letter(index).to_string());
            }
            // The others are in the middle of something.
            let first = round % peers.len();
            for peer in &mut peers[first..] {
                peer.acknowledged(&mut delays).await;
            }
            let acknowledged: Vec<_> = peers
                .iter()
                .map(|peer| if peer.handle.has_unacknowledged() { String::new() } else { peer.text() })
                .collect();
            let (old, serving) = service.take().unwrap();
            serving.abort();
            let _ = serving.await;
            drop(old);
            let stored = disk.text("notes");
            for (index, text) in acknowledged.iter().enumerate() {
                assert!(count(&stored, index) >= count(text, index), "acknowledged, and not stored");
            }
            let new = start();
            let listener = TcpListener::bind(address).await.unwrap();
            let serving = tokio::spawn({
                let new = new.clone();
                async move { new.serve(listener).await }
            });
            service = Some((new, serving));
        }
        for peer in &mut peers {
            peer.until_len(20 * 50).await;
            peer.acknowledged(&mut delays).await;
        }
        let text = peers[0].text();
        assert!(peers.iter().all(|peer| peer.text() == text));
        assert_eq!(disk.text("notes"), text);
        assert_eq!((0..20).map(|index| count(&text, index)).collect::<Vec<_>>(), [50; 20]);
        print_distribution(&delays);
    });
}

fn print_distribution(delays: &[Duration]) {
    let mut buckets = std::collections::BTreeMap::new();
    for delay in delays {
        *buckets.entry(delay.as_millis() / 4 * 4).or_insert(0) += 1;
    }
    println!("{} attempts, by the milliseconds they waited:", delays.len());
    for (millis, count) in buckets {
        println!("{millis:>4} {count:>4} {}", "#".repeat(count / 10));
    }
}

#[test]
fn who_leaves_is_stored_first() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let service = Service::with_store(Options::default(), 1, disk.clone()).unwrap();
        let (address, _) = serve(&service).await;
        for id in 1..10u32 {
            let mut peer = Peer::connect(address, id.into());
            // Perhaps before it is connected.
            peer.edit("x");
            assert!(!peer.leave().await);
            assert_eq!(disk.text("notes").len(), id as usize);
        }
    });
}

#[test]
fn who_cannot_reach_anybody_leaves_at_the_deadline() {
    on_both_runtimes(|| async {
        // Nobody accepts there.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = Peer::connect(listener.local_addr().unwrap(), 1);
        peer.edit("x");
        peer.until(|event| *event == Event::Unacknowledged).await;
        peer.handle.leave(deadline(Duration::ZERO));
        assert!((&mut peer.running).await.unwrap());
    });
}

#[test]
fn each_attempt_asks_with_a_token_of_its_own_until_the_server_says_stop() {
    on_both_runtimes(|| async {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        let mut options = Options::default();
        options.hooks.on_request = Some(Arc::new(move |request| {
            let mut heard = hearing.lock().unwrap();
            heard.push((request.query.clone().unwrap(), request.header("x-try").unwrap().to_owned()));
            if heard.len() < 3 {
                return Err(yrs_websocket_tokio::rfc6455::Refusal::new(401));
            }
            let mut admission = Admission::by_path(request)?;
            assert_eq!(admission.subprotocol.as_deref(), Some("notes.v1"));
            admission.expires_at = Some(deadline(Duration::from_millis(1)));
            Ok(admission)
        }));
        let service = Service::in_memory(options, 1).unwrap();
        let (address, _) = serve(&service).await;
        let count = Mutex::new(0);
        let mut peer = Peer::connect_with(address, 1, |options| {
            options.request.subprotocols = vec!["notes.v1".into()];
            options.on_dial = Some(Arc::new(move |request| {
                let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
                *count += 1;
                request.target = target("nötes/1", &[("token", &format!("{count}&{count}"))]);
                request.headers.push(("X-Try".into(), count.to_string()));
            }));
        });
        assert!(!(&mut peer.running).await.unwrap());
        let expected = (1..=3).map(|n| (format!("token={n}%26{n}"), n.to_string())).collect::<Vec<_>>();
        assert_eq!(*heard.lock().unwrap(), expected);
    });
}

#[test]
fn a_pipe_of_a_few_bytes_does_what_tcp_does() {
    on_both_runtimes(|| async {
        let service = Service::in_memory(Options::default(), 1).unwrap();
        let (address, _) = serve(&service).await;
        let mut bob = Peer::connect(address, 2);
        let doc = Doc::with_client_id(1);
        let mut client = Client::new(doc.clone(), ClientOptions::new("localhost", "notes"));
        let handle = client.handle();
        let running = tokio::spawn(async move {
            let dial = || {
                let (near, far) = duplex(16);
                let service = service.clone();
                tokio::spawn(async move { service.accept_stream(far).await });
                async move { Ok(near) }
            };
            client.run_over(dial).await
        });
        let long = "x".repeat(50_000);
        doc.get_or_insert_text("text").push(&mut doc.transact_mut(), &long);
        bob.until_len(50_000).await;
        handle.leave(deadline(Duration::from_secs(60)));
        assert!(!running.await.unwrap());
    });
}

#[test]
fn observers_and_hooks_may_use_the_handle_and_the_document() {
    on_both_runtimes(|| async {
        let service = Service::in_memory(Options::default(), 1).unwrap();
        let (address, _) = serve(&service).await;
        let mut bob = Peer::connect(address, 2);
        let handle: Arc<Mutex<Option<ClientHandle>>> = Arc::default();
        let handle_of_hook = Arc::clone(&handle);
        let alice = Peer::connect_with(address, 1, move |options| {
            let hear = options.on_event.take().unwrap();
            options.on_event = Some(Arc::new(move |event| {
                // A hook is called in no transaction: it may edit.
                if *event == Event::Synced
                    && let Some(handle) = &*handle_of_hook.lock().unwrap()
                {
                    let text = handle.doc().get_or_insert_text("text");
                    text.push(&mut handle.doc().transact_mut(), "hook");
                    assert!(!handle.presence().contains_key(&yrs_websocket::update::ClientId::MIN));
                    handle.start();
                }
                hear(event);
            }));
        });
        *handle.lock().unwrap() = Some(alice.handle.clone());
        let handle_of_observer = alice.handle.clone();
        let observe = move |_: &yrs::TransactionMut<'_>, _: &yrs::UpdateEvent| {
            handle_of_observer.set_presence(Some(PresenceState::new("1").unwrap()));
            assert!(handle_of_observer.presence().len() < 3);
        };
        alice.doc.observe_update_v1("observe", observe).unwrap();
        bob.edit("b");
        bob.until(|event| matches!(event, Event::Presence { state: Some(_), .. })).await;
    });
}

/// A client of ours, and what happens to it.
struct Peer {
    doc: Doc,
    handle: ClientHandle,
    events: UnboundedReceiver<Event>,
    changes: UnboundedReceiver<()>,
    running: JoinHandle<bool>,
}

impl Peer {
    fn connect(address: SocketAddr, id: u64) -> Self {
        Self::connect_with(address, id, |_| {})
    }

    fn connect_with(address: SocketAddr, id: u64, change: impl FnOnce(&mut ClientOptions)) -> Self {
        let doc = Doc::with_client_id(id);
        let (changed, changes) = mpsc::unbounded_channel();
        doc.observe_update_v1("test", move |_, _| _ = changed.send(())).unwrap();
        let (heard, events) = mpsc::unbounded_channel();
        let mut options = ClientOptions::new(address.to_string(), "notes");
        options.provider.retry_delay_min = Duration::from_millis(1);
        options.provider.retry_delay_max = Duration::from_millis(20);
        options.on_event = Some(Arc::new(move |event| drop(heard.send(event.clone()))));
        change(&mut options);
        let mut client = Client::new(doc.clone(), options);
        let handle = client.handle();
        let running = tokio::spawn(async move { client.run(&address.to_string()).await });
        Self { doc, handle, events, changes, running }
    }

    fn edit(&self, text: &str) {
        let root = self.doc.get_or_insert_text("text");
        root.push(&mut self.doc.transact_mut(), text);
    }

    fn text(&self) -> String {
        let root = self.doc.get_or_insert_text("text");
        root.get_string(&self.doc.transact())
    }

    async fn until(&mut self, is_it: impl Fn(&Event) -> bool) {
        while !is_it(&self.events.recv().await.expect("the client runs")) {}
    }

    async fn until_len(&mut self, len: usize) {
        while self.text().len() < len {
            self.changes.recv().await.expect("the document is there");
        }
        assert_eq!(self.text().len(), len);
    }

    /// Waits until everything is; notes how long it waited before it came back.
    async fn acknowledged(&mut self, delays: &mut Vec<Duration>) {
        while !self.handle.is_synced() || self.handle.has_unacknowledged() {
            let event = self.events.recv().await.expect("the client runs");
            if let Event::Disconnected { retry_in: Some(delay), .. } = event {
                delays.push(delay);
            }
        }
    }

    async fn leave(&mut self) -> bool {
        self.handle.leave(deadline(Duration::from_secs(60)));
        (&mut self.running).await.unwrap()
    }
}
