//! A store that several processes write, each a part of it.
//!
//! The one decision: **a part is every n-th shard.** Shard `s` belongs to part `s % n + 1` of `n`. Its files then have
//! the names and the bytes that a single process would have given them, no two processes meet in a file, and nothing
//! about a row depends on `n`. Ranges of contexts would need the length of the text beforehand; this way every process
//! reads all of the text, which is fast beside a model, and runs the model over its own contexts only.
//!
//! Each part has a journal while it is written, and a manifest after. There is no manifest of the whole: a directory is
//! a complete store once the manifests of all parts are there, and a reader puts them together. So no process must be
//! the last, none waits for another, and there is no file that two of them would have to agree on.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::manifest::{FileEntry, Journal, ShardEntry, StoreManifest, TextCounts, check_version, read_json};
use super::spec::StoreSpec;
use crate::error::{Error, Result};

/// The most parts of a store.
const MOST: usize = 65_536;

/// One of the parts that a store is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which one, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

impl Part {
    /// The only part.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Number of the `nth` shard of this part, from 0.
    pub(crate) fn shard(self, nth: usize) -> usize {
        self.number - 1 + nth * self.of
    }

    /// Whether a shard belongs to this part.
    pub(crate) fn owns(self, shard: u64) -> bool {
        shard % self.of as u64 == (self.number - 1) as u64
    }

    /// How many of the first `shards` shards belong to this part.
    fn share(self, shards: u64) -> u64 {
        let (of, number) = (self.of as u64, self.number as u64);
        shards / of + u64::from(shards % of >= number)
    }

    /// Its manifest.
    pub(crate) fn manifest(self, dir: &Path) -> PathBuf {
        dir.join(format!("part-{}-of-{}.json", self.number, self.of))
    }

    /// Its journal.
    pub(crate) fn journal(self, dir: &Path) -> PathBuf {
        dir.join(format!("part-{}-of-{}.unfinished.json", self.number, self.of))
    }

    /// The part in the name of a manifest or journal, and whether it is finished.
    fn named(name: &str) -> Option<(Self, bool)> {
        let name = name.strip_prefix("part-")?.strip_suffix(".json")?;
        let (name, finished) = match name.strip_suffix(".unfinished") {
            Some(name) => (name, false),
            None => (name, true),
        };
        let (number, of) = name.split_once("-of-")?;
        let part = Self::checked(number.parse().ok()?, of.parse().ok()?)?;
        Some((part, finished))
    }

    fn checked(number: usize, of: usize) -> Option<Self> {
        (1 <= number && number <= of && of <= MOST).then_some(Self { number, of })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once('/')
            .and_then(|(number, of)| Self::checked(number.trim().parse().ok()?, of.trim().parse().ok()?));
        parsed.ok_or_else(|| {
            Error::Invalid(format!(
                "{text:?} is not a part: expected I/N with I from 1 to N, such as 2/5, and N at most {MOST}"
            ))
        })
    }
}

/// What the manifest of a part says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartManifest {
    pub format: String,
    pub version: u32,
    pub created_by: String,
    pub part: Part,
    pub spec: StoreSpec,
    /// Contexts of the whole store: every process reads the text to its end.
    pub n_contexts: u64,
    pub text: TextCounts,
    /// The part's shards, in order.
    pub shards: Vec<ShardEntry>,
    pub files: Vec<FileEntry>,
}

/// The parts whose manifest or journal is in a directory, and whether they are finished.
pub(crate) struct Parts {
    dir: PathBuf,
    pub of: usize,
    pub found: BTreeMap<usize, bool>,
}

impl Parts {
    /// Looks at the names in a directory; `None` if there are no parts in it.
    pub fn scan(dir: &Path) -> Result<Option<Self>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            names.push(
                entry
                    .map_err(Error::io(dir))?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        Self::named(dir, names)
    }

    /// The parts that these `names` in `dir` are of; `None` if there are none.
    pub fn named(dir: &Path, mut names: Vec<String>) -> Result<Option<Self>> {
        let mut parts: Option<Self> = None;
        names.sort();
        for (part, finished) in names.iter().filter_map(|name| Part::named(name)) {
            let parts = parts.get_or_insert_with(|| Self {
                dir: dir.to_owned(),
                of: part.of,
                found: BTreeMap::new(),
            });
            if parts.of != part.of {
                return Err(Error::bad_file(
                    dir,
                    format!(
                        "holds parts of two divisions, which overlap: of {} and of {}; keep the files of one of them",
                        parts.of, part.of
                    ),
                ));
            }
            // A process that was killed between its last two steps leaves manifest and journal.
            *parts.found.entry(part.number).or_default() |= finished;
        }
        Ok(parts)
    }

    fn part(&self, number: usize) -> Part {
        Part { number, of: self.of }
    }

    /// The parts that are not finished, each with what to do about it.
    pub fn waiting(&self) -> Vec<String> {
        let say = |number: usize| match self.found.get(&number) {
            Some(true) => None,
            Some(false) => Some(format!(
                "part {} was begun and not finished: run it with `--resume`",
                self.part(number)
            )),
            None => {
                let part = self.part(number);
                Some(format!(
                    "part {part} is missing: run `sae harvest` with `--shard {part}`"
                ))
            }
        };
        (1..=self.of).filter_map(say).collect()
    }

    /// The specification of one of the parts, with that part.
    pub fn spec(&self) -> Result<(Part, StoreSpec)> {
        let (&number, &finished) = self.found.iter().next().expect("there is a part");
        let part = self.part(number);
        Ok((
            part,
            match finished {
                true => self.read(part)?.spec,
                false => read_journal(&part.journal(&self.dir))?.spec,
            },
        ))
    }

    fn read(&self, part: Part) -> Result<PartManifest> {
        let path = part.manifest(&self.dir);
        let manifest: PartManifest = read_json(&path)?;
        check_version(&path, manifest.version, &manifest.spec)?;
        manifest
            .spec
            .validate()
            .map_err(|e| Error::bad_file(&path, e.to_string()))?;
        match manifest.part == part {
            true => Ok(manifest),
            false => Err(Error::bad_file(
                &path,
                format!("says that it is part {}: it was renamed", manifest.part),
            )),
        }
    }

    /// The manifest of the whole store.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming the parts that are missing or unfinished and what to do, or the part that does not fit
    /// the others.
    pub fn merge(&self) -> Result<StoreManifest> {
        let waiting = self.waiting();
        if !waiting.is_empty() {
            return Err(Error::bad_file(
                &self.dir,
                format!("is an unfinished store of {} parts: {}", self.of, waiting.join("; ")),
            ));
        }
        let first = self.read(self.part(1))?;
        let per_shard = first.spec.contexts_per_shard;
        let n_shards = first.n_contexts.div_ceil(per_shard);
        let mut shards: Vec<(u64, ShardEntry)> = Vec::new();
        for number in 1..=self.of {
            let part = self.part(number);
            let manifest = self.read(part)?;
            let here = |problem: String| Err(Error::bad_file(part.manifest(&self.dir), problem));
            if let Some(difference) = first.spec.difference(&manifest.spec) {
                return here(format!(
                    "was harvested with other settings than part {}: {difference}; harvest one of them again",
                    first.part
                ));
            }
            if (manifest.n_contexts, manifest.text) != (first.n_contexts, first.text) || manifest.files != first.files {
                return here(format!(
                    "was harvested from another text or model than part {}: harvest one of them again",
                    first.part
                ));
            }
            if manifest.shards.len() as u64 != part.share(n_shards) {
                return here(format!(
                    "lists {} shards, expected {} of {n_shards}: harvest it again",
                    manifest.shards.len(),
                    part.share(n_shards)
                ));
            }
            for (nth, shard) in manifest.shards.into_iter().enumerate() {
                let number = part.shard(nth) as u64;
                if shard.first_context / per_shard != number {
                    return here(format!(
                        "lists contexts from {} on, expected from {}: it overlaps another part; harvest it again",
                        shard.first_context,
                        number * per_shard
                    ));
                }
                shards.push((number, shard));
            }
        }
        shards.sort_by_key(|(number, _)| *number);
        let shards = shards.into_iter().map(|(_, shard)| shard).collect();
        let merged = StoreManifest::new(first.spec, first.text, shards, first.files);
        merged.check().map_err(|problem| {
            Error::bad_file(&self.dir, format!("has parts that do not make one store: {problem}"))
        })?;
        Ok(merged)
    }
}

/// Reads the journal of a part.
pub(crate) fn read_journal(path: &Path) -> Result<Journal> {
    let journal: Journal = read_json(path)?;
    check_version(path, journal.version, &journal.spec)?;
    journal
        .spec
        .validate()
        .map_err(|e| Error::bad_file(path, e.to_string()))?;
    Ok(journal)
}

/// Whether a name is that of a part's manifest or journal, be it a temporary one.
pub(crate) fn is_part(name: &str) -> bool {
    Part::named(name.strip_suffix(".tmp").unwrap_or(name)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_as_fractions() {
        assert_eq!("2/5".parse::<Part>().unwrap(), Part { number: 2, of: 5 });
        for bad in ["0/5", "6/5", "2", "2/", "/5", "-1/5", "1/0", "a/b", "1/99999999"] {
            let said = bad.parse::<Part>().unwrap_err().to_string();
            assert!(said.contains(bad) && said.contains("2/5"), "{said}");
        }
        let part = Part { number: 2, of: 5 };
        assert_eq!(part.to_string(), "2/5");
        for (path, finished) in [
            (part.manifest(Path::new("")), true),
            (part.journal(Path::new("")), false),
        ] {
            assert_eq!(Part::named(path.to_str().unwrap()), Some((part, finished)));
        }
        assert_eq!(Part::named("part-2-of-1.json"), None);
    }

    #[test]
    fn every_shard_belongs_to_one_part_and_shares_add_up() {
        for of in 1..7 {
            for shards in 0..20u64 {
                let parts = (1..=of).map(|number| Part { number, of });
                let share: u64 = parts.clone().map(|p| p.share(shards)).sum();
                assert_eq!(share, shards);
                for part in parts {
                    let owned: Vec<u64> = (0..shards).filter(|&s| part.owns(s)).collect();
                    let listed = (0..part.share(shards)).map(|nth| part.shard(nth as usize) as u64);
                    assert_eq!(owned, listed.collect::<Vec<_>>());
                }
            }
        }
    }
}
