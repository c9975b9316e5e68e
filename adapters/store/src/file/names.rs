//! Room names as file names.
//!
//! Lower-case letters, digits, `-`, `_` and dots stand for themselves, every other byte of the name's UTF-8
//! is `%` and two lower-case hexadecimal digits, and `.y` is at the end. So two rooms never share a file,
//! not even where file names ignore case or Unicode normalisation, and no name leads out of the
//! folder. A name that is too long for a file name becomes a path of several, joined by `+` on both sides.

use std::path::{Path, PathBuf};

use yrs_websocket::RoomName;

/// The path of a room's file inside the folder.
pub(crate) fn path_of(room: &RoomName) -> PathBuf {
    let name = room.as_str();
    let mut encoded = String::with_capacity(name.len() + 2);
    for (at, byte) in name.bytes().enumerate() {
        let plain = match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => true,
            // A leading dot hides a file.
            b'.' => at > 0,
            _ => false,
        };
        if plain && !(at == 0 && is_device(name)) {
            encoded.push(byte.into());
        } else {
            encoded.push('%');
            encoded.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
        }
    }
    let mut path = PathBuf::new();
    let mut rest = encoded.as_str();
    let mut start = "";
    while rest.len() > PART_LEN_MAX {
        let (part, after) = rest.split_at(PART_LEN_MAX);
        path.push(format!("{start}{part}+"));
        (rest, start) = (after, "+");
    }
    path.push(format!("{start}{rest}.y"));
    path
}

/// The room of a file; `None` for what [`path_of`] never answers: backups, and files of others.
pub(crate) fn room_of(path: &Path) -> Option<RoomName> {
    let mut encoded = String::new();
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        let part = part.to_str()?;
        let part = if encoded.is_empty() { part } else { part.strip_prefix('+')? };
        encoded.push_str(part.strip_suffix(if parts.peek().is_some() { "+" } else { ".y" })?);
    }
    let mut name = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    let room = RoomName::new(str::from_utf8(&name).ok()?).ok()?;
    // One name for one room: whatever else decodes to it is not its file.
    (path_of(&room) == path).then_some(room)
}

/// Whether Windows takes a file of this name for a device, whatever follows a dot.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    matches!(
        stem.as_bytes(),
        b"con" | b"prn" | b"aux" | b"nul" | [b'c', b'o', b'm', b'0'..=b'9'] | [b'l', b'p', b't', b'0'..=b'9']
    )
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// With what is put around it less than the 143 bytes that eCryptfs allows, of the 255 elsewhere.
const PART_LEN_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_readable_and_harmless() {
        for (name, path) in [
            ("notes", "notes.y"),
            ("notes.md", "notes.md.y"),
            ("Notes", "%4eotes.y"),
            ("a/b", "a%2fb.y"),
            ("..", "%2e..y"),
            ("../../etc/passwd", "%2e.%2f..%2fetc%2fpasswd.y"),
            ("/etc/passwd", "%2fetc%2fpasswd.y"),
            (".hidden", "%2ehidden.y"),
            (".yrs-websocket.lock", "%2eyrs-websocket.lock.y"),
            ("nul", "%6eul.y"),
            ("com1.txt", "%63om1.txt.y"),
            ("console", "console.y"),
            ("a\\b:c*?", "a%5cb%3ac%2a%3f.y"),
            ("%41", "%2541.y"),
            ("café", "caf%c3%a9.y"),
            ("cafe\u{301}", "cafe%cc%81.y"),
            ("notes.y", "notes.y.y"),
            ("+", "%2b.y"),
        ] {
            assert_eq!(path_of(&room(name)), Path::new(path), "{name}");
        }
        let long = path_of(&room(&"x".repeat(300)));
        let expected = [&"x".repeat(120), "+/+", &"x".repeat(120), "+/+", &"x".repeat(60), ".y"].concat();
        assert_eq!(long, Path::new(&expected));
    }

    #[test]
    fn what_is_no_rooms_file_is_no_room() {
        for path in [
            "notes",
            "notes(1).y",
            "Notes.y",
            "%4Eotes.y",
            "%6eotes.y",
            "%zz.y",
            "%ff.y",
            "%00.y",
            "%2",
            ".y",
            ".hidden.y",
            "nul.y",
            "a/b.y",
            "a+/+b.y",
            "../notes.y",
            "/notes.y",
            ".yrs-websocket.lock",
            ".yrs-websocket.new",
            "",
        ] {
            assert_eq!(room_of(Path::new(path)), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn names_are_reversible_and_stay_in_the_folder(name in name()) {
            let path = path_of(&room(&name));
            prop_assert_eq!(room_of(&path), Some(room(&name)));
            for part in path.components() {
                let Component::Normal(part) = part else { panic!("{path:?}") };
                let part = part.to_str().unwrap();
                prop_assert!(part.len() <= 130, "{}", part.len());
                prop_assert!(!part.starts_with('.') || part.len() > 2, "{}", part);
                prop_assert!(!part.ends_with(['.', ' ']) && !is_device(part), "{}", part);
                prop_assert!(part.bytes().all(|byte| b"abcdefghijklmnopqrstuvwxyz0123456789-_.%+".contains(&byte)));
            }
            prop_assert!(!path.to_str().unwrap().starts_with('.'));
            prop_assert!(path.as_os_str().len() < 3500, "with the folder's own path below PATH_MAX");
        }

        #[test]
        fn different_rooms_have_different_files_even_where_case_does_not_count(a in name(), b in name()) {
            let [path_a, path_b] = [&a, &b].map(|name| path_of(&room(name)));
            let [path_a, path_b] = [path_a, path_b].map(|path| path.to_str().unwrap().to_lowercase());
            prop_assert_eq!(a == b, path_a == path_b);
        }
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[aA.]{1,3}",
            r"(nul|NUL|com1|aux|con|\.\.?|a)([./\\ +%y]{0,3})(nul|y|\.y)?",
            r"[a%/+.]{100,400}",
            r"\PC{1,200}",
            r"[é🦀]{100,250}",
        ]
        .prop_filter("a room name", |name| RoomName::new(name).is_ok())
    }

    fn room(name: &str) -> RoomName {
        RoomName::new(name).unwrap()
    }
}
