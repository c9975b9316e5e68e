//! The files of Python's FileYStore.
//!
//! ```text
//! file   := header record*                    version 2; what is written here
//! header := "VERSION:2\n"
//! record := buffer(update) buffer(metadata) buffer(timestamp)
//! buffer := length bytes                      length: a varuint, 7 bits a byte, low first
//! timestamp := 8 bytes                        seconds since 1970, f64, little endian
//! ```
//!
//! Version 1 (ypy-websocket 0.7.1 and 0.7.2) has no timestamps; before it there was no header either,
//! and before 0.2.0 no metadata.

use std::ops::Range;

use bytes::Bytes;
use yrs_websocket::update::{ScanRules, Update};

use crate::StoreError;

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The version of the format.
    pub(crate) version: Version,
    /// The whole records, in their order.
    pub(crate) records: Vec<Record>,
    /// Where the last whole record ends. What follows is a torn tail.
    pub(crate) end: usize,
}

/// Names a version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Before ypy-websocket 0.2.0: updates only.
    Updates,
    /// Up to 0.7.0: updates and metadata.
    Zero,
    /// Up to 0.7.2: with a header.
    One,
    /// Since 0.8.0: with timestamps.
    Two,
}

/// Says where in a file a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) whole: Range<usize>,
    pub(crate) update: Range<usize>,
    pub(crate) metadata: Range<usize>,
}

/// Says why a file is not read. It is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The file begins neither with a header nor with an update: it is not a store's.
    Header,
    /// A newer library wrote the file.
    Version,
    /// A record is broken, and behind it is a whole one.
    Middle { at: usize, next: usize },
}

impl Damage {
    pub(crate) fn error(self, path: &str) -> StoreError {
        let message = match self {
            Self::Header => format!("{path} begins neither with a header nor with an update"),
            Self::Version => {
                let message =
                    format!("{path} has a newer version than 2, the newest known: update this program");
                return StoreError::Other { message };
            }
            Self::Middle { at, next } => {
                format!("{path} is broken at byte {at}, and goes on at byte {next}: restore a backup")
            }
        };
        StoreError::Corrupt { message }
    }
}

/// Reads a file up to its torn tail, if it has one.
///
/// **A torn tail or damage?** A write that is cut off by a crash or a full disk leaves the beginning of its
/// record, or zeros in its place, and nothing behind it. So what does not read is a torn tail if no whole
/// record is found anywhere behind the place where reading stopped; a whole record is one whose lengths fit,
/// whose timestamp is 8 bytes and a time from 1970 to the year 5000, and whose update is well-formed and says
/// something. If there is one, somebody may have been told that it is stored, and cutting would lose it.
pub(crate) fn read(file: &Bytes) -> Result<Contents, Damage> {
    let (versions, start) = header(file)?;
    let contents = versions
        .iter()
        .map(|&version| read_as(file, version, start))
        // The earlier of two that read equally far.
        .reduce(|best, other| if other.end > best.end { other } else { best })
        .expect("a header stands for a version");
    let has_header = matches!(contents.version, Version::One | Version::Two);
    if !has_header && contents.records.is_empty() {
        return Err(Damage::Header);
    }
    match whole_record_after(file, contents.version, contents.end) {
        None => Ok(contents),
        Some(next) => Err(Damage::Middle { at: contents.end, next }),
    }
}

/// Appends a record of version 2. A clock that was never set says 1970.
pub(crate) fn write(out: &mut Vec<u8>, update: &[u8], metadata: &[u8], timestamp: f64) {
    let timestamp = if TIMES.contains(&timestamp) { timestamp } else { TIMES.start };
    for buffer in [update, metadata, &timestamp.to_le_bytes()] {
        let mut length = buffer.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(buffer);
    }
}

/// Which versions the file may have, and where its records begin.
fn header(file: &[u8]) -> Result<(&'static [Version], usize), Damage> {
    let zeros = file.iter().rev().take_while(|&&byte| byte == 0).count();
    let begun = &file[..file.len() - zeros];
    if begun.len() < HEADER.len() && [HEADER, HEADER_1].iter().any(|header| header.starts_with(begun)) {
        // It was being made, and has nothing yet.
        return Ok((&[Version::Two], 0));
    }
    let Some(rest) = file.strip_prefix(HEADER_START) else {
        // An update of 86 bytes that begins with "ERSION:" is none: it announces 69 clients.
        return // Metadata that reads as an update would be one.
        Ok((&[Version::Updates, Version::Zero], 0));
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let version = str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse::<u64>().ok());
    match (version, rest.get(digits)) {
        (Some(1), Some(b'\n')) => Ok((&[Version::One], HEADER_START.len() + digits + 1)),
        (Some(2), Some(b'\n')) => Ok((&[Version::Two], HEADER_START.len() + digits + 1)),
        (Some(3..), Some(b'\n')) => Err(Damage::Version),
        _ => Err(Damage::Header),
    }
}

fn read_as(file: &Bytes, version: Version, start: usize) -> Contents {
    let mut contents = Contents { version, records: Vec::new(), end: start };
    // An empty file is one whose header is to come.
    if start == 0 && version == Version::Two {
        return contents;
    }
    while let Some(record) = record(file, version, contents.end) {
        // Without a header nothing else says that this is a store's file, and not a letter.
        let unproven = matches!(version, Version::Zero | Version::Updates);
        if unproven && !is_update(file.slice(record.update.clone())) {
            break;
        }
        contents.end = record.whole.end;
        contents.records.push(record);
    }
    contents
}

/// Reads the record that begins at `start`; `None` if it is not whole.
fn record(file: &[u8], version: Version, start: usize) -> Option<Record> {
    let update = buffer(file, start)?;
    let metadata = match version {
        Version::Updates => update.end..update.end,
        Version::Zero | Version::One | Version::Two => buffer(file, update.end)?,
    };
    let end = match version {
        Version::Updates | Version::Zero | Version::One => metadata.end,
        Version::Two => {
            let timestamp = buffer(file, metadata.end)?;
            if timestamp.len() != TIMESTAMP_LEN {
                return None;
            }
            timestamp.end
        }
    };
    Some(Record { whole: start..end, update, metadata })
}

/// Reads a length, and says where the bytes are that it announces.
fn buffer(file: &[u8], start: usize) -> Option<Range<usize>> {
    let mut length = 0_u64;
    let mut at = start;
    loop {
        let byte = *file.get(at)?;
        let shift = 7 * (at - start) as u32;
        // More than there can be, or a last byte that adds nothing, which nobody writes.
        if shift > 56 || byte == 0 && shift > 0 {
            return None;
        }
        length |= u64::from(byte & 0x7f) << shift;
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    let left = file.len() - at;
    let length = usize::try_from(length).ok().filter(|&length| length <= left)?;
    Some(at..at + length)
}

/// Looks for a whole record behind one that is not.
fn whole_record_after(file: &Bytes, version: Version, broken: usize) -> Option<usize> {
    // What reads like a record by its lengths is scanned, so a hostile document could make this quadratic.
    let mut scan_left = SCAN_FACTOR * (file.len() - broken);
    (broken + 1..file.len()).find(|&start| {
        let Some(record) = record(file, version, start) else { return false };
        if record.update.len() <= NOTHING_LEN {
            return false;
        }
        if version == Version::Two {
            let timestamp = file[record.whole.end - TIMESTAMP_LEN..record.whole.end].try_into();
            let timestamp = f64::from_le_bytes(timestamp.expect("a timestamp is 8 bytes"));
            if !TIMES.contains(&timestamp) {
                return false;
            }
        }
        // What cannot be looked at counts as whole: nothing is cut then.
        let Some(left) = scan_left.checked_sub(record.update.len()) else { return true };
        scan_left = left;
        is_update(file.slice(record.update))
    })
}

fn is_update(bytes: Bytes) -> bool {
    // Python's stores may hold what this program would not let in; it is no damage of the file.
    let rules = ScanRules { weak_links: true, ..ScanRules::default() };
    Update::scan(bytes, &rules).is_ok()
}

/// How a file of version 2 begins.
pub(crate) const HEADER: &[u8] = b"VERSION:2\n";

pub(crate) const HEADER_1: &[u8] = b"VERSION:1\n";
const HEADER_START: &[u8] = b"VERSION:";
const TIMESTAMP_LEN: usize = 8;

/// The timestamps of whole records: from 1970 to the year 5000.
const TIMES: Range<f64> = 0.0..1e11;

/// The length of the update that says nothing, `00 00`.
const NOTHING_LEN: usize = 2;

/// How many times what is left of a file may be scanned in search of a whole record.
const SCAN_FACTOR: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_length_is_read_to_the_bit() {
        let lengths = |bytes: &[u8]| buffer(bytes, 0).map(|range| range.len());
        assert_eq!(lengths(b""), None);
        assert_eq!(lengths(b"\x00"), Some(0));
        assert_eq!(lengths(b"\x01"), None);
        assert_eq!(lengths(b"\x01a"), Some(1));
        assert_eq!(lengths(&[&b"\xac\x02"[..], &[7; 300]].concat()), Some(300));
        assert_eq!(lengths(&[&b"\xac\x02"[..], &[7; 299]].concat()), None);
        assert_eq!(lengths(b"\xac"), None);
        assert_eq!(lengths(b"\x81\x00a"), None, "a last byte that adds nothing");
        assert_eq!(lengths(b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), None);
        assert_eq!(lengths(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), None);
    }

    proptest! {
        /// Whatever the bytes are.
        #[test]
        fn records_are_inside_the_file_and_follow_each_other(file in file()) {
            let file = Bytes::from(file);
            let Ok(contents) = read(&file) else { return Ok(()) };
            let mut at = contents.records.first().map_or(contents.end, |record| record.whole.start);
            for record in &contents.records {
                prop_assert_eq!(record.whole.start, at);
                prop_assert!(record.whole.start < record.update.start);
                prop_assert!(record.update.end <= record.metadata.start);
                prop_assert!(record.metadata.end <= record.whole.end);
                at = record.whole.end;
            }
            prop_assert_eq!(at, contents.end);
            prop_assert!(contents.end <= file.len());
        }

        /// What is cut off is cut off for good.
        #[test]
        fn what_was_cut_reads_as_before_and_can_be_added_to(file in file()) {
            let file = Bytes::from(file);
            let Ok(contents) = read(&file) else { return Ok(()) };
            if contents.version != Version::Two {
                return Ok(());
            }
            let mut added = file[..contents.end].to_vec();
            if added.is_empty() {
                added = HEADER.to_vec();
            }
            write(&mut added, b"update", b"metadata", 1.0);
            let added = Bytes::from(added);
            let mut again = read(&added).unwrap();
            prop_assert_eq!(again.end, added.len());
            let last = again.records.pop().unwrap();
            prop_assert_eq!((&added[last.update], &added[last.metadata]), (&b"update"[..], &b"metadata"[..]));
            prop_assert_eq!(again.records, contents.records);
        }
    }

    /// Files that are nearly right, and others.
    fn file() -> impl Strategy<Value = Vec<u8>> {
        let update = b"\x01\x01\x01\x00\x04\x01\x04text\x01a\x00";
        let record = prop_oneof![
            4 => vec(any::<u8>(), 0..5).prop_map(move |metadata| {
                let mut record = Vec::new();
                write(&mut record, update, &metadata, 1e9);
                record
            }),
            1 => Just([&[14], &update[..]].concat()),
            1 => vec(any::<u8>(), 0..12),
            1 => vec(Just(0), 0..12),
        ];
        let start = prop_oneof![
            4 => Just(&b"VERSION:2\n"[..]),
            1 => Just(&b"VERSION:1\n"[..]),
            1 => Just(&b"VERSION:"[..]),
            1 => Just(&b""[..]),
        ];
        (start, vec(record, 0..6), any::<prop::sample::Index>()).prop_map(|(start, records, cut)| {
            let mut file = [start.to_vec(), records.concat()].concat();
            file.truncate(cut.index(2 * file.len() + 1));
            file
        })
    }
}
