//! `yrs-websocket-sim --seed N` replays a world with a log; `--seeds A..B` runs many on all cores;
//! `--replay FILE` replays what a live server recorded.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use yrs_websocket_sim::{Fault, Outcome, Plan, ReplayEnd, Replayed, replay, run, shrink};

fn main() -> ExitCode {
    // A panic in a world is a finding; it is reported with the rest.
    std::panic::set_hook(Box::new(|_| {}));
    match command(env::args().skip(1)) {
        Ok(Command::One(plan)) => one(&plan),
        Ok(Command::Replay(path)) => replay_file(&path),
        Ok(Command::Many { first, end, failures_max, shrinks }) => many(first, end, failures_max, shrinks),
        Err(word) => {
            eprintln!("{word}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str = "\
yrs-websocket-sim --seed N [--without FAULT]... [--clients N] [--applications N] [--hostile N]
              [--rooms N] [--storm MILLIS]
    replays one world, with a log on stdout
yrs-websocket-sim --seeds A..B [--failures N] [--no-shrink]
    runs many on all cores, until N of them fail (5)
yrs-websocket-sim --replay FILE
    replays what a server recorded with --record, with a log on stdout";

enum Command {
    One(Plan),
    Many { first: u64, end: u64, failures_max: usize, shrinks: bool },
    Replay(PathBuf),
}

fn command(mut words: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut plan = None;
    let mut seeds = None;
    let mut recording = None;
    let mut failures_max = 5;
    let mut shrinks = true;
    while let Some(word) = words.next() {
        if word == "--no-shrink" {
            shrinks = false;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let bad = || format!("{word} {value} is not understood");
        let number = || value.parse::<usize>().map_err(|_| bad());
        match word.as_str() {
            "--seed" => plan = Some(Plan::new(value.parse().map_err(|_| bad())?)),
            "--seeds" => {
                let (first, end) = value.split_once("..").ok_or_else(bad)?;
                seeds = Some((first.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?));
            }
            "--replay" => recording = Some(PathBuf::from(&value)),
            "--failures" => failures_max = number()?,
            _ => {
                let plan = plan.as_mut().ok_or_else(|| format!("{word} comes after --seed N"))?;
                match word.as_str() {
                    "--without" => drop(plan.faults.remove(&value.parse::<Fault>().map_err(|_| bad())?)),
                    "--clients" => plan.clients = number()?.max(1),
                    "--applications" => plan.applications = number()?,
                    "--hostile" => plan.hostile = number()?,
                    "--rooms" => plan.rooms = number()?.max(1),
                    "--storm" => plan.storm = Duration::from_millis(number()? as u64),
                    _ => return Err(bad()),
                }
            }
        }
    }
    match (plan, seeds, recording) {
        (Some(plan), None, None) => Ok(Command::One(plan)),
        (None, None, Some(path)) => Ok(Command::Replay(path)),
        (None, Some((first, end)), None) => Ok(Command::Many { first, end, failures_max, shrinks }),
        _ => Err("one of --seed, --seeds and --replay".into()),
    }
}

fn one(plan: &Plan) -> ExitCode {
    let outcome = run(plan, Some(&mut io::BufWriter::new(io::stdout().lock())));
    println!(
        "{} steps, {:.3} s, trace {:016x}",
        outcome.steps,
        outcome.passed.as_secs_f64(),
        outcome.trace_hash
    );
    match &outcome.violation {
        Some(violation) => {
            println!("{plan}\n{violation}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn replay_file(path: &Path) -> ExitCode {
    let result = fs::read(path).map_err(|error| error.to_string()).and_then(|file| {
        let mut log = io::BufWriter::new(io::stdout().lock());
        replay(file.into(), Some(&mut log)).map_err(|error| error.to_string())
    });
    let Replayed { version, steps, end, .. } = match result {
        Ok(replayed) => replayed,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    println!("{steps} steps, recorded by version {version}");
    match end {
        ReplayEnd::Same => {
            println!("the outputs are those that were recorded");
            return ExitCode::SUCCESS;
        }
        ReplayEnd::Torn => {
            println!("the outputs are those that were recorded, up to where the file is torn");
            return ExitCode::SUCCESS;
        }
        ReplayEnd::Damaged => println!("what follows in the file is damaged"),
        ReplayEnd::Different { step, what } => println!("other outputs in step {step}:\n{what}"),
        ReplayEnd::Panicked { step, what, message } => println!("step {step} panics: {message}\n{what}"),
    }
    ExitCode::FAILURE
}

fn many(first: u64, end: u64, failures_max: usize, shrinks: bool) -> ExitCode {
    let next = AtomicU64::new(first);
    let done = AtomicU64::new(0);
    let steps = AtomicU64::new(0);
    // The same for the same seeds, in whichever order they ran.
    let traces = AtomicU64::new(0);
    let failed = AtomicUsize::new(0);
    let failures: Mutex<BTreeMap<u64, Outcome>> = Mutex::default();
    #[allow(clippy::disallowed_methods, reason = "measures how fast worlds run, and decides nothing in them")]
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < failures_max {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let outcome = run(&Plan::new(seed), None);
                    done.fetch_add(1, Ordering::Relaxed);
                    steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    traces.fetch_add(outcome.trace_hash, Ordering::Relaxed);
                    if outcome.violation.is_some() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        failures.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, outcome);
                    }
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    for outcome in failures.values() {
        let Some(violation) = &outcome.violation else { continue };
        println!("seed {}, step {}: {violation}", outcome.plan.seed, outcome.steps);
        let plan = match shrinks {
            true => shrink(&outcome.plan, violation.invariant, |plan| run(plan, None)),
            false => outcome.plan.clone(),
        };
        println!("    cargo run --release -p yrs-websocket-sim -- {plan}");
    }
    let (done, steps) = (done.into_inner(), steps.into_inner());
    println!(
        "{done} seeds, {} failed, {steps} steps, traces {:016x}, in {seconds:.1} s: {:.0} seeds/s",
        failures.len(),
        traces.into_inner(),
        done as f64 / seconds
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
