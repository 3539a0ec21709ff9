//! `pinion resolve`: asks a registry which tag is permitted.

use clap::Args;

use super::{Format, Outcome, Usage, configured, print, resolver, write};
use crate::config;
use crate::failure::{Failure, Failures};
use crate::image::Repository;
use crate::metrics::Hits;
use crate::pin::{Pin, PinState, SelectionReport};
use crate::placeholder::words::{PlaceholderSubject, Spec, Words};
use crate::registry::Access;
use crate::resolve::{Caller, Question, ResolveError};

const LONG_ABOUT: &str = "\
Print the newest permitted tag of an image

Takes the words and flags of a placeholder: what follows `$(pin` in a file may follow `pinion resolve` here. Prints what replaces the \
placeholder: the tag, with its digest if the policy pins one.

    pinion resolve ghcr.io/acme/web:~1.2
    pinion resolve ghcr.io/acme/web newest-build --allow-tags '^main-' --explain

Exit status: 0 a tag is permitted; 1 the registry could not be asked; 2 the policy is invalid; 3 no tag is permitted.";

/// The settings that a lookup reads: those of registries, and of the sandbox of credential helpers.
const USED: [&str; 17] = [
    "config",
    "registries-conf",
    "store",
    "store-bytes",
    "cache-bytes",
    "allow-registries",
    "egress-hosts",
    "egress-cidrs",
    "egress-ports",
    "allow-application-credentials",
    "tags-ttl",
    "digests-ttl",
    "lookup-timeout",
    "platforms",
    "tool-memory",
    "sandbox",
    "sandbox-readable",
];

/// Print the newest permitted tag of an image
#[derive(Args, Debug)]
#[command(long_about = LONG_ABOUT, mut_args(|flag| config::shown_if_used(flag, &USED)))]
pub struct Arguments {
    #[command(flatten)]
    words: Words,

    /// Also print the reason on standard error: what each step rejected, and how current the answer is
    #[arg(long)]
    explain: bool,

    /// How to print the result
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    output: Format,

    #[command(flatten)]
    config: config::Raw,
}

impl Arguments {
    /// Asks and prints.
    ///
    /// # Errors
    ///
    /// [`Usage`] for an invalid policy, [`Failures`] for what the registry does.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let question = question(self.words)?;
        let config = configured(self.config)?;
        let resolver = resolver(&config, Hits::default(), None, false);
        let answer = resolver.resolve(std::slice::from_ref(&question), Caller::default()).await.remove(0);
        super::stored(&resolver).await;
        let pin = match answer {
            Ok(pin) => pin,
            Err(error) => {
                let failure = Failure::new("", &error, error.hint());
                if let ResolveError::NoMatch { source, .. } = &error {
                    if self.explain {
                        eprintln!("{}\n{}", question.name(), SelectionReport::from(&source.funnel));
                    }
                    eprintln!("error: {failure}");
                    return Ok(Outcome::NoPermittedTag);
                }
                return Err(Failures::from(failure).into());
            }
        };
        if self.explain {
            eprintln!("{}", explain(&pin));
        }
        match self.output {
            Format::Text => write(&format!("{}\n", pin.choice.pinned))?,
            format => print(format, &pin.report())?,
        }
        Ok(Outcome::Done)
    }
}

/// The question that words ask. The first word is an image also without `/`: here it can be nothing else.
fn question(mut words: Words) -> Result<Question, Usage> {
    let is_named = words.image.is_some() || words.words.iter().any(|word| word.contains('/') || word.starts_with('@'));
    if !is_named && !words.words.is_empty() {
        words.image = Some(words.words.remove(0));
    }
    let Spec { target, pull_secret } = words.spec().map_err(|error| {
        let failure = Failure::new("", &error, error.hint());
        Usage(failure.to_string())
    })?;
    let PlaceholderSubject::Image { repository, policy } = target else {
        return Err(Usage("a rule's alias means nothing without its application: name the image".into()));
    };
    let repository: Repository =
        repository.ok_or_else(|| Usage("name an image, as in `pinion resolve ghcr.io/acme/web:~1.2`".into()))?;
    let access = pull_secret.as_deref().map_or(Access::Operator, Access::application);
    Ok(Question { repository, policy: *policy, access })
}

/// Why this tag: the funnel, the date, and how current the answer is.
pub fn explain(pin: &Pin) -> String {
    let mut lines = vec![format!("{} {}", pin.repository, pin.policy)];
    lines.extend(pin.choice.considered.as_ref().map(ToString::to_string));
    let created = pin.choice.created.map(|created| format!(", built {created:.0}")).unwrap_or_default();
    lines.push(format!("{:>7} {}{created}", "=>", pin.choice.pinned));
    lines.push(match (&pin.freshness, pin.choice.listed) {
        (PinState::Fresh, Some(listed)) => format!("tags read {listed:.0}"),
        (PinState::Fresh, None) => "fresh".into(),
        (PinState::Given, _) => "given by the application".into(),
        (PinState::Fallback { reason }, _) => format!("the fallback, because {reason}"),
        (PinState::Stale { since, reason }, _) => format!("STALE: last known good since {since:.0}, because {reason}"),
    });
    lines.join("\n")
}
