//! The bodies of the fuzz targets: each takes any bytes and asserts what must hold for them.
//!
//! `fuzz/smoke` fuzzes each for some seconds, `cargo fuzz run update` one for as long as you like.
//! `cargo test --no-default-features --lib` replays the corpora, and mutations of them, on any toolchain.

#[path = "../../tests/histories/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod histories;
mod memory;
mod messages;
mod script;
mod server;
mod session;
#[path = "../../tests/support/mod.rs"]
mod support;
mod update;
mod websocket;

use std::{panic, time::Instant};

pub use messages::{awareness, messages};
use script::Script;
pub use server::{room, server, store};
pub use session::session;
pub use update::update;
pub use websocket::{handshake, websocket};

/// Lets panics that arise in yrs reach the `catch_unwind` that contains them, where libFuzzer would
/// abort at any. A panic from anywhere else aborts as before, and so does one of yrs that nobody
/// catches, once it reaches the fuzzer.
pub fn let_yrs_panic() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let is_of_yrs = panic.location().is_some_and(|location| location.file().contains("/yrs-0."));
        if !is_of_yrs {
            abort(panic);
        }
    }));
}

#[allow(clippy::disallowed_methods, reason = "an instant to count from")]
fn epoch() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        panic::{AssertUnwindSafe, catch_unwind},
        path::Path,
    };

    /// Every input of a corpus, and mutations of each from a fixed seed.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut inputs: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        let count = inputs.len();
        assert!(count > 0, "the corpus of {target} is empty");
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
            for _ in 0..MUTATIONS / count {
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
    fn websocket_corpus() {
        replay("websocket", websocket);
    }

    #[test]
    fn handshake_corpus() {
        replay("handshake", handshake);
    }

    #[test]
    fn messages_corpus() {
        replay("messages", messages);
    }

    #[test]
    fn awareness_corpus() {
        replay("awareness", awareness);
    }

    #[test]
    fn update_corpus() {
        replay("update", update);
    }

    #[test]
    fn server_corpus() {
        replay("server", server);
    }

    #[test]
    fn room_corpus() {
        replay("room", room);
    }

    #[test]
    fn store_corpus() {
        replay("store", store);
    }

    #[test]
    fn session_corpus() {
        replay("session", session);
    }

    /// For all inputs of a corpus together.
    const MUTATIONS: usize = 4_000;
}
