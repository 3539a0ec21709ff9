//! The file of `--config`: its keys are the long names of flags, its values the defaults of these flags.
//!
//! ```yaml
//! tags-ttl: 2m
//! renders-at-once: 4
//! egress: {hosts: [git.example.com], ports: [443, 8000-8999]}     # egress-hosts, egress-ports
//! ```
//!
//! [`File::read`] checks each value with the parser of its flag, [`File::lay`] makes the values the defaults of a command's arguments. So
//! clap alone says which flags exist, what they take, and what wins: the flag, its variable, the file, the built-in default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde_yaml::{Mapping, Value};

use super::ConfigError;
use crate::image::printable;

/// The block that stands for several flags: `egress: {hosts: …}` is `egress-hosts`.
const BLOCK: &str = "egress";

/// Names that are nearer than this to an unknown key are shown, by [`strsim::jaro_winkler`].
const NEAR: f64 = 0.8;

/// Settings by the long names of flags. A value may be a secret, so that there is no `Debug`.
pub struct File {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

/// Which settings came from which file, for errors.
#[derive(Debug, Default)]
pub struct Origin {
    path: String,
    names: Vec<String>,
}

impl File {
    /// Reads a file. Its keys must be among the flags; hidden flags and `config` are not for a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] and [`ConfigError::File`], which names the key.
    pub fn read(path: &Path, flags: &[&Arg]) -> Result<Self, ConfigError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown(), source })?;
        let values = parse(&text, flags).map_err(|reason| ConfigError::File { path: shown(), reason })?;
        Ok(Self { path: path.to_owned(), values })
    }

    /// Makes the values the defaults of the arguments that this command has itself.
    pub fn lay(&self, command: Command) -> Command {
        command.mut_args(|arg| match arg.get_long().and_then(|name| self.values.get(name)) {
            Some(value) => arg.default_value(value.clone()),
            None => arg,
        })
    }

    /// The settings that neither a flag nor a variable has given.
    pub fn origin(&self, matches: &ArgMatches) -> Origin {
        let is_used = |name: &&String| {
            let id = name.replace('-', "_");
            matches.ids().any(|known| known.as_str() == id) && matches.value_source(&id) == Some(ValueSource::DefaultValue)
        };
        Origin { path: self.path.display().to_string(), names: self.values.keys().filter(is_used).cloned().collect() }
    }
}

impl Origin {
    /// Names the file before an error of a setting that came from it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref() {
            Some(ConfigError::Setting { name, .. }) if self.names.iter().any(|own| own == name) => {
                error.context(format!("configuration `{}`", self.path))
            }
            _ => error,
        }
    }
}

fn parse(text: &str, flags: &[&Arg]) -> Result<BTreeMap<String, String>, String> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let settings = match crate::yaml::from_str(text).map_err(|error| error.to_string())? {
        Value::Mapping(settings) => settings,
        Value::Null => Mapping::new(),
        // The value itself may be a secret that stands in a wrong file.
        _ => return Err("it is not a mapping of flags to values, such as `tags-ttl: 2m`".into()),
    };
    let mut values = BTreeMap::new();
    for (name, value) in flat(settings)? {
        if name == "config" {
            return Err("`config`: a file cannot name another one".into());
        }
        let flag = flags.iter().find(|flag| flag.get_long() == Some(&name) && !flag.is_hide_set());
        let flag = flag.ok_or_else(|| unknown(&name, flags))?;
        let Some(value) = written(flag, &value).map_err(|reason| format!("`{name}`: {reason}"))? else { continue };
        if let Some(reason) = refused(flag, &name, &value) {
            return Err(format!("`{name}`: {reason}"));
        }
        if values.insert(name.clone(), value).is_some() {
            return Err(format!("`{name}` is given twice: in the block `{BLOCK}`, and by itself"));
        }
    }
    Ok(values)
}

/// The settings with the block's own among them.
fn flat(settings: Mapping) -> Result<Vec<(String, Value)>, String> {
    let mut all = Vec::new();
    for (key, value) in settings {
        let Value::String(name) = key else { return Err(format!("`{}` is not the name of a flag", show(&key))) };
        match value {
            Value::Mapping(block) if name == BLOCK => {
                for (key, value) in block {
                    match key.as_str() {
                        Some(part @ ("hosts" | "cidrs" | "ports")) => all.push((format!("{BLOCK}-{part}"), value)),
                        _ => {
                            return Err(format!(
                                "`{BLOCK}`: unknown field `{}`: it has `hosts`, `cidrs` and `ports`",
                                show(&key)
                            ));
                        }
                    }
                }
            }
            Value::Null if name == BLOCK => {}
            _ if name == BLOCK => return Err(format!("`{BLOCK}`: it is a block with `hosts`, `cidrs` and `ports`")),
            value => all.push((name, value)),
        }
    }
    Ok(all)
}

/// A value as it would be written behind the flag. None: `null`, which is as if the key were not there.
fn written(flag: &Arg, value: &Value) -> Result<Option<String>, String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        // YAML reads `0x10` and `1e5` as numbers. What they were as text is lost, and a secret is text.
        Value::Number(_) if flag.is_hide_env_values_set() => Err("put it in quotes".to_owned()),
        Value::Number(number) if number.is_f64() => Err(format!("put `{number}` in quotes, or write a whole number")),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ if flag.get_value_delimiter().is_some() => Err("it is a list of texts".to_owned()),
        _ => Err("it is one text, number or truth value".to_owned()),
    };
    match (value, flag.get_value_delimiter()) {
        (Value::Null, _) => Ok(None),
        (Value::Sequence(items), Some(delimiter)) => {
            let items: Vec<String> = items.iter().map(scalar).collect::<Result<_, _>>()?;
            match items.iter().find(|item| item.is_empty() || item.contains(delimiter)) {
                Some(item) => Err(format!("an item is not empty and has no `{delimiter}`: `{}`", printable(item))),
                None => Ok(Some(items.join(&delimiter.to_string()))),
            }
        }
        _ => scalar(value).map(Some),
    }
}

/// Why the flag does not take a value.
fn refused(flag: &Arg, name: &str, value: &str) -> Option<String> {
    let alone = Command::new("file").no_binary_name(true).arg((*flag).clone());
    let error = alone.try_get_matches_from([format!("--{name}={value}")]).err()?;
    let shown = if flag.is_hide_env_values_set() { "the value".to_owned() } else { format!("`{}`", printable(value)) };
    Some(match (error.get(ContextKind::ValidValue), std::error::Error::source(&error)) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("{shown} is none of `{}`", valid.join("`, `"))
        }
        (_, Some(reason)) => format!("{shown}: {reason}"),
        _ => format!("{shown} is no value for it"),
    })
}

fn unknown(name: &str, flags: &[&Arg]) -> String {
    let visible = flags.iter().filter(|flag| !flag.is_hide_set()).filter_map(|flag| flag.get_long());
    let mut near: Vec<(f64, &str)> = visible
        .chain([BLOCK])
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(nearness, _)| *nearness > NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<String> = near.iter().take(3).map(|(_, known)| format!("`{known}`")).collect();
    let hint = match near.is_empty() {
        true => "keys are the flags of `pinion serve --help`, without `--`".to_owned(),
        false => format!("did you mean {}?", near.join(" or ")),
    };
    format!("unknown field `{}`: {hint}", printable(name))
}

fn show(key: &Value) -> String {
    printable(serde_yaml::to_string(key).unwrap_or_default().trim_end())
}
