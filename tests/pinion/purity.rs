//! The pure core stays pure: values in, values out.

use crate::support::driver::root;

/// Modules of the pure core, with those below them.
const PURE: [&str; 8] = ["image", "policy", "rules", "placeholder", "pin", "manifest", "values", "yaml"];

/// What a pure module never names.
const IMPURE: [&str; 12] = [
    "async ",
    ".await",
    "tokio",
    "std::fs",
    "std::net",
    "std::process",
    "std::env::var",
    "Timestamp::now",
    "SystemTime",
    "Instant::now",
    "crate::registry",
    "crate::workspace",
];

#[test]
fn the_pure_core_names_no_files_network_clock_or_tasks() {
    let mut checked = 0;
    for module in PURE {
        let mut waiting = vec![root().join("src").join(module).with_extension("rs"), root().join("src").join(module)];
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).expect("a file");
                let code: String = text
                    .split("#[cfg(test)]\nmod ")
                    .next()
                    .expect("a part")
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .collect();
                let found: Vec<&str> = IMPURE.into_iter().filter(|word| code.contains(word)).collect();
                assert!(found.is_empty(), "{} names {found:?}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "{checked} files were found");
}
