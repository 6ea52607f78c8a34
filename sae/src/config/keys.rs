//! Keys as text: setting them, finding the nearest known one, naming the one that is wrong, comparing them.

use toml::{Table, Value};

use super::{DataConfig, RunConfig, SaeConfig, TrainConfig};
use crate::error::{Error, Result};

/// Names further than this from a key are no suggestion (Jaro-Winkler similarity, 1 is equal).
const SIMILAR: f64 = 0.75;

/// A configuration that leaves nothing out: its keys are all the keys there are.
fn complete() -> RunConfig {
    RunConfig {
        data: DataConfig {
            acts: Some("acts".into()),
            hook: Some("blocks.0.hook_resid_post".into()),
            acts_dtype: Some(activations::ActDtype::F16),
            held_out_rows: Some(1),
            ..DataConfig::default()
        },
        sae: SaeConfig {
            d_sae: Some(1),
            expansion: Some(1),
            ..SaeConfig::default()
        },
        train: TrainConfig {
            steps: Some(1),
            tokens: Some(1),
            batch: Some(1),
            lr: Some(1.0),
            warmup_steps: Some(1),
            aux_k: Some(1),
            dead_after_tokens: Some(1),
            eval_every: Some(1),
            log_every: Some(1),
            checkpoint_every: Some(1),
            ..TrainConfig::default()
        },
    }
}

fn tree(config: &RunConfig) -> Result<Table> {
    Table::try_from(config).map_err(|e| Error::Invalid(format!("the configuration cannot be written as TOML: {e}")))
}

/// `section.key` with its value, of every key.
fn leaves(tree: &Table) -> Vec<(String, &Value)> {
    let sections = tree.iter().flat_map(|(section, value)| {
        let keys = value.as_table().into_iter().flatten();
        keys.map(move |(key, value)| (format!("{section}.{key}"), value))
    });
    sections.collect()
}

/// Puts one override into the tree.
pub(super) fn set(tree: &mut Table, key: &str, value: &str) -> Result<()> {
    let Some((section, name)) = key.split_once('.') else {
        return Err(unknown(key, &names()?));
    };
    // TOML has no bare words: what does not parse is a string.
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let table = tree.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let Some(table) = table.as_table_mut() else {
        return Err(Error::config(section, "is a value, expected a section"));
    };
    // The two ways to say a size exclude each other; the later one wins over what the file says.
    for (a, b) in [("steps", "tokens"), ("d_sae", "expansion")] {
        if name == a {
            table.remove(b);
        } else if name == b {
            table.remove(a);
        }
    }
    table.insert(name.to_owned(), parsed);
    Ok(())
}

/// All known keys: `data.acts` and so on.
fn names() -> Result<Vec<String>> {
    Ok(leaves(&tree(&complete())?).into_iter().map(|(key, _)| key).collect())
}

/// Refuses keys that do not exist, with the nearest one that does.
pub(super) fn refuse_unknown(given: &Table) -> Result<()> {
    let known = names()?;
    for (section, value) in given {
        let Some(table) = value.as_table() else {
            return Err(unknown(section, &known));
        };
        let prefix = format!("{section}.");
        if !known.iter().any(|k| k.starts_with(&prefix)) {
            let first = table.keys().next();
            return Err(unknown(
                &first.map_or(section.clone(), |key| format!("{section}.{key}")),
                &known,
            ));
        }
        for key in table.keys() {
            let key = format!("{section}.{key}");
            if !known.contains(&key) {
                return Err(unknown(&key, &known));
            }
        }
    }
    Ok(())
}

/// The error about `key`, suggesting the nearest of `known`: the same name in another section first.
fn unknown(key: &str, known: &[String]) -> Error {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let similarity = |k: &String| match last(k) == last(key) {
        true => 1.0,
        false => strsim::jaro_winkler(key, k).max(0.95 * strsim::jaro_winkler(&last(key), &last(k))),
    };
    let nearest = known
        .iter()
        .map(|k| (similarity(k), k))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((s, k)) if s >= SIMILAR => Error::config(key, format!("no such key; did you mean {k}?")),
        _ => Error::config(key, format!("no such key; there are {}", known.join(", "))),
    }
}

/// Deserialises a tree whose keys are known, section by section, so that an error names its key.
pub(super) fn parse(tree: Table) -> Result<RunConfig> {
    for (section, value) in &tree {
        for (key, value) in value.as_table().into_iter().flatten() {
            let alone = Table::from_iter([(
                section.clone(),
                Value::Table(Table::from_iter([(key.clone(), value.clone())])),
            )]);
            alone
                .try_into::<RunConfig>()
                .map_err(|e| Error::config(format!("{section}.{key}"), e.message()))?;
        }
    }
    tree.try_into()
        .map_err(|e: toml::de::Error| Error::Invalid(e.message().to_owned()))
}

/// The keys in which two configurations differ.
pub(super) fn differences(one: &RunConfig, other: &RunConfig) -> Result<Vec<String>> {
    let (one, other) = (tree(one)?, tree(other)?);
    let (one, other) = (leaves(&one), leaves(&other));
    let mut keys: Vec<&String> = one.iter().chain(&other).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |leaves: &[(String, &Value)], key: &String| {
        let found = leaves.iter().find(|(k, _)| k == key);
        found.map_or("nothing".to_owned(), |(_, v)| v.to_string())
    };
    let differing = keys.into_iter().filter_map(|key| {
        let (a, b) = (value(&one, key), value(&other, key));
        (a != b).then(|| format!("{key} is {a}, was {b}"))
    });
    Ok(differing.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_complete_configuration_is_understood() {
        let text = toml::to_string(&complete()).unwrap();
        let names = names().unwrap();
        assert_eq!(text.lines().filter(|l| l.contains('=')).count(), names.len());
        refuse_unknown(&toml::from_str(&text).unwrap()).unwrap();
        // serde lists the fields it knows: none may be missing from ours.
        for section in ["data", "sae", "train"] {
            let error = toml::from_str::<RunConfig>(&format!("[{section}]\nno_such_key = 1")).unwrap_err();
            let listed = error
                .message()
                .split("expected one of")
                .nth(1)
                .unwrap()
                .matches('`')
                .count()
                / 2;
            let ours = names.iter().filter(|k| k.starts_with(&format!("{section}."))).count();
            assert_eq!(listed, ours, "{section}: {}", error.message());
        }
    }
}
