//! Keys as text: setting them, finding the nearest known one, naming the one that is wrong, comparing them.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Aux, BilinearConfig, DataConfig, EncoderName, Method, RunConfig, SaeConfig, TrainConfig};
use crate::dictionary::InferenceForm;
use crate::encoder::Weights;
use crate::error::{Error, Result};
use crate::objective::ObjectiveConfig;

/// Names further than this from a key are no suggestion (Jaro-Winkler similarity, 1 is equal).
const SIMILAR: f64 = 0.75;

/// A configuration that leaves nothing out: its keys are all the keys there are.
fn complete() -> RunConfig {
    RunConfig {
        data: DataConfig {
            acts: Some("acts".into()),
            model: Some("model".into()),
            text: Some(vec!["text".into()]),
            tokens: Some(1),
            context: Some(1),
            format: Some(activations::corpus::Format::Txt),
            field: Some("text".into()),
            documents: Some(activations::corpus::Layout::Pack),
            skip_bad: Some(true),
            separator: Some("---".into()),
            invalid_utf8: Some(activations::corpus::InvalidUtf8::Refuse),
            keep_special: Some(true),
            precision: Some(activations::product::Precision::F32),
            text_seed: Some(1),
            seed: Some(1),
            hook: Some("blocks.0.hook_resid_post".into()),
            hooks: Some(vec!["blocks.0.hook_resid_post".into()]),
            target: Some(vec!["blocks.0.hook_mlp_out".into()]),
            target_acts: Some("acts".into()),
            acts_dtype: Some(activations::ActDtype::F16),
            held_out_rows: Some(1),
            ..DataConfig::default()
        },
        sae: SaeConfig {
            init: Some("run".into()),
            init_digest: Some("0".into()),
            method: Some(Method::TopK),
            d_sae: Some(1),
            expansion: Some(1),
            k: Some(1),
            k_start: Some(1),
            tied: Some(true),
            encoder: Some(EncoderName::Linear),
            encoder_steps: Some(1),
            encoder_weights: Some(Weights::Learned),
            k_share: Some(0.1),
            zipf_exponent: Some(1.0),
            zipf_offset: Some(1.0),
            mutual_share: Some(0.1),
            threshold_init: Some(1.0),
            bandwidth: Some(1.0),
            lambda: Some(1.0),
            signed: Some(true),
            eta: Some(0.5),
            skip: true,
            inference: Some(InferenceForm::Threshold),
            inference_l0: Some(1.0),
            inference_k: Some(1),
        },
        objective: ObjectiveConfig::complete(),
        bilinear: Some(BilinearConfig::complete()),
        train: TrainConfig {
            steps: Some(1),
            tokens: Some(1),
            batch: Some(1),
            lr: Some(1.0),
            warmup_steps: Some(1),
            decay_share: Some(0.2),
            clip_norm: Some(1.0),
            ema: Some(0.9),
            muon_momentum: Some(0.95),
            aux: Some(Aux::AuxZipf),
            aux_zipf_share: Some(0.5),
            aux_k: Some(1),
            dead_after_tokens: Some(1),
            resample_every: Some(1),
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

/// `section.key` with its value, of every key; `section.table.key` in a table of a section.
pub(super) fn leaves(tree: &Table) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    let mut tables = vec![(String::new(), tree)];
    while let Some((prefix, table)) = tables.pop() {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            match value {
                Value::Table(table) => tables.push((format!("{key}."), table)),
                value => all.push((key, value)),
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// The tree of a configuration's text.
pub(super) fn read(text: &str) -> Result<Table> {
    toml::from_str(text).map_err(|e| Error::Invalid(format!("the configuration is not TOML: {e}")))
}

/// The keys whose values are lists where one value is expected, or lists of lists where a list is, with what they list.
pub(super) fn lists(given: &Table) -> Result<Vec<(String, Vec<Value>)>> {
    let complete = tree(&complete())?;
    let is_list = |key: &str| leaves(&complete).iter().any(|(k, v)| k == key && v.is_array());
    let found = leaves(given).into_iter().filter_map(|(key, value)| {
        let list = value.as_array()?;
        let nested = !list.is_empty() && list.iter().all(Value::is_array);
        (nested || !is_list(&key)).then(|| (key, list.clone()))
    });
    Ok(found.collect())
}

/// Puts another value in the place of one that is there.
pub(super) fn replace(tree: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, rest)) => {
            if let Some(Value::Table(table)) = tree.get_mut(section) {
                replace(table, rest, value);
            }
        }
        None => drop(tree.insert(key.to_owned(), value)),
    }
}

/// Puts one override into the tree.
pub(super) fn set(tree: &mut Table, key: &str, value: &str) -> Result<()> {
    let Some((section, name)) = key.rsplit_once('.') else {
        return Err(unknown(key, &names()?));
    };
    // TOML has no bare words: what does not parse is a string.
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let mut table = tree;
    for part in section.split('.') {
        let next = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Some(next) = next.as_table_mut() else {
            return Err(Error::config(section, "is a value, expected a table"));
        };
        table = next;
    }
    // The two ways to say a thing exclude each other; the later one wins over what the file says.
    for (a, b) in [("steps", "tokens"), ("d_sae", "expansion"), ("hook", "hooks")] {
        if name == a {
            table.remove(b);
        } else if name == b {
            table.remove(a);
        }
    }
    if key == "sae.init" {
        // Of the dictionary that the file names.
        table.remove("init_digest");
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
    let is_table = |key: &str| {
        known
            .iter()
            .any(|k| k.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    };
    let mut tables = vec![(String::new(), given)];
    while let Some((prefix, table)) = tables.pop() {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            match value.as_table() {
                Some(table) if is_table(&key) => tables.push((format!("{key}."), table)),
                // Named by what is in it, which is where the mistake shows.
                Some(table) if !known.contains(&key) => {
                    let first = table.keys().next();
                    return Err(unknown(
                        &first.map_or(key.clone(), |inner| format!("{key}.{inner}")),
                        &known,
                    ));
                }
                _ if known.contains(&key) => {}
                None if is_table(&key) && prefix.is_empty() => return Err(unknown(&key, &known)),
                None if is_table(&key) => {
                    return Err(Error::config(
                        key.clone(),
                        format!("is {value}, expected a table: set {key}.weight"),
                    ));
                }
                _ => return Err(unknown(&key, &known)),
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

/// Deserialises a tree whose keys are known, key by key first, so that an error names its key.
pub(super) fn parse(tree: Table) -> Result<RunConfig> {
    for (key, value) in leaves(&tree) {
        let alone = key.rsplit('.').fold(value.clone(), |inner, name| {
            Value::Table(Table::from_iter([(name.to_owned(), inner)]))
        });
        alone
            .try_into::<RunConfig>()
            .map_err(|e| Error::config(key.clone(), e.message()))?;
    }
    tree.try_into()
        .map_err(|e: toml::de::Error| Error::Invalid(e.message().to_owned()))
}

/// The keys that have a value.
pub(super) fn given(config: &RunConfig) -> Result<Vec<String>> {
    Ok(leaves(&tree(config)?).into_iter().map(|(key, _)| key).collect())
}

/// Every key that has a value, with that, strings without their quotes.
pub(super) fn values(config: &RunConfig) -> Result<BTreeMap<String, String>> {
    let tree = tree(config)?;
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(leaves(&tree)
        .into_iter()
        .map(|(key, value)| (key, shown(value)))
        .collect())
}

/// The keys in which two configurations differ, each with both values.
pub(super) fn differences(one: &RunConfig, other: &RunConfig) -> Result<Vec<String>> {
    let differing = values_that_differ(one, other)?.into_iter();
    Ok(differing.map(|(key, a, b)| format!("{key} is {a}, was {b}")).collect())
}

/// The keys in which two configurations differ, and the values of both; `nothing` where one has none.
pub(super) fn values_that_differ(one: &RunConfig, other: &RunConfig) -> Result<Vec<(String, String, String)>> {
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
        (a != b).then(|| (key.clone(), a, b))
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
        let tables = ["data", "sae", "train", "objective", "bilinear"]
            .into_iter()
            .map(str::to_owned);
        let terms = names
            .iter()
            .filter_map(|k| k.strip_prefix("objective.")?.split_once('.'));
        let terms: std::collections::BTreeSet<_> = terms.map(|(term, _)| format!("objective.{term}")).collect();
        assert!(terms.len() >= 5);
        for section in tables.chain(terms.clone()) {
            let error = toml::from_str::<RunConfig>(&format!("[{section}]\nno_such_key = 1")).unwrap_err();
            let listed = error
                .message()
                .split("expected one of")
                .nth(1)
                .or_else(|| error.message().split("expected").nth(1))
                .unwrap()
                .matches('`')
                .count()
                / 2;
            let prefix = format!("{section}.");
            let below = names.iter().filter_map(|k| k.strip_prefix(&prefix));
            let ours: std::collections::BTreeSet<_> = below.map(|k| k.split('.').next().unwrap()).collect();
            assert_eq!(listed, ours.len(), "{section}: {}", error.message());
        }
    }
}
