//! Character classes and escapes: `[a-z]`, `[[:alpha:]]`, `\d`, `\pL`, `\x41`.

use super::{Translator, syntax};
use crate::policy::filter::PatternError;
use crate::policy::filter::ascii::AsciiSet;

impl Translator<'_> {
    /// `\d`, `\pL`, `\P{Greek}` and the like, inside brackets or outside. None: it is not such an escape.
    pub(super) fn escaped_class(&mut self) -> Result<Option<AsciiSet>, PatternError> {
        let before = self.rest;
        let Some(letter) = before.strip_prefix('\\').and_then(|rest| rest.chars().next()) else {
            return Ok(None);
        };
        let class = match letter.to_ascii_lowercase() {
            'd' => AsciiSet::of(|b| b.is_ascii_digit()),
            's' => AsciiSet::of(|b| b.is_ascii_whitespace()),
            'w' => self.fold(AsciiSet::of(|b| b.is_ascii_alphanumeric() || b == b'_')),
            'p' => return self.unicode_class().map(Some),
            _ => return Ok(None),
        };
        self.skip(2);
        Ok(Some(if letter.is_ascii_uppercase() { !class } else { class }))
    }

    fn fold(&self, set: AsciiSet) -> AsciiSet {
        if self.flags.fold { set.folded() } else { set }
    }

    /// The ASCII part of a Unicode class, for which the `regex` crate's tables are asked.
    fn unicode_class(&mut self) -> Result<AsciiSet, PatternError> {
        let before = self.rest;
        let mut negated = before.starts_with("\\P");
        let fail = |part: &str| syntax("not a Unicode class", part);
        let length = match before[2..].chars().next() {
            None => return Err(fail(before)),
            Some('{') => before.find('}').ok_or_else(|| fail(before))? + 1,
            Some(c) => 2 + c.len_utf8(),
        };
        let whole = &before[..length];
        let mut name = whole[2..].strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(&whole[2..]);
        if let Some(rest) = name.strip_prefix('^') {
            negated = !negated;
            name = rest;
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_- ".contains(&b)) {
            return Err(fail(whole));
        }
        let class = regex::bytes::RegexBuilder::new(&format!("\\p{{{name}}}"))
            .case_insensitive(self.flags.fold)
            .build()
            .map_err(|_| fail(whole))?;
        self.skip(length);
        let set = AsciiSet::of(|byte| class.is_match(&[byte]));
        Ok(if negated { !set } else { set })
    }

    /// `[..]`. Inside, `[`, `&&` and `--` are characters, and so is `]` in the first place.
    pub(super) fn class(&mut self) -> Result<AsciiSet, PatternError> {
        let before = self.rest;
        self.skip(1);
        let negated = self.rest.starts_with('^');
        if negated {
            self.skip(1);
        }
        let mut set = AsciiSet::EMPTY;
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            if let Some(named) = self.named_class()? {
                set = set | named;
            } else if let Some(class) = self.escaped_class()? {
                set = set | class;
            } else {
                let range = self.rest;
                let low = self.class_character(before)?;
                let mut high = low;
                if self.rest.len() >= 2 && self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                    self.skip(1);
                    high = self.class_character(before)?;
                }
                if high < low {
                    return Err(syntax("a range ends before it starts", &range[..range.len() - self.rest.len()]));
                }
                set = set | self.range(low, high);
            }
        }
        self.skip(1);
        Ok(if negated { !set } else { set })
    }

    /// `[:alpha:]` or `[:^alpha:]`. None: it is not of this form, so the bracket is a character.
    fn named_class(&mut self) -> Result<Option<AsciiSet>, PatternError> {
        let Some((inner, _)) = self.rest.strip_prefix("[:").and_then(|rest| rest.split_once(":]")) else {
            return Ok(None);
        };
        let (name, negated) = inner.strip_prefix('^').map_or((inner, false), |name| (name, true));
        let class: fn(&u8) -> bool = match name {
            "alnum" => u8::is_ascii_alphanumeric,
            "alpha" => u8::is_ascii_alphabetic,
            "ascii" => u8::is_ascii,
            "blank" => |b| matches!(b, b' ' | b'\t'),
            "cntrl" => u8::is_ascii_control,
            "digit" => u8::is_ascii_digit,
            "graph" => u8::is_ascii_graphic,
            "lower" => u8::is_ascii_lowercase,
            "print" => |b| b.is_ascii_graphic() || *b == b' ',
            "punct" => u8::is_ascii_punctuation,
            "space" => |b| matches!(b, b'\t'..=b'\r' | b' '),
            "upper" => u8::is_ascii_uppercase,
            "word" => |b| b.is_ascii_alphanumeric() || *b == b'_',
            "xdigit" => u8::is_ascii_hexdigit,
            _ => return Err(syntax("not a named class", &format!("[:{inner}:]"))),
        };
        self.skip(inner.len() + 4);
        let set = self.fold(AsciiSet::of(|byte| class(&byte)));
        Ok(Some(if negated { !set } else { set }))
    }

    fn class_character(&mut self, class: &str) -> Result<u32, PatternError> {
        match self.rest.chars().next() {
            None => Err(syntax("a bracket is not closed", class)),
            Some('\\') => self.escaped_character(),
            Some(c) => {
                self.skip(c.len_utf8());
                Ok(u32::from(c))
            }
        }
    }

    /// An escape that stands for one character: `\.`, `\n`, `\x41`, `\x{1F600}`, `\012`.
    pub(super) fn escaped_character(&mut self) -> Result<u32, PatternError> {
        let before = self.rest;
        let mut rest = before[1..].chars();
        let octal = |text: &str| text.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
        let (code, length) = match rest.next() {
            None => return Err(syntax("nothing follows the last backslash", before)),
            Some(c @ '0'..='7') if c == '0' || octal(rest.as_str()) > 0 => {
                let length = octal(&before[1..]);
                (u32::from_str_radix(&before[1..=length], 8).ok(), 1 + length)
            }
            Some('x') => hexadecimal(before),
            Some('a') => (Some(0x07), 2),
            Some('f') => (Some(0x0c), 2),
            Some('n') => (Some(0x0a), 2),
            Some('r') => (Some(0x0d), 2),
            Some('t') => (Some(0x09), 2),
            Some('v') => (Some(0x0b), 2),
            Some(c) if c.is_ascii() && !c.is_ascii_alphanumeric() => (Some(u32::from(c)), 2),
            Some(c) => (None, 1 + c.len_utf8()),
        };
        let code = code.ok_or_else(|| syntax("not an escape that Go knows", &before[..length]))?;
        self.skip(length);
        Ok(code)
    }
}

/// The code and length of `\x41` or `\x{41}`.
fn hexadecimal(escape: &str) -> (Option<u32>, usize) {
    let (digits, length) = match escape[2..].strip_prefix('{') {
        Some(inner) => match inner.split_once('}') {
            Some((digits, _)) => (digits, digits.len() + 4),
            None => return (None, escape.len()),
        },
        None => match escape.get(2..4) {
            Some(digits) => (digits, 4),
            None => return (None, escape.len()),
        },
    };
    let digits = if digits.bytes().all(|b| b.is_ascii_hexdigit()) { digits } else { "" };
    (u32::from_str_radix(digits, 16).ok().filter(|&code| code <= u32::from(char::MAX)), length)
}
