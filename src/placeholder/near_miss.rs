//! Text that was probably meant as a placeholder: `$(Pin ~2)`, `$(pinn ~2)`, `$( pin ~2)`, `${pin ~2}`.
//!
//! Such text is left alone where Kubernetes, a shell or another templating tool may read it. It is an error where an image is expected
//! (`generate`), and `pinion check` reports it in every file.

use std::ops::Range;

use super::words::Words;
use super::{ENDS_NAME, MAX_LENGTH, NO_NAME};
use crate::policy::Strategy;

/// What a placeholder starts with.
const NAME: &str = "pin";

/// Text that is one change away from a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// Its bytes, from `$` to the closing `)` or `}`.
    pub range: Range<usize>,
    /// The placeholder that was probably meant.
    pub meant: String,
    /// It holds no words: `${pin}` may be the variable of a shell, so that the place decides.
    pub is_bare: bool,
}

/// The first near miss in the decoded text of a scalar.
///
/// The name differs from `pin` by case or by one letter, or by white space or `{}` around it, and the words are those of a placeholder.
/// So `$(ping host)` and `${PINNED}` are none.
pub fn near_miss(text: &str) -> Option<NearMiss> {
    let opens = text.match_indices('$').map(|(at, _)| at).filter(|at| !text[..*at].ends_with('$'));
    opens.into_iter().find_map(|at| read(text, at))
}

fn read(text: &str, at: usize) -> Option<NearMiss> {
    let behind = &text[at + 1..];
    let close = match behind.chars().next()? {
        '(' => ')',
        '{' => '}',
        _ => return None,
    };
    let inside = &behind[1..];
    let end = closing(inside, close)?;
    let inner = &inside[..end];
    // That is one, if a faulty one.
    let is_ours = |rest: &str| rest.is_empty() || rest.starts_with(ENDS_NAME) || rest.starts_with(NO_NAME);
    if close == ')' && inner.strip_prefix(NAME).is_some_and(is_ours) {
        return None;
    }
    let trimmed = inner.trim_start();
    let letters = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-').len();
    let (name, rest) = trimmed.split_at(letters);
    let is_name = name.eq_ignore_ascii_case(NAME);
    let is_bare = rest.trim().is_empty();
    let is_close = is_name || (is_policy(rest) && is_one_letter_off(&name.to_ascii_lowercase()));
    let is_word = is_bare || rest.starts_with(ENDS_NAME) || rest.starts_with(NO_NAME);
    if !is_close || !is_word || Words::parse(rest).and_then(Words::spec).is_err() {
        return None;
    }
    let meant = if is_bare { "$(pin)".to_owned() } else { format!("$(pin {})", rest.trim()) };
    Some(NearMiss { range: at..at + 2 + end + close.len_utf8(), meant, is_bare })
}

/// Can the words be nothing but a policy? `$(min 3 4)` has the words of a constraint, too.
fn is_policy(words: &str) -> bool {
    words.contains(['~', '^', '<', '>', '=', '*', '/', '@'])
        || words.contains("--")
        || words.split_whitespace().next().is_some_and(|word| Strategy::NAMES.contains(&word.to_ascii_lowercase().as_str()))
}

/// The offset of the closing bracket: the first outside quotes.
fn closing(text: &str, close: char) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices().take_while(|(at, _)| *at <= MAX_LENGTH) {
        match quote {
            None if c == close => return Some(at),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

/// Does one letter more, less or other, or two in the other order, make it `pin`?
fn is_one_letter_off(name: &str) -> bool {
    let (name, wanted) = (name.as_bytes(), NAME.as_bytes());
    let without = |word: &[u8], at: usize| [&word[..at], &word[at + 1..]].concat();
    match name.len() {
        2 => (0..wanted.len()).any(|at| without(wanted, at) == name),
        3 => {
            let differing: Vec<usize> = (0..3).filter(|at| name[*at] != wanted[*at]).collect();
            match differing.as_slice() {
                [_] => true,
                [a, b] => name[*a] == wanted[*b] && name[*b] == wanted[*a],
                _ => false,
            }
        }
        4 => (0..name.len()).any(|at| without(name, at) == wanted),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_told() {
        for (text, written, meant) in [
            ("a/b:$(pinn ~2)", "$(pinn ~2)", "$(pin ~2)"),
            ("$(Pin ~2)", "$(Pin ~2)", "$(pin ~2)"),
            ("x $( pin ~2) y", "$( pin ~2)", "$(pin ~2)"),
            ("${pin ~2}", "${pin ~2}", "$(pin ~2)"),
            ("${PIN digest latest}", "${PIN digest latest}", "$(pin digest latest)"),
            ("$(ipn >=1 <2)", "$(ipn >=1 <2)", "$(pin >=1 <2)"),
            (
                "$(pn newest-build --allow-tags '^(a|b)')",
                "$(pn newest-build --allow-tags '^(a|b)')",
                "$(pin newest-build --allow-tags '^(a|b)')",
            ),
            ("$(pins~2)", "$(pins~2)", "$(pin ~2)"),
            ("$(pin ~1) $(Pin ~2)", "$(Pin ~2)", "$(pin ~2)"),
        ] {
            let found = near_miss(text).expect(text);
            assert_eq!((&text[found.range], found.meant.as_str(), found.is_bare), (written, meant, false));
        }
        for text in ["${pin}", "$(PIN)", "$( pin )"] {
            let found = near_miss(text).expect(text);
            assert_eq!((found.meant.as_str(), found.is_bare), ("$(pin)", true), "{text}");
        }
    }

    #[test]
    fn other_tools_texts_are_none() {
        for text in [
            "$(pin ~1)",
            "$(pin~1)",
            "$(pin)",
            "$(ping -c 1 host)",
            "$(ping host)",
            "$(pip install x)",
            "${PINNED}",
            "$(pinion resolve x)",
            "$$(Pin ~2)",
            "$(params.image)",
            "${TAG}",
            "$(Pin ~2",
            "pin ~2",
            "$pin",
            "$(tin)",
            "$(min 3 4)",
            "$(bin 1.2)",
            "",
            "$",
        ] {
            assert_eq!(near_miss(text), None, "{text}");
        }
    }
}
