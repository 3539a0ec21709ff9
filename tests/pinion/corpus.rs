//! What fuzzing has come upon stays right: every file of the corpora, without a fuzzer.

use std::fs;
use std::panic;

use crate::support::driver::root;

#[path = "../properties/archive.rs"]
mod archive;

#[path = "../properties/placeholder.rs"]
mod placeholder;

/// Checks every file of a target's corpus.
fn replay(target: &str, check: fn(&[u8])) {
    let mut checked = 0;
    for entry in fs::read_dir(root().join("fuzz/corpus").join(target)).expect("a corpus") {
        let path = entry.expect("an entry").path();
        let input = fs::read(&path).expect("a file");
        assert!(panic::catch_unwind(|| check(&input)).is_ok(), "the law above is broken by {}", path.display());
        checked += 1;
    }
    assert!(checked >= 20, "{checked} files are in the corpus of `{target}`");
}

#[test]
fn every_archive_of_the_corpus_keeps_the_properties() {
    replay("archive", archive::check);
}

#[test]
fn every_text_of_the_corpus_keeps_the_properties() {
    replay("placeholder", placeholder::check);
}
