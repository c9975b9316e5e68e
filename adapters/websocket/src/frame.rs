//! Frames on the wire: RFC 6455 section 5.2.

use bytes::Bytes;

use crate::Violation;

/// The kind of a message: the opcode of its first frame (RFC 6455 section 5.6).
///
/// Control frames are not listed, because a [`Connection`](crate::Connection) sends and answers them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// Text; the payload is UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// Encodes a message as one unmasked frame, header and payload in one allocation.
///
/// This is how a server sends one message to many peers: framed once, then one cheap [`Bytes`] handle per
/// connection. Only servers may send it, because frames of clients are masked (RFC 6455 section 5.1). With
/// [`Opcode::Text`] the payload has to be UTF-8, or the peers fail their connections. Nothing may be sent on a
/// connection after its close frame: ask [`Connection::is_open`](crate::Connection::is_open).
#[must_use]
pub fn encode_frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let header = frame_header(opcode, payload.len());
    let mut frame = Vec::with_capacity(header.as_ref().len() + payload.len());
    frame.extend_from_slice(header.as_ref());
    frame.extend_from_slice(payload);
    Bytes::from(frame)
}

/// Encodes the header of one unmasked frame, for a payload too large to be copied behind it.
///
/// `payload_len` counts bytes. The header and the payload, written one after the other, are what
/// [`encode_frame`] returns.
#[must_use]
pub fn frame_header(opcode: Opcode, payload_len: usize) -> FrameHeader {
    FrameHeader::new(FrameKind::message(opcode), payload_len, None)
}

/// The encoded header of a frame: 2 to 10 bytes, and 4 more where there is a mask (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    bytes: [u8; HEADER_LEN_MAX],
    len: u8,
}

impl FrameHeader {
    pub(crate) fn new(kind: FrameKind, payload_len: usize, mask: Option<[u8; 4]>) -> Self {
        let mut header = Self { bytes: [0; HEADER_LEN_MAX], len: 0 };
        header.push(&[FIN | kind.code()]);
        let masked = if mask.is_some() { MASKED } else { 0 };
        match payload_len {
            // The casts cannot cut: each arm bounds the length.
            0..=CONTROL_LEN_MAX => header.push(&[masked | payload_len as u8]),
            126..=0xffff => {
                header.push(&[masked | LEN_16]);
                header.push(&(payload_len as u16).to_be_bytes());
            }
            _ => {
                header.push(&[masked | LEN_64]);
                header.push(&(payload_len as u64).to_be_bytes());
            }
        }
        if let Some(mask) = mask {
            header.push(&mask);
        }
        header
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

impl AsRef<[u8]> for FrameHeader {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What the four opcode bits say (RFC 6455 section 5.2), and of the first frame of a message RSV1 (RFC 7692
/// section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Continuation,
    Message { opcode: Opcode, is_deflated: bool },
    Close,
    Ping,
    Pong,
}

impl FrameKind {
    /// A message as it is, not compressed.
    pub(crate) fn message(opcode: Opcode) -> Self {
        Self::Message { opcode, is_deflated: false }
    }

    fn code(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Message { opcode, is_deflated } => {
                let code = match opcode {
                    Opcode::Text => 0x1,
                    Opcode::Binary => 0x2,
                };
                if is_deflated { code | DEFLATED } else { code }
            }
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    fn from_code(code: u8) -> Result<Self, Violation> {
        match code {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::message(Opcode::Text)),
            0x2 => Ok(Self::message(Opcode::Binary)),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xa => Ok(Self::Pong),
            _ => Err(Violation::ReservedOpcode(code)),
        }
    }

    pub(crate) fn is_control(self) -> bool {
        match self {
            Self::Continuation | Self::Message { .. } => false,
            Self::Close | Self::Ping | Self::Pong => true,
        }
    }
}

/// A header that was received, by itself correct; whether it may stand where it stands is for the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: FrameKind,
    pub(crate) fin: bool,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) payload_len: u64,
}

impl Header {
    /// Reads the header at the start of `bytes` and says how long it is; `None` if it is not all there.
    ///
    /// `masked` is what the peer's role demands (RFC 6455 section 5.1), `deflate` whether messages may be
    /// compressed. What is wrong is found at the first byte that shows it.
    pub(crate) fn parse(
        bytes: &[u8],
        masked: bool,
        deflate: bool,
    ) -> Result<Option<(Self, usize)>, Violation> {
        let [first, after_first @ ..] = bytes else { return Ok(None) };
        let kind = match (FrameKind::from_code(first & OPCODE), first & RESERVED) {
            (kind, 0) => kind?,
            // RFC 7692 section 6: the bit is for the first frame of a message, and for no other.
            (Ok(FrameKind::Message { opcode, .. }), DEFLATED) if deflate => {
                FrameKind::Message { opcode, is_deflated: true }
            }
            _ => return Err(Violation::ReservedBits),
        };
        let fin = first & FIN != 0;
        if kind.is_control() && !fin {
            return Err(Violation::ControlFragmented);
        }

        let [second, rest @ ..] = after_first else { return Ok(None) };
        if (second & MASKED != 0) != masked {
            return Err(if masked { Violation::Unmasked } else { Violation::Masked });
        }
        let short_len = second & !MASKED;
        if kind.is_control() && usize::from(short_len) > CONTROL_LEN_MAX {
            return Err(Violation::ControlTooLong);
        }

        let (payload_len, len_min, rest) = match short_len {
            LEN_16 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*len)), 126, rest)
            }
            LEN_64 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*len), 0x1_0000, rest)
            }
            len => (u64::from(len), 0, rest),
        };
        if payload_len > i64::MAX as u64 {
            return Err(Violation::LengthOverflow);
        }
        if payload_len < len_min {
            return Err(Violation::LengthNotMinimal);
        }

        let (mask, rest) = match rest.split_first_chunk() {
            Some((mask, rest)) if masked => (Some(*mask), rest),
            None if masked => return Ok(None),
            _ => (None, rest),
        };
        Ok(Some((Self { kind, fin, mask, payload_len }, bytes.len() - rest.len())))
    }
}

/// Appends one whole frame to `output`, masked if there are masks to take one from.
pub(crate) fn append_frame(
    output: &mut Vec<u8>,
    kind: FrameKind,
    payload: &[u8],
    masks: Option<&mut SplitMix64>,
) {
    let mask = masks.map(SplitMix64::next_mask);
    let header = FrameHeader::new(kind, payload.len(), mask);
    output.reserve(header.as_ref().len() + payload.len());
    output.extend_from_slice(header.as_ref());
    let payload_start = output.len();
    output.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(mask, &mut output[payload_start..]);
    }
}

/// Masks or unmasks in place, eight bytes at a time (RFC 6455 section 5.3).
pub(crate) fn apply_mask(mask: [u8; 4], bytes: &mut [u8]) {
    let [a, b, c, d] = mask;
    let pattern = [a, b, c, d, a, b, c, d];
    let word = u64::from_ne_bytes(pattern);
    let (words, tail) = bytes.as_chunks_mut();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(pattern) {
        *byte ^= mask;
    }
}

/// The generator of masks and keys: Steele, Lea, Flood, "Fast splittable pseudorandom number generators".
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn next_mask(&mut self) -> [u8; 4] {
        // The upper half; the cast cuts nothing.
        ((self.next() >> 32) as u32).to_be_bytes()
    }
}

/// The payload of a control frame, in bytes (RFC 6455 section 5.5).
pub(crate) const CONTROL_LEN_MAX: usize = 125;
/// Two bytes, a length of 64 bits and a mask.
pub(crate) const HEADER_LEN_MAX: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// RSV1, which permessage-deflate takes.
const DEFLATED: u8 = 0x40;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;
