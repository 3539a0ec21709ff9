//! Pins: image, tag and digest that were chosen, and the forms in which they are kept.
//!
//! A [`Pin`] is what resolving gives; [`PinOverrides`] is what an application was told to use: the parameter `pins`, or a lock file
//! (`.pinion-lock-<app>.yaml`). Both forms are read strictly: a damaged record is an error, never a guess.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, ImageError, Repository, Tag, printable};
use crate::policy::{FilterReport, Policy, Step};

/// Pins that one record may hold.
const MAX_PINS: usize = 5000;

/// A tag, with the digest that it had. Written as `tag[@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pinned {
    pub tag: Tag,
    pub digest: Option<Digest>,
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tag)?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Pinned {
    type Err = ImageError;

    /// Reads `tag[@sha256:…]`.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        match text.split_once('@') {
            Some((tag, digest)) => Ok(Self { tag: tag.parse()?, digest: Some(digest.parse()?) }),
            None => Ok(Self { tag: text.parse()?, digest: None }),
        }
    }
}

impl TryFrom<String> for Pinned {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}

impl From<Pinned> for String {
    fn from(pinned: Pinned) -> Self {
        pinned.to_string()
    }
}

/// What was chosen for a question, and from what. The form that is stored, sent to a peer and printed for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ChoiceFields", into = "ChoiceFields")]
pub struct Choice {
    pub pinned: Pinned,
    /// When the image was built, where the policy asked for it.
    pub created: Option<Timestamp>,
    /// When the listing was read that it was chosen from; none for a given tag and for a fallback.
    pub listed: Option<Timestamp>,
    /// What each step rejected, when it was chosen.
    pub considered: Option<SelectionReport>,
}

impl Choice {
    /// A tag that was not chosen from a listing.
    pub fn told(pinned: Pinned) -> Self {
        Self { pinned, created: None, listed: None, considered: None }
    }
}

/// [`Choice`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChoiceFields {
    tag: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    considered: Option<SelectionReport>,
}

impl TryFrom<ChoiceFields> for Choice {
    type Error = ImageError;

    fn try_from(fields: ChoiceFields) -> Result<Self, ImageError> {
        let ChoiceFields { tag, digest, created, listed, considered } = fields;
        let digest = digest.map(|digest| digest.parse()).transpose()?;
        Ok(Self { pinned: Pinned { tag: tag.parse()?, digest }, created, listed, considered })
    }
}

impl From<Choice> for ChoiceFields {
    fn from(choice: Choice) -> Self {
        let Choice { pinned: Pinned { tag, digest }, created, listed, considered } = choice;
        Self { tag: tag.to_string(), digest: digest.map(|digest| digest.to_string()), created, listed, considered }
    }
}

/// How current a pin is.
#[derive(Clone, Debug, PartialEq)]
pub enum PinState {
    /// Chosen from a complete listing that is no older than `--tags-ttl`.
    Fresh,
    /// The last known good pin, or a choice from the last complete listing, because fresh data could not be had.
    Stale { since: Timestamp, reason: String },
    /// The policy's `--fallback`.
    Fallback { reason: String },
    /// Told to, by the parameter `pins` or by a record.
    Given,
}

/// Does a pin stand in the manifests that were rendered with it?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Usage {
    /// Nothing was rendered with it yet.
    #[default]
    Unknown,
    Used,
    /// Its tag is nowhere in the manifests: what runs is something else.
    Unused,
}

/// A question's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    pub repository: Repository,
    pub policy: Policy,
    pub choice: Choice,
    pub freshness: PinState,
    pub usage: Usage,
}

/// A pin as it is printed for programs: `-o json`, `-o yaml`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub image: String,
    pub policy: String,
    #[serde(flatten)]
    pub choice: Choice,
    /// After a render: `used`, or `unused` if the tag is nowhere in the manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// `fresh`, `stale`, `fallback` or `given`.
    pub freshness: &'static str,
    /// Since when a stale pin is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why a pin is not fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How many tags there were and why each was rejected; printed for programs, and kept with a pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelectionReport {
    pub tags: usize,
    pub permitted: usize,
    pub rejected: Vec<Rejected>,
    /// Was the time of building told by the order of the registry's listing (`tagsortmode`)?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_registry_order: bool,
}

/// One step of a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rejected {
    pub because: String,
    pub tags: usize,
    pub examples: Vec<String>,
}

impl From<&FilterReport> for SelectionReport {
    fn from(funnel: &FilterReport) -> Self {
        let step = |step: &Step| Rejected {
            because: step.what.clone(),
            tags: step.rejected,
            examples: step.examples.iter().map(ToString::to_string).collect(),
        };
        Self {
            tags: funnel.total,
            permitted: funnel.permitted,
            rejected: funnel.steps.iter().map(step).collect(),
            by_registry_order: funnel.by_position,
        }
    }
}

/// Writes a line for each step, the widest number first.
impl fmt::Display for SelectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} {}", self.tags, if self.tags == 1 { "tag" } else { "tags" })?;
        for step in &self.rejected {
            let more = if step.tags > step.examples.len() { ", …" } else { "" };
            write!(f, "\n{:>7} {}: {}{more}", format!("-{}", step.tags), step.because, step.examples.join(", "))?;
        }
        let order =
            if self.by_registry_order && self.permitted > 0 { ", newest by the order of the registry's listing" } else { "" };
        write!(f, "\n{:>7} permitted{order}", self.permitted)
    }
}

impl Pin {
    /// The pin for programs.
    pub fn report(&self) -> Report {
        let (freshness, since, reason) = match &self.freshness {
            PinState::Fresh => ("fresh", None, None),
            PinState::Stale { since, reason } => ("stale", Some(*since), Some(reason.clone())),
            PinState::Fallback { reason } => ("fallback", None, Some(reason.clone())),
            PinState::Given => ("given", None, None),
        };
        Report {
            image: self.repository.text().to_owned(),
            policy: self.policy.to_string(),
            choice: self.choice.clone(),
            state: match self.usage {
                Usage::Unknown => None,
                Usage::Used => Some("used"),
                Usage::Unused => Some("unused"),
            },
            freshness,
            since,
            reason,
        }
    }
}

/// Pins that were told, by alias or image, and by question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PinOverrides {
    by_name: BTreeMap<String, Pinned>,
    /// Those whose name is an image, in any spelling.
    by_image: BTreeMap<Repository, Pinned>,
    by_question: BTreeMap<(Repository, String), Pinned>,
}

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinOverridesError {
    #[error("pin of `{name}`")]
    Pinned {
        name: String,
        #[source]
        source: ImageError,
    },
    #[error("not a lock file: {0}")]
    Lock(String),
    #[error("{0} pins, at most {MAX_PINS} are allowed")]
    TooMany(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lock {
    api_version: String,
    kind: String,
    pins: Vec<LockedPin>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LockedPin {
    image: String,
    policy: String,
    pin: Pinned,
}

impl PinOverrides {
    /// Reads the parameter `pins`: alias or image to `tag[@digest]`.
    ///
    /// # Errors
    ///
    /// [`PinOverridesError`], naming the entry.
    pub fn parameter(pins: &BTreeMap<String, String>) -> Result<Self, PinOverridesError> {
        if pins.len() > MAX_PINS {
            return Err(PinOverridesError::TooMany(pins.len()));
        }
        let mut given = Self::default();
        for (name, text) in pins {
            let pinned: Pinned =
                text.trim().parse().map_err(|source| PinOverridesError::Pinned { name: printable(name), source })?;
            if let Ok(image) = name.parse() {
                given.by_image.entry(image).or_insert_with(|| pinned.clone());
            }
            given.by_name.insert(name.clone(), pinned);
        }
        Ok(given)
    }

    /// Adds the pins of a lock file; those of the parameter win.
    ///
    /// # Errors
    ///
    /// [`PinOverridesError`] when the file is not what [`lock`] writes.
    pub fn add_lock(&mut self, text: &str) -> Result<(), PinOverridesError> {
        let lock: Lock = crate::yaml::from_str(text).map_err(|error| PinOverridesError::Lock(error.to_string()))?;
        if (lock.api_version.as_str(), lock.kind.as_str()) != ("pinion.dev/v1", "Lock") {
            return Err(PinOverridesError::Lock("it is not `pinion.dev/v1 Lock`".into()));
        }
        if lock.pins.len() > MAX_PINS {
            return Err(PinOverridesError::TooMany(lock.pins.len()));
        }
        for entry in lock.pins {
            let fault = |source| PinOverridesError::Pinned { name: printable(&entry.image), source };
            let repository: Repository = entry.image.parse().map_err(fault)?;
            self.by_question.insert((repository, entry.policy), entry.pin);
        }
        Ok(())
    }

    /// The pin for a question: by alias, by image as it is spelled, by image in any spelling, by image and policy.
    pub fn get(&self, alias: Option<&str>, repository: &Repository, policy: &Policy) -> Option<&Pinned> {
        let named = |name: &str| self.by_name.get(name);
        alias
            .and_then(named)
            .or_else(|| named(repository.text()))
            .or_else(|| self.by_image.get(repository))
            .or_else(|| self.by_question.get(&(repository.clone(), policy.to_string())))
    }

    /// Does the parameter `pins` name an image, or one of its aliases?
    pub fn is_told<'n>(&self, repository: &Repository, mut aliases: impl Iterator<Item = &'n str>) -> bool {
        self.by_image.contains_key(repository) || aliases.any(|alias| self.by_name.contains_key(alias))
    }

    /// The names of the parameter `pins` with their pins.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Pinned)> {
        self.by_name.iter().map(|(name, pinned)| (name.as_str(), pinned))
    }
}

/// The lock file for these pins: one entry a question, sorted, so that equal pins give equal bytes. What was told by the parameter
/// `pins` is told again by it, so that of two pins for one question the other is kept.
///
/// # Errors
///
/// [`TwoPins`] if still two are left, as when sources have different ones in their `pins`.
///
/// # Panics
///
/// Never: the form serializes.
pub fn lock(pins: &[Pin]) -> Result<String, TwoPins> {
    let is_given = |pin: &&Pin| pin.freshness == PinState::Given;
    let is_same = |a: &Pin, b: &Pin| a.repository == b.repository && a.policy == b.policy;
    let others: Vec<&Pin> = pins.iter().filter(|pin| !is_given(pin)).collect();
    let given = pins.iter().filter(is_given).filter(|pin| others.iter().all(|other| !is_same(pin, other)));
    let kept: Vec<&Pin> = others.iter().copied().chain(given).collect();
    for (index, pin) in kept.iter().enumerate() {
        if let Some(other) = kept[..index].iter().find(|other| is_same(pin, other) && pin.choice.pinned != other.choice.pinned) {
            let question = format!("{} {}", pin.repository, pin.policy);
            return Err(TwoPins { question, pins: [other.choice.pinned.to_string(), pin.choice.pinned.to_string()] });
        }
    }
    let mut entries: Vec<LockedPin> = kept
        .into_iter()
        .map(|pin| LockedPin {
            image: pin.repository.to_string(),
            policy: pin.policy.to_string(),
            pin: pin.choice.pinned.clone(),
        })
        .collect();
    entries.sort_by(|a, b| (&a.image, &a.policy).cmp(&(&b.image, &b.policy)));
    entries.dedup_by(|a, b| (&a.image, &a.policy) == (&b.image, &b.policy));
    let lock = Lock { api_version: "pinion.dev/v1".into(), kind: "Lock".into(), pins: entries };
    Ok(serde_yaml::to_string(&lock).expect("the form serializes"))
}

/// A lock file holds one pin for a question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{question}` has two pins, `{}` and `{}`, and a lock file holds one: write it for one source, with `--source`", pins[0], pins[1])]
pub struct TwoPins {
    question: String,
    pins: [String; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Notation, Settings};

    fn pin(image: &str, constraint: &str, pinned: &str) -> Pin {
        let settings = Settings { constraint: Some(constraint.into()), ..Settings::default() };
        Pin {
            repository: image.parse().expect("an image"),
            policy: Policy::parse(&settings, Notation::Placeholder).expect("a policy"),
            choice: Choice::told(pinned.parse().expect("a pin")),
            freshness: PinState::Fresh,
            usage: Usage::Unknown,
        }
    }

    #[test]
    fn a_lock_file_holds_one_pin_for_a_question() {
        let given = Pin { freshness: PinState::Given, ..pin("nginx", "~1", "1.2") };
        let text = lock(&[given.clone(), pin("nginx", "~1", "1.9")]).expect("the parameter tells its own");
        assert!(text.contains("pin: '1.9'") || text.contains("pin: \"1.9\""), "{text}");
        assert!(lock(std::slice::from_ref(&given)).expect("one pin").contains("1.2"), "without another");
        let error = lock(&[given, Pin { freshness: PinState::Given, ..pin("nginx", "~1", "1.3") }]).expect_err("two");
        assert!(error.to_string().contains("has two pins, `1.2` and `1.3`"), "{error}");
    }

    #[test]
    fn a_lock_file_gives_back_what_was_put_in() {
        let digest = Digest::of(b"x");
        let pins = [pin("ghcr.io/a/b", "~1", &format!("1.10@{digest}")), pin("nginx", "~1", "on"), pin("nginx", "~2", "0123")];
        let text = lock(&pins).expect("one pin a question");
        let mut given = PinOverrides::default();
        given.add_lock(&text).expect("own form");
        for pin in &pins {
            assert_eq!(given.get(None, &pin.repository, &pin.policy), Some(&pin.choice.pinned), "{text}");
        }
        let mut other_order = pins.to_vec();
        other_order.reverse();
        assert_eq!(lock(&other_order).as_deref(), Ok(text.as_str()));
    }

    #[test]
    fn what_was_considered_says_by_whose_order() {
        for (text, shown) in [
            (r#"{"tags":2,"permitted":2,"rejected":[]}"#, "      2 tags\n      2 permitted"),
            (
                r#"{"tags":2,"permitted":2,"rejected":[],"byRegistryOrder":true}"#,
                "      2 tags\n      2 permitted, newest by the order of the registry's listing",
            ),
            (r#"{"tags":0,"permitted":0,"rejected":[],"byRegistryOrder":true}"#, "      0 tags\n      0 permitted"),
        ] {
            let considered: SelectionReport = serde_json::from_str(text).expect("own form");
            assert_eq!(serde_json::to_string(&considered).expect("own form"), text);
            assert_eq!(considered.to_string(), shown);
        }
    }

    #[test]
    fn the_parameter_wins_over_the_lock_file() {
        let mut given = PinOverrides::parameter(&BTreeMap::from([("web".into(), "1.2.3".into())])).expect("pins");
        let held = pin("a/b", "~1", "1.0.0");
        given.add_lock(&lock(std::slice::from_ref(&held)).expect("one pin")).expect("own form");
        let tag = |alias| given.get(alias, &held.repository, &held.policy).expect("a pin").tag.to_string();
        assert_eq!(tag(Some("web")), "1.2.3");
        assert_eq!(tag(None), "1.0.0");
        assert_eq!(given.names().map(|(name, _)| name).collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn an_image_is_held_by_any_of_its_spellings() {
        for name in ["nginx", "docker.io/nginx", "docker.io/library/nginx", "index.docker.io/library/nginx"] {
            let given = PinOverrides::parameter(&BTreeMap::from([(name.to_owned(), "1.2.3".to_owned())])).expect("pins");
            let nginx = pin("nginx", "~1", "1.0.0");
            assert!(given.get(None, &nginx.repository, &nginx.policy).is_some(), "{name}");
        }
    }

    #[test]
    fn damaged_records_are_errors() {
        let mut given = PinOverrides::default();
        assert!(given.add_lock("kind: Lock\n").is_err());
        assert!(given.add_lock("apiVersion: pinion.dev/v1\nkind: Lock\npins: [{image: a/b, policy: x, pin: '../x'}]\n").is_err());
        let error = PinOverrides::parameter(&BTreeMap::from([("web".into(), "a b".into())])).expect_err("no tag");
        assert_eq!(crate::failure::chain(&error), "pin of `web`: `a b` is not a tag");
    }
}
