//! A Yjs WebSocket server: start it and point `y-websocket` at it.

mod store;

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info, level_filters::LevelFilter, warn};
use yrs_websocket::Event;
use yrs_websocket_store::{
    Compression, FileStore, Fsync, Report, SqliteOptions, SqliteStore, TempFileStore, Zlib,
};
use yrs_websocket_tokio::{Observer, Options, Service, record::Recorder, rfc6455::Deflate};

/// Serves Yjs documents over WebSocket.
#[derive(Debug, Parser)]
#[command(version, after_help = "Clients: new WebsocketProvider('ws://127.0.0.1:1234', 'my-room', doc)")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:1234", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where documents are kept: `sqlite:PATH`; `file:FOLDER`, one file for each; `temp`, files in a temporary
    /// folder, or `memory`, which both forget them at the end.
    #[arg(long, default_value = "sqlite:./yrs-websocket.sqlite3", value_name = "STORE")]
    store: StoreUrl,
    /// Compresses messages of a kilobyte and more for clients that offer it (permessage-deflate), as all browsers
    /// do: less on the wire for more work here.
    #[arg(long)]
    deflate: bool,
    /// Gathers edits for so many milliseconds before the store is written again: less work for the disk, and edits
    /// are acknowledged up to twice as much later. Others see them at once in any case.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    commit_interval: u64,
    /// When files are made durable: `always`, the default, before an edit is acknowledged; `interval:MS`, at most so many
    /// milliseconds later, and `never`, when the system does it: both lose edits if the power fails.
    #[arg(long, value_name = "WHEN", value_parser = parse_fsync, help_heading = "Files")]
    fsync: Option<Fsync>,
    /// What is logged to stderr: off, error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: LevelFilter,
    /// Records what the server is told, for bug reports, in new files PATH.0, PATH.1 and so on, one for
    /// each core. They hold the contents of all documents. `yrs-websocket-sim --replay` reads them.
    #[arg(long, value_name = "PATH")]
    record: Option<PathBuf>,
    #[command(flatten)]
    upkeep: Upkeep,
}

/// What is done to a database besides writing to it. Nothing of it is, by default.
#[derive(Debug, Args)]
#[command(next_help_heading = "SQLite")]
struct Upkeep {
    /// Squashes a room when it is written to after so many seconds without: its history is gone then.
    #[arg(long, value_name = "SECONDS")]
    squash_after_inactivity_of: Option<u64>,
    /// Squashes what of a room is older than so many seconds.
    #[arg(long, value_name = "SECONDS")]
    squash_history_older_than: Option<u64>,
    /// Stores a checkpoint after so many records of a room, for pycrdt-store, which loads faster then.
    #[arg(long, value_name = "RECORDS")]
    checkpoint_every: Option<u64>,
    /// Squashes rooms, those first that were not written for the longest time, while the database is larger.
    #[arg(long, value_name = "MIB")]
    size_max: Option<u64>,
    /// Compresses what is written by zlib. Python reads that only if it has registered zlib, too.
    #[arg(long)]
    compress: bool,
}

impl Upkeep {
    fn options(&self) -> SqliteOptions {
        let mut options = SqliteOptions::default();
        options.squash_after_inactivity_of = self.squash_after_inactivity_of.map(Duration::from_secs);
        options.squash_history_older_than = self.squash_history_older_than.map(Duration::from_secs);
        options.checkpoint_every = self.checkpoint_every;
        options.size_max = self.size_max.map(|size| size.saturating_mul(1 << 20));
        options.compression = self.compress.then(|| Arc::new(Zlib) as Arc<dyn Compression>);
        options
    }

    /// The first option that is set.
    fn first(&self) -> Option<&'static str> {
        let Self {
            squash_after_inactivity_of,
            squash_history_older_than,
            checkpoint_every,
            size_max,
            compress,
        } = self;
        let options = [
            (squash_after_inactivity_of.is_some(), "--squash-after-inactivity-of"),
            (squash_history_older_than.is_some(), "--squash-history-older-than"),
            (checkpoint_every.is_some(), "--checkpoint-every"),
            (size_max.is_some(), "--size-max"),
            (*compress, "--compress"),
        ];
        options.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Store(store::Arguments),
}

#[derive(Debug, Clone)]
enum StoreUrl {
    Memory,
    Sqlite(PathBuf),
    File(PathBuf),
    Temp,
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            None if text == "temp" => Ok(Self::Temp),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("expected `sqlite:PATH`, `file:FOLDER`, `temp` or `memory`".into()),
        }
    }
}

fn parse_fsync(text: &str) -> Result<Fsync, String> {
    match text.split_once(':') {
        None if text == "always" => return Ok(Fsync::Always),
        None if text == "never" => return Ok(Fsync::Never),
        Some(("interval", interval)) => {
            if let Ok(interval) = interval.parse() {
                return Ok(Fsync::Interval(Duration::from_millis(interval)));
            }
        }
        _ => {}
    }
    Err("expected `always`, `interval:MILLISECONDS` or `never`".into())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if let Some(Command::Store(arguments)) = arguments.command.take() {
        return store::run(arguments);
    }
    let is_database = matches!(arguments.store, StoreUrl::Sqlite(_));
    let is_folder = matches!(arguments.store, StoreUrl::File(_) | StoreUrl::Temp);
    let misplaced = match (arguments.fsync, arguments.upkeep.first()) {
        (Some(_), _) if !is_folder => Some("--fsync is for --store file:FOLDER and temp".to_owned()),
        (_, Some(option)) if !is_database => Some(format!("{option} is for --store sqlite:PATH")),
        _ if arguments.commit_interval > 0 && matches!(arguments.store, StoreUrl::Memory) => {
            Some("--commit-interval is for a store on a disk".to_owned())
        }
        _ => None,
    };
    if let Some(message) = misplaced {
        Arguments::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(arguments.log)
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("cannot start", &error),
    };
    match runtime.block_on(run(arguments)) {
        Ok(exit_code) => exit_code,
        Err(code) => code,
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, ExitCode> {
    // Before anything is printed, so that whoever waits for the line below may send a signal at once.
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) =
        signals.map_err(|error| failed("cannot listen for signals", &error))?;
    let service = start(&arguments)?;
    let listener = listen(arguments.listen)
        .map_err(|error| failed(&format!("cannot listen on {}", arguments.listen), &error))?;
    let address = listener.local_addr().map_err(|error| failed("cannot tell the address", &error))?;
    // A closed pipe is no reason not to serve.
    let _ = writeln!(
        io::stdout(),
        "yrs-websocket-server listens on ws://{address}\n  \
         new WebsocketProvider('ws://{address}', 'my-room', doc)"
    );

    let signal = tokio::select! {
        () = service.serve(listener) => None,
        _ = terminate.recv() => Some("SIGTERM"),
        _ = interrupt.recv() => Some("SIGINT"),
    };
    match signal {
        Some(signal) => info!("{signal}: draining"),
        None => error!("a thread of the server has failed, see above: ending; start it again"),
    }
    let ending = service.drain(deadline(DRAIN_TIME));
    tokio::pin!(ending);
    let drained = tokio::select! {
        drained = &mut ending => drained,
        _ = interrupt.recv() => {
            warn!("SIGINT again: ending at once; what is not stored was not acknowledged");
            return Err(ExitCode::FAILURE);
        }
    };
    if drained.durable {
        info!("everything is stored");
        return if signal.is_some() { Ok(ExitCode::SUCCESS) } else { Err(ExitCode::FAILURE) };
    }
    error!("the store did not take every edit in {} s; their authors still have them", DRAIN_TIME.as_secs());
    Err(ExitCode::FAILURE)
}

fn start(arguments: &Arguments) -> Result<Service, ExitCode> {
    let mut options = Options::default();
    options.deflate = arguments.deflate.then(Deflate::default);
    options.limits.commit_interval = Duration::from_millis(arguments.commit_interval);
    options.hooks.on_event = Some(Arc::new(log));
    options.hooks.on_store_error = Some(Arc::new(|room, error| error!(%room, "{error}")));
    let shards = thread::available_parallelism().map_or(1, Into::into);
    if let Some(path) = &arguments.record {
        let files = (0..shards).map(|shard| record_file(path, shard)).collect::<io::Result<Vec<_>>>();
        let files = files.map_err(|error| failed(&format!("cannot record to {}", path.display()), &error))?;
        warn!("recording the contents of all documents to {}.*", path.display());
        let files = Mutex::new(files.into_iter().map(Some).collect::<Vec<_>>());
        options.hooks.observer = Some(Arc::new(move |shard, config, seed| {
            let file = files.lock().unwrap_or_else(PoisonError::into_inner).get_mut(shard)?.take()?;
            Some(Box::new(Recorder::new(file, config, seed)) as Box<dyn Observer>)
        }));
    }
    let service = match &arguments.store {
        StoreUrl::Memory => {
            warn!("documents are kept in memory only");
            Service::in_memory(options, shards)
        }
        StoreUrl::Sqlite(path) => {
            let cannot = |error: &dyn std::error::Error| {
                failed(&format!("cannot open the store {}", path.display()), error)
            };
            let store = SqliteStore::open(path).map_err(|error| cannot(&error))?;
            let store = store.with_options(arguments.upkeep.options()).map_err(|error| cannot(&error))?;
            info!("documents are kept in {}", path.display());
            Service::with_store(options, shards, store)
        }
        StoreUrl::File(path) => {
            let store = FileStore::open(path).map_err(|error| failed("cannot open the store", &error))?;
            info!("documents are kept in {}, one file for each", path.display());
            Service::with_store(options, shards, configured(store, arguments.fsync.unwrap_or_default())?)
        }
        StoreUrl::Temp => {
            let store = TempFileStore::new().map_err(|error| failed("cannot open the store", &error))?;
            warn!("documents are kept in {} until the end", store.path().display());
            let store = store.try_map(|store| configured(store, arguments.fsync.unwrap_or_default()))?;
            Service::with_store(options, shards, store)
        }
    };
    service.map_err(|error| failed("cannot start", &error))
}

fn configured(store: FileStore, fsync: Fsync) -> Result<FileStore, ExitCode> {
    let store = store.with_reports(|report| match report {
        Report::Upgraded { .. } => info!("{report}"),
        Report::SyncFailed { .. } => error!("{report}"),
        _ => warn!("{report}"),
    });
    store.with_fsync(fsync).map_err(|error| failed("cannot open the store", &error))
}

/// Makes a file that nobody else may read, and that is no older recording.
fn record_file(path: &Path, shard: usize) -> io::Result<File> {
    let mut path = path.as_os_str().to_owned();
    path.push(format!(".{shard}"));
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for the connections of the last run to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn log(event: &Event) {
    match event {
        Event::RoomOpened { room } => tracing::debug!(%room, "opened"),
        Event::RoomClosed { room, unstored_bytes: 0 } => tracing::debug!(%room, "closed"),
        Event::RoomClosed { room, unstored_bytes } => {
            error!(%room, unstored_bytes, "closed before it was stored")
        }
        Event::LoadFailed { room } => {
            error!(%room, "the store cannot load it; clients are told to try again")
        }
        Event::StoredUpdateMalformed { room, index, error } => {
            error!(%room, index, %error, "a stored record does not read; the room is kept closed");
        }
        Event::Joined { room, connection } => tracing::debug!(%room, connection = connection.0, "joined"),
        Event::Left { room, connection } => tracing::debug!(%room, connection = connection.0, "left"),
        Event::WriteRefused { room, connection } => {
            tracing::debug!(%room, connection = connection.0, "dropped a write of a read-only connection");
        }
        Event::UnknownMessage { room, connection, tag, .. } => {
            tracing::debug!(%room, connection = connection.0, tag, "ignored a message of unknown type");
        }
        Event::StoreFailed { room, seq, retry_in } => {
            warn!(%room, seq, ?retry_in, "a write failed and will be tried again; nothing in it is acknowledged");
        }
        Event::StoreLost { room } => {
            error!(%room, "the store lost what it had confirmed; writing it once more")
        }
        Event::Drained => tracing::debug!("drained"),
        _ => tracing::debug!(?event),
    }
}

#[allow(clippy::disallowed_methods, reason = "the program reads the clock")]
fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}

fn failed(what: &str, error: &dyn std::error::Error) -> ExitCode {
    // Not a matter of --log: nobody would know why it does not run.
    eprintln!("yrs-websocket-server: {what}: {error}");
    ExitCode::FAILURE
}

/// How long a drain may take; container runtimes send SIGKILL 10 s after SIGTERM.
const DRAIN_TIME: Duration = Duration::from_secs(8);

/// Connections that wait to be accepted: a restart brings all clients back at once, and tokio's default
/// of 128 overflows.
const BACKLOG: i32 = 4096;
