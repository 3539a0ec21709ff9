//! What holds for every text that may hold placeholders. Bytes go in; a broken law is a panic.
//!
//! The text is YAML, or, behind `#!`, the inside of a scalar, which is written in every style and has to read the same in each.

use std::collections::BTreeSet;

use pinion::manifest::documents;
use pinion::placeholder::image::{before, beside_each};
use pinion::placeholder::words::Spec;
use pinion::placeholder::{Form, Placeholder, Scan, unescape};
use pinion::yaml::{Kind, position, reads_as_string};
use serde::Deserialize;
use serde_yaml::Value;

const OPEN: &str = "$(pin";

/// One that reads as a string, and one that plain YAML reads as a number.
const TAGS: [&str; 2] = ["v1.2.3", "1.10"];

/// Scans a text, and puts tags in the places of its placeholders.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.strip_prefix("#!") {
        Some(words) => alike_in_every_style(words),
        None => in_yaml(text),
    }
}

fn in_yaml(text: &str) {
    let parts = documents(text);
    assert_eq!(parts.iter().map(|part| &text[part.range.clone()]).collect::<String>(), text, "the documents are the text");
    if let Some(scan) = Scan::raw(text) {
        places(&scan);
        assert_eq!(scan.substitute(&vec![None; scan.placeholders.len()]), text);
    }
    let scan = match Scan::of(text) {
        Ok(None) => return assert_eq!(unescape(text.to_owned()), text),
        Ok(Some(scan)) => scan,
        Err(error) => {
            assert!(text.contains(OPEN));
            return assert!(error.line >= 1 && error.column >= 1 && error.to_string().len() < 4000 && error.hint().is_some());
        }
    };
    assert!(text.contains("(pin"));
    places(&scan);
    for error in &scan.errors {
        assert!(error.line >= 1 && error.column >= 1, "{error}");
        drop((error.to_string(), error.hint()));
    }
    assert_eq!(scan.substitute(&vec![None; scan.placeholders.len()]), text, "nothing to put in");
    only_escapes_go(text, &unescape(text.to_owned()));
    if !scan.errors.is_empty() {
        // Such a text is never rendered.
        return;
    }
    alike_in_its_documents(text, &scan);
    for tag in TAGS {
        let spliced = scan.substitute(&vec![Some(tag.to_owned()); scan.placeholders.len()]);
        assert_eq!(spliced, expected(&scan, tag), "bytes outside of the placeholders");
        let again = Scan::of(&spliced).unwrap_or_else(|error| panic!("{spliced:?}: {error}"));
        if let Some(again) = again {
            assert!(again.placeholders.is_empty() && again.errors.is_empty(), "{:?} {:?}", again.placeholders, again.errors);
        }
        only_escapes_go(&spliced, &unescape(spliced.clone()));
        read_alike(text, &spliced, &scan, tag);
    }
    let scans = [Some(scan)].into_iter().collect();
    for image in beside_each(&scans).into_values() {
        drop(image.map_err(|error| error.to_string() + &error.hint()));
    }
}

/// Placeholders stand in order, each inside its scalar, where they say.
fn places(scan: &Scan<'_>) {
    let mut behind = 0;
    for place in &scan.placeholders {
        let Placeholder { range, line, column, .. } = place;
        let span = &scan.tree.node(place.scalar).span;
        assert!(behind <= range.start && range.start < range.end, "{range:?} overlaps");
        assert!(span.start <= range.start && range.end <= span.end, "{range:?} leaves its scalar {span:?}");
        assert!(scan.text.get(range.clone()).is_some(), "{range:?} cuts a character");
        // What ends a line for YAML ends none for an editor.
        if !scan.text.contains(['\r', '\u{85}', '\u{2028}', '\u{2029}']) {
            assert_eq!((*line, *column), position(scan.text, range.start), "{:?}", place.source);
        }
        behind = range.end;
        drop(before(&place.before).map_err(|error| error.to_string()));
    }
}

/// What substituting gives: nothing else changes, but that a plain scalar may get quotes.
fn expected(scan: &Scan<'_>, tag: &str) -> String {
    let mut text = String::new();
    let mut from = 0;
    for group in scan.placeholders.chunk_by(|a, b| a.scalar == b.scalar) {
        let node = scan.tree.node(group[0].scalar);
        text.push_str(&scan.text[from..node.span.start]);
        from = node.span.start;
        let mut scalar = String::new();
        for place in group {
            scalar.push_str(&scan.text[from..place.range.start]);
            scalar.push_str(tag);
            from = place.range.end;
        }
        scalar.push_str(&scan.text[from..node.span.end]);
        from = node.span.end;
        let is_plain = matches!(&node.kind, Kind::Scalar { style, .. } if format!("{style:?}") == "Plain");
        let is_quoted = is_plain && !reads_as_string(&scalar);
        text.push_str(&if is_quoted { format!("\"{scalar}\"") } else { scalar });
    }
    text + &scan.text[from..]
}

/// `unescape` takes dollars away that stand before a literal placeholder, and nothing else.
fn only_escapes_go(text: &str, unescaped: &str) {
    let mut kept = unescaped.chars().peekable();
    for c in text.chars() {
        if kept.next_if_eq(&c).is_none() {
            // `\x24` is a dollar too.
            assert!(c == '$' || c == '\\' || c.is_ascii_alphanumeric(), "{c:?} of {text:?} is gone");
        }
    }
    assert_eq!(kept.next(), None, "{text:?} became {unescaped:?}");
}

/// Rendered documents are looked at one by one.
fn alike_in_its_documents(text: &str, scan: &Scan<'_>) {
    // Directives belong to the documents behind them.
    if text.lines().any(|line| line.starts_with(['%', '\u{feff}'])) || text.contains('\r') {
        return;
    }
    let whole: Vec<&str> = scan.placeholders.iter().map(|place| &*place.source).collect();
    let mut parts = Vec::new();
    for part in documents(text) {
        match Scan::of(&text[part.range.clone()]) {
            Ok(scan) => parts.extend(scan.into_iter().flat_map(|scan| scan.placeholders)),
            Err(error) => panic!("{:?}: {error}", &text[part.range]),
        }
    }
    assert_eq!(parts.iter().map(|place| &*place.source).collect::<Vec<_>>(), whole, "in the documents one by one");
}

/// Another reader finds the same values but for the tags, and no tag that is not a string.
fn read_alike(text: &str, spliced: &str, scan: &Scan<'_>, tag: &str) {
    let Some(former) = values(text) else { return };
    let mut theirs = BTreeSet::new();
    former.iter().for_each(|value| strings(value, &mut theirs));
    let ours = scan.tree.nodes().filter_map(|(id, _)| scan.tree.text(id)).filter(|text| text.contains(OPEN));
    // A text that ends in a block without a line break has one for us.
    let ours: BTreeSet<&str> = ours.map(|text| text.trim_end_matches('\n')).collect();
    if ours != theirs {
        // YAML 1.1 has further line ends, and other names of anchors.
        return assert!(text.contains(['\u{85}', '\u{2028}', '\u{2029}', '&', '*']), "read as {ours:?} and as {theirs:?}");
    }
    if former.iter().any(has_placeholder_as_key) {
        return;
    }
    // Below a scalar in quotes, YAML 1.1 takes no line of tabs; below a plain one it does.
    if text.lines().any(|line| line.contains('\t') && line.trim().is_empty()) {
        return;
    }
    let latter = values(spliced).unwrap_or_else(|| panic!("no longer YAML: {spliced:?}"));
    assert_eq!(former.len(), latter.len(), "documents of {spliced:?}");
    let is_exact = scan.placeholders.iter().all(|place| !text[place.range.clone()].contains(['\n', '\r']));
    former.iter().zip(&latter).for_each(|(former, latter)| alike(former, latter, tag, is_exact));
}

fn values(text: &str) -> Option<Vec<Value>> {
    serde_yaml::Deserializer::from_str(text).map(Value::deserialize).collect::<Result<_, _>>().ok()
}

/// The strings that may hold placeholders.
fn strings<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
    match value {
        Value::String(text) if text.contains(OPEN) => {
            found.insert(text.trim_end_matches('\n'));
        }
        Value::Mapping(entries) => {
            entries.iter().flat_map(|(key, value)| [key, value]).for_each(|value| strings(value, found));
        }
        Value::Sequence(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Tagged(tagged) => strings(&tagged.value, found),
        _ => {}
    }
}

fn has_placeholder_as_key(value: &Value) -> bool {
    match value {
        Value::Mapping(entries) => entries.iter().any(|(key, value)| {
            let mut found = BTreeSet::new();
            strings(key, &mut found);
            !found.is_empty() || has_placeholder_as_key(value)
        }),
        Value::Sequence(items) => items.iter().any(has_placeholder_as_key),
        Value::Tagged(tagged) => has_placeholder_as_key(&tagged.value),
        _ => false,
    }
}

fn alike(former: &Value, latter: &Value, tag: &str, is_exact: bool) {
    match (former, latter) {
        (Value::String(former), Value::String(latter)) if former.contains(OPEN) => {
            let raw = Scan::raw(former);
            // A backslash at the end of a line is one before a space once the lines are joined.
            if !is_exact && raw.as_ref().is_some_and(|scan| !scan.errors.is_empty()) {
                return;
            }
            let expected =
                raw.map_or_else(|| former.clone(), |scan| scan.substitute(&vec![Some(tag.to_owned()); scan.placeholders.len()]));
            let bare = |text: &str| if is_exact { text.to_owned() } else { text.split_whitespace().collect() };
            assert_eq!(bare(latter), bare(&expected), "{former:?}");
        }
        (Value::Mapping(former), Value::Mapping(latter)) => {
            assert_eq!(former.len(), latter.len());
            for ((key, former), (other, latter)) in former.iter().zip(latter) {
                assert_eq!(key, other);
                alike(former, latter, tag, is_exact);
            }
        }
        (Value::Sequence(former), Value::Sequence(latter)) => {
            assert_eq!(former.len(), latter.len());
            former.iter().zip(latter).for_each(|(former, latter)| alike(former, latter, tag, is_exact));
        }
        (Value::Tagged(former), Value::Tagged(latter)) => {
            assert_eq!(former.tag, latter.tag);
            alike(&former.value, &latter.value, tag, is_exact);
        }
        _ => assert_eq!(former, latter),
    }
}

/// The inside of one scalar, in every style.
fn alike_in_every_style(words: &str) {
    let is_written = |c: char| matches!(c, ' '..='~' | '\u{a1}'..='\u{2027}' | '\u{2070}'..='\u{d7ff}');
    // Behind the last word of a block stands its line break.
    if !words.chars().all(is_written) || words.is_empty() || words.ends_with(OPEN) {
        return;
    }
    let single = |inner: &str| format!("'{}'", inner.replace('\'', "''"));
    let double = |inner: &str| format!("\"{}\"", inner.replace('\\', "\\\\").replace('"', "\\\""));
    let styles: [&dyn Fn(&str) -> String; 7] = [
        &|inner| format!("k: {}\n", single(inner)),
        &|inner| format!("- {{l: m, k: {}, n: [o]}} # p\n", single(inner)),
        &|inner| format!("k: {}\nl: m\n", double(inner)),
        &|inner| format!("- &a !!str {}\n- *a\n", double(inner)),
        &|inner| format!("k: |2\n  {inner}\n"),
        &|inner| format!("k:\n- l: >2-\n    {inner}\n  m: n\n"),
        &|inner| format!("k: {inner}"),
    ];
    let raw = Scan::raw(words);
    let substituted = |scan: &Option<Scan<'_>>, text: &str, tag: &str| match scan {
        Some(scan) => scan.substitute(&vec![Some(tag.to_owned()); scan.placeholders.len()]),
        None => text.to_owned(),
    };
    for (number, wrap) in styles.iter().enumerate() {
        let text = wrap(words);
        let is_plain = number == styles.len() - 1;
        if is_plain && serde_yaml::from_str::<Value>(&text).ok().as_ref().and_then(|value| value["k"].as_str()) != Some(words) {
            continue;
        }
        let scan = Scan::of(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(meanings(scan.as_ref()), meanings(raw.as_ref()), "{text:?}");
        if scan.as_ref().is_some_and(|scan| scan.errors.is_empty()) {
            for tag in TAGS {
                let inner = substituted(&raw, words, tag);
                let is_quoted =
                    is_plain && scan.as_ref().is_some_and(|scan| !scan.placeholders.is_empty()) && !reads_as_string(&inner);
                let expected = if is_quoted { format!("k: \"{inner}\"") } else { wrap(&inner) };
                assert_eq!(substituted(&scan, &text, tag), expected);
            }
        }
        let digest = text.replacen("k: ", "digest: ", 1);
        if digest.starts_with("digest: ") {
            let scan = Scan::of(&digest).expect("as before");
            let is_digest = |place: &Placeholder| place.form == Form::Digest;
            assert!(scan.is_none_or(|scan| scan.placeholders.iter().all(is_digest)), "{digest:?}");
        }
    }
}

type Meaning = (String, String, bool, bool, Form, Spec);

/// What a scan found, but for the places.
fn meanings(scan: Option<&Scan<'_>>) -> Option<(Vec<Meaning>, Vec<String>)> {
    let meaning = |place: &Placeholder| {
        let Placeholder { source, before, is_alone, is_touched, form, spec, .. } = place;
        (source.clone(), before.clone(), *is_alone, *is_touched, *form, spec.clone())
    };
    let scan = scan?;
    let mistakes = scan.errors.iter().map(|error| format!("{}: {}", error.source_text, error.mistake));
    Some((scan.placeholders.iter().map(meaning).collect(), mistakes.collect()))
}
