//! The documentation agrees with the program and with itself: messages exist, links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::support::driver::root;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a directory with this extension.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut waiting, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// Headings of docs/troubleshooting.md in backticks are texts of the program; `…` stands for what differs.
#[test]
fn the_messages_of_troubleshooting_exist() {
    let sources: String = files(&root().join("src"), "rs").iter().map(|path| read(path)).collect();
    // A long text goes on in the next line.
    let sources = Regex::new(r"\\\n\s*").expect("a constant").replace_all(&sources, "").into_owned();
    let page = read(&root().join("docs/troubleshooting.md"));
    let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### `")).collect();
    assert!(headings.len() > 50, "{headings:?}");
    for heading in headings {
        for part in heading.split('…') {
            let part = part.trim_matches([' ', ',', '`']);
            assert!(part.len() < 4 || sources.contains(part), "no message has `{part}`, of the heading `{heading}`");
        }
    }
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md", "CONTRIBUTING.md", "charts/pinion/README.md"].map(|path| root().join(path)));
    let anchors: BTreeMap<PathBuf, BTreeSet<String>> = pages
        .iter()
        .map(|path| {
            let headings = read(path).lines().filter(|line| line.starts_with('#')).map(anchor).collect();
            (path.canonicalize().expect("a path"), headings)
        })
        .collect();
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a constant");
    for page in &pages {
        let text = read(page);
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { page.clone() } else { page.parent().expect("a parent").join(path) };
            let file = file.canonicalize().unwrap_or_else(|_| panic!("{}: `{target}` leads nowhere", page.display()));
            if let (Some(known), false) = (anchors.get(&file), fragment.is_empty()) {
                assert!(known.contains(fragment), "{}: `{target}` has no such heading", page.display());
            }
        }
    }
}

/// Every strategy is where people look for its name.
#[test]
fn every_strategy_is_documented() {
    for page in ["docs/policies.md", "docs/placeholders.md", "docs/troubleshooting.md", "src/placeholder/words.rs"] {
        let text = std::fs::read_to_string(root().join(page)).expect("the page is there");
        for name in pinion::policy::Strategy::NAMES {
            assert!(text.contains(name), "{page} does not name the strategy `{name}`");
        }
    }
}
