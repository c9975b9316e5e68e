use std::{fmt, io::Read as _, io::Write as _, sync::Arc};

use bytes::Bytes;
use flate2::{Compression as Level, read::ZlibDecoder, write::ZlibEncoder};
use yrs_websocket::update::{ScanRules, Update, UpdateError};

/// Makes records small, and whole again: what pycrdt-store's `register_compression_callbacks` takes.
///
/// [`Zlib`] is the one that Python has at hand. One of your own needs a name that stays: it is written
/// into the database beside each record that it has made small.
pub trait Compression: Send + Sync {
    /// Names the format, in a word.
    fn name(&self) -> &str;

    /// Makes `record` small. It may become longer if it must.
    fn compress(&self, record: &[u8]) -> Vec<u8>;

    /// Undoes [`compress`](Self::compress); `None` for bytes that it did not make, or that come to more
    /// than `len_max`. It must not allocate much more than that, whatever the bytes announce.
    fn decompress(&self, compressed: &[u8], len_max: usize) -> Option<Vec<u8>>;
}

/// The format of Python's `zlib.compress` and `zlib.decompress` (RFC 1950).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Zlib;

impl Compression for Zlib {
    fn name(&self) -> &str {
        "zlib"
    }

    fn compress(&self, record: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Level::default());
        encoder.write_all(record).and_then(|()| encoder.finish()).expect("writing to memory cannot fail")
    }

    fn decompress(&self, compressed: &[u8], len_max: usize) -> Option<Vec<u8>> {
        // The check of the header, before anything is set up: most of what is tried is none.
        let &[method, flags, ..] = compressed else { return None };
        if method & 0x0f != 8 || u16::from_be_bytes([method, flags]) % 31 != 0 {
            return None;
        }
        let mut record = Vec::new();
        let mut rest = compressed;
        let mut decoder = ZlibDecoder::new(&mut rest);
        decoder.by_ref().take(len_max as u64 + 1).read_to_end(&mut record).ok()?;
        let is_whole = decoder.total_in() == compressed.len() as u64;
        (is_whole && record.len() <= len_max).then_some(record)
    }
}

/// Is what a store writes with, and all it can read.
#[derive(Clone, Default)]
pub(crate) struct Codecs {
    pub(crate) write: Option<Arc<dyn Compression>>,
    /// Besides `write` and zlib.
    pub(crate) read: Vec<Arc<dyn Compression>>,
}

impl Codecs {
    /// Reads a record that nothing is known of.
    ///
    /// Updates prove themselves, so there is no guessing: it is taken as it is if it passes the scan, and
    /// decompressed if what comes of that passes. What passes neither way is handed on as it is, for
    /// whoever reads it to refuse.
    pub(crate) fn read_unmarked(&self, record: Bytes) -> Bytes {
        if is_update(&record) {
            return record;
        }
        let mut updates = self.all().filter_map(|codec| codec.decompress(&record, LEN_MAX)).map(Bytes::from);
        let update = updates.find(is_update);
        update.unwrap_or(record)
    }

    /// Reads a record that was marked as compressed; `None` if that is not possible.
    pub(crate) fn read_marked(&self, record: &[u8], name: &str) -> Option<Bytes> {
        self.all().filter(|codec| codec.name() == name).find_map(|codec| {
            let record = codec.decompress(record, LEN_MAX)?;
            Some(record.into())
        })
    }

    fn all(&self) -> impl Iterator<Item = &dyn Compression> {
        self.write.iter().chain(&self.read).map(AsRef::as_ref).chain([&Zlib as &dyn Compression])
    }
}

impl fmt::Debug for Codecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(Compression::name)).finish()
    }
}

/// Proves a stored record. More passes than a server lets in: what is stored was let in before.
pub(crate) fn scan(record: Bytes) -> Result<Update, UpdateError> {
    Update::scan(record, &ScanRules { weak_links: true, ..ScanRules::default() })
}

fn is_update(record: &Bytes) -> bool {
    scan(record.clone()).is_ok()
}

/// SQLite itself holds no value longer than this, compressed or not.
const LEN_MAX: usize = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zlib_is_pythons_and_takes_nothing_that_is_cut_or_has_more_behind_it() {
        // zlib.compress(b'hello hello hello hello')
        let python = [120, 156, 203, 72, 205, 201, 201, 87, 200, 64, 39, 1, 104, 3, 8, 177];
        assert_eq!(Zlib.decompress(&python, 100).as_deref(), Some(&b"hello hello hello hello"[..]));
        for len in 0..python.len() {
            assert_eq!(Zlib.decompress(&python[..len], 100), None, "{len}");
        }
        assert_eq!(Zlib.decompress(&[&python[..], &[0]].concat(), 100), None);
        assert_eq!(Zlib.decompress(&Zlib.compress(b"abc"), 3).as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn a_few_bytes_that_announce_much_are_not_believed() {
        let small = Zlib.compress(&vec![0; 10 << 20]);
        assert!(small.len() < 20_000);
        assert_eq!(Zlib.decompress(&small, 1000), None);
    }
}
