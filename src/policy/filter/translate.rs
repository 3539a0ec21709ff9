//! Go's regular expressions in the words of the `regex` crate, for ASCII texts without line feeds.
//!
//! The two differ in more than syntax: `[[a]]`, `[a&&b]` and `[x--y]` are set operations in Rust, `\d` and `\b` are Unicode's, `{,2}` is
//! a literal in Go, `a**` an error, `\Q..\E`, octal escapes and repeated flags exist in Go alone, `(?x)` in Rust alone. So the pattern is
//! parsed as [`regexp/syntax`] parses it, and what comes out uses no feature in which they differ: every class is a list of ASCII
//! characters, case folding and greediness are resolved, groups have no names. `(?m)` and `(?s)` make no difference without line feeds.
//!
//! More is accepted than by Go in two places: `\p{..}` takes all properties that the `regex` crate knows, and nested repetitions are
//! bounded by the memory that they take, not by 1000.
//!
//! [`regexp/syntax`]: https://github.com/golang/go/blob/go1.26.0/src/regexp/syntax/parse.go

mod class;

use super::ascii::AsciiSet;
use crate::image::printable;

/// Most repetitions that a counted repetition may ask for, as in Go.
const MAX_REPEAT: u32 = 1000;

/// Longest pattern that is read, in bytes.
pub(super) const MAX_PATTERN: usize = 1024;

/// Most memory that a compiled pattern may take, in bytes. Patterns that people write take some kilobytes; what exceeds this is nested
/// repetition, such as `((a{100}){100}){100}`.
pub(super) const MAX_COMPILED: usize = 1 << 20;

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Go's `regexp.Compile` would refuse it too.
    #[error("{reason}: `{part}`")]
    Syntax { reason: &'static str, part: String },
    #[error("it is longer than {MAX_PATTERN} bytes")]
    TooLong,
    #[error("it needs more than {} KiB when compiled", MAX_COMPILED / 1024)]
    TooLarge,
}

/// A pattern for the `regex` crate with Unicode switched off, and the names of its groups.
pub(super) struct Translation {
    pub(super) regex: String,
    pub(super) names: Vec<(String, usize)>,
}

pub(super) fn translate(pattern: &str) -> Result<Translation, PatternError> {
    let mut translator = Translator { rest: pattern, ..Translator::default() };
    let mut after_repetition = false;
    while let Some(c) = translator.rest.chars().next() {
        after_repetition = translator.step(c, after_repetition)?;
    }
    if !translator.open.is_empty() {
        return Err(syntax("a parenthesis is not closed", pattern));
    }
    Ok(Translation { regex: translator.out, names: translator.names })
}

#[derive(Default)]
struct Translator<'a> {
    rest: &'a str,
    out: String,
    flags: Flags,
    open: Vec<Group>,
    groups: usize,
    names: Vec<(String, usize)>,
    /// What a repetition that comes now would repeat.
    atom: Option<Atom>,
}

/// Flags that hold at one place of the pattern, those without effect left out.
#[derive(Clone, Copy, Default)]
struct Flags {
    fold: bool,
    ungreedy: bool,
}

struct Group {
    /// Where its parenthesis stands in the output.
    start: usize,
    /// Flags that hold again behind it.
    flags: Flags,
}

#[derive(Clone, Copy)]
struct Atom {
    start: usize,
    repeated: bool,
}

impl Translator<'_> {
    /// Translates one token, which starts with `c`. Was it a repetition?
    fn step(&mut self, c: char, after_repetition: bool) -> Result<bool, PatternError> {
        let before = self.rest;
        match c {
            '(' => self.open_group()?,
            ')' => {
                self.skip(1);
                let group = self.open.pop().ok_or_else(|| syntax("a parenthesis was not opened", ")"))?;
                self.flags = group.flags;
                self.out.push(')');
                self.atom = Some(Atom { start: group.start, repeated: false });
            }
            '|' => {
                self.skip(1);
                self.out.push('|');
                self.atom = None;
            }
            '^' | '$' | '.' => {
                self.skip(1);
                self.emit(&c.to_string());
            }
            '[' => {
                let set = self.class()?;
                self.emit_set(set);
            }
            '*' | '+' | '?' => {
                self.skip(1);
                self.repeat(&before[..1], before, after_repetition)?;
                return Ok(true);
            }
            '{' => {
                let Some(length) = counted(before)? else {
                    self.skip(1);
                    self.literal('{');
                    return Ok(false);
                };
                self.skip(length);
                self.repeat(&before[..length], before, after_repetition)?;
                return Ok(true);
            }
            '\\' => self.escape()?,
            c => {
                self.skip(c.len_utf8());
                self.literal(c);
            }
        }
        Ok(false)
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn emit(&mut self, text: &str) {
        self.atom = Some(Atom { start: self.out.len(), repeated: false });
        self.out.push_str(text);
    }

    fn literal(&mut self, c: char) {
        let set = self.range(u32::from(c), u32::from(c));
        self.emit_set(set);
    }

    /// The ASCII characters that a range stands for under the flags of this place.
    fn range(&self, low: u32, high: u32) -> AsciiSet {
        let mut set = AsciiSet::range(low, high);
        if self.flags.fold {
            set = set.folded();
            // The long s and the sign for Kelvin are other cases of ASCII letters.
            for (other, letter) in [('\u{17f}', b's'), ('\u{212a}', b'k')] {
                if (low..=high).contains(&u32::from(other)) {
                    set.insert(letter);
                    set.insert(letter.to_ascii_uppercase());
                }
            }
        }
        set
    }

    fn emit_set(&mut self, set: AsciiSet) {
        use std::fmt::Write as _;
        let mut bytes = set.bytes().peekable();
        let first = bytes.next();
        if let Some(byte) = first
            && bytes.peek().is_none()
            && byte.is_ascii_alphanumeric()
        {
            return self.emit(&char::from(byte).to_string());
        }
        let mut text = String::from(if first.is_some() { "[" } else { "[^\\x00-\\xFF" });
        let mut start = first;
        while let Some(low) = start {
            let mut high = low;
            while bytes.next_if(|&next| next == high + 1).is_some() {
                high += 1;
            }
            write!(text, "\\x{low:02X}-\\x{high:02X}").expect("writing to a string does not fail");
            start = bytes.next();
        }
        text.push(']');
        self.emit(&text);
    }

    /// Applies a repetition, which has been skipped, to the last atom.
    fn repeat(&mut self, operator: &str, before: &str, after_repetition: bool) -> Result<(), PatternError> {
        let mut lazy = self.flags.ungreedy;
        if self.rest.starts_with('?') {
            self.skip(1);
            lazy = !lazy;
        }
        let whole = &before[..before.len() - self.rest.len()];
        if after_repetition {
            return Err(syntax("repetition of a repetition", whole));
        }
        let atom = self.atom.as_mut().ok_or_else(|| syntax("nothing to repeat", whole))?;
        if atom.repeated {
            self.out.insert_str(atom.start, "(?:");
            self.out.push(')');
        }
        atom.repeated = true;
        self.out.push_str(operator);
        if lazy {
            self.out.push('?');
        }
        Ok(())
    }

    /// `(`, `(?P<name>`, `(?<name>`, `(?flags:` or `(?flags)`, which is no group.
    fn open_group(&mut self) -> Result<(), PatternError> {
        let before = self.rest;
        let flags = self.flags;
        if let Some(named) = before.strip_prefix("(?P<").or_else(|| before.strip_prefix("(?<")) {
            let look_around = before.starts_with("(?<") && named.starts_with(['=', '!']);
            let (name, rest) = named.split_once('>').unwrap_or((named, ""));
            let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if look_around || !legal || name.len() == named.len() {
                return Err(syntax(group_reason(before), &before[..before.len() - rest.len()]));
            }
            self.groups += 1;
            self.names.push((name.to_owned(), self.groups));
            self.rest = rest;
        } else if before.starts_with("(?") {
            self.skip(2);
            if !self.read_flags(before)? {
                return Ok(());
            }
            self.open.push(Group { start: self.out.len(), flags });
            self.out.push_str("(?:");
            self.atom = None;
            return Ok(());
        } else {
            self.skip(1);
            self.groups += 1;
        }
        self.open.push(Group { start: self.out.len(), flags });
        self.out.push('(');
        self.atom = None;
        Ok(())
    }

    /// Reads flags up to `:` or `)`. Does a group follow?
    fn read_flags(&mut self, before: &str) -> Result<bool, PatternError> {
        let mut flags = self.flags;
        let (mut on, mut any) = (true, false);
        while let Some(c) = self.rest.chars().next() {
            self.skip(c.len_utf8());
            match c {
                'i' => flags.fold = on,
                'U' => flags.ungreedy = on,
                'm' | 's' => {}
                '-' if on => {
                    on = false;
                    any = false;
                    continue;
                }
                ':' | ')' if on || any => {
                    self.flags = flags;
                    return Ok(c == ':');
                }
                _ => break,
            }
            any = true;
        }
        Err(syntax(group_reason(before), &before[..before.len() - self.rest.len()]))
    }

    fn escape(&mut self) -> Result<(), PatternError> {
        match self.rest.as_bytes().get(1) {
            Some(b'A') => {
                self.skip(2);
                self.emit("^");
            }
            Some(b'z') => {
                self.skip(2);
                self.emit("$");
            }
            Some(b'b' | b'B') => {
                // In brackets, since Rust reads `\b{start}` as one escape.
                let escape = format!("(?:{})", &self.rest[..2]);
                self.skip(2);
                self.emit(&escape);
            }
            Some(b'Q') => {
                let quoted = &self.rest[2..];
                let (text, rest) = quoted.split_once("\\E").unwrap_or((quoted, ""));
                text.chars().for_each(|c| self.literal(c));
                self.rest = rest;
            }
            _ => {
                let set = if let Some(set) = self.escaped_class()? {
                    set
                } else {
                    let code = self.escaped_character()?;
                    self.range(code, code)
                };
                self.emit_set(set);
            }
        }
        Ok(())
    }
}

/// The length of `{2}`, `{2,}` or `{2,3}`. None: the brace is a character, as in `{,2}` and `{01}`.
fn counted(text: &str) -> Result<Option<usize>, PatternError> {
    let number =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let Some((inner, _)) = text[1..].split_once('}') else {
        return Ok(None);
    };
    let (low, high) = match inner.split_once(',') {
        None => (inner, inner),
        Some((low, "")) => (low, low),
        Some((low, high)) => (low, high),
    };
    if !number(low) || !number(high) {
        return Ok(None);
    }
    let whole = &text[..inner.len() + 2];
    let bounded = |text: &str| text.parse::<u32>().ok().filter(|&count| count <= MAX_REPEAT);
    let (Some(low), Some(high)) = (bounded(low), bounded(high)) else {
        return Err(syntax("more than 1000 repetitions", whole));
    };
    if low > high {
        return Err(syntax("a repetition ends before it starts", whole));
    }
    Ok(Some(whole.len()))
}

fn group_reason(text: &str) -> &'static str {
    if ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|start| text.starts_with(start)) {
        "not a group that Go knows (it has no look-around)"
    } else {
        "not a group that Go knows"
    }
}

fn syntax(reason: &'static str, part: &str) -> PatternError {
    PatternError::Syntax { reason, part: printable(part) }
}
