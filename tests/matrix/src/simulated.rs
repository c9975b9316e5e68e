//! The simulated world: one thread, no sockets, and time that passes where somebody waits.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use yrs::{Doc, Transaction, TransactionMut};
use yrs_websocket::{Access, Input, RoomName, view::ViewError};
use yrs_websocket_host::{ClientHandle, ClientNext, ClientOptions, ConnectionId, Counters, Options};
use yrs_websocket_sim::{Actor, Site, Stage, Wire};
use yrs_websocket_store::testing::Faults;

use crate::{Place, Pulse, Rooms, Stopped, Stream, TestStore, Valve, World};

/// Servers and clients on a [`Stage`]; all clones are one.
#[derive(Clone, Debug)]
pub struct Simulated(Rc<Shared>);

struct Shared {
    seed: u64,
    is_logged: bool,
    pulse: Arc<Pulse>,
    state: RefCell<State>,
}

struct State {
    stage: Stage,
    /// What says whether the disk of a site is held.
    faults: BTreeMap<Site, Faults>,
    addresses: BTreeMap<SocketAddr, Address>,
    valves: Vec<Line>,
}

#[derive(Clone, Copy)]
enum Address {
    Site(Site),
    /// Which valve.
    Valve(usize),
}

/// What a valve is in.
struct Line {
    site: Site,
    actors: Vec<Actor>,
    is_shut: bool,
}

impl Simulated {
    /// Makes an empty world of a seed, perhaps with a readable log on the standard error.
    pub fn new(seed: u64, is_logged: bool) -> Self {
        let state = State {
            stage: Stage::new(seed),
            faults: BTreeMap::new(),
            addresses: BTreeMap::new(),
            valves: Vec::new(),
        };
        Self(Rc::new(Shared { seed, is_logged, pulse: Arc::default(), state: RefCell::new(state) }))
    }

    /// Stands for everything that has happened.
    pub fn trace_hash(&self) -> u64 {
        self.state().stage.trace_hash()
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.state.borrow_mut()
    }

    /// Does what comes next; false where that is not due by a time.
    fn step(&self, by: Instant) -> bool {
        let mut state = self.state();
        let State { stage, faults, .. } = &mut *state;
        for (site, faults) in faults {
            stage.hold_disk(*site, faults.is_held());
        }
        let result = stage.step(by);
        drop(state);
        result.unwrap_or_else(|violation| panic!("{violation}"))
    }

    fn site_at(&self, address: SocketAddr) -> Site {
        let state = self.state();
        match state.addresses[&address] {
            Address::Site(site) => site,
            Address::Valve(valve) => state.valves[valve].site,
        }
    }
}

impl World for Simulated {
    fn pulse(&self) -> &Arc<Pulse> {
        &self.0.pulse
    }

    fn now(&self) -> Instant {
        self.state().stage.now()
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn wait(&self, _beats: &mut u64, deadline: Instant) -> bool {
        self.step(deadline)
    }

    fn place(&self) -> Box<dyn Place> {
        let mut state = self.state();
        let site = state.stage.site();
        if self.0.is_logged {
            state.stage.log_to(site, Box::new(io::stderr()));
        }
        Box::new(SimulatedPlace { world: self.clone(), site, address: state.register(Address::Site(site)) })
    }

    fn join(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Stopped) {
        let site = self.site_at(address);
        let mut state = self.state();
        let actor = state.stage.join(site, doc, options);
        if let Address::Valve(valve) = state.addresses[&address] {
            let line = &mut state.valves[valve];
            line.actors.push(actor);
            let is_shut = line.is_shut;
            state.stage.hold(actor, is_shut);
        }
        let (handle, world) = (state.stage.client(actor).handle(), self.clone());
        let stopped = move || {
            let deadline = world.now() + 2 * PATIENCE;
            loop {
                let next = world.state().stage.client(actor).next();
                match next {
                    ClientNext::Stopped { unacknowledged } => return unacknowledged,
                    _ => assert!(world.step(deadline), "a client does not stop: {next:?}"),
                }
            }
        };
        (handle, Box::new(stopped))
    }

    fn connect(&self, address: SocketAddr) -> Box<dyn Stream> {
        let site = self.site_at(address);
        let wire = self.state().stage.connect(site);
        Box::new(SimulatedStream { world: self.clone(), wire, arrived: Vec::new() })
    }

    fn valve(&self, server: SocketAddr) -> Box<dyn Valve> {
        let site = self.site_at(server);
        let mut state = self.state();
        let valve = state.valves.len();
        state.valves.push(Line { site, actors: Vec::new(), is_shut: false });
        let address = state.register(Address::Valve(valve));
        Box::new(SimulatedValve { world: self.clone(), valve, address })
    }
}

impl State {
    fn register(&mut self, address: Address) -> SocketAddr {
        // A network for examples (RFC 5737).
        let name = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1 + self.addresses.len() as u16));
        self.addresses.insert(name, address);
        name
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("that was in the simulated world of seed {}", self.seed);
        }
    }
}

struct SimulatedPlace {
    world: Simulated,
    site: Site,
    address: SocketAddr,
}

impl Place for SimulatedPlace {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self, options: Options, store: TestStore, faults: &Faults) {
        let mut state = self.world.state();
        state.faults.insert(self.site, faults.clone());
        state.stage.start(self.site, options, Box::new(store));
    }

    fn drain(&mut self, deadline: Instant) -> bool {
        self.world.state().stage.drain(self.site, deadline);
        let given_up = deadline + DRAIN_GRACE;
        while !self.world.state().stage.is_drained(self.site) && self.world.step(given_up) {}
        let is_durable = self.world.state().stage.is_durable(self.site);
        self.stop();
        is_durable
    }

    fn stop(&mut self) {
        Rooms::stop(self);
    }

    fn rooms(&self) -> Option<&dyn Rooms> {
        self.world.state().stage.is_running(self.site).then_some(self)
    }
}

impl Rooms for SimulatedPlace {
    fn edit(&self, room: &RoomName, f: &mut dyn FnMut(&mut TransactionMut<'_>)) -> Result<(), ViewError> {
        self.world.state().stage.edit(self.site, room, f)
    }

    fn read(&self, room: &RoomName, f: &mut dyn FnMut(&Transaction<'_>)) -> Result<(), ViewError> {
        self.world.state().stage.read(self.site, room, f)
    }

    fn set_access(&self, connection: ConnectionId, access: Access) {
        let input = Input::AccessChanged { connection, access, expires_at: None };
        self.world.state().stage.input(self.site, input);
    }

    fn counters(&self) -> Counters {
        self.world.state().stage.counters(self.site)
    }

    fn stop(&self) {
        self.world.state().stage.stop(self.site);
    }
}

struct SimulatedStream {
    world: Simulated,
    wire: Wire,
    /// What was not read.
    arrived: Vec<u8>,
}

impl Read for SimulatedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let deadline = self.world.now() + PATIENCE;
        while self.arrived.is_empty() {
            let Some(arrived) = self.world.state().stage.receive(self.wire) else { return Ok(0) };
            self.arrived = arrived;
            if self.arrived.is_empty() && !self.world.step(deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let len = buffer.len().min(self.arrived.len());
        buffer[..len].copy_from_slice(&self.arrived[..len]);
        self.arrived.drain(..len);
        Ok(len)
    }
}

impl Write for SimulatedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let deadline = self.world.now() + PATIENCE;
        loop {
            let len = self.world.state().stage.write(self.wire, bytes);
            if len > 0 || bytes.is_empty() {
                return Ok(len);
            }
            if !self.world.step(deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for SimulatedStream {
    fn cut(&mut self) {
        self.world.state().stage.end(self.wire);
    }
}

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        self.cut();
    }
}

struct SimulatedValve {
    world: Simulated,
    valve: usize,
    address: SocketAddr,
}

impl SimulatedValve {
    fn set(&self, is_shut: bool) {
        let mut state = self.world.state();
        let State { stage, valves, .. } = &mut *state;
        let line = &mut valves[self.valve];
        line.is_shut = is_shut;
        line.actors.iter().for_each(|actor| stage.hold(*actor, is_shut));
    }
}

impl Valve for SimulatedValve {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn shut(&self) {
        self.set(true);
    }

    fn open(&self) {
        self.set(false);
    }

    fn cut(&self) {
        {
            let mut state = self.world.state();
            let State { stage, valves, .. } = &mut *state;
            valves[self.valve].actors.iter().for_each(|actor| stage.cut(*actor));
        }
        self.open();
    }
}

/// What close frames may take beyond the deadline of a drain: as much as elsewhere.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// More than a client waits that was refused during a drain, or asks again for what was not acknowledged; less
/// than it takes until presence is said again, which must not be what shows it.
const PATIENCE: Duration = Duration::from_secs(10);
