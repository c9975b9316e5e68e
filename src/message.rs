//! The y-protocols messages, strictly decoded over shared bytes.
//!
//! A *frame* is the payload of one binary WebSocket message. A frame that we send holds one message,
//! because `y-websocket` up to 3.1 reads only the first; a frame that we receive may hold several.
//!
//! ```text
//! frame     := message*
//! message   := 0 sync | 1 vbuf(awareness update) | 2 auth | 3 | tag rest of the frame
//! sync      := 0 vbuf(state vector) | 1 vbuf(update) | 2 vbuf(update)
//! auth      := 0 str reason                              permission denied
//! ```

use bytes::{Buf, Bytes};

use crate::lib0::{Reader, share, write_var_bytes, write_var_uint};

/// One y-protocols message, its payload sharing the memory of the frame it came in.
///
/// Payloads are not looked into here: a state vector, update or awareness update in it may still be
/// malformed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// `00 00`: "this is what I have": a state vector. Answered with [`Message::SyncStep2`].
    SyncStep1(Bytes),
    /// `00 01`: "this is what you lack": an update. The `sync` event of `y-websocket` fires on
    /// nothing else.
    SyncStep2(Bytes),
    /// `00 02`: a change: an update.
    Update(Bytes),
    /// `01`: presence: an awareness update.
    Awareness(Bytes),
    /// `02 00`: permission denied, with a reason to show. Told to read-only writers; `y-websocket`
    /// prints it as a warning.
    PermissionDenied(String),
    /// `03`: asks for all presence. y-sweet's client appends its own; what follows is ignored.
    QueryAwareness,
    /// Any other type. Nothing says where such a message ends, so it takes the rest of the frame.
    Unknown {
        /// The message type. Type 2 is used by Jupyter for messages of its own.
        tag: u64,
        /// What follows the type, to the end of the frame.
        payload: Bytes,
    },
}

impl Message {
    /// Reads the messages of a frame one after another; after an error there is nothing more.
    ///
    /// ```
    /// use yrs_websocket::message::{Message, MessageError};
    /// use bytes::Bytes;
    ///
    /// let frame = Bytes::from_static(&[0, 0, 1, 0, 3]);
    /// let messages: Result<Vec<_>, _> = Message::decode(&frame).collect();
    /// assert_eq!(messages, Ok(vec![Message::SyncStep1(Bytes::from_static(&[0])), Message::QueryAwareness]));
    ///
    /// let cut = Bytes::from_static(&[0, 0, 5, 0]);
    /// assert_eq!(Message::decode(&cut).next(), Some(Err(MessageError::Truncated)));
    /// ```
    pub fn decode(frame: &Bytes) -> Messages<'_> {
        Messages { frame, position: 0, ended: false }
    }

    /// Writes the message as a frame of its own.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::SyncStep1(state_vector) => with_payload(&[0, 0], state_vector),
            Self::SyncStep2(update) => Carrier::SyncStep2.frame(update),
            Self::Update(update) => Carrier::Update.frame(update),
            Self::Awareness(update) => with_payload(&[1], update),
            Self::PermissionDenied(reason) => with_payload(&[2, 0], reason.as_bytes()),
            Self::QueryAwareness => Bytes::from_static(&[3]),
            Self::Unknown { tag, payload } => {
                let mut frame = Vec::with_capacity(10 + payload.len());
                write_var_uint(&mut frame, *tag);
                frame.extend_from_slice(payload);
                frame.into()
            }
        }
    }
}

/// The messages of one frame: see [`Message::decode`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    frame: &'a Bytes,
    position: usize,
    ended: bool,
}

impl Iterator for Messages<'_> {
    type Item = Result<Message, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        // An empty frame is a truncated message: no client sends one.
        if self.ended || (self.position == self.frame.len() && self.position > 0) {
            return None;
        }
        let mut reader = Reader::new(&self.frame[self.position..]);
        let message = read_message(self.frame, &mut reader);
        self.position += reader.position();
        match &message {
            Ok(Message::QueryAwareness | Message::Unknown { .. }) | Err(_) => self.ended = true,
            Ok(_) => {}
        }
        Some(message)
    }
}

/// Says why a frame is no sequence of messages. The fault is its sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The frame ends inside a message, or a length points beyond it.
    #[error("the frame ends inside a message")]
    Truncated,
    /// A sync message is none of SyncStep1, SyncStep2 and Update.
    #[error("unknown sync message type {0}")]
    UnknownSync(u64),
}

fn read_message(frame: &Bytes, reader: &mut Reader<'_>) -> Result<Message, MessageError> {
    let tag = reader.var_uint().ok_or(MessageError::Truncated)?;
    let payload = |reader: &mut Reader<'_>| {
        let start = reader.var_bytes().ok_or(MessageError::Truncated)?;
        Ok(share(frame, start))
    };
    match tag {
        0 => match reader.var_uint().ok_or(MessageError::Truncated)? {
            0 => payload(reader).map(Message::SyncStep1),
            1 => payload(reader).map(Message::SyncStep2),
            2 => payload(reader).map(Message::Update),
            other => Err(MessageError::UnknownSync(other)),
        },
        1 => payload(reader).map(Message::Awareness),
        3 => Ok(Message::QueryAwareness),
        _ => {
            // Type 2 is Auth, but Jupyter sends requests of its own under it: what does not read as
            // "permission denied" is theirs.
            if tag == 2 {
                let mut auth = reader.clone();
                if auth.var_uint() == Some(0)
                    && let Some(reason) = auth.var_bytes()
                    && let Ok(reason) = std::str::from_utf8(reason)
                {
                    *reader = auth;
                    return Ok(Message::PermissionDenied(reason.to_owned()));
                }
            }
            let payload = frame.slice(frame.len() - reader.remaining()..);
            Ok(Message::Unknown { tag, payload })
        }
    }
}

/// Which message an update is in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carrier {
    SyncStep2 = 1,
    Update = 2,
}

impl Carrier {
    /// Two types and the length of the update.
    pub(crate) const HEAD_LEN_MAX: usize = 2 + 10;

    /// The message of an update.
    pub(crate) fn frame(self, update: &[u8]) -> Bytes {
        with_payload(&[0, self as u8], update)
    }

    /// The message of the update behind the first [`HEAD_LEN_MAX`](Self::HEAD_LEN_MAX) bytes, and that
    /// update: both in this piece of memory.
    pub(crate) fn frame_in_place(self, mut frame: Vec<u8>) -> (Bytes, Bytes) {
        let mut head = Vec::with_capacity(Self::HEAD_LEN_MAX);
        head.extend([0, self as u8]);
        write_var_uint(&mut head, (frame.len() - Self::HEAD_LEN_MAX) as u64);
        let start = Self::HEAD_LEN_MAX - head.len();
        frame[start..Self::HEAD_LEN_MAX].copy_from_slice(&head);
        let mut frame = Bytes::from(frame);
        let update = frame.slice(Self::HEAD_LEN_MAX..);
        frame.advance(start);
        (frame, update)
    }
}

fn with_payload(head: &[u8], payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(head.len() + 5 + payload.len());
    frame.extend_from_slice(head);
    write_var_bytes(&mut frame, payload);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(frame: &[u8]) -> Result<Vec<Message>, MessageError> {
        Message::decode(&Bytes::copy_from_slice(frame)).collect()
    }

    #[test]
    fn samples_of_the_wire() {
        for (frame, message) in [
            (&[0, 0, 1, 0][..], Message::SyncStep1(Bytes::from_static(&[0]))),
            (&[0, 0, 3, 1, 1, 5], Message::SyncStep1(Bytes::from_static(&[1, 1, 5]))),
            (&[0, 1, 2, 0, 0], Message::SyncStep2(Bytes::from_static(&[0, 0]))),
            (&[0, 2, 2, 0, 0], Message::Update(Bytes::from_static(&[0, 0]))),
            (&[1, 1, 0], Message::Awareness(Bytes::from_static(&[0]))),
            (&[2, 0, 2, b'n', b'o'], Message::PermissionDenied("no".into())),
            (&[2, 0, 0], Message::PermissionDenied(String::new())),
            (&[3], Message::QueryAwareness),
            (&[102, 1, 7], Message::Unknown { tag: 102, payload: Bytes::from_static(&[1, 7]) }),
        ] {
            assert_eq!(decode(frame), Ok(vec![message.clone()]), "{frame:?}");
            assert_eq!(&message.encode()[..], frame);
        }
    }

    #[test]
    fn a_frame_around_an_update_is_that_of_the_message() {
        for len in [0, 1, 127, 128, 20_000] {
            let update = vec![7; len];
            let behind = [&[0; Carrier::HEAD_LEN_MAX], &update[..]].concat();
            let (frame, shared) = Carrier::SyncStep2.frame_in_place(behind);
            assert_eq!(
                (frame, &shared[..]),
                (Message::SyncStep2(update.clone().into()).encode(), &update[..])
            );
        }
    }

    #[test]
    fn several_messages_in_one_frame() {
        let frame = [0, 0, 1, 0, 1, 1, 0, 0, 2, 2, 0, 0];
        assert_eq!(
            decode(&frame),
            Ok(vec![
                Message::SyncStep1(Bytes::from_static(&[0])),
                Message::Awareness(Bytes::from_static(&[0])),
                Message::Update(Bytes::from_static(&[0, 0])),
            ])
        );
    }

    #[test]
    fn what_is_cut_is_an_error_and_never_a_silent_end() {
        for frame in
            [&[][..], &[0], &[0, 0], &[0, 2, 5, 1, 2, 3], &[1], &[1, 2, 0], &[0, 0, 1, 0, 1], &[0x80]]
        {
            assert_eq!(decode(frame), Err(MessageError::Truncated), "{frame:?}");
        }
        assert_eq!(decode(&[0, 9, 0]), Err(MessageError::UnknownSync(9)));
    }

    #[test]
    fn jupyter_requests_under_type_2_are_unknown_not_malformed() {
        let save = [2, 4, b's', b'a', b'v', b'e', 1];
        assert_eq!(
            decode(&save),
            Ok(vec![Message::Unknown { tag: 2, payload: Bytes::copy_from_slice(&save[1..]) }])
        );
    }

    #[test]
    fn awareness_behind_a_query_is_ignored() {
        assert_eq!(decode(&[3, 4, 1, 1, 1, 0]), Ok(vec![Message::QueryAwareness]));
    }

    fn messages() -> impl Strategy<Value = Message> {
        let payload = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            payload().prop_map(Message::SyncStep1),
            payload().prop_map(Message::SyncStep2),
            payload().prop_map(Message::Update),
            payload().prop_map(Message::Awareness),
            ".{0,20}".prop_map(Message::PermissionDenied),
        ]
    }

    proptest! {
        #[test]
        fn every_sequence_of_messages_round_trips(messages in proptest::collection::vec(messages(), 1..6)) {
            let frame: Vec<u8> = messages.iter().flat_map(|message| message.encode().to_vec()).collect();
            prop_assert_eq!(decode(&frame), Ok(messages));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}
