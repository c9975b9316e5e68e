//! The few primitives of lib0, the encoding below Yjs: LEB128 integers and length-prefixed bytes.

use bytes::Bytes;

/// Reads lib0 primitives from a slice; every length is checked against the bytes that are left.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// A varuint of at most 64 bits; `None` where the input ends or the number overflows.
    pub(crate) fn var_uint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.position)?;
            self.position += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A varuint length and that many bytes.
    pub(crate) fn var_bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.var_uint()?).ok()?;
        let end = self.position.checked_add(length)?;
        let bytes = self.bytes.get(self.position..end)?;
        self.position = end;
        Some(bytes)
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.position == self.bytes.len()
    }
}

/// Appends `value` as a varuint.
pub(crate) fn write_var_uint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varuint length and `bytes`.
pub(crate) fn write_var_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_var_uint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The part of `whole` that `part` points into, sharing its memory.
pub(crate) fn share(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { whole.slice_ref(part) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_beyond_64_bits_and_cut_numbers_are_none() {
        for bytes in
            [&[][..], &[0x80], &[0xff; 9], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]]
        {
            assert_eq!(Reader::new(bytes).var_uint(), None, "{bytes:?}");
        }
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Reader::new(&largest).var_uint(), Some(u64::MAX));
    }

    #[test]
    fn a_length_beyond_the_input_is_none() {
        assert_eq!(Reader::new(&[3, 1, 2]).var_bytes(), None);
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Reader::new(&huge).var_bytes(), None);
        assert_eq!(Reader::new(&[2, 1, 2]).var_bytes(), Some(&[1, 2][..]));
    }

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64) {
            let mut bytes = Vec::new();
            write_var_uint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.var_uint(), Some(value));
            prop_assert!(reader.is_at_end());
        }
    }
}
