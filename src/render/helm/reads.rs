//! Which values a chart's templates read, as far as their text tells.

use std::collections::BTreeSet;

/// What the templates of one chart say of its values.
#[derive(Debug, Default)]
pub struct Reads {
    text: String,
    /// What stands behind `.Values.`, up to the next dot.
    fields: BTreeSet<String>,
    /// Fields whose own fields are named by what is computed.
    computed: BTreeSet<String>,
    /// All values are taken as one: passed on, ranged over, printed; or text that is no template may read any.
    is_whole: bool,
}

/// Functions that read fields whose names are computed, or take a mapping as a whole.
const COMPUTED: [&str; 13] =
    ["dig", "fromYaml", "get", "index", "keys", "merge", "omit", "pick", "pluck", "range", "toJson", "toYaml", "values"];

/// What makes templates of other text, which may read any value.
const ANY: [&str; 3] = ["tpl", "AsMap", "Files"];

impl Reads {
    /// Adds a template.
    pub fn add(&mut self, text: &str) {
        for (at, name) in text.match_indices("Values") {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let behind = &text[at + name.len()..];
            if text[..at].ends_with(is_word) || behind.starts_with(is_word) {
                continue;
            }
            let field = behind.strip_prefix('.').map(|rest| rest.split(|c| !is_word(c)).next().unwrap_or_default());
            let line = text[..at].rsplit('\n').next().unwrap_or_default().len();
            let line = text[at - line..].lines().next().unwrap_or_default();
            if let Some(field) = field.filter(|field| !behind[1 + field.len()..].starts_with('.'))
                && COMPUTED.iter().any(|function| has_word(line, function))
            {
                self.computed.insert(field.to_owned());
            }
            let named = behind.trim_start_matches(' ').strip_prefix('"').and_then(|rest| rest.split('"').next());
            match field.or(named) {
                Some(field) if !field.is_empty() => drop(self.fields.insert(field.to_owned())),
                // A comment's or a text's word, too: better nothing is said than a good target refused.
                _ => self.is_whole = true,
            }
        }
        self.is_whole |= ANY.iter().any(|word| has_word(text, word));
        self.text += text;
        self.text.push('\n');
    }

    /// May a value with this path be read? One that cannot be excluded is.
    pub fn may_read(&self, keys: &[&str]) -> bool {
        let [first, rest @ ..] = keys else { return true };
        let is_field = self.is_whole || self.fields.contains(*first);
        let is_last = |last: &&str| last.parse::<usize>().is_ok() || has_word(&self.text, last);
        is_field && (self.is_computed(first) || rest.last().is_none_or(is_last))
    }
}

impl Reads {
    fn is_computed(&self, field: &str) -> bool {
        self.computed.contains(field) || (self.is_whole && ANY.iter().any(|word| has_word(&self.text, word)))
    }
}

/// Does a text hold a word, not as a part of another?
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_template_names_is_excluded() {
        let reads = |text: &str, path: &[&str]| {
            let mut reads = Reads::default();
            reads.add(text);
            reads.may_read(path)
        };
        let text = "image: {{ .Values.image.repository }}:{{ $.Values.image.tag }} {{ index .Values \"side-car\" \"tag\" }}\n";
        for (path, is_read) in [
            (&["image", "tag"][..], true),
            (&["side-car", "tag"], true),
            (&["img", "tag"], false),
            (&["tag"], false),
            (&["image", "tagg"], false),
        ] {
            assert_eq!(reads(text, path), is_read, "{path:?}");
        }
        assert!(reads("{{ include \"x\" .Values }} tag", &["img", "tag"]), "who knows what is read");
        assert!(!reads("{{ .OldValues.img.tag }}", &["img", "tag"]));
        for text in [
            "{{ pluck .Values.env .Values.tags | first }}",
            "{{ dig \"x\" \"y\" \"1\" .Values.AsMap }}",
            "{{ tpl (.Files.Get \"x.yaml\") . }}",
            "{{ .Values.web }} {{ tpl .Values.text $ }}",
        ] {
            assert!(reads(text, &["tags", "prod"]), "{text}");
        }
        assert!(!reads("{{ with .Values.tags }}{{ .dev }}{{ end }}", &["tags", "prod"]));
    }
}
