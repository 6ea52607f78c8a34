//! Several dictionaries on one stream: a configuration whose values are lists, or with a `[[sae]]` block each.
//!
//! The one decision: **a grid is only a way to write configurations.** Each that it stands for is a whole `run.toml`, which
//! trained alone gives the same bytes; so nothing that decides about the stream (the data, the batches, where checkpoints are)
//! may differ in a grid, and seeds that do are those of dictionaries, not of the order of rows.
//!
//! ```
//! let grid = sae::config::Grid::from_toml("[data]\nacts = \"acts\"\n[sae]\nk = [16, 32]", &[])?;
//! let names: Vec<&str> = grid.runs.iter().map(|(name, _)| name.as_str()).collect();
//! assert_eq!(names, ["k-16", "k-32"]);
//! # Ok::<(), sae::Error>(())
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use toml::{Table, Value};

use super::{RunConfig, keys};
use crate::error::{Error, Result};

/// The name of a grid's configuration, beside the directories of its runs.
pub const GRID_TOML: &str = "grid.toml";

/// Most dictionaries of a grid: every one is in memory.
const MOST: usize = 256;

/// Keys of `[train]` that decide about the stream.
const SHARED: [&str; 7] = [
    "train.batch",
    "train.steps",
    "train.tokens",
    "train.device",
    "train.eval_every",
    "train.log_every",
    "train.checkpoint_every",
];

/// Configurations that share a stream of activations.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// The name of each one's directory, and what it is. A single run has no name.
    pub runs: Vec<(String, RunConfig)>,
    /// As it was written, overrides included.
    text: String,
}

impl From<RunConfig> for Grid {
    /// A single run.
    fn from(config: RunConfig) -> Self {
        Self {
            runs: vec![(String::new(), config)],
            text: String::new(),
        }
    }
}

impl Grid {
    /// Reads `text` with `overrides` as [`RunConfig::from_toml`] does. Any value but those of `[data]` may be a list, which
    /// stands for one dictionary a value; several lists stand for all combinations. `sae` may be a list of tables, each a
    /// dictionary, whose own `objective` and `train` go over those of the file.
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`]; [`Error::Config`] naming a key that decides about the stream and differs, or a grid of
    /// more than 256 dictionaries or of two equal ones.
    pub fn from_toml(text: &str, overrides: &[(String, String)]) -> Result<Self> {
        let mut tree = keys::read(text)?;
        for (key, value) in overrides {
            set(&mut tree, key, value)?;
        }
        let text = toml::to_string(&tree)
            .map_err(|e| Error::Invalid(format!("the configuration cannot be written as TOML: {e}")))?;
        let blocks = blocks(tree)?;
        let one_block = blocks.len() == 1;
        let mut trees = Vec::new();
        for block in blocks {
            sweep(block, &mut trees)?;
        }
        let mut runs = Vec::with_capacity(trees.len());
        for (name, tree) in names(&trees)?.into_iter().zip(trees) {
            runs.push((name, RunConfig::from_tree(tree)?));
        }
        if runs.len() == 1 && one_block {
            runs[0].0.clear();
        }
        share(&mut runs)?;
        Ok(Self { runs, text })
    }

    /// Reads the file at `path`, or starts from nothing but defaults, with `overrides`: see [`Grid::from_toml`].
    ///
    /// # Errors
    /// As [`Grid::from_toml`], naming the file; what the system says when there is none.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Self> {
        super::read_file(path, |text| Self::from_toml(text, overrides))
    }

    /// Whether there is one run, which needs no directory below its own.
    pub fn is_single(&self) -> bool {
        matches!(&self.runs[..], [(name, _)] if name.is_empty())
    }

    /// As a file.
    pub fn to_toml(&self) -> &str {
        &self.text
    }
}

/// Puts one override into the tree, and where `sae` is a list of blocks, into each of them that it concerns.
fn set(tree: &mut Table, key: &str, value: &str) -> Result<()> {
    let Some(Value::Array(blocks)) = tree.get_mut("sae") else {
        return keys::set(tree, key, value);
    };
    let (of_blocks, section) = (key.starts_with("sae."), key.split('.').next().unwrap_or(key));
    for block in blocks.iter_mut().filter_map(Value::as_table_mut) {
        if of_blocks {
            let mut alone = Table::from_iter([("sae".to_owned(), Value::Table(std::mem::take(block)))]);
            keys::set(&mut alone, key, value)?;
            if let Some(Value::Table(set)) = alone.remove("sae") {
                *block = set;
            }
        } else if block.contains_key(section) {
            keys::set(block, key, value)?;
        }
    }
    if of_blocks { Ok(()) } else { keys::set(tree, key, value) }
}

/// The trees of the blocks of `sae`; one where it is a table.
fn blocks(tree: Table) -> Result<Vec<Table>> {
    let Some(Value::Array(list)) = tree.get("sae") else {
        return Ok(vec![tree]);
    };
    if list.is_empty() {
        return Err(Error::config("sae", "is an empty list: a grid needs a dictionary"));
    }
    let block = |value: &Value| {
        let Value::Table(sae) = value else {
            return Err(Error::config("sae", format!("lists {value}, expected tables: [[sae]]")));
        };
        let (mut tree, mut sae) = (tree.clone(), sae.clone());
        for section in ["objective", "train"] {
            if let Some(Value::Table(own)) = sae.remove(section) {
                let of_all = tree.entry(section).or_insert_with(|| Value::Table(Table::new()));
                merge(of_all, own);
            }
        }
        tree.insert("sae".into(), Value::Table(sae));
        Ok(tree)
    };
    list.iter().map(block).collect()
}

/// Puts the values of `own` over those of `table`.
fn merge(table: &mut Value, own: Table) {
    let Value::Table(table) = table else {
        *table = Value::Table(own);
        return;
    };
    for (key, value) in own {
        match (table.get_mut(&key), value) {
            (Some(inner @ Value::Table(_)), Value::Table(own)) => merge(inner, own),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Puts a tree for every combination of the listed values of `tree` behind `trees`.
fn sweep(tree: Table, trees: &mut Vec<Table>) -> Result<()> {
    let swept = keys::lists(&tree)?;
    let Some((key, values)) = swept.into_iter().next() else {
        if trees.len() == MOST {
            return Err(Error::Invalid(format!("a grid of more than {MOST} dictionaries")));
        }
        trees.push(tree);
        return Ok(());
    };
    if values.is_empty() {
        return Err(Error::config(
            &key,
            "is an empty list: give a value, or several for a grid",
        ));
    }
    for value in values {
        let mut tree = tree.clone();
        keys::replace(&mut tree, &key, value);
        sweep(tree, trees)?;
    }
    Ok(())
}

/// What to call each run: the keys in which they differ, with their values.
fn names(trees: &[Table]) -> Result<Vec<String>> {
    let leaves: Vec<_> = trees.iter().map(keys::leaves).collect();
    let all: BTreeSet<&String> = leaves.iter().flatten().map(|(key, _)| key).collect();
    let value = |run: usize, key: &str| leaves[run].iter().find(|(k, _)| k == key).map(|(_, v)| *v);
    let differs = |key: &str| (1..trees.len()).any(|run| value(run, key) != value(0, key));
    let differing: Vec<&String> = all.into_iter().filter(|key| differs(key)).collect();
    let names: Vec<String> = (0..trees.len())
        .map(|run| {
            let parts = differing.iter().filter_map(|key| {
                let name = key.split_once('.').map_or(key.as_str(), |(_, name)| name);
                Some(format!("{name}-{}", plain(value(run, key)?)))
            });
            parts.collect::<Vec<_>>().join("_")
        })
        .collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) && trees.len() > 1 {
            return Err(Error::Invalid(format!(
                "two dictionaries of the grid are the same: {}",
                if name.is_empty() { "they differ in no key" } else { name }
            )));
        }
    }
    Ok(names
        .into_iter()
        .map(|name| if name.is_empty() { "default".into() } else { name })
        .collect())
}

/// A value as a part of a directory's name.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Float(x) if *x != 0.0 && !(1e-3..1e6).contains(&x.abs()) => format!("{x:e}"),
        other => other.to_string(),
    };
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() || ".+-".contains(c) {
            c
        } else {
            '-'
        }
    };
    text.chars().map(keep).collect::<String>().trim_matches('-').to_owned()
}

/// Refuses what would need streams of their own, and gives seeds that differ one order of rows.
fn share(runs: &mut [(String, RunConfig)]) -> Result<()> {
    let Some((first, others)) = runs.split_first_mut() else {
        return Ok(());
    };
    for (name, config) in &*others {
        let differs = config.differing_keys(&first.1)?;
        let of_stream = |key: &&String| key.starts_with("data.") || SHARED.contains(&key.as_str());
        if let Some(key) = differs.iter().find(of_stream) {
            return Err(Error::config(
                key.clone(),
                format!(
                    "differs between {} and {name}: the dictionaries of a grid share one stream of batches, so it has one \
                     value",
                    first.0
                ),
            ));
        }
    }
    let seed = first.1.train.seed;
    if others.iter().any(|(_, config)| config.train.seed != seed) {
        for (_, config) in std::iter::once(first).chain(others) {
            config.data.seed.get_or_insert(seed);
            if config.data.model.is_some() {
                config.data.text_seed.get_or_insert(seed);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str, overrides: &[(&str, &str)]) -> Result<Grid> {
        let overrides: Vec<_> = overrides.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Grid::from_toml(text, &overrides)
    }

    fn names(grid: &Grid) -> Vec<&str> {
        grid.runs.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_configuration_without_lists_is_a_single_run_without_a_name() {
        let grid = grid("[sae]\nk = 16", &[("train.lr", "1e-4")]).unwrap();
        assert!(grid.is_single());
        let alone = RunConfig::from_toml("[sae]\nk = 16\n[train]\nlr = 1e-4", &[]).unwrap();
        assert_eq!(grid.runs, [(String::new(), alone)]);
        assert_eq!(Grid::from_toml(grid.to_toml(), &[]).unwrap(), grid);
    }

    #[test]
    fn lists_stand_for_all_combinations_and_each_is_a_whole_configuration() {
        let grid = grid(
            "[train]\nlr = [1e-3, 1e-4]",
            &[("sae.k", "[16, 32]"), ("sae.method", "[\"topk\"]")],
        )
        .unwrap();
        assert_eq!(
            names(&grid),
            ["k-16_lr-0.001", "k-16_lr-1e-4", "k-32_lr-0.001", "k-32_lr-1e-4"]
        );
        let alone = "[sae]\nk = 32\nmethod = \"topk\"\n[train]\nlr = 1e-3";
        let alone = RunConfig::from_toml(alone, &[]).unwrap();
        assert_eq!(grid.runs[2].1, alone);
        assert_eq!(Grid::from_toml(grid.to_toml(), &[]).unwrap(), grid);
    }

    #[test]
    fn a_value_that_is_a_list_by_itself_is_swept_by_a_list_of_lists() {
        let one = grid("[objective.matryoshka]\nwidths = [64, 128]", &[]).unwrap();
        assert!(one.is_single());
        let two = grid("[objective.matryoshka]\nwidths = [[64, 128], [256]]", &[]).unwrap();
        assert_eq!(names(&two), ["matryoshka.widths-64--128", "matryoshka.widths-256"]);
        let paths = grid("[data]\nmodel = \"m\"\ntext = [\"a.txt\", \"b.txt\"]", &[]).unwrap();
        assert!(paths.is_single());
    }

    #[test]
    fn blocks_have_their_own_keys_and_overrides_reach_them_all() {
        let text = "[train]\nlr = 1e-3\n[[sae]]\nmethod = \"topk\"\nk = 8\n[[sae]]\nmethod = \"relu\"\nobjective.l1.weight = 0.5\n\
                    train.lr = 1e-4";
        let grid = grid(text, &[("sae.d_sae", "64")]).unwrap();
        assert_eq!(
            names(&grid),
            ["k-8_method-topk_lr-0.001", "l1.weight-0.5_method-relu_lr-1e-4"]
        );
        assert!(grid.runs.iter().all(|(_, config)| config.sae.d_sae == Some(64)));
        assert_eq!(grid.runs[0].1.train.lr, Some(1e-3));
        let overridden = Grid::from_toml(text, &[("train.lr".into(), "5e-4".into())]).unwrap();
        assert!(overridden.runs.iter().all(|(_, config)| config.train.lr == Some(5e-4)));
        assert_eq!(Grid::from_toml(overridden.to_toml(), &[]).unwrap(), overridden);
    }

    #[test]
    fn what_decides_about_the_stream_has_one_value_and_the_key_is_named() {
        for (key, value) in [
            ("train.batch", "[64, 128]"),
            ("train.steps", "[10, 20]"),
            ("data.held_out_rows", "[10, 20]"),
        ] {
            let error = grid("", &[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let error = grid("", &[("sae.k", "[16, 16]")]).unwrap_err().to_string();
        assert!(error.contains("the same"), "{error}");
        let error = grid("", &[("sae.k", "[]")]).unwrap_err().to_string();
        assert!(error.contains("sae.k") && error.contains("empty"), "{error}");
        let many = format!("{:?}", (1..300).collect::<Vec<_>>());
        assert!(grid("", &[("sae.k", &many)]).unwrap_err().to_string().contains("256"));
        let error = grid("", &[("sae.k", "[16, \"x\"]")]).unwrap_err().to_string();
        assert!(error.contains("sae.k"), "{error}");
    }

    #[test]
    fn seeds_of_a_grid_are_those_of_dictionaries_and_the_order_of_rows_is_one() {
        let grid = grid("[train]\nseed = [3, 4]", &[]).unwrap();
        let seeds: Vec<_> = grid.runs.iter().map(|(_, c)| (c.train.seed, c.data.seed)).collect();
        assert_eq!(seeds, [(3, Some(3)), (4, Some(3))]);
    }
}
