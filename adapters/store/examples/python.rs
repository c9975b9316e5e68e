//! Writes databases and files for the Python libraries to read, and reads what they have written into them: the
//! Rust half of `tests/python/run`.
//!
//! `python write FOLDER` makes `FOLDER/ypy/*.db`, `FOLDER/ypy/*/room-1.y`, the same for `pycrdt`, and beside them
//! `expected.tsv`: database or file, text, and `zlib` or `plain`. `python check FOLDER` expects each text with
//! ` and Python` behind it.

use std::{env, fs, path::Path, sync::Arc};

use bytes::Bytes;
use yrs::{
    ClientID, Doc, GetString as _, Options, ReadTxn as _, Text as _, Transact as _, Update,
    updates::decoder::Decode as _,
};
use yrs_websocket::{RoomName, update::SquashOptions};
use yrs_websocket_store::{FileStore, History as _, SqliteOptions, SqliteStore, Store, Write, Zlib};

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [what, folder] = &arguments[..] else { panic!("python write|check FOLDER") };
    for library in ["ypy", "pycrdt"] {
        let folder = Path::new(folder).join(library);
        match what.as_str() {
            "write" => {
                let expected = write_databases(library, &folder) + &write_files(&folder);
                fs::write(folder.join("expected.tsv"), expected).expect("the folder can be written");
            }
            "check" => check(&folder),
            _ => panic!("python write|check FOLDER"),
        }
    }
}

fn write_databases(library: &str, folder: &Path) -> String {
    fs::create_dir_all(folder).expect("the folder can be made");
    let mut expected = String::new();
    for fixture in ["ypy-0.12.4", "pycrdt-store-0.1.5", "new"] {
        for case in ["appended", "squashed", "upkeep", "checkpointed", "compressed"] {
            let is_compressed = case == "compressed";
            // ypy-websocket has no compression, and what Python wrote plain is not all compressed.
            if is_compressed && (library == "ypy" || fixture != "new") {
                continue;
            }
            let name = format!("{fixture}-{case}.db");
            let path = folder.join(&name);
            if fixture != "new" {
                copy_fixture(&format!("{fixture}/ystore.db"), &path);
            }
            let mut options = SqliteOptions::default();
            if case == "checkpointed" || is_compressed {
                options.checkpoint_every = Some(1);
            }
            if case == "upkeep" {
                options.squash_above_records = Some(1);
            }
            if is_compressed {
                options.compression = Some(Arc::new(Zlib));
            }
            let mut store =
                SqliteStore::open(&path).expect("a database").with_options(options).expect("options");
            push(&mut store, " and Rust");
            if case == "squashed" {
                store.compact(&room(), SquashOptions::default()).expect("a squash");
            }
            push(&mut store, " once");
            if !is_compressed {
                push(&mut store, " more");
            }
            if case == "checkpointed" {
                // And something behind the checkpoint.
                drop(store);
                store = SqliteStore::open(&path).expect("a database");
                push(&mut store, "!");
            }
            let text = text(&store.load(&room()).expect("what was written"));
            let codec = if is_compressed { "zlib" } else { "plain" };
            expected += &format!("{name}\t{text}\t{codec}\n");
        }
    }
    expected
}

fn write_files(folder: &Path) -> String {
    let mut expected = String::new();
    for fixture in ["ypy-0.12.4", "pycrdt-store-0.1.5", "new"] {
        for case in ["appended", "compacted"] {
            let name = format!("{fixture}-{case}/room-1.y");
            let path = folder.join(&name);
            let folder = path.parent().expect("the name has one");
            fs::create_dir_all(folder).expect("the folder can be made");
            if fixture != "new" {
                copy_fixture(&format!("{fixture}/doc.y"), &path);
            }
            let mut store = FileStore::open(folder).expect("a folder");
            push(&mut store, " and Rust");
            if case == "compacted" {
                store.compact(&room(), SquashOptions::default()).expect("a squash");
            }
            push(&mut store, " once");
            push(&mut store, " more");
            expected +=
                &format!("{name}\t{}\tplain\n", text(&store.load(&room()).expect("what was written")));
        }
    }
    expected
}

fn copy_fixture(name: &str, to: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs::write(to, fs::read(fixture).expect("the fixture is there")).expect("the folder can be written");
}

fn check(folder: &Path) {
    let expected = fs::read_to_string(folder.join("expected.tsv")).expect("it was written before");
    for line in expected.lines() {
        let [name, before, _] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let path = folder.join(name);
        let updates = if name.ends_with(".db") {
            let mut store = SqliteStore::open(path).expect("a database");
            assert_eq!(store.check().as_deref(), Ok(&[][..]), "{name}");
            store.load(&room())
        } else {
            FileStore::open(path.parent().expect("the name has one")).expect("a folder").load(&room())
        };
        let after = text(&updates.expect("what was written"));
        assert_eq!(after, format!("{before} and Python"), "{name}");
    }
    println!("{}: what Python wrote behind {} texts is read", folder.display(), expected.lines().count());
}

/// Types at the end of the text, in a transaction of its own.
fn push(store: &mut impl Store, words: &str) {
    let updates = store.load(&room()).expect("what was written");
    let doc = document(&updates);
    let text = doc.get_or_insert_text("text");
    let before = doc.transact().state_vector();
    text.push(&mut doc.transact_mut(), words);
    let update = doc.transact().encode_diff_v1(&before).into();
    store.commit(&[Write::Append { room: room(), seq: 1, update }]).expect("a disk");
}

fn text(updates: &[Bytes]) -> String {
    let doc = document(updates);
    let text = doc.get_or_insert_text("text");
    text.get_string(&doc.transact())
}

/// As a client of its own: every load begins another.
fn document(updates: &[Bytes]) -> Doc {
    let client = 1000 + updates.iter().map(|update| update.len() as u64).sum::<u64>();
    let doc = Doc::with_options(Options::with_client_id(ClientID::new(client)));
    for update in updates {
        let update = Update::decode_v1(update).expect("an update");
        doc.transact_mut().apply_update(update).expect("it fits");
    }
    doc
}

fn room() -> RoomName {
    RoomName::new("room-1").expect("a name")
}
