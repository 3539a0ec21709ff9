//! `pinion select`: chooses among the tags on standard input.

use std::collections::BTreeMap;
use std::io::BufRead;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Format, Outcome, Usage, print, write};
use crate::failure::Failure;
use crate::image::{Digest, Platform, Tag, printable};
use crate::pin::{Pinned, SelectionReport};
use crate::placeholder::words::{PlaceholderSubject, STRATEGIES, Spec, Words};
use crate::policy::{Candidate, ImageBuild, Policy, TagMetadata};

/// Longest input, in bytes.
const MAX_INPUT: u64 = 256 * 1024 * 1024;

const LONG_ABOUT: &str = "\
Choose among the tags on standard input

Takes the words and flags of a placeholder, without an image. Each line of standard input is a tag, or a JSON object with `tag`, `created`, \
`digest` and `platform`, one for each platform of a tag. Prints only the chosen tag. Needs no network.

    skopeo list-tags docker://ghcr.io/acme/web | jq -r '.Tags[]' |
        pinion select '~1.2'
    pinion select newest-build --allow-tags '^main-' < builds.json

A line of builds.json:
    {\"tag\": \"main-7\", \"created\": \"2026-01-31T12:00:00Z\"}

Exit status: 0 a tag is permitted; 1 the input cannot be used; 2 the policy is invalid; 3 no tag is permitted.";

/// Choose among the tags on standard input
#[derive(Args, Debug)]
#[command(
    long_about = LONG_ABOUT,
    mut_arg("words", |words| {
        words.help("[STRATEGY] [CONSTRAINT…]").long_help(format!("[STRATEGY] [CONSTRAINT…]\n\n{STRATEGIES}"))
    }),
    mut_arg("image", |image| image.hide(true)),
    mut_arg("pull_secret", |secret| secret.hide(true)),
    mut_arg("fallback", |fallback| fallback.help("The tag to use when none is permitted")),
)]
pub struct Arguments {
    #[command(flatten)]
    words: Words,

    /// Also print the reason on standard error: what each step rejected
    #[arg(long)]
    explain: bool,

    /// How to print the result
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    output: Format,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    tag: String,
    created: Option<Timestamp>,
    digest: Option<String>,
    platform: Option<String>,
}

#[derive(serde::Serialize)]
struct Report {
    tag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    considered: SelectionReport,
}

impl Arguments {
    /// Reads standard input and prints the winner.
    ///
    /// # Errors
    ///
    /// [`Usage`] for an invalid policy; for a line that is neither a tag nor such an object, with its number.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let policy = policy(self.words)?;
        let candidates = read(std::io::stdin().lock())?;
        let selection = match policy.select(&candidates, Timestamp::now()) {
            Ok(selection) => selection,
            Err(no_match) if no_match.missing.is_empty() => {
                let considered = SelectionReport::from(&no_match.funnel);
                if self.explain {
                    eprintln!("{policy}\n{considered}");
                }
                if let Some(tag) = policy.fallback() {
                    if self.explain {
                        eprintln!("{:>7} {tag}, the fallback", "=>");
                    }
                    tracing::warn!(%tag, reason = %no_match, "using the fallback");
                    report(self.output, &Pinned { tag: tag.clone(), digest: None }, None, considered)?;
                    return Ok(Outcome::Done);
                }
                eprintln!("error: {}", Failure::new("", &no_match, no_match.hint()));
                return Ok(Outcome::NoPermittedTag);
            }
            Err(no_match) => {
                let hint = "give it as JSON: `{\"tag\": \"…\", \"created\": \"2026-01-31T12:00:00Z\", \"digest\": \"sha256:…\", \"platform\": \"linux/amd64\"}`";
                anyhow::bail!("{}", Failure::new("standard input", &no_match, Some(hint.into())));
            }
        };
        let considered = SelectionReport::from(&selection.funnel);
        if self.explain {
            eprintln!("{policy}\n{considered}\n{:>7} {}", "=>", selection.tag);
        }
        let digest = selection.digest.filter(|_| policy.pins_digest());
        report(self.output, &Pinned { tag: selection.tag, digest }, selection.created, considered)?;
        Ok(Outcome::Done)
    }
}

/// Prints the winner.
fn report(format: Format, pinned: &Pinned, created: Option<Timestamp>, considered: SelectionReport) -> anyhow::Result<()> {
    let Pinned { tag, digest } = pinned;
    let digest = digest.as_ref().map(ToString::to_string);
    match format {
        Format::Text => write(&format!("{pinned}\n")),
        format => print(format, &Report { tag: tag.to_string(), digest, created, considered }),
    }
}

fn policy(words: Words) -> Result<Policy, Usage> {
    match words.spec().map_err(|error| Usage(Failure::new("", &error, error.hint()).to_string()))? {
        Spec { target: PlaceholderSubject::Image { repository: None, policy }, pull_secret: None } => Ok(*policy),
        _ => Err(Usage("the candidates come from standard input: name no image, alias or credential".into())),
    }
}

/// Lines of the same tag are its platforms. Names that are no tags are dropped, as those from a registry are.
fn read(input: impl BufRead) -> anyhow::Result<Vec<Candidate>> {
    let mut found: BTreeMap<Tag, Option<TagMetadata>> = BTreeMap::new();
    let mut dropped = 0;
    for (number, line) in input.take(MAX_INPUT).lines().enumerate() {
        let line = line.context("standard input cannot be read")?;
        let wrong = |problem: &dyn std::fmt::Display| anyhow::anyhow!("standard input:{}: {problem}", number + 1);
        let text = line.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        if !text.starts_with('{') {
            match text.parse() {
                Ok(tag) => drop(found.entry(tag).or_default()),
                Err(error) => {
                    tracing::debug!(%error, "dropped");
                    dropped += 1;
                }
            }
            continue;
        }
        let object: Line = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        let Ok(tag) = object.tag.parse::<Tag>() else {
            tracing::debug!(tag = printable(&object.tag), "not a tag");
            dropped += 1;
            continue;
        };
        let digest: Option<Digest> = object.digest.as_deref().map(str::parse).transpose().map_err(|error| wrong(&error))?;
        let platform: Option<Platform> = object.platform.as_deref().map(str::parse).transpose().map_err(|error| wrong(&error))?;
        let facts = found.entry(tag).or_default();
        if digest.is_some() || platform.is_some() || object.created.is_some() {
            let facts = facts.get_or_insert_with(|| TagMetadata { digest: None, images: Vec::new() });
            facts.digest = facts.digest.take().or(digest);
            facts.images.push(ImageBuild { platform, created: object.created });
        }
    }
    if dropped > 0 {
        tracing::warn!(dropped, "names that are not legal tags were dropped");
    }
    Ok(found.into_iter().map(|(tag, facts)| Candidate { tag, facts, position: None }).collect())
}
