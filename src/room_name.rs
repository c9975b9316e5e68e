use std::{fmt, str::FromStr, sync::Arc};

/// Names a room: the path of the WebSocket URL without its leading slash and query, percent-decoded.
///
/// `y-websocket` dials `serverUrl + '/' + roomname + '?' + params` and does not encode the room name
/// itself (browsers normalise it), so `/notes/caf%C3%A9?token=1` and `/notes/café` are the same room,
/// `notes/café`. A name is 1 to [`RoomName::LEN_MAX`] bytes of UTF-8 without control characters.
/// Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomName(Arc<str>);

impl RoomName {
    /// The longest name in bytes of UTF-8, after percent-decoding.
    pub const LEN_MAX: usize = 1024;

    /// Makes a name from text that is already decoded.
    pub fn new(name: &str) -> Result<Self, RoomNameError> {
        if name.is_empty() {
            return Err(RoomNameError::Empty);
        }
        if name.len() > Self::LEN_MAX {
            return Err(RoomNameError::TooLong);
        }
        if name.chars().any(char::is_control) {
            return Err(RoomNameError::ControlCharacter);
        }
        Ok(Self(name.into()))
    }

    /// Reads the name from the request target of an upgrade: `/room?query`.
    ///
    /// The leading slash is optional, the query is ignored. An escape that is not two hexadecimal
    /// digits, or bytes that are not UTF-8 once decoded, are refused rather than guessed.
    pub fn from_path(target: &str) -> Result<Self, RoomNameError> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.len() > 3 * Self::LEN_MAX {
            return Err(RoomNameError::TooLong);
        }
        let mut decoded = Vec::with_capacity(path.len());
        let mut rest = path.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'%' {
                decoded.push(byte);
                continue;
            }
            let mut digit = || rest.next().and_then(|d| (d as char).to_digit(16));
            let (Some(high), Some(low)) = (digit(), digit()) else {
                return Err(RoomNameError::Escape);
            };
            decoded.push((high * 16 + low) as u8);
        }
        Self::new(std::str::from_utf8(&decoded).map_err(|_| RoomNameError::NotUtf8)?)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoomName {
    type Err = RoomNameError;

    fn from_str(name: &str) -> Result<Self, RoomNameError> {
        Self::new(name)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says why a text is no room name. The fault is the caller's, who should answer 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoomNameError {
    /// There is no name at all: the URL was `/`.
    #[error("the room name is empty: connect to /NAME")]
    Empty,
    /// The name has more than [`RoomName::LEN_MAX`] bytes.
    #[error("the room name is longer than {} bytes", RoomName::LEN_MAX)]
    TooLong,
    /// A `%` is not followed by two hexadecimal digits.
    #[error("the room name holds a broken percent escape")]
    Escape,
    /// The percent-decoded name is not UTF-8.
    #[error("the room name is not UTF-8")]
    NotUtf8,
    /// The name holds a control character.
    #[error("the room name holds a control character")]
    ControlCharacter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_without_slash_and_query_percent_decoded() {
        for (target, name) in [
            ("/notes", "notes"),
            ("/notes?token=a%20b&x=/y", "notes"),
            ("/a/b%2Fc", "a/b/c"),
            ("/caf%C3%A9", "café"),
            ("/café", "café"),
            ("plain", "plain"),
            ("//double", "/double"),
            ("/%F0%9F%A6%80%20x", "🦀 x"),
        ] {
            assert_eq!(RoomName::from_path(target).as_ref().map(RoomName::as_str), Ok(name), "{target}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        for (target, error) in [
            ("/", RoomNameError::Empty),
            ("/?token=1", RoomNameError::Empty),
            ("/a%", RoomNameError::Escape),
            ("/a%2", RoomNameError::Escape),
            ("/a%zz", RoomNameError::Escape),
            ("/%ff", RoomNameError::NotUtf8),
            ("/a%00", RoomNameError::ControlCharacter),
            ("/a%0Ab", RoomNameError::ControlCharacter),
        ] {
            assert_eq!(RoomName::from_path(target), Err(error), "{target}");
        }
        assert_eq!(RoomName::new(&"x".repeat(RoomName::LEN_MAX + 1)), Err(RoomNameError::TooLong));
        assert!(RoomName::new(&"x".repeat(RoomName::LEN_MAX)).is_ok());
    }
}
