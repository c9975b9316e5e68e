//! The servers that are compared, and how each is started.

use std::{
    env, fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde::Serialize;
use yrs_websocket::RoomName;
use yrs_websocket_host::shard_of;

use crate::{fleet::Dialect, measure::Process};

/// A server to compare. Those of others keep documents in memory only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Server {
    /// `yrs-websocket-server --store memory`.
    Ours,
    /// `yrs-websocket-server --store sqlite:...`: acknowledges what is on the disk.
    OursSqlite,
    /// The same with `--commit-interval 100`, which matters only where writes are paced.
    OursSqliteGathered,
    /// Broadcasts frames and knows nothing of documents.
    Ceiling,
    /// `@y/websocket-server`, on Node.
    #[value(name = "y-websocket-server")]
    #[serde(rename = "y-websocket-server")]
    YWebsocket,
    /// `@hocuspocus/server`, on Node.
    Hocuspocus,
    /// `pycrdt-websocket` under uvicorn.
    PycrdtWebsocket,
    /// `yrs-warp` on tokio, one thread.
    YrsWarp,
}

impl Server {
    pub(crate) fn dialect(self) -> Dialect {
        if self == Self::Hocuspocus { Dialect::Hocuspocus } else { Dialect::YWebsocket }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn command(self, address: SocketAddr, answer: Option<&Path>, scratch: &Path) -> io::Result<Command> {
        let built = env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let port = address.port().to_string();
        let mut command;
        match self {
            Self::Ours | Self::OursSqlite | Self::OursSqliteGathered => {
                let database = scratch.join("load.sqlite3");
                for suffix in ["", "-wal", "-shm"] {
                    let _ = fs::remove_file(format!("{}{suffix}", database.display()));
                }
                let store = match self {
                    Self::Ours => "memory".into(),
                    _ => format!("sqlite:{}", database.display()),
                };
                command = Command::new(built.join("yrs-websocket-server"));
                command.args(["--listen", &address.to_string(), "--store", &store, "--log", "warn"]);
                if self == Self::OursSqliteGathered {
                    command.args(["--commit-interval", "100"]);
                }
            }
            Self::Ceiling => {
                command = Command::new(built.join("yrs-websocket-ceiling"));
                command.args(["--listen", &address.to_string()]);
                command.args(answer.iter().flat_map(|path| ["--answer".as_ref(), path.as_os_str()]));
            }
            Self::YWebsocket => {
                command = Command::new("node");
                command.arg("node_modules/@y/websocket-server/src/server.js");
                command.envs([("HOST", "127.0.0.1"), ("PORT", &port)]);
            }
            Self::Hocuspocus => {
                command = Command::new("node");
                command.args(["hocuspocus.mjs", &port]);
            }
            Self::PycrdtWebsocket => {
                command = Command::new(".venv/bin/python");
                command.args(["pycrdt_websocket_server.py", &port]);
            }
            Self::YrsWarp => {
                command = Command::new("yrs-warp/target/release/yrs-warp-peer");
                command.arg(&port);
            }
        }
        command.current_dir(peers);
        Ok(command)
    }
}

/// A server that runs; it is ended when this is dropped.
pub(crate) struct Running {
    child: Option<Child>,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    /// How its rooms are named.
    pub(crate) rooms: RoomNames,
}

impl Running {
    /// Starts a server on the first core, and waits until it accepts.
    pub(crate) fn start(server: Server, answer: Option<&Path>) -> io::Result<Self> {
        let scratch = scratch()?;
        let address = free_address()?;
        let command = server.command(address, answer, &scratch)?;
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", "0"]).arg(command.get_program()).args(command.get_args());
        pinned.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(directory) = command.get_current_dir() {
            pinned.current_dir(directory);
        }
        let log = fs::File::create(scratch.join(format!("{}.log", server.name())))?;
        pinned.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = pinned.spawn()?;
        let process = Process::new(child.id());
        let mut running = Self { child: Some(child), address, process, rooms: RoomNames::new(ROOMS, None) };
        let end = Instant::now() + START_TIME;
        while TcpStream::connect(address).is_err() {
            let ended = running.child.as_mut().map_or(Ok(None), Child::try_wait)?;
            if ended.is_some() || Instant::now() > end {
                let log = scratch.join(format!("{}.log", server.name()));
                return Err(io::Error::other(format!("it does not start: see {}", log.display())));
            }
            thread::sleep(Duration::from_millis(20));
        }
        // What starting costs is over, and the connection that asked is gone.
        thread::sleep(Duration::from_millis(200));
        if let Some(ended) = running.child.as_mut().map_or(Ok(None), Child::try_wait)? {
            return Err(io::Error::other(format!("it has ended at once: {ended}")));
        }
        Ok(running)
    }

    /// A server that somebody else has started, and ends.
    pub(crate) fn at(address: SocketAddr, pid: u32, rooms: RoomNames) -> Self {
        Self { child: None, address, process: Process::new(pid), rooms }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Not one of the ports that the kernel gives to those who connect: until the server listens, a
/// connection to it could come from there and meet itself. Not one that was chosen before either, which the kernel
/// still keeps for those who were cut off.
fn free_address() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 2_000) as u16;
    let next = first.max(NEXT.load(Ordering::Relaxed));
    let mut ports = (next..32_000).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let address = ports.next().ok_or(io::ErrorKind::AddrInUse)?.local_addr()?;
    NEXT.store(address.port() + 1, Ordering::Relaxed);
    Ok(address)
}

/// Where databases and logs of a run go.
pub(crate) fn scratch() -> io::Result<PathBuf> {
    let built = env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let scratch = built.join("load");
    fs::create_dir_all(&scratch)?;
    Ok(scratch)
}

/// Makes names of rooms: a beginning, and a number.
#[derive(Debug, Clone)]
pub(crate) struct RoomNames {
    prefix: String,
    shard: Option<usize>,
    /// The number of the next name to look at.
    number: usize,
}

impl RoomNames {
    /// For any room, or for those that this one of two shards, 0 or 1, has.
    pub(crate) fn new(prefix: &str, shard: Option<usize>) -> Self {
        Self { prefix: prefix.into(), shard, number: 0 }
    }

    pub(crate) fn next(&mut self) -> String {
        loop {
            let name = format!("{}-{}", self.prefix, self.number);
            self.number += 1;
            let is_of = |shard| RoomName::new(&name).is_ok_and(|name| shard_of(&name, 2) == shard);
            if self.shard.is_none_or(is_of) {
                return name;
            }
        }
    }
}

/// What the names of rooms begin with, unless told.
pub(crate) const ROOMS: &str = "room";

const START_TIME: Duration = Duration::from_secs(20);
