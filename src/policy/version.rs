//! What may be ranked by number: lenient versions and decimal numbers.
//!
//! Versions are read as `NewVersion` of [Masterminds/semver 3.4.0] reads them, since that is what Image Updater's users wrote their
//! tags for: a lower-case `v` in front, one to three numbers, leading zeros in these, missing numbers are 0. One difference: identifiers
//! of a pre-release that exceed 64 bits are compared as numbers, as Semantic Versioning says; Masterminds compares them as text.
//!
//! [Masterminds/semver 3.4.0]: https://github.com/Masterminds/semver/blob/v3.4.0/version.go

use std::cmp::Ordering;

use semver::{BuildMetadata, Prerelease, Version};

/// Reads a version leniently. Build metadata is checked and left out, since it has no part in precedence.
///
/// None: the text is no version, or one of its three numbers exceeds 64 bits.
pub fn parse(text: &str) -> Option<Version> {
    let text = match text.split_once('+') {
        Some((_, "")) => return None,
        Some((rest, build)) => BuildMetadata::new(build).ok().map(|_| rest)?,
        None => text,
    };
    let (core, pre) = match text.split_once('-') {
        Some((_, "")) => return None,
        Some((core, pre)) => (core, Prerelease::new(pre).ok()?),
        None => (text, Prerelease::EMPTY),
    };
    let mut numbers = [0; 3];
    for (at, part) in core.strip_prefix('v').unwrap_or(core).split('.').enumerate() {
        *numbers.get_mut(at)? = number(part)?;
    }
    let [major, minor, patch] = numbers;
    Some(Version { major, minor, patch, pre, build: BuildMetadata::EMPTY })
}

/// `[0-9]+` within 64 bits; unlike `str::parse`, without a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A decimal number of any length, `[0-9]+` or `[0-9]+\.[0-9]+`, ordered by its value without rounding: `1.10` equals `1.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    /// Without leading zeros.
    whole: Box<str>,
    /// Without trailing zeros.
    fraction: Box<str>,
}

impl Decimal {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        (digits(whole) && digits(fraction))
            .then(|| Self { whole: whole.trim_start_matches('0').into(), fraction: fraction.trim_end_matches('0').into() })
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let whole = self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(&other.whole));
        whole.then_with(|| self.fraction.cmp(&other.fraction))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every row was run through `semver.NewVersion` of Masterminds/semver 3.4.0.
    #[test]
    fn versions_are_read_as_masterminds_reads_them() {
        for (text, read) in [
            ("1", "1.0.0"),
            ("v1", "1.0.0"),
            ("1.2", "1.2.0"),
            ("01.002.0003", "1.2.3"),
            ("v1.2.3-rc.1", "1.2.3-rc.1"),
            ("1-rc1", "1.0.0-rc1"),
            ("1.2-3.4", "1.2.0-3.4"),
            ("1.0.0--", "1.0.0--"),
            ("1.0.0-a-b+c-d.01", "1.0.0-a-b"),
            ("1.0.0+01", "1.0.0"),
            ("20240101", "20240101.0.0"),
            ("2024.01.15", "2024.1.15"),
            ("18446744073709551615", "18446744073709551615.0.0"),
        ] {
            assert_eq!(parse(text).map(|version| version.to_string()).as_deref(), Some(read), "{text}");
        }
    }

    #[test]
    fn texts_that_masterminds_refuses_are_no_versions() {
        for text in [
            "",
            "v",
            "V1.2.3",
            "vv1",
            "latest",
            "1.",
            ".1",
            "1..2",
            "1.2.3.4",
            "1.2.3-",
            "1.2.3+",
            "1.0.0-01",
            "1.0.0-a..b",
            "1.0.0-a.",
            "1.0.0+a+b",
            "1.0.0-a_b",
            " 1",
            "1 ",
            "+1",
            "-1",
            "1.x",
            "18446744073709551616",
            "1.0.0-é",
            "١",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn decimals_are_compared_without_rounding() {
        let decimal = |text: &str| Decimal::parse(text).expect(text);
        assert!(decimal("100000000000000000000000000000000000001") > decimal("100000000000000000000000000000000000000"));
        assert!(decimal("1.10") < decimal("1.9"));
        assert!(decimal("10") > decimal("9.99"));
        assert_eq!(decimal("007.50"), decimal("7.5"));
        assert_eq!(decimal("0.0"), decimal("00"));
        for text in ["", "1.", ".5", "-1", "+1", "1e3", "1.2.3", "0x1", "1_000", "inf"] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn decimals_are_ordered_as_their_values(a in 0u32..5000, b in 0u32..5000, zeros in 0usize..3) {
            let text = |n: u32| format!("{}{}.{:02}", "0".repeat(zeros), n / 100, n % 100);
            prop_assert_eq!(Decimal::parse(&text(a)).cmp(&Decimal::parse(&text(b))), a.cmp(&b));
        }
    }
}
