//! `yrs-websocket-server store ...` as an operator sees it: what it prints, what it exits with, what it leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bytes::Bytes;
use tempfile::TempDir;
use yrs::{Doc, GetString as _, Transact as _, Update, updates::decoder::Decode as _};
use yrs_websocket::RoomName;
use yrs_websocket_store::{SqliteStore, Store as _, Write};

#[test]
fn what_python_wrote_is_listed_with_its_history() {
    let shop = Shop::new("pycrdt-store-0.1.5");
    assert_eq!(
        shop.run(&["list"]),
        "   records          bytes  newest                room\n         5             73  2023-11-14T22:13:23Z  room-1\n"
    );
    let history = shop.run(&["history", "room-1"]);
    let lines: Vec<_> = history.lines().collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[1], "         1  2023-11-14T22:13:20Z             18  m1");
    assert!(lines[3].ends_with("checkpoint"), "{}", lines[3]);
    assert_eq!(shop.run(&["verify"]), "1 rooms, 5 records, 0 damaged\n");
}

#[test]
fn who_only_looks_changes_nothing() {
    let shop = Shop::new("ypy-0.12.4");
    let before = fs::read(shop.path("store.db")).unwrap();
    for arguments in
        [&["list"][..], &["history", "room-1"], &["verify"], &["export", "room-2", &shop.path("x.y")]]
    {
        shop.run(arguments);
        assert!(fs::read(shop.path("store.db")).unwrap() == before, "{arguments:?}");
    }
}

#[test]
fn an_option_of_another_store_is_a_mistake() {
    for (store, option, expected) in [
        ("sqlite:x", "--fsync=never", "--fsync is for --store file:FOLDER and temp"),
        ("memory", "--fsync=never", "--fsync is for --store file:FOLDER and temp"),
        ("file:x", "--compress", "--compress is for --store sqlite:PATH"),
        ("temp", "--size-max=1", "--size-max is for --store sqlite:PATH"),
        ("memory", "--commit-interval=1", "--commit-interval is for a store on a disk"),
    ] {
        let program = env!("CARGO_BIN_EXE_yrs-websocket-server");
        let folder = tempfile::tempdir().unwrap();
        // Should it start, it ends all the same: nobody may listen there.
        let arguments = ["--listen", "192.0.2.1:1", "--store", store, option];
        let output = Command::new(program).args(arguments).current_dir(&folder).output().unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn rooms_travel_through_files() {
    let shop = Shop::new("ypy-0.12.4");
    let folder = shop.path("rooms");
    shop.run(&["export", "--all", &folder]);
    // Python's own FileYStore has the same document; its first record is of the same time.
    let ours = fs::read(Path::new(&folder).join("room-1.y")).unwrap();
    let python = fs::read(fixture("ypy-0.12.4").join("doc.y")).unwrap();
    assert_eq!((ours.len(), &ours[..41]), (python.len(), &python[..41]));
    let store = format!("sqlite:{}", shop.path("new.db"));
    assert_eq!(
        shop.run(&["import", &folder, "--store", &store]),
        "3 records to room-1\n1 records to room-2\n"
    );
    assert_eq!(shop.texts("new.db", ["room-1", "room-2"]), ["Hello, World", "Hello"]);
    // A store of files is such a folder.
    let files = format!("file:{folder}");
    assert_eq!(shop.run(&["verify", "--store", &files]), "2 rooms, 4 records, 0 damaged\n");
    assert!(shop.run(&["compact", "--store", &files]).starts_with("2 rooms: 4 records"));
    shop.run(&["import", &folder, "--store", &format!("sqlite:{}", shop.path("again.db"))]);
    assert_eq!(shop.texts("again.db", ["room-1", "room-2"]), ["Hello, World", "Hello"]);
    assert_eq!(shop.run(&["history", "room-1", "--store", &files]).lines().count(), 2);
    // No export overwrites another.
    let again = shop.fail(&["export", "--all", &folder], 1);
    assert!(again.contains("room-1.y: File exists"), "{again}");
}

#[test]
fn whatever_a_room_is_called_it_travels() {
    let shop = Shop::new("ypy-0.12.4");
    let names =
        [".notebook:1234.y", "../../etc/passwd", "Notes", "notes", "caf\u{e9} ?%41", &"long/".repeat(200)];
    let mut store = SqliteStore::open(shop.path("store.db")).unwrap();
    for (seq, name) in (1..).zip(names) {
        let update = store.load(&room("room-2")).unwrap().remove(0);
        store.commit(&[Write::Append { room: room(name), seq, update }]).unwrap();
    }
    drop(store);
    let folder = shop.path("rooms");
    shop.run(&["export", "--all", &folder]);
    shop.run(&["import", &folder, "--store", &format!("sqlite:{}", shop.path("new.db"))]);
    assert_eq!(shop.texts("new.db", names), ["Hello"; 6]);
    assert!(shop.run(&["list", "--store", &format!("file:{folder}")]).contains("../../etc/passwd"));
}

#[test]
fn the_document_of_a_record_or_a_time_is_one_record() {
    let shop = Shop::new("ypy-0.12.4");
    for (arguments, expected) in [
        (["--record", "1"], "Hello"),
        (["--record", "2"], "Hello, "),
        (["--time", "2023-11-14T22:13:22Z"], "Hello, "),
        (["--time", "1700000000.5"], "Hello"),
    ] {
        let file = shop.path(&format!("{expected}{}.y", arguments[1]));
        shop.run(&["export", "room-1", &file, arguments[0], arguments[1]]);
        let store = format!("sqlite:{}", shop.path(&format!("{}.db", arguments[1])));
        shop.run(&["import", &file, "--room", "then", "--store", &store]);
        assert_eq!(shop.texts(&format!("{}.db", arguments[1]), ["then"]), [expected]);
    }
}

#[test]
fn another_database_is_imported_whole_and_stays_as_it_is() {
    let shop = Shop::new("ypy-0.12.4");
    let old = fixture("pycrdt-store-0.1.5").join("ystore.db");
    let before = fs::read(&old).unwrap();
    let store = format!("sqlite:{}", shop.path("new.db"));
    assert_eq!(shop.run(&["import", old.to_str().unwrap(), "--store", &store]), "5 records\n");
    assert_eq!(fs::read(&old).unwrap(), before);
    assert_eq!(shop.texts("new.db", ["room-1"]), ["Hello, World!"]);
}

#[test]
fn compacting_keeps_the_documents() {
    let shop = Shop::new("ypy-0.12.4");
    let said = shop.run(&["compact", "--vacuum"]);
    assert!(said.starts_with("2 rooms: 4 records of ") && said.contains(" are now 2 of "), "{said}");
    assert_eq!(shop.texts("store.db", ["room-1", "room-2"]), ["Hello, World", "Hello"]);
}

#[test]
fn damage_is_named_with_its_room_and_record_and_stays() {
    let shop = Shop::new("ypy-0.12.4");
    let letters = Write::Append { room: room("room-1"), seq: 1, update: "letters".into() };
    SqliteStore::open(shop.path("store.db")).unwrap().commit(&[letters]).unwrap();
    let output = shop.output(&["verify"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("room-1: record 4 is damaged: it is no Yjs update"), "{said}");
    assert!(said.ends_with("2 rooms, 5 records, 1 damaged\n"), "{said}");
    let said = shop.fail(&["compact"], 3);
    assert!(said.starts_with("left as it is: record 4 of room \"room-1\" is damaged"), "{said}");
    assert_eq!(shop.run(&["list"]).lines().count(), 3);
    assert!(shop.run(&["history", "room-2"]).lines().count() == 2);
}

#[test]
fn what_is_whole_of_a_damaged_store_is_saved_into_another() {
    let shop = Shop::new("ypy-0.12.4");
    let letters = Write::Append { room: room("room-1"), seq: 1, update: "letters".into() };
    SqliteStore::open(shop.path("store.db")).unwrap().commit(&[letters]).unwrap();
    let folder = shop.path("rooms");
    shop.run(&["export", "--all", &folder]);
    let output = shop.output(&["import", &folder, "--store", &format!("sqlite:{}", shop.path("new.db"))]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"3 records to room-1\n1 records to room-2\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("room-1.y: record 4 was not imported: it is no Yjs update"), "{said}");
    assert_eq!(shop.texts("new.db", ["room-1", "room-2"]), ["Hello, World", "Hello"]);
}

#[test]
fn what_cannot_be_read_is_left_out_of_an_export_and_said() {
    let shop = Shop::new("ypy-0.12.4");
    let database = rusqlite::Connection::open(shop.path("store.db")).unwrap();
    database.execute("UPDATE yupdates SET yupdate = NULL WHERE rowid = 2", []).unwrap();
    let folder = shop.path("rooms");
    let said = shop.fail(&["export", "--all", &folder], 3);
    assert_eq!(said, "room-1: record 2 was left out: it holds no bytes\n");
    let store = format!("sqlite:{}", shop.path("new.db"));
    assert_eq!(
        shop.run(&["import", &folder, "--store", &store]),
        "2 records to room-1\n1 records to room-2\n"
    );
    let file = shop.path("room-1.y");
    shop.fail(&["export", "room-1", &file], 3);
    assert!(fs::read(file).unwrap() == fs::read(Path::new(&folder).join("room-1.y")).unwrap());
}

#[test]
fn backups_are_numbered() {
    let shop = Shop::new("ypy-0.12.4");
    for n in 1..3 {
        let copy = shop.path(&format!("store({n}).db"));
        assert_eq!(shop.run(&["backup"]), format!("{copy}\n"));
        assert_eq!(shop.texts(&format!("store({n}).db"), ["room-1"]), ["Hello, World"]);
    }
}

#[test]
fn mistakes_say_what_to_do() {
    let shop = Shop::new("ypy-0.12.4");
    let missing = format!("sqlite:{}", shop.path("missing.db"));
    for (arguments, expected) in [
        (vec!["list", "--store", &missing], "there is no such store"),
        (vec!["list", "--store", "memory"], "give --store sqlite:PATH or file:FOLDER"),
        (vec!["history", "nobody"], "there is no room \"nobody\": see `store list`"),
        (vec!["export", "nobody"], "there is no room"),
        (vec!["import", "/nowhere"], "/nowhere: No such file"),
    ] {
        let said = shop.fail(&arguments, 1);
        assert!(said.starts_with("yrs-websocket-server: ") && said.contains(expected), "{said}");
    }
    assert!(!Path::new(&shop.path("missing.db")).exists());
    shop.fail(&["export"], 2);
    let said = shop.fail(&["import", shop.path("store.db").as_str(), "--store", "nonsense"], 2);
    assert!(said.contains("expected `sqlite:PATH`, `file:FOLDER`, `temp` or `memory`"), "{said}");
}

/// A folder with a database that Python wrote.
struct Shop(TempDir);

impl Shop {
    fn new(library: &str) -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        fs::write(shop.path("store.db"), fs::read(fixture(library).join("ystore.db")).unwrap()).unwrap();
        shop
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yrs-websocket-server"));
        command.arg("store").args(arguments);
        if !arguments.contains(&"--store") {
            command.args(["--store", &format!("sqlite:{}", self.path("store.db"))]);
        }
        command.output().unwrap()
    }

    /// Runs it, and returns what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(String::from_utf8(output.stderr), Ok(String::new()), "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it in vain, and returns what it complains about.
    fn fail(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    fn texts<const N: usize>(&self, database: &str, rooms: [&str; N]) -> [String; N] {
        let mut store = SqliteStore::open(self.path(database)).unwrap();
        rooms.map(|name| text(&store.load(&room(name)).unwrap()))
    }
}

fn fixture(library: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/fixtures").join(library)
}

fn room(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

fn text(updates: &[Bytes]) -> String {
    let doc = Doc::with_client_id(1);
    for update in updates {
        doc.transact_mut().apply_update(Update::decode_v1(update).unwrap()).unwrap();
    }
    let text = doc.get_or_insert_text("text");
    text.get_string(&doc.transact())
}
