//! What a process has used, and how long things took.

use std::{fs, io, path::PathBuf, time::Duration};

use serde::Serialize;

/// A process as the kernel sees it.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    root: PathBuf,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time of all threads, to the nanosecond where the kernel counts that.
    pub(crate) cpu: Duration,
    /// System time alone, to the tick of 10 ms.
    pub(crate) system: Duration,
    /// Memory of its own, in bytes: not of files, not of sockets.
    pub(crate) memory: u64,
    /// The most memory it had resident, in bytes.
    pub(crate) peak: u64,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        Self { root: format!("/proc/{pid}").into() }
    }

    /// Counts threads that run: what a thread used that has ended meanwhile is not seen.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut cpu = 0;
        for task in fs::read_dir(self.root.join("task"))? {
            // The first number: nanoseconds on a core (Documentation/scheduler/sched-stats.rst).
            let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
            cpu += number(schedstat.split_whitespace().next());
        }
        let stat = fs::read_to_string(self.root.join("stat"))?;
        // Behind the name, which may hold anything, the 13th field is the system time (proc(5)).
        let system = number(stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(12)));
        let status = fs::read_to_string(self.root.join("status"))?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            number(line.and_then(|line| line.split_whitespace().next())) << 10
        };
        Ok(Usage {
            cpu: Duration::from_nanos(cpu),
            system: Duration::from_millis(system * 10),
            memory: kib("RssAnon:"),
            peak: kib("VmHWM:"),
        })
    }
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Durations, counted in classes that are 1/32 wide.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

/// What is reported of a histogram, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; 64 << CLASS_BITS], count: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        self.counts[class(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn latency(&self) -> Option<Latency> {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        (self.count > 0).then(|| Latency {
            p50: millis(self.quantile(0.5)),
            p99: millis(self.quantile(0.99)),
            max: millis(self.max),
        })
    }

    fn quantile(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let class = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        class.map_or(0, upper_end).min(self.max)
    }
}

fn class(nanos: u64) -> usize {
    let bits = u64::BITS - (nanos >> CLASS_BITS).leading_zeros();
    (u64::from(bits) << CLASS_BITS | (nanos >> bits.saturating_sub(1)) & CLASS_MASK) as usize
}

fn upper_end(class: usize) -> u64 {
    let (bits, rest) = (class as u64 >> CLASS_BITS, class as u64 & CLASS_MASK);
    match bits {
        0 => rest,
        _ => (((rest | 1 << CLASS_BITS) + 1) << (bits - 1)) - 1,
    }
}

const CLASS_BITS: u32 = 5;
const CLASS_MASK: u64 = (1 << CLASS_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_lies_between_the_ends_of_its_neighbours() {
        for nanos in (0..100_000).chain([u64::from(u32::MAX), 1 << 40, (1 << 40) + 12_345]) {
            let class = class(nanos);
            assert!(nanos <= upper_end(class), "{nanos}");
            assert!(class == 0 || nanos > upper_end(class - 1), "{nanos}");
        }
    }

    #[test]
    fn quantiles_are_right_to_a_thirtieth() {
        let mut histogram = Histogram::new();
        (1..=1_000u64).for_each(|n| histogram.record(n * 1_000_000));
        let latency = histogram.latency().expect("it is not empty");
        assert!((500.0..=516.0).contains(&latency.p50), "{latency:?}");
        assert!((990.0..=1_000.0).contains(&latency.p99), "{latency:?}");
        assert_eq!(latency.max, 1_000.0);
    }
}
