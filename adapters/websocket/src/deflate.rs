//! permessage-deflate: RFC 7692 section 7.

use std::fmt::Write as _;
use std::mem;
use std::num::NonZeroU8;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::frame::{FrameHeader, FrameKind, encode_frame};
use crate::handshake::Extension;
use crate::{Opcode, Violation};

/// How messages are compressed, where both ends agree to it in the handshake (RFC 7692).
///
/// Neither end refers back to earlier messages: a server compresses a message once for all who get it, and an
/// idle connection holds no window. What that costs in size is little where messages are long, and short ones do
/// not pay anyway.
///
/// Compressed beside a secret, what an attacker chooses gives the secret away by its length: keep secrets out of
/// messages in which others have a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// From 0, as it is, over 1, fast, to 9, small; more counts as 9. 1 by default.
    pub level: u8,
    /// Messages with fewer bytes are sent as they are. 1,024 by default: less than a packet is a packet.
    pub len_min: u32,
}

impl Default for Deflate {
    fn default() -> Self {
        Self { level: 1, len_min: 1024 }
    }
}

impl Deflate {
    /// A server's answer to the first offer that it can meet, and what is agreed by that.
    pub(crate) fn accept(self, offers: &[Extension<'_>]) -> Option<(String, AgreedDeflate)> {
        // Section 5.1: the client prefers what it offers first.
        let offers = offers.iter().filter_map(Parameters::new);
        let mut able = offers.filter(|offer| offer.server_max_window_bits != Some(WINDOW_BITS_MIN));
        let offer = able.next()?;
        // Sections 7.1.1.1 and 7.1.1.2: a server may ask for both, whatever was offered.
        let mut answer = format!("{NAME}; {SERVER_NO_CONTEXT_TAKEOVER}; {CLIENT_NO_CONTEXT_TAKEOVER}");
        if let Some(bits) = offer.server_max_window_bits {
            write!(answer, "; {SERVER_MAX_WINDOW_BITS}={bits}").expect("writing to a string does not fail");
        }
        Some((answer, AgreedDeflate::new(self, offer.server_max_window_bits)))
    }

    /// What a client makes of the answer to [`OFFER`].
    pub(crate) fn agree(self, answer: &[Extension<'_>]) -> Option<AgreedDeflate> {
        let [answer] = answer else { return None };
        let answer = Parameters::new(answer)?;
        // Section 7.1.1.1: without it the offer is not met.
        if !answer.server_no_context_takeover {
            return None;
        }
        match answer.client_max_window_bits {
            None => Some(AgreedDeflate::new(self, None)),
            Some(bits) => bits.map(|bits| AgreedDeflate::new(self, Some(bits))),
        }
    }
}

/// What both ends have agreed on: how this one compresses what it sends.
///
/// It comes out of the handshake, [`Request::deflate`](crate::Request::deflate) or
/// [`Upgraded::deflate`](crate::Upgraded::deflate), and goes into
/// [`Connection::with_deflate`](crate::Connection::with_deflate). Connections that have agreed on the same share
/// frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgreedDeflate {
    level: u8,
    /// How far back we may refer, as a power of two: 8 to 15.
    window_bits: NonZeroU8,
    len_min: u32,
}

impl AgreedDeflate {
    fn new(deflate: Deflate, window_bits: Option<u8>) -> Self {
        let Deflate { level, len_min } = deflate;
        let window_bits = window_bits.and_then(NonZeroU8::new).unwrap_or(WINDOW_BITS_MAX);
        Self { level: level.min(9), window_bits, len_min }
    }

    /// Whether a message of `len` bytes is compressed. Others are sent as they are, which is always in order
    /// (section 6).
    ///
    /// It is none if a client was told to keep to a window of 256 bytes: that is in the format, but not in zlib.
    #[must_use]
    pub fn applies_to(&self, len: usize) -> bool {
        len as u64 >= u64::from(self.len_min) && self.window_bits.get() > WINDOW_BITS_MIN
    }
}

/// Compresses messages, one after another: about 300 KB that serve any number of connections.
#[derive(Debug, Default)]
pub struct Deflater {
    /// Made when it is first needed.
    compress: Option<(AgreedDeflate, Compress)>,
}

impl Deflater {
    /// Makes one that holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes a message as one unmasked frame, compressed if what was agreed [applies](AgreedDeflate::applies_to) to it.
    ///
    /// As with [`encode_frame`](crate::encode_frame), this is how a server sends one message to many peers: the frame
    /// is good for all connections whose [`deflate`](crate::Connection::deflate) equals `agreed`.
    #[must_use]
    pub fn encode_frame(&mut self, agreed: AgreedDeflate, opcode: Opcode, payload: &[u8]) -> Bytes {
        if !agreed.applies_to(payload.len()) {
            return encode_frame(opcode, payload);
        }
        let mut frame = vec![0; UNMASKED_HEADER_LEN_MAX];
        self.append(agreed, payload, &mut frame);
        let payload_len = frame.len() - UNMASKED_HEADER_LEN_MAX;
        let header = FrameHeader::new(FrameKind::Message { opcode, is_deflated: true }, payload_len, None);
        let start = UNMASKED_HEADER_LEN_MAX - header.as_ref().len();
        frame[start..UNMASKED_HEADER_LEN_MAX].copy_from_slice(header.as_ref());
        // It may wait for long: without spare capacity.
        Bytes::from(frame.into_boxed_slice()).slice(start..)
    }

    /// Appends what a message that the agreement applies to is compressed to (section 7.2.1).
    pub(crate) fn append(&mut self, agreed: AgreedDeflate, payload: &[u8], output: &mut Vec<u8>) {
        self.compress.take_if(|(made_for, _)| *made_for != agreed);
        let (_, compress) = self.compress.get_or_insert_with(|| {
            let level = Compression::new(agreed.level.into());
            (agreed, Compress::new_with_window_bits(level, false, agreed.window_bits.get()))
        });
        compress.reset();
        let mut rest = payload;
        output.reserve(payload.len() / 4 + OUTPUT_ROOM_MIN);
        loop {
            let taken_before = compress.total_in();
            compress
                .compress_vec(rest, output, FlushCompress::Sync)
                .expect("only a stream that was finished or has a dictionary can fail");
            // The cast cannot cut: it is no more than the length of a slice.
            rest = &rest[(compress.total_in() - taken_before) as usize..];
            // As zlib has it: where room is left, everything is flushed.
            if rest.is_empty() && output.len() < output.capacity() {
                break;
            }
            output.reserve(output.len().max(OUTPUT_ROOM_MIN));
        }
        output.truncate(output.len() - TAIL_LEN);
    }
}

/// Decompresses one message, as its bytes arrive (section 7.2.2): about 42 KB.
#[derive(Debug)]
pub(crate) struct Inflater {
    decompress: Decompress,
    is_at_end: bool,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        // With the largest window: whatever the peer agreed to, it cannot refer further back.
        Self { decompress: Decompress::new(false), is_at_end: false }
    }

    /// Whether a final block has just ended. Another block may follow (section 7.2.3.4), after
    /// [`resume`](Self::resume).
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// Goes on behind a final block: what follows may refer back to what was before it.
    pub(crate) fn resume(&mut self, output: &[u8]) -> Result<(), Violation> {
        self.is_at_end = false;
        self.decompress.reset(false);
        let window = &output[output.len().saturating_sub(1 << WINDOW_BITS_MAX.get())..];
        self.decompress.set_dictionary(window).map(drop).map_err(|_| Violation::InvalidDeflate)
    }

    /// Decompresses from the front of `input`, and takes that off; `output` grows to `len_max` at most. Says whether
    /// there may be more to come of `input`.
    pub(crate) fn inflate(
        &mut self,
        input: &mut &[u8],
        output: &mut Vec<u8>,
        len_max: usize,
    ) -> Result<bool, Violation> {
        let len_before = output.len();
        if len_before == output.capacity() {
            let room = len_before.max(OUTPUT_ROOM_MIN).min(len_max - len_before);
            output.reserve_exact(room);
        }
        let taken_before = self.decompress.total_in();
        let status = self.decompress.decompress_vec(input, output, FlushDecompress::None);
        // The cast cannot cut: it is no more than the length of a slice.
        let taken = (self.decompress.total_in() - taken_before) as usize;
        *input = &input[taken..];
        self.is_at_end = status.map_err(|_| Violation::InvalidDeflate)? == Status::StreamEnd;
        let has_progressed = taken > 0 || output.len() > len_before;
        Ok(has_progressed && (!input.is_empty() || output.len() == output.capacity()))
    }
}

/// What an offer or an answer says (section 7.1).
#[derive(Debug, Default)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// In an offer it may stand without a value.
    client_max_window_bits: Option<Option<u8>>,
}

impl Parameters {
    /// Section 7.1: declines what has an unknown parameter, one twice, or one with a wrong value.
    fn new(extension: &Extension<'_>) -> Option<Self> {
        if extension.name != NAME {
            return None;
        }
        let mut parameters = Self::default();
        for (name, value) in &extension.parameters {
            let value = value.as_deref();
            let is_repeated = match (*name, value) {
                (SERVER_NO_CONTEXT_TAKEOVER, None) => {
                    mem::replace(&mut parameters.server_no_context_takeover, true)
                }
                (CLIENT_NO_CONTEXT_TAKEOVER, None) => {
                    mem::replace(&mut parameters.client_no_context_takeover, true)
                }
                (SERVER_MAX_WINDOW_BITS, Some(bits)) => {
                    parameters.server_max_window_bits.replace(window_bits(bits)?).is_some()
                }
                (CLIENT_MAX_WINDOW_BITS, None) => parameters.client_max_window_bits.replace(None).is_some(),
                (CLIENT_MAX_WINDOW_BITS, Some(bits)) => {
                    parameters.client_max_window_bits.replace(Some(window_bits(bits)?)).is_some()
                }
                _ => return None,
            };
            if is_repeated {
                return None;
            }
        }
        Some(parameters)
    }
}

/// Section 7.1.2: a decimal number without leading zeros, 8 to 15.
fn window_bits(text: &str) -> Option<u8> {
    (WINDOW_BITS_MIN..=WINDOW_BITS_MAX.get()).find(|bits| bits.to_string() == text)
}

/// What a client offers. Without context takeover on either side, as in an answer; and a server may limit our window.
pub(crate) const OFFER: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits";

/// Section 7.2.1: what every flush ends with, and what is not sent. Behind it, to see that it was the end of a block,
/// an empty one that is final.
pub(crate) const END: [u8; 6] = [0, 0, 0xff, 0xff, 3, 0];
const TAIL_LEN: usize = 4;

const NAME: &str = "permessage-deflate";
const SERVER_NO_CONTEXT_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_MAX_WINDOW_BITS: &str = "server_max_window_bits";
const CLIENT_MAX_WINDOW_BITS: &str = "client_max_window_bits";

const WINDOW_BITS_MIN: u8 = 8;
const WINDOW_BITS_MAX: NonZeroU8 = NonZeroU8::new(15).expect("15 is not 0");

/// Room for some output, whatever the input.
const OUTPUT_ROOM_MIN: usize = 256;

/// Two bytes and a length of 64 bits.
const UNMASKED_HEADER_LEN_MAX: usize = 10;
