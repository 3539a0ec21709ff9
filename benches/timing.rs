//! Timing and tables for the benchmarks. Medians, because a shared machine adds outliers and never takes time off.

#![allow(dead_code, reason = "each benchmark uses another part of it")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Wall time of one call.
pub fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    let result = work();
    let elapsed = started.elapsed();
    std::hint::black_box(&result);
    elapsed
}

/// Wall time of one process, from its start until its output is read.
///
/// # Panics
///
/// If it fails: a program that fails fast must not look fast.
pub fn time_process(command: &mut Command) -> Duration {
    command.stdin(Stdio::null());
    let started = Instant::now();
    let output = command.output().expect("a program");
    let elapsed = started.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    elapsed
}

/// Median of repeated calls. The first, which warms caches up, is not counted.
pub fn median_of(rounds: usize, mut work: impl FnMut() -> Duration) -> Duration {
    work();
    median((0..rounds).map(|_| work()).collect())
}

/// Medians of several contestants that take turns, so that what else the machine does hits all of them. Each round begins with another.
pub fn take_turns<const N: usize>(rounds: usize, contestants: [&mut dyn FnMut() -> Duration; N]) -> [Duration; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for turn in 0..N {
            let index = (round + turn) % N;
            let elapsed = contestants[index]();
            // The first round warms up.
            if round > 0 {
                times[index].push(elapsed);
            }
        }
    }
    times.map(median)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// `12.3 ms`
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// `0.42`
pub fn ratio(ours: Duration, theirs: Duration) -> String {
    format!("{:.2}", ours.as_secs_f64() / theirs.as_secs_f64())
}

/// Prints a heading and rows, the first of which names the columns. All columns but the first are aligned to the right.
pub fn table<const N: usize>(heading: &str, rows: &[[String; N]]) {
    println!("\n{heading}\n");
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells =
            cells.map(|(column, (cell, width))| if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
