//! What happens in a world: drawn from its seed, and changed by the shrinker.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use crate::{Outcome, random::Random};

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes take long, and not always equally long.
    Latency,
    /// Reads and writes take only a part, or nothing for once.
    Torn,
    /// Pipes hold only a few hundred bytes.
    NarrowPipes,
    /// Connections are cut; what was on its way may be lost.
    Cut,
    /// Connections fall silent, and nobody is told.
    HalfOpen,
    /// Clients stop reading for a time.
    Sleepy,
    /// Clients go offline for a time, and edit meanwhile.
    Offline,
    /// Clients load their page anew, without a goodbye.
    Reload,
    /// Access ends while connected.
    Expiry,
    /// The disk is slow.
    SlowDisk,
    /// Writes fail without a trace.
    WriteErrors,
    /// Writes are performed, and reported as failed.
    FalseErrors,
    /// Loads fail.
    LoadErrors,
    /// Nothing works on the disk for seconds.
    Outage,
    /// The server dies, and comes back with what is on the disk.
    Crash,
    /// The server is drained, and comes back.
    Drain,
    /// Time jumps: everything that is due comes at once.
    Pause,
    /// Somebody sends frames that are none.
    Garbage,
    /// Somebody sends the first part of a frame.
    Truncated,
    /// Somebody sends again what others have sent.
    Replay,
    /// Somebody sends updates in a wrong order, twice, or never.
    Shuffle,
    /// Somebody announces presence in the name of others.
    Forge,
    /// Somebody asks for everything, many times in one breath.
    Questions,
    /// Limits of the server are small.
    SmallLimits,
    /// The server edits too.
    ServerEdits,
    /// The server's clock steps back for a moment.
    ClockBack,
    /// Somebody sends what is longer than it may be, or says that it is.
    Oversized,
}

impl Fault {
    /// All of them. Which ones a seed has stays the same where others are added behind them.
    pub const ALL: [Self; 27] = [
        Self::Latency,
        Self::Torn,
        Self::NarrowPipes,
        Self::Cut,
        Self::HalfOpen,
        Self::Sleepy,
        Self::Offline,
        Self::Reload,
        Self::Expiry,
        Self::SlowDisk,
        Self::WriteErrors,
        Self::FalseErrors,
        Self::LoadErrors,
        Self::Outage,
        Self::Crash,
        Self::Drain,
        Self::Pause,
        Self::Garbage,
        Self::Truncated,
        Self::Replay,
        Self::Shuffle,
        Self::Forge,
        Self::Questions,
        Self::SmallLimits,
        Self::ServerEdits,
        Self::ClockBack,
        Self::Oversized,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Says that a word names no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownFault;

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        Self::ALL.into_iter().find(|fault| fault.to_string().eq_ignore_ascii_case(name)).ok_or(UnknownFault)
    }
}

/// What happens in a world.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Decides everything that is not said here.
    pub seed: u64,
    /// Documents.
    pub rooms: usize,
    /// Honest clients.
    pub clients: usize,
    /// Applications that embed the client of the host, with the core's provider in it.
    pub applications: usize,
    /// Hostile clients; there is nothing for them to do without one of their faults.
    pub hostile: usize,
    /// How long things may fail.
    pub storm: Duration,
    /// About the time between two edits of a client, and between two occasions for a fault.
    pub beat: Duration,
    /// Which faults exist, and how often they come, per mille of their occasions.
    pub faults: BTreeMap<Fault, u32>,
}

impl Plan {
    /// Draws a plan.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::fork(seed, 8);
        // Some worlds are nearly sane, some are mad.
        let share = random.pick(&[80, 200, 400]);
        let mut faults = BTreeMap::new();
        for fault in Fault::ALL {
            let rate = random.pick(&[10, 40, 100, 300]);
            if random.permille(share) {
                faults.insert(fault, rate);
            }
        }
        let mut random = Random::fork(seed, 1);
        // Mostly small worlds: many of them find more than a few large ones in the same time. But some delays
        // are long, and some trouble takes long to brew.
        let storm = Duration::from_secs(random.pick(&[2, 2, 5, 5, 15, 15, 40, 100]));
        let beats = random.pick(&[10, 10, 10, 25, 25, 25, 60, 60, 150]);
        Self {
            seed,
            rooms: random.pick(&[1, 1, 1, 2, 3]),
            clients: random.pick(&[1, 2, 2, 2, 3, 3, 4, 6]),
            applications: Random::fork(seed, 10).pick(&[0, 0, 1, 1, 2]),
            hostile: random.pick(&[0, 0, 1, 1, 2]),
            storm,
            beat: storm / beats,
            faults,
        }
    }

    /// A plan of nothing.
    pub(crate) fn empty(seed: u64) -> Self {
        let (storm, beat, faults) = (Duration::ZERO, Duration::from_secs(1), BTreeMap::new());
        Self { seed, rooms: 1, clients: 0, applications: 0, hostile: 0, storm, beat, faults }
    }

    /// How often a fault comes, per mille of its occasions.
    pub fn rate(&self, fault: Fault) -> u32 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, rooms, clients, applications, hostile, storm, beat: _, faults } = self;
        let drawn = Self::new(*seed);
        write!(f, "--seed {seed}")?;
        for (name, is, was) in [
            ("rooms", *rooms as u128, drawn.rooms as u128),
            ("clients", *clients as u128, drawn.clients as u128),
            ("applications", *applications as u128, drawn.applications as u128),
            ("hostile", *hostile as u128, drawn.hostile as u128),
            ("storm", storm.as_millis(), drawn.storm.as_millis()),
        ] {
            if is != was {
                write!(f, " --{name} {is}")?;
            }
        }
        for fault in drawn.faults.keys().filter(|fault| !faults.contains_key(fault)) {
            write!(f, " --without {fault}")?;
        }
        Ok(())
    }
}

/// Looks for the smallest plan that still breaks the same invariant: leaves out one thing after
/// another, and keeps what still fails. `run` is [`run`](crate::run), or runs it with another store.
pub fn shrink(plan: &Plan, invariant: &str, mut run: impl FnMut(&Plan) -> Outcome) -> Plan {
    let mut smallest = plan.clone();
    loop {
        let Plan { rooms, clients, applications, hostile, storm, ref faults, .. } = smallest;
        let mut candidates = Vec::new();
        for fault in faults.keys() {
            let mut without = smallest.clone();
            without.faults.remove(fault);
            candidates.push(without);
        }
        if hostile > 0 {
            candidates.push(Plan { hostile: hostile - 1, ..smallest.clone() });
        }
        if applications > 0 {
            candidates.push(Plan { applications: applications - 1, ..smallest.clone() });
        }
        if clients > 1 {
            candidates.push(Plan { clients: clients - 1, ..smallest.clone() });
        }
        if rooms > 1 {
            candidates.push(Plan { rooms: 1, ..smallest.clone() });
        }
        if storm > STORM_MIN {
            candidates.push(Plan { storm: storm / 2, ..smallest.clone() });
            candidates.push(Plan { storm: storm * 9 / 10, ..smallest.clone() });
        }
        let mut still = |candidate: &Plan| {
            run(candidate).violation.is_some_and(|violation| violation.invariant == invariant)
        };
        match candidates.into_iter().find(|candidate| still(candidate)) {
            Some(smaller) => smallest = smaller,
            None => return smallest,
        }
    }
}

/// Shorter storms are not worth the search.
const STORM_MIN: Duration = Duration::from_millis(100);
