//! The same inputs give the same outputs, byte for byte: twice in one process, and in two processes.

mod support;

use std::{env, fmt::Write, process::Command};

use support::*;
use yrs::{Text, WriteTxn};
use yrs_websocket::Access;

#[test]
fn twice_in_one_process() {
    assert_eq!(trace(), trace());
}

#[test]
fn in_two_processes() {
    let mine = trace();
    if env::var_os(CHILD).is_some() {
        println!("{mine}");
        return;
    }
    for _ in 0..2 {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "in_two_processes", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let printed = String::from_utf8(child.stdout).unwrap();
        assert!(child.status.success() && printed.contains(&mine), "{mine}\n\nis not in\n\n{printed}");
    }
}

/// Set for the process that only prints its trace.
const CHILD: &str = "DETERMINISM_CHILD";

/// Everything that gives a server occasion to differ: many connections, rooms and clients, presence,
/// server-side edits under drawn ids, jitter of retries, squashes, congestion, a drain.
fn trace() -> String {
    let mut w = World::new(config(|config| config.squash_count = 20));
    let mut trace = String::new();
    let mut note = |out: Vec<Out>| {
        for out in out {
            writeln!(trace, "{out:?}").unwrap();
        }
    };
    for id in 1..=20 {
        note(w.join(id));
    }
    note(w.read_only(21));
    for id in 30..40 {
        note(w.join_room(id, ["s", "t", "u"][id as usize % 3]));
    }
    note(w.loaded(&[&text_insert(99, 0, "stored"), &text_insert(98, 0, "too")]));
    let mut seq = 0;
    for round in 0..10u8 {
        for id in (1..=20u8).rev() {
            note(w.frame(id.into(), update(text_insert(id, round, "x"))));
            note(w.frame(id.into(), presence(&[(id, round + 1, "{\"a\":1}"), (id + 50, round + 1, "[]")])));
        }
        note(w.frame(21, update(text_insert(21, round, "no"))));
        note(w.frame(u64::from(round) + 1, step1(&[(1, 1), (99, 2)])));
        note(w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 0, "edit")).unwrap().1);
        match round {
            2 => w.congested(3),
            6 => note(w.writable(3)),
            4 => {
                for _ in 0..3 {
                    note(w.store_failed(seq + 1));
                    note(w.pass(1000));
                }
            }
            5 => note(w.access(7, Access::ReadOnly, Some(w.in_millis(50)))),
            8 => note(w.leave(9)),
            _ => {}
        }
        note(w.pass(13));
        if w.squashes.is_empty() {
            seq += 1;
            note(w.stored(seq));
        }
        if let Some((_, at, squash)) = w.squashes.pop() {
            let squashed = squash.run();
            note(vec![append(0, squashed.state.to_vec())]);
            note(w.compacted(at, squashed));
        }
        note(w.pass(11_000));
    }
    note(w.drain(w.in_millis(5000)));
    note(w.pass(5000));
    let events = w.events();
    for event in events {
        writeln!(trace, "{event:?}").unwrap();
    }
    assert!(trace.lines().count() > 200, "too little happened");
    trace
}
