//! The bodies of the fuzz targets: each takes any bytes and asserts what must hold for them.
//!
//! `cargo fuzz run update` fuzzes one. `cargo test --no-default-features --lib` replays the corpora, and
//! mutations of them, on any toolchain.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    slice::from_ref as one,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, OffsetKind, ReadTxn, Transact, updates::decoder::Decode, updates::encoder::Encode};
use yrs_websocket::{
    Access, Config, ConnectionId, Input, Join, Output, RoomName, Server, awareness,
    journal::{Journal, JournalLimits, Received},
    message::Message,
    update::{ScanRules, SquashOptions, StateVector, Update, diff, join, squash},
};
use yrs_websocket_rfc6455::{Acceptor, Config as WebSocketConfig, Connection, Event, HandshakeLimits, Role};

/// What the scan accepts, the algebra and the journal handle; what yrs can read of it, squashing does
/// not change.
pub fn update(data: &[u8]) {
    let _ =
        StateVector::decode(data).map(|state| assert_eq!(StateVector::decode(&state.encode()), Ok(state)));
    let Ok(update) = Update::scan(Bytes::copy_from_slice(data), &ScanRules::default()) else { return };
    let proven = |update: &Update| {
        let again = Update::scan(update.bytes().clone(), &ScanRules::default());
        assert_eq!(again.as_ref(), Ok(update), "the algebra made what the scan refuses");
    };
    assert_eq!(join(one(&update)), update);
    assert_eq!(diff(&update, &StateVector::default()), update);
    let whole = squash(one(&update), SquashOptions { collect: false });
    let collected = squash(one(&update), SquashOptions { collect: true });
    for squashed in [&whole, &collected] {
        proven(squashed);
        assert_eq!(clocks(squashed), clocks(&update));
    }
    assert_eq!(squash(one(&whole), SquashOptions { collect: false }), whole);
    assert_eq!(squash(one(&collected), SquashOptions { collect: true }), collected);

    let mut journal = Journal::new(JournalLimits { parked_bytes_max: 1 << 20 });
    match journal.receive(&update) {
        Received::New(new) => proven(&new),
        Received::Nothing => assert!(update.is_empty()),
        Received::Overflow => return,
    }
    assert_eq!(journal.receive(&update), Received::Nothing, "what is known is nothing new");
    let answer = journal.diff(&StateVector::default());
    proven(&answer.main);
    let mut reader = Journal::new(JournalLimits { parked_bytes_max: 1 << 20 });
    for part in answer.conflicting.iter().chain([&answer.main]) {
        let _ = reader.receive(part);
    }
    assert_eq!(reader.state_vector(), journal.state_vector());

    // yrs is no judge where it panics, or cannot read what Yjs writes.
    let read = |update: &Update| {
        catch_unwind(AssertUnwindSafe(|| {
            let mut options = yrs::Options::with_guid_and_client_id("fuzz".into(), yrs::ClientID::new(1));
            options.offset_kind = OffsetKind::Utf16;
            let doc = Doc::with_options(options);
            let update = yrs::Update::decode_v1(update.bytes()).ok()?;
            doc.transact_mut().apply_update(update).ok()?;
            let state = doc.transact().state_vector().encode_v1();
            StateVector::decode(&state).ok()
        }))
        .unwrap_or(None)
    };
    if let (Some(of_original), Some(of_squashed)) = (read(&update), read(&whole)) {
        assert_eq!(of_original, of_squashed);
    }
}

/// Messages and presence: what reads is written back as it was.
pub fn messages(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    for message in Message::decode(&frame) {
        let Ok(message) = message else { break };
        let again: Vec<_> = Message::decode(&message.encode()).collect();
        assert_eq!(again, [Ok(message.clone())]);
        if let Message::Awareness(update) = message
            && let Ok(entries) = awareness::decode(&update, 100)
        {
            let parts: Vec<_> = entries.iter().map(|e| (e.client, e.clock, e.state.as_ref())).collect();
            assert_eq!(awareness::decode(&awareness::encode(parts.into_iter()), 100), Ok(entries));
        }
    }
}

/// The WebSocket layer says the same about bytes that come at once and bytes that come one by one.
pub fn websocket(data: &[u8]) {
    let now = epoch();
    let run = |chunk: usize| {
        let mut acceptor = Acceptor::new(HandshakeLimits::default());
        let mut refused = None;
        for part in data.chunks(chunk) {
            match acceptor.receive(part) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    refused = Some(request.upgrade().map_err(|refusal| refusal.to_bytes()));
                    break;
                }
                Err(refusal) => {
                    refused = Some(Err(refusal.to_bytes()));
                    break;
                }
            }
        }
        let mut connection = Connection::new(Role::Server, WebSocketConfig::default(), now);
        let (mut events, mut output) = (Vec::new(), Vec::new());
        for part in data.chunks(chunk) {
            let mut part = part.to_vec();
            let mut input = &mut part[..];
            while let Some(event) = connection.receive(now, &mut input) {
                events.push(event);
                while let Some(bytes) = connection.next_output() {
                    output.extend_from_slice(&bytes);
                }
            }
        }
        let closed = events.iter().filter(|event| matches!(event, Event::Closed(_))).count();
        assert!(closed <= 1 && (closed == 0 || matches!(events.last(), Some(Event::Closed(_)))));
        (refused, events, output)
    };
    let whole = run(data.len().max(1));
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(7));
}

/// Any sequence of inputs: nothing is sent to who is gone, time goes on, every write is answered for.
pub fn server(data: &[u8]) {
    let mut server = Server::new(Config::default(), 7);
    let mut now = epoch();
    let mut script = data.iter().copied();
    let mut gone = BTreeSet::new();
    let mut joined = BTreeSet::new();
    let mut writes = Vec::new();
    let mut rest = Vec::new();
    while let Some(op) = script.next() {
        let argument = script.next().unwrap_or(0);
        let connection = ConnectionId(u64::from(argument % 8));
        let room = RoomName::new(["a", "b", "c"][usize::from(argument / 8 % 3)]).expect("a name");
        let input = match op % 12 {
            0 | 1 if !joined.contains(&connection) => {
                joined.insert(connection);
                gone.remove(&connection);
                let access = if argument < 200 { Access::Write } else { Access::ReadOnly };
                Input::Connected(Join::new(connection, room, access))
            }
            2..=4 => {
                rest.clear();
                rest.extend(script.by_ref().take(usize::from(argument)));
                Input::Received { connection, frame: Bytes::copy_from_slice(&rest) }
            }
            5 => Input::Congested { connection },
            6 => Input::Writable { connection },
            7 => {
                joined.remove(&connection);
                Input::Disconnected { connection }
            }
            8 if !writes.is_empty() => writes.remove(0),
            9 if !writes.is_empty() => match writes.remove(0) {
                Input::Stored { room, seq } | Input::Compacted { room, seq, .. } => {
                    Input::StoreFailed { room, seq }
                }
                Input::Loaded { room, .. } => Input::LoadFailed { room },
                other => other,
            },
            10 => {
                now += Duration::from_millis(u64::from(argument) * u64::from(argument));
                Input::Timeout
            }
            11 if argument == 255 => Input::Drain { deadline: now + Duration::from_secs(1) },
            _ => Input::Timeout,
        };
        for output in server.handle(now, input) {
            match output {
                Output::Send { to, .. } => {
                    assert!(
                        !to.is_empty() && to.iter().all(|to| joined.contains(&to) && !gone.contains(&to))
                    );
                }
                Output::Close { connection, .. } => {
                    assert!(gone.insert(connection));
                    joined.remove(&connection);
                }
                Output::Load { room } => writes.push(Input::Loaded { room, updates: Vec::new() }),
                Output::Append { room, seq, update } => {
                    assert!(Update::scan(update, &ScanRules::default()).is_ok());
                    writes.push(Input::Stored { room, seq });
                }
                Output::Compact { room, seq, squash } => {
                    writes.push(Input::Compacted { room, seq, squashed: squash.run() });
                }
                Output::Event(_) => {}
            }
        }
        if let Some(next) = server.next_timeout()
            && next <= now
        {
            let _ = server.handle(now, Input::Timeout);
            assert!(server.next_timeout().is_none_or(|next| next > now), "time does not go on");
        }
    }
}

fn clocks(update: &Update) -> BTreeSet<(u64, u64, u64)> {
    let mut clocks = BTreeSet::<(u64, u64, u64)>::new();
    let mut open: Option<(u64, u64, u64)> = None;
    for (client, range) in update.inserts() {
        match &mut open {
            Some((of, _, end)) if *of == client.get() && *end == range.start => *end = range.end,
            _ => clocks.extend(open.replace((client.get(), range.start, range.end))),
        }
    }
    clocks.extend(open);
    clocks
}

#[allow(clippy::disallowed_methods, reason = "an instant to count from")]
fn epoch() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// Every input of a corpus, and mutations of each from a fixed seed.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut inputs: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "the corpus of {target} is empty");
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        for path in inputs {
            let input = fs::read(&path).unwrap();
            body(&input);
            for _ in 0..MUTATIONS {
                let mut mutated = input.clone();
                for _ in 0..=random(3) {
                    let at = random(mutated.len());
                    match random(4) {
                        0 if !mutated.is_empty() => mutated[at] = random(256) as u8,
                        1 if !mutated.is_empty() => mutated[at] ^= 1 << random(8),
                        2 => mutated.truncate(at),
                        _ => mutated.insert(at.min(mutated.len()), random(256) as u8),
                    }
                }
                if catch_unwind(AssertUnwindSafe(|| body(&mutated))).is_err() {
                    panic!("{target} failed on {mutated:?}, made of {}", path.display());
                }
            }
        }
    }

    #[test]
    fn update_corpus() {
        replay("update", update);
    }

    #[test]
    fn messages_corpus() {
        replay("messages", messages);
    }

    #[test]
    fn websocket_corpus() {
        replay("websocket", websocket);
    }

    #[test]
    fn server_corpus() {
        replay("server", server);
    }

    const MUTATIONS: usize = 2_000;
}
