//! A world that a test directs.

use std::time::Duration;

use yrs::{Doc, GetString, Text, Transact};
use yrs_websocket_host::{ClientNext, ClientOptions, Options};
use yrs_websocket_sim::{Actor, Site, Stage};
use yrs_websocket_store::MemoryStore;

#[test]
fn the_same_seed_and_the_same_calls_are_the_same_run() {
    let run = |seed| {
        let mut stage = Stage::new(seed);
        let site = started(&mut stage);
        let (alice, doc) = join(&mut stage, site, 1);
        let (bob, _) = join(&mut stage, site, 2);
        let start = stage.now();
        write(&doc, "hello");
        assert!(stage.until(SOON, |stage| is_settled(stage, &[alice, bob])).unwrap());
        stage.cut(alice);
        write(&doc, ", world");
        assert!(stage.until(SOON, |stage| is_settled(stage, &[alice, bob])).unwrap());
        (stage.trace_hash(), stage.now() - start)
    };
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}

#[test]
fn sites_share_a_clock_and_nothing_else() {
    let mut stage = Stage::new(1);
    let sites = [started(&mut stage), started(&mut stage)];
    // A document with a client of each joins them.
    let link = Doc::with_client_id(3);
    for site in sites {
        stage.join(site, link.clone(), ClientOptions::new("example", "notes"));
    }
    let (_, alice) = join(&mut stage, sites[0], 1);
    let (_, bob) = join(&mut stage, sites[1], 2);
    write(&alice, "x");
    assert!(stage.until(SOON, |_| text(&bob) == "x").unwrap());
    stage.stop(sites[0]);
    assert!(!stage.is_running(sites[0]) && stage.is_running(sites[1]));
    write(&alice, "y");
    assert!(!stage.until(SOON, |_| text(&bob) != "x").unwrap());
}

#[test]
fn nothing_is_acknowledged_while_the_disk_is_held() {
    for seed in 0..20 {
        let mut stage = Stage::new(seed);
        let site = started(&mut stage);
        let (alice, doc) = join(&mut stage, site, 1);
        assert!(stage.until(SOON, |stage| is_settled(stage, &[alice])).unwrap());
        stage.hold_disk(site, true);
        write(&doc, "x");
        assert!(!stage.until(SOON, |stage| is_settled(stage, &[alice])).unwrap());
        assert!(!stage.is_durable(site));
        stage.hold_disk(site, false);
        assert!(stage.until(SOON, |stage| is_settled(stage, &[alice])).unwrap());
    }
}

#[test]
fn a_drain_ends_and_who_leaves_stops() {
    for seed in 0..20 {
        let mut stage = Stage::new(seed);
        let site = started(&mut stage);
        let (alice, doc) = join(&mut stage, site, 1);
        write(&doc, "x");
        stage.client(alice).handle().leave(stage.now() + SOON);
        let is_gone =
            |stage: &Stage| stage.client(alice).next() == ClientNext::Stopped { unacknowledged: false };
        assert!(stage.until(SOON, is_gone).unwrap());
        let (_bob, _) = join(&mut stage, site, 2);
        assert!(stage.until(SOON, |stage| stage.counters(site).connections == 1).unwrap());
        stage.drain(site, stage.now() + SOON);
        assert!(stage.until(SOON, |stage| stage.is_drained(site) && stage.is_durable(site)).unwrap());
        assert_eq!(stage.counters(site).connections, 0);
    }
}

#[test]
fn bytes_go_both_ways_and_half_a_request_is_dropped() {
    for seed in 0..20 {
        let mut stage = Stage::new(seed);
        let site = started(&mut stage);
        let mut answer_to = |request: &[u8]| {
            let wire = stage.connect(site);
            let (mut rest, mut answer) = (request, Vec::new());
            let by = stage.now() + SOON;
            loop {
                rest = &rest[stage.write(wire, rest)..];
                match stage.receive(wire) {
                    Some(bytes) => answer.extend(bytes),
                    None => break,
                }
                assert!(stage.step(by).unwrap());
            }
            stage.end(wire);
            String::from_utf8(answer).unwrap()
        };
        let answer = answer_to(b"GET /notes HTTP/1.1\r\nHost: example\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
        assert_eq!(answer_to(b"GET /notes HT"), "");
    }
}

#[test]
fn what_has_arrived_is_not_received_after_the_end() {
    let mut stage = Stage::new(2);
    let site = started(&mut stage);
    let by = stage.now() + SOON;
    for is_ended in [false, true] {
        let wire = stage.connect(site);
        let mut request = &b"GET /notes HTTP/1.1\r\nHost: example\r\n\r\n"[..];
        while !request.is_empty() {
            request = &request[stage.write(wire, request)..];
            stage.step(by).unwrap();
        }
        // A part of the answer, at least.
        for _ in 0..10 {
            stage.step(by).unwrap();
        }
        if is_ended {
            stage.end(wire);
            assert_eq!(stage.receive(wire), None);
        } else {
            assert!(stage.receive(wire).is_some_and(|bytes| !bytes.is_empty()));
        }
    }
}

#[test]
fn where_no_server_runs_connections_end_and_clients_wait() {
    let mut stage = Stage::new(1);
    let site = stage.site();
    let wire = stage.connect(site);
    assert_eq!(stage.receive(wire), None);
    let (alice, _) = join(&mut stage, site, 1);
    assert!(!stage.until(SOON, |stage| is_settled(stage, &[alice])).unwrap());
    stage.start(site, Options::default(), Box::new(MemoryStore::new()));
    assert!(stage.until(SOON, |stage| is_settled(stage, &[alice])).unwrap());
}

fn started(stage: &mut Stage) -> Site {
    let site = stage.site();
    stage.start(site, Options::default(), Box::new(MemoryStore::new()));
    site
}

fn join(stage: &mut Stage, site: Site, id: u64) -> (Actor, Doc) {
    let doc = Doc::with_client_id(id);
    (stage.join(site, doc.clone(), ClientOptions::new("example", "notes")), doc)
}

fn is_settled(stage: &Stage, actors: &[Actor]) -> bool {
    let handles = actors.iter().map(|actor| stage.client(*actor).handle());
    handles.into_iter().all(|handle| handle.is_synced() && !handle.has_unacknowledged())
}

fn write(doc: &Doc, text: &str) {
    doc.get_or_insert_text("text").push(&mut doc.transact_mut(), text);
}

fn text(doc: &Doc) -> String {
    doc.get_or_insert_text("text").get_string(&doc.transact())
}

const SOON: Duration = Duration::from_secs(20);
