//! The load generator against the real server and against the ceiling: every document is equal in the end.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test touches the world")]

use std::{process::Command, thread};

use tokio::{net::TcpListener, runtime};
use yrs_websocket_tokio::{Options, Service};

#[test]
fn everybody_gets_every_update_of_a_burst_from_the_server() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = Service::in_memory(Options::default(), 1).unwrap();
    thread::spawn(move || runtime.block_on(service.serve(listener)));
    assert_eq!(
        load("ours", &["--address", &address, "--pid", &std::process::id().to_string()]),
        (None, 1_800)
    );
}

#[test]
fn and_from_the_ceiling() {
    assert_eq!(load("ceiling", &[]), (None, 1_800));
}

#[test]
fn a_server_that_is_no_server_is_a_failure_and_no_number() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    thread::spawn(move || nobody.incoming().for_each(drop));
    let (failure, deliveries) =
        load("ours", &["--address", &address, "--pid", &std::process::id().to_string()]);
    assert!(failure.is_some());
    assert_eq!(deliveries, 0);
}

/// Sends 200 updates to 9 readers; says what was wrong, and how many of them arrived.
fn load(server: &str, arguments: &[&str]) -> (Option<String>, u64) {
    let results =
        std::env::temp_dir().join(format!("load-{server}-{}-{}", std::process::id(), arguments.len()));
    let _ = std::fs::remove_file(&results);
    let generator = Command::new(env!("CARGO_BIN_EXE_yrs-websocket-load"))
        .args(["--scenario", "smoke", "--server", server, "--results"])
        .arg(&results)
        .args(arguments)
        .output()
        .unwrap();
    let line = std::fs::read_to_string(&results).unwrap();
    std::fs::remove_file(&results).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let failure = line["failure"].as_str().map(str::to_owned);
    assert_eq!(generator.status.success(), failure.is_none(), "{line}");
    (failure, line["deliveries"].as_u64().unwrap())
}
