//! Measures servers of Yjs documents, beside each other and a ceiling, in one run.
//!
//! ```text
//! cargo run --release -p yrs-websocket-load -- --scenario paced --server ours
//! tests/load/run                 builds and fetches all servers, runs everything, writes RESULTS.md
//! ```
//!
//! The server gets core 0 and the generator core 1. A run in which a document differs in the end is a
//! failure and has no numbers.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark touches the world")]

mod fleet;
mod measure;
mod scenario;
mod servers;
mod updates;

use std::{
    fs::{self, File},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use scenario::{Outcome, SCENARIOS, Scenario};
use serde::Serialize;
use servers::{RoomNames, Running, Server};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Which scenarios; all, if none is named.
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Which servers; `ours` and `ceiling`, if none is named.
    #[arg(long = "server", value_name = "NAME")]
    servers: Vec<Server>,
    /// All servers but `ours-sqlite-gathered`, beside those that are named.
    #[arg(long)]
    all: bool,
    /// How often each is run. Servers take turns, so that what else the machine does hits all of them.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// What is measured of a run, where it has no end of its own.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Appends each result to this file as a line of JSON.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Uses a server that runs already, instead of starting one.
    #[arg(long, value_name = "ADDRESS", requires = "pid")]
    address: Option<SocketAddr>,
    /// The process of that server.
    #[arg(long)]
    pid: Option<u32>,
    /// Names the scenarios.
    #[arg(long)]
    list: bool,
    /// What the names of rooms begin with, where several load one server.
    #[arg(long, value_name = "NAME", default_value = servers::ROOMS)]
    rooms: String,
    /// Uses only rooms that this one of two shards has.
    #[arg(long, requires = "address", value_name = "SHARD", value_parser = ["0", "1"])]
    shard: Option<String>,
}

/// A line of the results.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: u64,
    scenario: &'a str,
    server: Server,
    run: usize,
    #[serde(flatten)]
    outcome: Outcome,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("yrs-websocket-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether every run was one.
fn run(arguments: &Arguments) -> io::Result<bool> {
    if arguments.list {
        for scenario in SCENARIOS {
            println!("{:<22} {}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    let mut scenarios = Vec::<&Scenario>::new();
    for name in &arguments.scenarios {
        let named = SCENARIOS.iter().find(|scenario| scenario.name == name);
        scenarios.push(named.ok_or_else(|| io::Error::other(format!("there is no scenario {name}")))?);
    }
    if scenarios.is_empty() {
        scenarios.extend(SCENARIOS);
    }
    let mut servers = arguments.servers.clone();
    if arguments.all {
        let others = <Server as clap::ValueEnum>::value_variants().iter().copied();
        let others = others.filter(|server| *server != Server::OursSqliteGathered);
        servers.extend(others.filter(|server| !arguments.servers.contains(server)));
    } else if servers.is_empty() {
        servers = vec![Server::Ours, Server::Ceiling];
    }
    if let Some(path) = arguments.results.as_ref().and_then(|path| path.parent()) {
        fs::create_dir_all(path)?;
    }
    let results = arguments.results.as_ref().map(|path| File::options().create(true).append(true).open(path));
    let mut results = results.transpose()?;
    if arguments.address.is_none() {
        // Not where the server runs.
        let pid = std::process::id().to_string();
        Command::new("taskset").args(["-a", "-p", "-c", "1", &pid]).stdout(Stdio::null()).status()?;
    }
    let mut is_sound = true;
    for scenario in scenarios {
        for run in 0..arguments.runs {
            for &server in &servers {
                let outcome = match (arguments.address, arguments.pid) {
                    (Some(address), Some(pid)) => {
                        let shard = arguments.shard.as_ref().map(|shard| usize::from(shard == "1"));
                        let running = Running::at(address, pid, RoomNames::new(&arguments.rooms, shard));
                        scenario::run_against(scenario, server, &running, arguments.seconds)
                    }
                    _ => scenario::run(scenario, server, arguments.seconds),
                };
                let outcome = outcome.unwrap_or_else(|error| Outcome {
                    failure: Some(error.to_string()),
                    ..Outcome::default()
                });
                is_sound &= outcome.failure.is_none();
                print(scenario, server, &outcome);
                if let Some(results) = &mut results {
                    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
                    let line = Line { at, scenario: scenario.name, server, run, outcome };
                    writeln!(results, "{}", serde_json::to_string(&line)?)?;
                }
            }
        }
    }
    Ok(is_sound)
}

fn print(scenario: &Scenario, server: Server, outcome: &Outcome) {
    print!("{:<20} {:<19}", scenario.name, server.name());
    if let Some(failure) = &outcome.failure {
        println!(" FAILED: {failure}");
        return;
    }
    if let Some(joins) = &outcome.joins {
        let latency = joins.latency.map_or(0.0, |latency| latency.max);
        println!(
            " {:>8.3} ms CPU/join  max {latency:>7.1} ms  {:>9} bytes  peak +{:.1} MB",
            joins.cpu,
            joins.encoded,
            joins.peak_above_empty as f64 / 1e6
        );
        return;
    }
    if let Some(idle) = &outcome.idle {
        println!(
            " {:>6.2} KiB/connection {:>6.2} KiB/room  {:.2} % of a core",
            idle.per_connection / 1024.0,
            idle.per_room / 1024.0,
            outcome.server_cpu * 100.0
        );
        return;
    }
    let latency = |latency: &Option<measure::Latency>| {
        latency.map_or_else(String::new, |l| format!("{:.2}/{:.2}/{:.1}", l.p50, l.p99, l.max))
    };
    println!(
        " {:>9.0}/s {:>7.2} us CPU  {:<22} echo {:<22} server {:>3.0} % generator {:>3.0} % frames {:<8} {:.1} MB",
        outcome.deliveries_per_second,
        outcome.cpu_per_1000,
        latency(&outcome.latency),
        latency(&outcome.echo),
        outcome.server_cpu * 100.0,
        outcome.generator_cpu * 100.0,
        outcome.frames,
        outcome.memory as f64 / 1e6,
    );
}
