//! Files that are written from the table of parameters: `plugin.yaml`, its copy in the chart, and the table in `docs/parameters.md`.
//!
//! `make generate` writes them (`PINION_BLESS=1`); otherwise a file that differs is a failure.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pinion::parameters::table::{Parameter, TABLE, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Compares a file with what it should hold, or writes it.
fn expect(path: &str, wanted: &str) {
    let file = root().join(path);
    if std::env::var_os("PINION_BLESS").is_some() {
        return std::fs::write(&file, wanted).expect("written");
    }
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == wanted, "`{path}` differs from src/parameters/table.rs: run `make generate`");
}

/// Words in lines of at most 130 columns, each behind an indent.
fn wrapped(text: &str, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one");
        match last.is_empty() {
            true => last.push_str(word),
            false if indent + last.len() + 1 + word.len() <= 130 => *last = format!("{last} {word}"),
            false => lines.push(word.to_owned()),
        }
    }
    lines.iter().fold(String::new(), |text, line| format!("{text}{pad}{line}\n"))
}

fn announcement(parameter: &Parameter) -> String {
    let Parameter { name, title, tooltip, value } = parameter;
    let value = match value {
        Value::Text(_) => "        string: \"\"\n".to_owned(),
        Value::Flag(_) => "        string: \"false\"\n".to_owned(),
        Value::Word { words, .. } => format!("        string: {}\n", words[0]),
        Value::List(_) => "        collectionType: array\n        array: []\n".to_owned(),
        Value::Map(_) => "        collectionType: map\n        map: {}\n".to_owned(),
    };
    format!("      - name: {name}\n        title: {title}\n        tooltip: >-\n{}{value}", wrapped(tooltip, 10))
}

#[test]
fn plugin_yaml_is_that_of_the_table() {
    let mut text = "\
# What Argo CD reads to know this plugin: /home/argocd/cmp-server/config/plugin.yaml in the sidecar.
# Written by `make generate` from src/parameters/table.rs.
#
# The name holds the version, and `spec.version` is empty, so that the socket is called `pinion@v1.sock`: `pinion serve` needs the `@`,
# and Applications say `plugin: {name: pinion@v1}`. There is no `discover`: with one, Argo CD would send the whole repository of every
# Application to the plugin, only to ask whether the plugin applies.
apiVersion: argoproj.io/v1alpha1
kind: ConfigManagementPlugin
metadata:
  name: pinion@v1
spec:
  generate:
    command: [pinion, generate]
  parameters:
    # Argo CD shows these in its UI. The values are the defaults.
    static:
"
    .to_owned();
    let mut last = None;
    for parameter in &TABLE {
        if parameter.tool() != last {
            last = parameter.tool();
            let _ = writeln!(text, "\n      # The fields of Argo CD's `source.{}`.", last.unwrap_or_default());
        }
        text.push_str(&announcement(parameter));
    }
    expect("plugin.yaml", &text);
    expect("charts/pinion/files/plugin.yaml", &text);
    let read: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
    for (parameter, announced) in TABLE.iter().zip(read["spec"]["parameters"]["static"].as_array().expect("parameters")) {
        let texts = [&announced["name"], &announced["title"], &announced["tooltip"]];
        assert_eq!(texts, [parameter.name, parameter.title, parameter.tooltip], "YAML changes nothing");
    }
}

#[test]
fn the_documentation_has_the_table() {
    const BEGIN: &str = "<!-- Written by `make generate` from src/parameters/table.rs. -->\n";
    const END: &str = "<!-- End of what `make generate` writes. -->\n";
    let path = "docs/parameters.md";
    let text = std::fs::read_to_string(root().join(path)).expect("the file is there");
    let (before, rest) = text.split_once(BEGIN).expect("the mark is there");
    let (_, after) = rest.split_once(END).expect("the second mark is there");
    let mut table = "\n| Parameter | Takes | Default | Meaning |\n|---|---|---|---|\n".to_owned();
    for Parameter { name, tooltip, value, .. } in &TABLE {
        let (takes, default) = match value {
            Value::Text(_) => ("string".to_owned(), String::new()),
            Value::Flag(_) => ("`\"true\"` or `\"false\"`".to_owned(), "`\"false\"`".to_owned()),
            Value::Word { words, .. } => {
                let all: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                (all.join(", "), format!("`{}`", words[0]))
            }
            Value::List(_) => ("array".to_owned(), String::new()),
            Value::Map(_) => ("map".to_owned(), String::new()),
        };
        let _ = writeln!(table, "| `{name}` | {takes} | {default} | {} |", tooltip.replace('|', "\\|"));
    }
    expect(path, &format!("{before}{BEGIN}{table}\n{END}{after}"));
}
