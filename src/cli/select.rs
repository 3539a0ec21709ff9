//! `pinion select`: chooses among the tags on standard input.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Format, Outcome, Usage, print, write};
use crate::failure::Failure;
use crate::image::{Digest, ImageError, Platform, Tag};
use crate::pin::{Pinned, SelectionReport};
use crate::placeholder::words::{PlaceholderSubject, STRATEGIES, Spec, Words};
use crate::policy::{Candidate, ImageBuild, NoSelection, Policy, TagMetadata};

/// Longest input, in bytes.
const MAX_INPUT: u64 = 256 * 1024 * 1024;

const LONG_ABOUT: &str = "\
Choose among the tags on standard input

Takes the words and flags of a placeholder, without an image. Standard input is the output of `skopeo list-tags`, or has on each line a tag, \
or a JSON object with `tag`, `created`, `digest` and `platform`, one for each platform of a tag. Prints only the chosen tag. Needs no network.

    skopeo list-tags docker://ghcr.io/acme/web | pinion select '~1.2'
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

/// All tags in one JSON text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listing {
    /// As `jq .Tags` prints it.
    Tags(Vec<String>),
    /// As `skopeo list-tags` prints it; a registry answers in lower case.
    Repository {
        #[serde(rename = "Tags", alias = "tags")]
        tags: Vec<String>,
    },
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
        let selection = match policy.choose(&candidates, Timestamp::now()) {
            Ok(selection) => selection,
            Err(NoSelection::NoMatch(no_match)) => {
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
            Err(needs @ NoSelection::NeedsMetadata(_)) => {
                let hint = "give it as JSON: `{\"tag\": \"…\", \"created\": \"2026-01-31T12:00:00Z\", \"digest\": \"sha256:…\", \"platform\": \"linux/amd64\"}`";
                anyhow::bail!("{}", Failure::new("standard input", &needs, Some(hint.into())));
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

/// Reads tags: one a line, or all in one JSON text.
fn read(input: impl Read) -> anyhow::Result<Vec<Candidate>> {
    let mut text = String::new();
    let count = input.take(MAX_INPUT + 1).read_to_string(&mut text).context("standard input cannot be read")?;
    // A part of the tags would give a wrong choice.
    anyhow::ensure!(count as u64 <= MAX_INPUT, "standard input is longer than {MAX_INPUT} bytes");
    let text = text.trim_start_matches('\u{feff}');
    let listing = text.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str(text).ok()).flatten();
    let mut found = Found::default();
    match listing {
        Some(Listing::Tags(tags) | Listing::Repository { tags }) => {
            for name in &tags {
                found.name(name);
            }
        }
        // No tag begins so. A list that was cut off would otherwise be taken for names that are no tags.
        None if text.trim_start().starts_with('[') => {
            let hint = "a list holds tags as texts: `[\"1.2.0\", \"1.3.0\"]`".to_owned();
            anyhow::bail!("{}", Failure::text("standard input", "it is not a JSON list of tags", Some(hint)));
        }
        None => {
            for (number, line) in text.lines().enumerate() {
                found.line(line.trim()).map_err(|problem| {
                    let hint = "a line is a tag or an object such as `{\"tag\": \"1.2.0\"}`; the output of `skopeo list-tags` is read as it is";
                    anyhow::anyhow!("{}", Failure::text(format!("standard input:{}", number + 1), problem, Some(hint.into())))
                })?;
            }
        }
    }
    if found.dropped > 0 {
        tracing::warn!(dropped = found.dropped, "names that are not legal tags were dropped");
    }
    Ok(found.tags.into_iter().map(|(tag, facts)| Candidate { tag, facts, position: None }).collect())
}

/// The tags of the input. Lines of the same tag are its platforms. Names that are no tags are dropped, as those from a registry are.
#[derive(Default)]
struct Found {
    tags: BTreeMap<Tag, Option<TagMetadata>>,
    dropped: usize,
}

impl Found {
    fn name(&mut self, name: &str) -> Option<&mut Option<TagMetadata>> {
        match name.parse() {
            Ok(tag) => Some(self.tags.entry(tag).or_default()),
            Err(error) => {
                tracing::debug!(%error, "dropped");
                self.dropped += 1;
                None
            }
        }
    }

    fn line(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        if !text.starts_with('{') {
            self.name(text);
            return Ok(());
        }
        let object: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let digest: Option<Digest> =
            object.digest.map(|text| text.parse()).transpose().map_err(|error: ImageError| error.to_string())?;
        let platform: Option<Platform> =
            object.platform.map(|text| text.parse()).transpose().map_err(|error: ImageError| error.to_string())?;
        let Some(facts) = self.name(&object.tag) else { return Ok(()) };
        if digest.is_some() || platform.is_some() || object.created.is_some() {
            let facts = facts.get_or_insert_with(|| TagMetadata { digest: None, images: Vec::new() });
            facts.digest = facts.digest.take().or(digest);
            facts.images.push(ImageBuild { platform, created: object.created });
        }
        Ok(())
    }
}
