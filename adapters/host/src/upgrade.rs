use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{Access, Config, ConnectionId, Event, RoomName};
use yrs_websocket_rfc6455::{
    self as rfc6455, Acceptor, AgreedDeflate, Deflate, HandshakeLimits, Refusal, Request,
};
use yrs_websocket_store::StoreError;

use crate::Observer;

/// Everything that can be set about a server, besides its store.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Limits and delays of the protocol.
    pub config: Config,
    /// Limits and delays of the WebSocket connections. Text frames are refused in any case, and the
    /// lengths are those of `config`.
    pub websocket: rfc6455::Config,
    /// Limits of the request's head.
    pub handshake: HandshakeLimits,
    /// How messages are compressed for those who offer it (permessage-deflate); `None`, the default, is not at
    /// all. A broadcast is compressed once. It saves bandwidth and costs processor time and, for each core,
    /// 400 KB.
    pub deflate: Option<Deflate>,
    /// Delays and bounds of the host itself.
    pub limits: Limits,
    /// What the application decides.
    pub hooks: Hooks,
}

/// Delays and bounds of the host itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How long a client may take to send the head of its request. 10 s.
    pub handshake_timeout: Duration,
    /// Bytes in a connection's outbox from which on it counts as congested: nothing more is made for
    /// it before three quarters have left. 1 MiB.
    pub outbox_bytes_max: usize,
    /// What lies between the beginnings of two transactions of the store, so that edits gather, of all rooms:
    /// the disk is synced less often, and an edit is acknowledged up to twice as much later, as a room has one
    /// write on its way. Nobody else waits: peers see it at once. None by default.
    pub commit_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            outbox_bytes_max: 1 << 20,
            commit_interval: Duration::ZERO,
        }
    }
}

/// What the application decides. All of them are called on the threads of the server, and hold it up
/// while they run; they must not call it back.
///
/// A hook that panics is contained, because others share its thread: a request is answered with 500,
/// the sender of a frame is closed with 1011, an event is unheard.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Hooks {
    /// Decides about a request, upgrade or not, before any other answer. [`Admission::by_path`] is what
    /// happens without it.
    pub on_request: Option<Arc<OnRequest>>,
    /// Is offered each frame before it is decoded, with its room and sender; `true` keeps it from the
    /// core. Jupyter, for one, sends messages of its own under type 2.
    pub on_frame: Option<Arc<OnFrame>>,
    /// Hears of everything that happens.
    pub on_event: Option<Arc<OnEvent>>,
    /// Hears that the document of a room has changed, by whomever, whenever a change is given to the store:
    /// for who wants to read it then, on a thread of its own.
    pub on_change: Option<Arc<OnChange>>,
    /// Hears why the store could not load or write a room. The core deals with it by itself; this is
    /// for whoever can make room on the disk.
    pub on_store_error: Option<Arc<OnStoreError>>,
    /// Makes what sees each step of a host's core, from the number of the host, its configuration and its
    /// seed: a [`Recorder`](crate::record::Recorder), say. Costs nothing where there is none.
    pub observer: Option<Arc<MakeObserver>>,
}

type OnRequest = dyn Fn(&Request) -> Result<Admission, Refusal> + Send + Sync;
type OnFrame = dyn Fn(&RoomName, ConnectionId, &Bytes) -> bool + Send + Sync;
type OnEvent = dyn Fn(&Event) + Send + Sync;
type OnChange = dyn Fn(&RoomName) + Send + Sync;
type OnStoreError = dyn Fn(&RoomName, &StoreError) + Send + Sync;
type MakeObserver = dyn Fn(usize, &Config, u64) -> Option<Box<dyn Observer>> + Send + Sync;

/// A hook has panicked; the panic hook of the process has reported it.
pub(crate) struct HookPanicked;

impl Hooks {
    pub(crate) fn admit(&self, request: &Request) -> Result<Admission, Refusal> {
        match &self.on_request {
            Some(on_request) => contained(|| on_request(request)).unwrap_or(Err(Refusal::new(500))),
            None => Admission::by_path(request),
        }
    }

    pub(crate) fn takes_frame(
        &self,
        room: &RoomName,
        from: ConnectionId,
        frame: &Bytes,
    ) -> Result<bool, HookPanicked> {
        self.on_frame.as_ref().map_or(Ok(false), |on_frame| contained(|| on_frame(room, from, frame)))
    }

    pub(crate) fn hear(&self, event: &Event) {
        if let Some(on_event) = &self.on_event {
            let _ = contained(|| on_event(event));
        }
    }

    pub(crate) fn hear_change(&self, room: &RoomName) {
        if let Some(on_change) = &self.on_change {
            let _ = contained(|| on_change(room));
        }
    }

    pub(crate) fn observe(&self, shard: usize, config: &Config, seed: u64) -> Option<Box<dyn Observer>> {
        self.observer.as_ref()?(shard, config, seed)
    }

    pub(crate) fn hear_store_error(&self, room: &RoomName, error: &StoreError) {
        if let Some(on_store_error) = &self.on_store_error {
            let _ = contained(|| on_store_error(room, error));
        }
    }
}

/// Nothing of ours is half changed by a panic in `hook`: it gets only shared references.
fn contained<R>(hook: impl FnOnce() -> R) -> Result<R, HookPanicked> {
    catch_unwind(AssertUnwindSafe(hook)).map_err(|_| HookPanicked)
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("on_request", &self.on_request.is_some())
            .field("on_frame", &self.on_frame.is_some())
            .field("on_event", &self.on_event.is_some())
            .field("on_change", &self.on_change.is_some())
            .field("on_store_error", &self.on_store_error.is_some())
            .field("observer", &self.observer.is_some())
            .finish()
    }
}

/// What a request is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission {
    /// The room.
    pub room: RoomName,
    /// What the connection may do in it.
    pub access: Access,
    /// Until when.
    pub expires_at: Option<Instant>,
    /// The subprotocol to speak, one of those offered. Browsers fail the connection if they offered
    /// some and none is chosen.
    pub subprotocol: Option<String>,
}

impl Admission {
    /// Admits to a room, with access that does not expire and no subprotocol.
    pub fn new(room: RoomName, access: Access) -> Self {
        Self { room, access, expires_at: None, subprotocol: None }
    }

    /// Admits everybody to the room that the path names, to read and write, and chooses the first
    /// subprotocol that is offered.
    ///
    /// # Errors
    ///
    /// The answer to a request that is no WebSocket upgrade, or names no room.
    pub fn by_path(request: &Request) -> Result<Self, Refusal> {
        request.upgrade()?;
        let room = RoomName::from_path(&request.path).map_err(|error| {
            let refusal = Refusal::new(400);
            refusal.clone().with_body("text/plain; charset=utf-8", format!("{error}\n")).unwrap_or(refusal)
        })?;
        let subprotocol = request.subprotocols().next().map(str::to_owned);
        Ok(Self { subprotocol, ..Self::new(room, Access::Write) })
    }
}

/// A request on its way to a room: see [`Host::connect`](crate::Host::connect).
#[derive(Debug)]
pub struct Admitted {
    pub(crate) admission: Admission,
    /// The response that accepts, where the upgrade is ours to make.
    pub(crate) response: Bytes,
    /// What the response says about compression.
    pub(crate) deflate: Option<AgreedDeflate>,
    /// What came behind the head.
    pub(crate) rest: Vec<u8>,
}

impl Admitted {
    /// A connection whose upgrade somebody else has made, a web framework perhaps. `rest` is what it
    /// has read behind the head of the request. Nothing is compressed: it has agreed to no extension.
    pub fn after_upgrade(admission: Admission, rest: Vec<u8>) -> Self {
        Self { admission, response: Bytes::new(), deflate: None, rest }
    }

    /// The room.
    pub fn room(&self) -> &RoomName {
        &self.admission.room
    }
}

/// Reads the head of a request and decides about it.
#[derive(Debug)]
pub struct Upgrade {
    acceptor: Acceptor,
    hooks: Hooks,
}

impl Upgrade {
    /// Starts with a new connection.
    pub fn new(options: &Options) -> Self {
        let acceptor = Acceptor::new(options.handshake).with_deflate(options.deflate);
        Self { acceptor, hooks: options.hooks.clone() }
    }

    /// Takes bytes, however they are split; `None` means that the head is not complete.
    ///
    /// # Errors
    ///
    /// The response to write before the connection ends.
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<Admitted>, Refusal> {
        let Some(request) = self.acceptor.receive(input)? else { return Ok(None) };
        let admission = self.hooks.admit(&request)?;
        // The hook may have chosen what was not offered, or admitted what is no upgrade.
        let response =
            request.accept(admission.subprotocol.as_deref(), &[]).map_err(|error| match error {
                rfc6455::AcceptError::Refused(refusal) => refusal,
                _ => Refusal::new(500),
            })?;
        let deflate = request.deflate();
        Ok(Some(Admitted { admission, response, deflate, rest: request.into_rest() }))
    }
}

/// Which of `shards` hosts has a room: the same in every process.
pub fn shard_of(room: &RoomName, shards: usize) -> usize {
    // FNV-1a; then the finish of MurmurHash3, because names that differ only in their end differ in a
    // few bits of FNV.
    let mut hash = room.as_str().bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((hash ^ (hash >> 33)) % shards.max(1) as u64) as usize
}
