//! Sets of ASCII characters, of which tags consist, so that a character class needs no Unicode tables.

use std::ops::{BitOr, Not};

/// A set of ASCII characters, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AsciiSet(u128);

impl AsciiSet {
    pub(super) const EMPTY: Self = Self(0);
    pub(super) const ALL: Self = Self(u128::MAX);

    pub(super) fn contains(self, byte: u8) -> bool {
        byte.is_ascii() && self.0 & (1 << byte) != 0
    }

    pub(super) fn insert(&mut self, byte: u8) {
        debug_assert!(byte.is_ascii(), "sets hold ASCII alone");
        self.0 |= 1 << byte;
    }

    /// The ASCII characters among those from `low` to `high`, both included; none if `high` is less.
    pub(super) fn range(low: u32, high: u32) -> Self {
        (low..=high.min(127)).fold(Self::EMPTY, |set, code| Self(set.0 | 1 << code))
    }

    pub(super) fn of(class: impl Fn(u8) -> bool) -> Self {
        (0..128).filter(|&byte| class(byte)).fold(Self::EMPTY, |set, byte| Self(set.0 | 1 << byte))
    }

    /// With the other case of every letter.
    pub(super) fn folded(self) -> Self {
        Self::of(|byte| self.contains(byte.to_ascii_lowercase()) || self.contains(byte.to_ascii_uppercase()))
    }

    pub(super) fn bytes(self) -> impl Iterator<Item = u8> {
        (0..128).filter(move |&byte| self.contains(byte))
    }
}

impl BitOr for AsciiSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for AsciiSet {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}
