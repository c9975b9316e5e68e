use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

use bytes::{Buf, Bytes};

/// Bytes on their way to one socket; pieces are shared with the outboxes of others.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The first piece, mostly the only one; empty if there is none.
    first: Bytes,
    #[allow(clippy::box_collection, reason = "mostly not there: what a delivery touches is kept small")]
    rest: Option<Box<VecDeque<Bytes>>>,
    bytes: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.bytes += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    /// Writes, gathered, until everything is written or `write` takes no more.
    pub(crate) fn flush(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.is_empty() {
            let written = match &self.rest {
                None => write(&[IoSlice::new(&self.first)]),
                Some(rest) => {
                    let mut slices = [IoSlice::new(&self.first); GATHER_MAX];
                    for (slice, piece) in slices[1..].iter_mut().zip(&**rest) {
                        *slice = IoSlice::new(piece);
                    }
                    write(&slices[..(1 + rest.len()).min(GATHER_MAX)])
                }
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes that are not written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn advance(&mut self, mut written: usize) {
        if written == self.bytes {
            self.bytes = 0;
            self.first = Bytes::new();
            // With the room that a burst took: an idle connection keeps none.
            self.rest = None;
            return;
        }
        self.bytes -= written;
        while written >= self.first.len() {
            written -= self.first.len();
            self.first = self.rest.as_mut().and_then(|rest| rest.pop_front()).unwrap_or_default();
        }
        self.first.advance(written);
    }
}

/// Pieces per system call.
const GATHER_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_parts_arrives_whole_and_in_order() {
        for step in 1..20 {
            let mut outbox = Outbox::default();
            let expected: Vec<u8> = (0..100u8).collect();
            for piece in expected.chunks(3) {
                outbox.push(Bytes::copy_from_slice(piece));
            }
            let mut written = Vec::new();
            while !outbox.is_empty() {
                let mut blocked = false;
                outbox
                    .flush(|slices| {
                        if std::mem::replace(&mut blocked, true) {
                            return Err(io::ErrorKind::WouldBlock.into());
                        }
                        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                        let taken = all.len().min(step);
                        written.extend_from_slice(&all[..taken]);
                        Ok(taken)
                    })
                    .unwrap();
                assert_eq!(outbox.bytes(), expected.len() - written.len());
            }
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_is_broken() {
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"x"));
        assert_eq!(outbox.flush(|_| Ok(0)).unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
