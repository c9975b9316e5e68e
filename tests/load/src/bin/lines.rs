//! Counts the lines of memory that a server touches between one wait and the next: what it costs to be woken with
//! caches that somebody else has filled meanwhile. Reads what `valgrind --tool=lackey --trace-mem=yes` traces.
//!
//!     yrs-websocket-lines OFFSET < trace
//!
//! `OFFSET` is that of `epoll_wait` in its page, in hexadecimal: libraries lie at the start of some page. Lines have
//! 64 bytes, pages 4 KiB. What is told is the round in the middle, by its instructions. Of the data, those lines are
//! told as well that none of the twelve rounds before has touched: with many rooms, what a message finds cold because
//! it is of another room than those before.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark touches the world")]

use std::{
    collections::{HashSet, VecDeque},
    env, io,
    io::BufRead as _,
};

/// What one round has touched.
#[derive(Default)]
struct Round {
    instructions: u64,
    code: HashSet<u64>,
    data: HashSet<u64>,
}

fn main() -> io::Result<()> {
    let offset = env::args().nth(1).and_then(|offset| u64::from_str_radix(&offset, 16).ok());
    let offset = offset.ok_or_else(|| io::Error::other("say the offset of epoll_wait"))?;
    // Something else may lie at the same place of its page, but nothing that is called so often.
    let mut calls = Vec::<(u64, u32)>::new();
    let mut round = Round::default();
    let mut latest = VecDeque::<HashSet<u64>>::new();
    let mut rounds = Vec::new();
    let mut page = 0;
    let mut input = io::stdin().lock();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        if let Some((is_code, from, len)) = access(&line) {
            if is_code {
                if from & 0xfff == offset && from >> 12 != page && from >= LIBRARIES {
                    let known = calls.iter().position(|(at, _)| *at == from).unwrap_or(calls.len());
                    if known == calls.len() {
                        calls.push((from, 0));
                    }
                    calls[known].1 += 1;
                    if calls.iter().all(|(_, count)| *count <= calls[known].1) {
                        let Round { instructions, code, data } = std::mem::take(&mut round);
                        let pages = |lines: &HashSet<u64>| {
                            lines.iter().map(|line| line >> 6).collect::<HashSet<_>>().len()
                        };
                        let cold =
                            data.iter().filter(|line| latest.iter().all(|lines| !lines.contains(*line)));
                        let counts = [code.len(), pages(&code), data.len(), pages(&data), cold.count()];
                        rounds.push((instructions, counts));
                        latest.truncate(LATEST - 1);
                        latest.push_front(data);
                    }
                }
                page = from >> 12;
                round.instructions += 1;
            }
            let lines = if is_code { &mut round.code } else { &mut round.data };
            lines.extend(from >> 6..=(from + len - 1) >> 6);
        }
        line.clear();
    }
    // By then the clients have joined.
    let mut rounds = rounds.split_off(rounds.len() / 2);
    rounds.sort_unstable();
    let median = rounds.get(rounds.len() / 2).ok_or_else(|| io::Error::other("nothing was traced"))?;
    let (instructions, [code, code_pages, data, data_pages, cold]) = median;
    println!("{} rounds; {instructions} instructions", rounds.len());
    println!(
        "{code} lines of code on {code_pages} pages, {data} of data on {data_pages}, of these {cold} cold"
    );
    Ok(())
}

/// Whether it is code, where, and how many bytes.
fn access(line: &str) -> Option<(bool, u64, u64)> {
    let (kind, rest) = line.split_at_checked(3)?;
    let is_code = match kind {
        "I  " => true,
        " L " | " S " | " M " => false,
        _ => return None,
    };
    let (from, len) = rest.trim_end().split_once(',')?;
    Some((is_code, u64::from_str_radix(from, 16).ok()?, len.parse().ok()?))
}

/// Valgrind loads programs below, and libraries above.
const LIBRARIES: u64 = 0x400_0000;

/// Rounds after which a line that nobody has touched is called cold.
const LATEST: usize = 12;
