//! Random histories of real Yjs documents, and real Yjs documents as the judge: `yjs/judge.mjs`.
//!
//! `HISTORIES=10000 cargo test -p yrs-websocket --release --test yjs` runs many. It needs node and npm;
//! without them it is skipped, unless `CI` is `true`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test touches the world")]

use std::{
    env, io,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use yrs_websocket::{
    journal::{Journal, JournalLimits, Received},
    update::{ScanRules, SquashOptions, StateVector, Update, diff, join, squash},
};

#[test]
fn real_documents_read_the_same() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/yjs");
    if let Err(error) = Command::new("node").arg("--version").stdout(Stdio::null()).status() {
        assert!(
            env::var("CI").as_deref() != Ok("true"),
            "node is needed to judge the algebra by real Yjs: {error}"
        );
        eprintln!("\n*** SKIPPED: node is missing ({error}), real Yjs has judged nothing ***\n");
        return;
    }
    if !directory.join("node_modules/yjs").exists() {
        let npm =
            Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&directory).status();
        assert!(npm.is_ok_and(|status| status.success()), "npm ci in tests/yjs failed");
    }

    let mut judge = Command::new("node")
        .arg("judge.mjs")
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node was there a moment ago");
    let mut stdout = io::BufReader::new(judge.stdout.take().expect("stdout is piped"));
    let mut stdin = io::BufWriter::new(judge.stdin.take().expect("stdin is piped"));
    let talk = (|| loop {
        let updates = read_list(&mut stdout)?;
        if updates.is_empty() {
            return Ok(());
        }
        let known = read_list(&mut stdout)?;
        answer(&updates, &known, &mut stdin)?;
        stdin.flush()?;
    })();
    let talk: io::Result<()> = talk;
    let status = judge.wait().expect("node was started");
    assert!(status.success(), "real Yjs disagrees: see above");
    talk.expect("the judge talked to the end");
}

/// Does with a history all that the algebra can do.
fn answer(updates: &[Bytes], known: &[Bytes], out: &mut impl Write) -> io::Result<()> {
    let updates = updates.iter().map(scan).collect::<Vec<_>>();
    let known = known.iter().map(|bytes| StateVector::decode(bytes).expect("from Yjs")).collect::<Vec<_>>();
    let collect = SquashOptions { collect: true };
    let mut journal = Journal::new(JournalLimits::default());
    let mut state_vectors = Vec::new();
    let mut relayed = Vec::new();
    for (i, update) in updates.iter().enumerate() {
        relayed.push(match journal.receive(update) {
            Received::New(new) => rescan(new).bytes().clone(),
            Received::Nothing => Update::default().bytes().clone(),
            Received::Overflow => panic!("the default limit is large"),
        });
        state_vectors.push(journal.state_vector().encode());
        assert_eq!(journal.receive(update), Received::Nothing);
        // Squashed now and then, in the middle of things.
        if i % 50 == 49 {
            assert!(journal.squashed(&journal.squash(collect).run()));
        }
    }
    let journal_state = journal.diff(&StateVector::default()).main;
    let squashed = journal.squash(collect).run();
    assert!(squashed.conflicting.is_empty());

    let joined = join(&updates);
    let small = squash(&updates, collect);
    let whole = squash(&updates, SquashOptions { collect: false });
    let (first, second) = updates.split_at(updates.len() / 2);
    let mut bit_by_bit = vec![squash(first, collect)];
    bit_by_bit.extend_from_slice(second);
    let wholes = [
        joined.clone(),
        small.clone(),
        whole.clone(),
        squash(std::slice::from_ref(&small), collect),
        squash(&bit_by_bit, collect),
        squash(std::slice::from_ref(&joined), collect),
        journal_state,
        scan(&squashed.state),
    ];
    write_list(out, wholes.into_iter().map(|update| rescan(update).bytes().clone()))?;
    let mut fresh = Journal::new(JournalLimits::default());
    assert_ne!(fresh.receive(&scan(&squashed.state)), Received::Overflow);
    for known in &known {
        let diffs = [
            diff(&joined, known),
            diff(&small, known),
            diff(&whole, known),
            journal.diff(known).main,
            fresh.diff(known).main,
        ];
        write_list(out, diffs.into_iter().map(|update| rescan(update).bytes().clone()))?;
    }
    write_list(out, state_vectors.into_iter())?;
    write_list(out, relayed.into_iter())
}

fn scan(bytes: &Bytes) -> Update {
    Update::scan(bytes.clone(), &ScanRules::default()).expect("Yjs and the algebra write sound updates")
}

fn rescan(update: Update) -> Update {
    assert_eq!(scan(update.bytes()), update);
    update
}

fn read_list(from: &mut impl Read) -> io::Result<Vec<Bytes>> {
    let count = read_number(from)?;
    (0..count)
        .map(|_| {
            let mut bytes = vec![0; read_number(from)? as usize];
            from.read_exact(&mut bytes)?;
            Ok(bytes.into())
        })
        .collect()
}

fn read_number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn write_list(out: &mut impl Write, list: impl ExactSizeIterator<Item = Bytes>) -> io::Result<()> {
    out.write_all(&(list.len() as u32).to_le_bytes())?;
    for bytes in list {
        out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        out.write_all(&bytes)?;
    }
    Ok(())
}
