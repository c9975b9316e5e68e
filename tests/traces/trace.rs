//! A recorded session as the updates that an editor sends while it is typed.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test touches the world")]

use bytes::Bytes;

/// A session by a single writer.
pub(crate) struct Trace {
    /// One update for each keystroke.
    pub(crate) updates: Vec<Bytes>,
    /// The text that comes of it.
    pub(crate) end: String,
}

/// 259,778 keystrokes that wrote a paper, in the root `t`, by client 1.
pub(crate) fn automerge_paper() -> Trace {
    automerge_paper_by(1)
}

/// The same by any client whose id is one byte: below 128.
pub(crate) fn automerge_paper_by(client: u8) -> Trace {
    let file = flate2::read::GzDecoder::new(&include_bytes!("automerge-paper.json.gz")[..]);
    let json: serde_json::Value = serde_json::from_reader(file).expect("the trace is JSON");
    assert!(client < 128, "the id is one byte");
    let mut typist =
        Typist { client, next: vec![0], previous: vec![0], deleted: vec![true], left: 0, position: 0 };
    let patches =
        json["txns"].as_array().into_iter().flatten().flat_map(|txn| txn["patches"].as_array()).flatten();
    let updates = patches.map(|patch| {
        let number = |i: usize| patch[i].as_u64().expect("a patch has numbers") as usize;
        typist.replace(number(0), number(1), patch[2].as_str().expect("a patch has a text"))
    });
    Trace {
        updates: updates.collect(),
        end: json["endContent"].as_str().expect("the trace has an end").into(),
    }
}

/// The text as a list of characters, deleted ones included. Character `n` has clock `n - 1`; 0 is the
/// start, and the end. Keeps its place, because whoever types stays near it.
struct Typist {
    client: u8,
    next: Vec<usize>,
    previous: Vec<usize>,
    deleted: Vec<bool>,
    /// What stands left of the cursor, and how many characters are visible up to there.
    left: usize,
    position: usize,
}

impl Typist {
    fn replace(&mut self, position: usize, deleted: usize, inserted: &str) -> Bytes {
        while self.position > position {
            self.position -= usize::from(!self.deleted[self.left]);
            self.left = self.previous[self.left];
        }
        while self.position < position {
            self.left = self.next[self.left];
            self.position += usize::from(!self.deleted[self.left]);
        }

        let mut deletes = Vec::<(u64, u64)>::new();
        let mut right = self.left;
        for _ in 0..deleted {
            right = self.next[right];
            while self.deleted[right] {
                right = self.next[right];
            }
            self.deleted[right] = true;
            match deletes.last_mut() {
                Some((clock, len)) if *clock + *len == right as u64 - 1 => *len += 1,
                _ => deletes.push((right as u64 - 1, 1)),
            }
        }
        deletes.sort_unstable();

        let mut update = vec![u8::from(!inserted.is_empty())];
        if !inserted.is_empty() {
            // Yjs goes past what is deleted before it inserts.
            while self.next[self.left] != 0 && self.deleted[self.next[self.left]] {
                self.left = self.next[self.left];
            }
            let right = self.next[self.left];
            update.extend([1, self.client]);
            write_var_uint(&mut update, self.next.len() as u64 - 1);
            update.push(4 | u8::from(self.left != 0) << 7 | u8::from(right != 0) << 6);
            for id in [self.left, right].into_iter().filter(|&id| id != 0) {
                update.push(self.client);
                write_var_uint(&mut update, id as u64 - 1);
            }
            if self.left == 0 && right == 0 {
                update.extend([1, 1, b't']);
            }
            write_var_uint(&mut update, inserted.len() as u64);
            update.extend_from_slice(inserted.as_bytes());
            assert!(inserted.is_ascii(), "a character is a clock");
            for _ in inserted.bytes() {
                let new = self.next.len();
                self.next.push(right);
                self.previous.push(self.left);
                self.deleted.push(false);
                (self.next[self.left], self.previous[right]) = (new, new);
                (self.left, self.position) = (new, self.position + 1);
            }
        }
        update.push(u8::from(!deletes.is_empty()));
        if !deletes.is_empty() {
            update.push(self.client);
            write_var_uint(&mut update, deletes.len() as u64);
            for (clock, len) in deletes {
                write_var_uint(&mut update, clock);
                write_var_uint(&mut update, len);
            }
        }
        update.into()
    }
}

fn write_var_uint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
