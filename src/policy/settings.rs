//! The settings of an image, each declared once: the flags of a placeholder (clap), the fields of a rules file (serde), the keys of the
//! parameter `image-settings` ([`Settings::fields`]).

use clap::Args;
use serde::Deserialize;

/// The raw texts from a placeholder's flags or a rule's settings; [`super::Policy::parse`] checks them. Absent settings are [`None`], so
/// that a later source of rules leaves those of an earlier one in force.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Name of the strategy, in any case; `semver` by default.
    #[arg(skip)]
    #[serde(rename = "updateStrategy")]
    pub strategy: Option<String>,

    /// What follows the strategy; its meaning is the strategy's.
    #[arg(skip)]
    #[serde(skip)]
    pub constraint: Option<String>,

    /// Permit only tags that match this regular expression (Go's syntax, unanchored), such as `^main-`
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub allow_tags: Option<String>,

    /// Never permit tags that match this glob, or `regexp:REGEX`; may be given again
    #[arg(long, value_name = "GLOB")]
    pub ignore_tags: Option<Vec<String>>,

    /// Rank this part of the tag instead of the tag, such as `$n` with `--allow-tags '^build-(?P<n>\d+)$'`
    #[arg(long, value_name = "TEMPLATE")]
    pub extract: Option<String>,

    /// Permit only images for this platform, such as `linux/arm64`; may be given again
    #[arg(id = "platform", long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    pub platforms: Option<Vec<String>>,

    /// Permit only images that were built at least this long ago, such as `2h` or `3days`
    #[arg(long, value_name = "DURATION")]
    pub min_age: Option<String>,

    /// Append the chosen tag's digest: `1.4.2@sha256:…`
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub with_digest: Option<bool>,

    /// The tag to use when none is permitted, or when the registry cannot be asked and no earlier answer is stored
    #[arg(long, value_name = "TAG")]
    pub fallback: Option<String>,

    /// The credential for the registry, such as `env:GHCR`, if the operator permits it
    #[arg(long, value_name = "SOURCE")]
    pub pull_secret: Option<String>,

    /// Image Updater's, accepted and without meaning: a render asks for what the files hold, not for what runs in the cluster.
    #[arg(skip)]
    pub force_update: Option<bool>,
}

/// A setting by its type.
#[derive(Debug)]
pub enum Field<'s> {
    Text(&'s mut Option<String>),
    List(&'s mut Option<Vec<String>>),
    Flag(&'s mut Option<bool>),
}

impl Settings {
    /// The settings with their keys: Image Updater's annotations without prefix, and those that Pinion adds.
    pub fn fields(&mut self) -> [(&'static str, Field<'_>); 10] {
        use Field::{Flag, List, Text};
        [
            ("update-strategy", Text(&mut self.strategy)),
            ("force-update", Flag(&mut self.force_update)),
            ("allow-tags", Text(&mut self.allow_tags)),
            ("ignore-tags", List(&mut self.ignore_tags)),
            ("pull-secret", Text(&mut self.pull_secret)),
            ("platforms", List(&mut self.platforms)),
            ("extract", Text(&mut self.extract)),
            ("min-age", Text(&mut self.min_age)),
            ("with-digest", Flag(&mut self.with_digest)),
            ("fallback", Text(&mut self.fallback)),
        ]
    }

    /// Takes the settings that `over` has; lists replace.
    pub fn merge(&mut self, mut over: Self) {
        for ((_, own), (_, over)) in self.fields().into_iter().zip(over.fields()) {
            match (own, over) {
                (Field::Text(own), Field::Text(over)) if over.is_some() => *own = over.take(),
                (Field::List(own), Field::List(over)) if over.is_some() => *own = over.take(),
                (Field::Flag(own), Field::Flag(over)) if over.is_some() => *own = *over,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_win_one_by_one() {
        let mut settings = Settings {
            allow_tags: Some("a".into()),
            ignore_tags: Some(vec!["b".into()]),
            with_digest: Some(true),
            ..Settings::default()
        };
        settings.merge(Settings { ignore_tags: Some(vec![]), with_digest: Some(false), ..Settings::default() });
        let wanted =
            Settings { allow_tags: Some("a".into()), ignore_tags: Some(vec![]), with_digest: Some(false), ..Settings::default() };
        assert_eq!(settings, wanted);
    }

    /// A field that [`Settings::fields`] lacks would be lost where rules are merged.
    #[test]
    fn every_setting_has_a_key() {
        let Settings {
            strategy: _,
            constraint: _,
            allow_tags: _,
            ignore_tags: _,
            extract: _,
            platforms: _,
            min_age: _,
            with_digest: _,
            fallback: _,
            pull_secret: _,
            force_update: _,
        } = Settings::default();
        let keys = Settings::default().fields().map(|(key, _)| key);
        assert_eq!(keys.len(), 11 - 1, "all but the constraint, which stands behind the image: {keys:?}");
    }
}
