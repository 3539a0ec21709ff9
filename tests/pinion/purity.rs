//! The pure core stays pure: values in, values out.
//!
//! What a pure module may name is listed, not what it may not: a crate that nobody thought of is refused, too.

use regex::Regex;

use crate::support::driver::root;

/// Modules of the pure core, with those below them.
const PURE: [&str; 8] = ["image", "policy", "rules", "placeholder", "pin", "manifest", "values", "yaml"];

/// Modules of this crate that the pure core may use beside itself: errors for people.
const GROUND: [&str; 1] = ["failure"];

/// Crates that take values and return values. `clap` reads the words of a placeholder from a list that it is given.
const CRATES: [&str; 14] = [
    "base64",
    "clap",
    "granit_parser",
    "humantime",
    "jiff",
    "k8s_openapi",
    "regex",
    "semver",
    "serde",
    "serde_json",
    "serde_yaml",
    "sha2",
    "shell_words",
    "thiserror",
];

/// Modules of the standard library without files, network, clock, processes, threads and environment.
const STD: [&str; 15] =
    ["borrow", "cell", "char", "cmp", "collections", "error", "fmt", "hash", "iter", "mem", "num", "ops", "str", "sync", "time"];

/// What no pure module names, wherever it comes from: what waits, and what asks the world.
const IMPURE: [&str; 11] = [
    "async ",
    ".await",
    "::now(",
    "SystemTime",
    "Instant",
    "println!",
    "eprintln!",
    "tracing",
    "unsafe",
    "static mut",
    "thread_local!",
];

/// What a text of code names that is not pure.
fn impure(code: &str) -> Vec<String> {
    // The processor that this program was built for is a constant.
    let code = code.replace("std::env::consts", "");
    let path = Regex::new(r"(::)?\b([a-z][a-z0-9_]*)::(\{|[A-Za-z_][A-Za-z0-9_]*)").expect("a constant");
    let mut found: Vec<String> = IMPURE.into_iter().filter(|word| code.contains(word)).map(str::to_owned).collect();
    for part in path.captures_iter(&code).filter(|part| part.get(1).is_none()) {
        let (head, next) = (&part[2], &part[3]);
        // A module that the file declares or brings in by its name.
        let is_own = || {
            // Also among several in braces, where it stands behind a brace or a space.
            let names = [
                format!("mod {head};"),
                format!("::{head};"),
                format!("::{head}::"),
                format!(" {head},"),
                format!("{{{head},"),
                format!(" {head}}};"),
            ];
            names.iter().any(|name| code.contains(name))
        };
        let is_pure = match head {
            "std" | "core" => STD.contains(&next),
            "crate" => PURE.contains(&next) || GROUND.contains(&next),
            "self" | "super" | "char" | "str" | "u8" | "u32" | "u64" | "u128" | "usize" => true,
            word => CRATES.contains(&word) || PURE.contains(&word) || is_own(),
        };
        if !is_pure {
            found.push(format!("{head}::{next}"));
        }
    }
    found
}

#[test]
fn the_pure_core_names_no_files_network_clock_or_tasks() {
    let mut checked = 0;
    for module in PURE {
        let mut waiting = vec![root().join("src").join(module).with_extension("rs"), root().join("src").join(module)];
        while let Some(file) = waiting.pop() {
            if file.is_dir() {
                waiting.extend(std::fs::read_dir(&file).expect("a directory").map(|entry| entry.expect("an entry").path()));
            } else if file.extension().is_some_and(|end| end == "rs")
                && !["properties.rs", "tests.rs"].iter().any(|name| file.ends_with(name))
            {
                let text = std::fs::read_to_string(&file).expect("a file");
                let code = text.split("#[cfg(test)]\nmod ").next().expect("a part");
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                let found = impure(&lines.map(|line| format!("{line}\n")).collect::<String>());
                assert!(found.is_empty(), "{} names {found:?}", file.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "{checked} files were found");
}

#[test]
fn what_is_impure_is_found() {
    for code in [
        "let text = std::fs::read_to_string(path);",
        "use std::net::TcpStream;",
        "use std::{fs, io};",
        "std::thread::sleep(time);",
        "let home = std::env::var(\"HOME\");",
        "use crate::registry::Client;",
        "use crate::{image, workspace};",
        "reqwest::get(url)",
        "rustix::process::getpid()",
        "let now = jiff::Timestamp::now();",
        "async fn f() {}",
        "use tokio::sync::Mutex;",
    ] {
        assert!(!impure(code).is_empty(), "{code}");
    }
    assert_eq!(impure("use std::fmt;\nuse crate::image::Tag;\nlet x = semver::Version::new(1, 2, 3);"), Vec::<String>::new());
}
