//! The server.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use yrs_websocket::{
    Access, Config, ConnectionId, Input, Join, Output, RoomName, Server,
    update::{ScanRules, Update},
};

use crate::epoch;

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
