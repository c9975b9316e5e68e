//! `yrs-websocket-server store ...`: looks into a store, carries it elsewhere, proves it, makes it smaller.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use yrs_websocket::{RoomName, update::SquashOptions};
use yrs_websocket_store::{
    Damage, Entry, FileStore, History, HistoryError, MemoryStore, Moment, Record, RoomSummary, SqliteStore,
    StoreError, backup,
};

use crate::StoreUrl;

/// Looks into a store, exports, imports, verifies and compacts it. A server may be using a database meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 done, but something is damaged.")]
pub(crate) struct Arguments {
    /// Which store.
    #[arg(long, global = true, default_value = "sqlite:./yrs-websocket.sqlite3", value_name = "STORE")]
    store: StoreUrl,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists all rooms: records, bytes, the time of the newest record, the name.
    List,
    /// Lists the records of a room: number, time, bytes, metadata.
    History {
        /// The room.
        room: RoomName,
    },
    /// Writes rooms to files, in the format of Python's FileYStore. No file is overwritten.
    ///
    /// With --record or --time it is the document as it was then, in one record.
    Export {
        /// The room.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        room: Option<RoomName>,
        /// The file to write; `-`, or none, is the standard output.
        #[arg(default_value = "-", conflicts_with = "all")]
        file: PathBuf,
        /// Exports every room, each to a file of its own in this folder, which is a store then: `file:FOLDER`.
        #[arg(long, value_name = "FOLDER")]
        all: Option<PathBuf>,
        /// The document as it was after the record of this number.
        #[arg(long, value_name = "NUMBER", conflicts_with_all = ["time", "all"])]
        record: Option<u64>,
        /// The document as it was at this time: 2030-01-31T12:00:00Z, or seconds since 1970.
        #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "all")]
        time: Option<f64>,
    },
    /// Adds to the store what is in a file, in a folder of such files, or in another SQLite database of
    /// whatever version. What is imported is only read.
    Import {
        /// The file or the folder.
        path: PathBuf,
        /// The room, for a file with a single one; by default the name of the file says it, as export gives it.
        #[arg(long)]
        room: Option<RoomName>,
    },
    /// Proves every record, and reports those that are damaged.
    Verify {
        /// Only this room.
        room: Option<RoomName>,
    },
    /// Squashes every room to as few records as possible. Its history is gone then, its document is not.
    Compact {
        /// Only this room.
        room: Option<RoomName>,
        /// Drops deleted content, too; Yjs cannot undo or show it then.
        #[arg(long)]
        drop_deleted: bool,
        /// Gives the space back to the file system also where the database does not by itself. It is locked
        /// meanwhile, and needs its size on the disk once more.
        #[arg(long)]
        vacuum: bool,
    },
    /// Copies a database to the first free name of `store(1).db`, `store(2).db` and so on.
    Backup,
}

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match perform(arguments) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(3),
        // Whoever read the output has seen enough.
        Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(Failure::Because(message)) => {
            eprintln!("yrs-websocket-server: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done,
    Damaged,
}

fn perform(arguments: Arguments) -> Result<Outcome, Failure> {
    let (path, is_folder) = match &arguments.store {
        StoreUrl::Sqlite(path) => (path, false),
        StoreUrl::File(path) => (path, true),
        StoreUrl::Memory | StoreUrl::Temp => {
            let advice = "such a store has nothing: give --store sqlite:PATH or file:FOLDER";
            return Err(Failure::because(advice));
        }
    };
    if let Command::Backup = arguments.command {
        if is_folder {
            return Err(at(path, "is a folder: stop the server and copy it"));
        }
        let copy = backup(path).map_err(|error| at(path, error))?;
        return print(format_args!("{}", copy.display())).map(|()| Outcome::Done);
    }
    // Only an import may make one: a misspelt path is no empty store.
    if !matches!(arguments.command, Command::Import { .. }) && !path.exists() {
        return Err(at(path, "there is no such store: give --store sqlite:PATH or file:FOLDER"));
    }
    let writes = matches!(arguments.command, Command::Import { .. } | Command::Compact { .. });
    let store = &mut if is_folder {
        Opened::Files(FileStore::open(path).map_err(Failure::because)?)
    } else {
        // Whoever only looks changes nothing, not even the version that Python left.
        let opened = if writes { SqliteStore::open(path) } else { SqliteStore::open_read_only(path) };
        Opened::Sqlite(Box::new(opened.map_err(|error| at(path, error))?))
    };
    match arguments.command {
        Command::List => list(store),
        Command::History { room } => history(store.history(), &room),
        Command::Export { all: Some(folder), .. } => export_all(store, &folder),
        Command::Export { room: None, .. } => Err(Failure::because("name a room, or a folder with --all")),
        Command::Export { room: Some(room), file, record, time, all: None } => {
            let moment = record.map(Moment::Record).or_else(|| time.map(Moment::Time));
            export(store.history(), &room, &file, moment)
        }
        Command::Import { path, room } => import(store, &path, room),
        Command::Verify { room } => verify(store, room),
        Command::Compact { room, drop_deleted, vacuum } => {
            let outcome = compact(store.history(), room, SquashOptions { collect: drop_deleted })?;
            if vacuum && let Opened::Sqlite(store) = store {
                store.vacuum()?;
            }
            Ok(outcome)
        }
        Command::Backup => Ok(Outcome::Done),
    }
}

/// A store, of whatever kind.
enum Opened {
    Files(FileStore),
    Sqlite(Box<SqliteStore>),
}

impl Opened {
    fn history(&mut self) -> &mut dyn History {
        match self {
            Self::Files(store) => store,
            Self::Sqlite(store) => &mut **store,
        }
    }

    /// What is wrong with the container of the records.
    fn check(&mut self) -> Result<Vec<String>, StoreError> {
        match self {
            Self::Files(_) => Ok(Vec::new()),
            Self::Sqlite(store) => store.check(),
        }
    }

    /// Says on stderr which keys are no rooms.
    fn name_unnamed(&mut self) -> Result<(), Failure> {
        let Self::Sqlite(store) = self else { return Ok(()) };
        for key in store.unnamed_keys()? {
            eprintln!("left out: the key {key:?} is no room name, so no client can reach it");
        }
        Ok(())
    }
}

fn list(store: &mut Opened) -> Result<Outcome, Failure> {
    let rooms = store.history().rooms()?;
    print(format_args!("{:>10} {:>14}  {:<20}  room", "records", "bytes", "newest"))?;
    for RoomSummary { room, records, bytes, newest } in rooms {
        print(format_args!("{records:>10} {bytes:>14}  {:<20}  {room}", shown_time(newest)))?;
    }
    store.name_unnamed()?;
    Ok(Outcome::Done)
}

fn history(store: &mut dyn History, room: &RoomName) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::Done;
    let mut printed = print(format_args!("{:>10}  {:<20} {:>14}  metadata", "record", "time", "bytes"));
    let mut count = 0;
    store.records(room, &mut |record| {
        count += 1;
        let Record { number, timestamp, ref metadata, ref update, is_checkpoint } = record;
        let time = shown_time(timestamp);
        let bytes = update.as_ref().map_or(0, |update| update.len());
        let note = match record.proven() {
            Err(damage) => {
                outcome = Outcome::Damaged;
                format!("damaged: {damage}")
            }
            Ok(_) if is_checkpoint => "checkpoint".into(),
            Ok(_) => metadata.escape_ascii().to_string(),
        };
        if printed.is_ok() {
            printed = print(format_args!("{number:>10}  {time:<20} {bytes:>14}  {note}"));
        }
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed?;
    if count == 0 {
        return Err(unknown(room));
    }
    Ok(outcome)
}

fn export(
    store: &mut dyn History,
    room: &RoomName,
    file: &Path,
    moment: Option<Moment>,
) -> Result<Outcome, Failure> {
    if !store.rooms()?.iter().any(|summary| summary.room == *room) {
        return Err(unknown(room));
    }
    let mut then = MemoryStore::new();
    if let Some(moment) = moment {
        let updates = store.document(room, moment)?;
        let timestamp = time_of(store, room, moment)?;
        let entry = |update| Entry { update, metadata: Default::default(), timestamp };
        then.restore(room, &updates.into_iter().map(entry).collect::<Vec<_>>())?;
    }
    let store = if moment.is_some() { &mut then } else { store };
    if file == Path::new("-") {
        let mut outcome = Outcome::Done;
        let written = store.export(room, &mut io::stdout().lock(), &mut left_out(room, &mut outcome));
        written.map_err(Failure::output)?;
        Ok(outcome)
    } else {
        export_to(store, room, file)
    }
}

fn export_all(store: &mut Opened, folder: &Path) -> Result<Outcome, Failure> {
    fs::create_dir_all(folder).map_err(|error| at(folder, error))?;
    let rooms = store.history().rooms()?;
    let progress = progress(rooms.len());
    let mut outcome = Outcome::Done;
    for summary in rooms {
        let file = folder.join(FileStore::default_path(&summary.room));
        let inside = file.parent().unwrap_or(folder);
        fs::create_dir_all(inside).map_err(|error| at(inside, error))?;
        outcome = outcome.max(export_to(store.history(), &summary.room, &file)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    store.name_unnamed()?;
    Ok(outcome)
}

fn export_to(store: &mut dyn History, room: &RoomName, path: &Path) -> Result<Outcome, Failure> {
    let mut file = File::create_new(path).map_err(|error| at(path, error))?;
    let mut outcome = Outcome::Done;
    let written = store.export(room, &mut file, &mut left_out(room, &mut outcome)).map_err(Failure::from);
    written.and_then(|_| file.sync_all().map_err(|error| at(path, error))).inspect_err(|_| {
        // Half an export is none.
        let _ = fs::remove_file(path);
    })?;
    Ok(outcome)
}

/// Says which records of a room are not exported.
fn left_out(room: &RoomName, outcome: &mut Outcome) -> impl FnMut(u64, Damage) {
    move |record, damage| {
        *outcome = Outcome::Damaged;
        eprintln!("{room}: record {record} was left out: {damage}");
    }
}

fn import(store: &mut Opened, path: &Path, room: Option<RoomName>) -> Result<Outcome, Failure> {
    if path.is_dir() {
        let files = files_in(path).map_err(|error| at(path, error))?;
        let progress = progress(files.len());
        let mut outcome = Outcome::Done;
        for file in files {
            let room = room_of_file(&file)?;
            outcome = outcome.max(import_file(store.history(), &path.join(&file), &room)?);
            progress.inc(1);
        }
        progress.finish_and_clear();
        return Ok(outcome);
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| at(path, error))?;
    file.take(SQLITE.len() as u64).read_to_end(&mut start).map_err(|error| at(path, error))?;
    if start == SQLITE {
        return match store {
            Opened::Sqlite(store) => import_database(store, path),
            Opened::Files(_) => {
                let advice = "is a database: import it to sqlite:PATH, and export --all of that";
                Err(at(path, advice))
            }
        };
    }
    let name = Path::new(path.file_name().unwrap_or_default());
    let room = room.map_or_else(|| room_of_file(name), Ok)?;
    import_file(store.history(), path, &room)
}

fn import_file(store: &mut dyn History, path: &Path, room: &RoomName) -> Result<Outcome, Failure> {
    let mut file = File::open(path).map_err(|error| at(path, error))?;
    let mut outcome = Outcome::Done;
    let imported = store.import(room, &mut file, &mut |record, damage| {
        outcome = Outcome::Damaged;
        eprintln!("{}: record {record} was not imported: {damage}", path.display());
    });
    let count = imported.map_err(|error| at(path, error))?;
    print(format_args!("{count} records to {room}"))?;
    Ok(outcome)
}

fn import_database(store: &mut SqliteStore, path: &Path) -> Result<Outcome, Failure> {
    let progress = ProgressBar::new_spinner();
    let mut outcome = Outcome::Done;
    let imported = store.import_database(path, &mut |row| {
        progress.inc(1);
        if let Err(old) = row {
            outcome = Outcome::Damaged;
            let (key, row, damage) = (old.key, old.row, old.damage);
            progress
                .suspend(|| eprintln!("{}: row {row} of {key:?} was not imported: {damage}", path.display()));
        }
    });
    progress.finish_and_clear();
    let count = imported.map_err(|error| at(path, error))?;
    print(format_args!("{count} records"))?;
    Ok(outcome)
}

fn verify(store: &mut Opened, room: Option<RoomName>) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::Done;
    for problem in store.check()? {
        outcome = Outcome::Damaged;
        print(format_args!("the database: {problem}"))?;
    }
    let rooms = chosen(store.history(), room)?;
    let progress = progress(rooms.len());
    let (mut records, mut damaged) = (0, 0);
    for room in &rooms {
        let mut found = Vec::new();
        records += store.history().verify(room, &mut |record, damage| found.push((record, damage)))?;
        damaged += found.len();
        for (record, damage) in found {
            progress.suspend(|| print(format_args!("{room}: record {record} is damaged: {damage}")))?;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    print(format_args!("{} rooms, {records} records, {damaged} damaged", rooms.len()))?;
    store.name_unnamed()?;
    Ok(if damaged > 0 { Outcome::Damaged } else { outcome })
}

fn compact(
    store: &mut dyn History,
    room: Option<RoomName>,
    options: SquashOptions,
) -> Result<Outcome, Failure> {
    let rooms = chosen(store, room)?;
    let progress = progress(rooms.len());
    let mut outcome = Outcome::Done;
    let (mut before, mut after) = ((0, 0), (0, 0));
    for room in &rooms {
        match store.compact(room, options) {
            Ok(done) => {
                before = (before.0 + done.records_before, before.1 + done.bytes_before);
                after = (after.0 + done.records_after, after.1 + done.bytes_after);
            }
            Err(error @ HistoryError::Damaged { .. }) => {
                outcome = Outcome::Damaged;
                progress.suspend(|| eprintln!("left as it is: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    print(format_args!(
        "{} rooms: {} records of {} bytes are now {} of {}",
        rooms.len(),
        before.0,
        before.1,
        after.0,
        after.1
    ))?;
    Ok(outcome)
}

fn chosen(store: &mut dyn History, room: Option<RoomName>) -> Result<Vec<RoomName>, Failure> {
    let rooms = store.rooms()?.into_iter().map(|summary| summary.room);
    let Some(room) = room else { return Ok(rooms.collect()) };
    let found: Vec<_> = rooms.filter(|found| *found == room).collect();
    if found.is_empty() { Err(unknown(&room)) } else { Ok(found) }
}

/// The time of the last record that a document of then is made of.
fn time_of(store: &mut dyn History, room: &RoomName, moment: Moment) -> Result<f64, Failure> {
    let mut time = 0.0_f64;
    store.records(room, &mut |record| {
        if moment.includes(&record) {
            time = record.timestamp.max(time);
        }
        ControlFlow::Continue(())
    })?;
    Ok(time)
}

/// The room of a file, by its path inside a folder, as export and stores of files name it.
fn room_of_file(path: &Path) -> Result<RoomName, Failure> {
    if let Some(room) = FileStore::default_room(path) {
        return Ok(room);
    }
    // Python names its files as it likes.
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    RoomName::new(&stem)
        .map_err(|error| at(path, format_args!("the name of the file names no room ({error}): give --room")))
}

/// The files of rooms in a folder, in order, by their paths in it.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(inside)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "y")
                && let Ok(path) = path.strip_prefix(folder)
            {
                files.push(path.to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Is drawn on a terminal only, and on stderr.
fn progress(rooms: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rooms, {eta} left");
    ProgressBar::new(rooms as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn parse_time(text: &str) -> Result<f64, String> {
    if let Ok(seconds) = text.parse::<f64>()
        && seconds.is_finite()
    {
        return Ok(seconds);
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|error| error.to_string())?;
    Ok(time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()))
}

fn shown_time(seconds: f64) -> String {
    // What has no date in four digits is a number.
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|_| seconds < YEAR_10000);
    time.and_then(|since| UNIX_EPOCH.checked_add(since))
        .map_or_else(|| seconds.to_string(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

fn print(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::because(error),
    })
}

/// Says why it ended.
#[derive(Debug)]
enum Failure {
    /// Nobody reads the output any more.
    Closed,
    Because(String),
}

impl Failure {
    fn because(message: impl ToString) -> Self {
        Self::Because(message.to_string())
    }

    /// Of a write to the standard output.
    fn output(error: HistoryError) -> Self {
        match error {
            HistoryError::Io { kind: io::ErrorKind::BrokenPipe, .. } => Self::Closed,
            error => Self::because(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::because(error)
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        Self::because(error)
    }
}

fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::because(format_args!("{}: {error}", path.display()))
}

fn unknown(room: &RoomName) -> Failure {
    Failure::because(format_args!("there is no room {room:?}: see `store list`"))
}

/// The first bytes of every SQLite database.
const SQLITE: &[u8] = b"SQLite format 3\0";
const YEAR_10000: f64 = 253_402_300_800.0;
