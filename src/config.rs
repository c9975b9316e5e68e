//! Limits and delays: one for everything that a peer can make grow.

use std::time::Duration;

/// Limits and delays of a [`Server`](crate::Server); the defaults suit a public server with documents
/// of ordinary size.
///
/// ```
/// use yrs_websocket::Config;
///
/// let mut config = Config::default();
/// config.peers_per_room_max = 50;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// When the author of an edit gets it back. [`Echo::Durable`] by default.
    pub echo: Echo,
    /// Least time between two broadcasts of updates in a room. The first change after a quiet moment
    /// goes out at once; changes within this time of it are joined and go out as one. Four and more that
    /// one author made, and that came at the same instant, do not wait for it. 10 ms.
    pub flush_interval: Duration,
    /// The same for presence. 40 ms.
    pub awareness_interval: Duration,
    /// Bytes of updates that end a `flush_interval` early. 256 KiB.
    pub flush_bytes: usize,
    /// A connection that was sent nothing for so long gets an empty awareness update, because
    /// `y-websocket` up to 3.1 closes after 30 s without a message, pings not counted. 25 s.
    pub keepalive: Duration,
    /// Presence that is not renewed for so long is removed; y-protocols uses the same. 30 s.
    pub awareness_timeout: Duration,
    /// Ids that one connection may announce at the same time; more closes it. 256.
    pub awareness_ids_max: usize,
    /// Bytes of JSON over all presence that one connection announces; more closes it. 256 KiB.
    pub awareness_bytes_max: usize,
    /// Drops presence for an id that another connection announced. Off by default, because two tabs
    /// of one browser relay each other's presence over BroadcastChannel.
    pub awareness_own_ids_only: bool,
    /// Rooms that may be open at once in one [`Server`](crate::Server), so in each shard; more are
    /// refused. 100,000.
    pub rooms_max: usize,
    /// Connections in one room; more are refused. 10,000.
    pub peers_per_room_max: usize,
    /// Bytes of one received frame; more closes its sender with 1009. 128 MiB.
    pub frame_len_max: usize,
    /// Bytes of a state vector in a SyncStep1; more closes its sender with 1009. 1 MiB, which is some
    /// 100,000 clients.
    pub state_vector_len_max: usize,
    /// Nesting of JSON and `any` values in updates and presence. 100: yrs overflows its stack far
    /// beyond, and at 5,000 Yjs can no longer encode what it has read.
    pub depth_max: usize,
    /// Accepts the weak links of yrs in updates, which make Yjs clients throw. Off by default.
    pub weak_links: bool,
    /// Bytes of frames that wait per room while it is being loaded; more closes their sender. 4 MiB.
    pub loading_bytes_max: usize,
    /// Bytes of structs per room whose dependencies are missing; an update beyond is dropped and its
    /// sender asked again. 4 MiB.
    pub parked_bytes_max: usize,
    /// Bytes of edits per room that the store has not confirmed; more closes their authors, who keep
    /// them and come back, and refuses edits on the server's side. A single update may be longer. 64 MiB.
    pub unstored_bytes_max: usize,
    /// How long a connection may stay congested without reading anything before it is closed. 60 s.
    pub congestion_timeout: Duration,
    /// How long a room without connections is kept. 30 s.
    pub idle_delay: Duration,
    /// How long a document built for server-side reads and edits is kept after its last use. 10 s.
    pub view_delay: Duration,
    /// First delay before a failed write is tried again; it doubles up to `retry_delay_max`. 100 ms.
    pub retry_delay_min: Duration,
    /// Longest delay before a failed write is tried again. 5 s.
    pub retry_delay_max: Duration,
    /// Updates behind the snapshot that make a room squash itself; never less than one for each 128
    /// bytes that the snapshot has, so that the work per update stays constant. When it is unloaded, 16
    /// are enough. 500.
    pub squash_count: usize,
    /// Bytes behind the snapshot that make a room squash itself; never less than the snapshot has,
    /// so that the work per update stays constant. 256 KiB.
    pub squash_bytes: usize,
    /// Whether a squash drops deleted content. Applications that show history switch it off. On.
    pub collect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            echo: Echo::Durable,
            flush_interval: Duration::from_millis(10),
            awareness_interval: Duration::from_millis(40),
            flush_bytes: 256 * KIB,
            keepalive: Duration::from_secs(25),
            awareness_timeout: Duration::from_secs(30),
            awareness_ids_max: 256,
            awareness_bytes_max: 256 * KIB,
            awareness_own_ids_only: false,
            rooms_max: 100_000,
            peers_per_room_max: 10_000,
            frame_len_max: 128 * MIB,
            state_vector_len_max: MIB,
            depth_max: 100,
            weak_links: false,
            loading_bytes_max: 4 * MIB,
            parked_bytes_max: 4 * MIB,
            unstored_bytes_max: 64 * MIB,
            congestion_timeout: Duration::from_secs(60),
            idle_delay: Duration::from_secs(30),
            view_delay: Duration::from_secs(10),
            retry_delay_min: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(5),
            squash_count: 500,
            squash_bytes: 256 * KIB,
            collect: true,
        }
    }
}

/// When the author of an edit gets it back.
///
/// The echo is harmless to every client and the acknowledgement of `@y/websocket` 4, which shows
/// "synced" on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Echo {
    /// After the store has confirmed it: what is acknowledged survives a crash.
    #[default]
    Durable,
    /// With everybody else. Faster to acknowledge, and lost if the process dies before the store has
    /// it.
    Immediate,
    /// Never.
    Off,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
