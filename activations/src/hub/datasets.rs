//! Texts of the hub's data sets: `hf://datasets/org/name[@revision][/path]`, as the hub's own file system in Python has it.
//!
//! A path is a file, a directory or a pattern in the repository, by the rules for files on this machine. Many data sets
//! hold no text files but a program that makes them; the hub then keeps a Parquet copy in the branch
//! `refs/convert/parquet`, which is looked at where there is nothing else and no revision was asked for.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Cache, RepoType};

use super::{Failure, Hub, Id};
use crate::corpus::{Format, MATCHING, has_wildcards, of_name, of_one_kind};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// What URLs of data sets begin with.
const SCHEME: &str = "hf://datasets/";
/// The branch that the hub converts data sets into.
const CONVERTED: &str = "refs/convert/parquet";
/// Files that describe a data set and are no texts.
const DESCRIPTIONS: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
];

/// Texts of a data set, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetTexts {
    /// The files, sorted.
    pub files: Vec<PathBuf>,
    /// What people call it: `org/name`, with revision and path if they were named.
    pub name: String,
}

/// What a URL says.
struct Wanted {
    id: Id,
    /// Whether a revision was named.
    revised: bool,
    /// In the repository; empty for all of it.
    path: String,
    format: Option<Format>,
}

/// Whether a path is the URL of something on the hub.
pub fn is_url(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with("hf://"))
}

impl Hub {
    /// The texts that a URL means, fetched if they are not in the cache: all of a known format, or of `format`, or those
    /// that its path names.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no such URL, names no texts or texts of several formats; and as
    /// [`find`](Self::find).
    pub fn texts(&self, url: &str, format: Option<Format>, progress: &dyn Progress) -> Result<DatasetTexts> {
        let Some(wanted) = Wanted::parse(url, format) else {
            return Err(Error::Invalid(format!(
                "{url:?} names no data set: expected hf://datasets/org/name, hf://datasets/org/name@revision, and behind \
                 it perhaps a file, a directory or a pattern, such as /data/train-*.parquet"
            )));
        };
        match self.texts_of(&wanted, url, progress)? {
            Err(Missing::Texts(problem)) if !wanted.revised && wanted.path.is_empty() => {
                let converted = Wanted {
                    id: wanted.id.at(CONVERTED),
                    ..wanted
                };
                match self.texts_of(&converted, url, progress) {
                    Ok(Ok(texts)) => Ok(texts),
                    _ => Err(Error::Invalid(format!("{url}: {problem}, nor a branch {CONVERTED}"))),
                }
            }
            Err(Missing::Texts(problem) | Missing::Choice(problem)) => Err(Error::Invalid(format!("{url}: {problem}"))),
            Ok(texts) => Ok(texts),
        }
    }

    fn texts_of(
        &self,
        wanted: &Wanted,
        url: &str,
        progress: &dyn Progress,
    ) -> Result<std::result::Result<DatasetTexts, Missing>> {
        let name = url.strip_prefix(SCHEME).unwrap_or(url).trim_end_matches('/').to_owned();
        let id = &wanted.id;
        let chosen = |dir: &Path, files: &[&str]| {
            let names = wanted.choose(files)?;
            Ok(DatasetTexts {
                files: names.into_iter().map(|name| dir.join(name)).collect(),
                name: name.clone(),
            })
        };
        let cached = || {
            let dir = self.snapshot(id)?;
            let mut names = Vec::new();
            walk(&dir, "", &mut names);
            names.sort();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Some(chosen(&dir, &names))
        };
        if self.offline {
            return cached().ok_or_else(|| {
                Error::Invalid(format!(
                    "{url} is not in the cache {} and HF_HUB_OFFLINE is set: unset it, or name files",
                    self.cache.display()
                ))
            });
        }
        // What is missing is decided before anything is fetched.
        let mut missing = None;
        let fetched = self.fetch_files(id, progress, |files| match wanted.choose(files) {
            Ok(names) => Ok(names),
            Err(problem) => {
                missing = Some(problem);
                Err(String::new())
            }
        });
        if let Some(missing) = missing {
            return Ok(Err(missing));
        }
        match fetched {
            Ok((dir, names)) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Ok(chosen(&dir, &names))
            }
            Err(Failure::Unreachable(problem)) => match cached() {
                Some(texts) => {
                    progress.warn(&format!(
                        "{} cannot be reached; using what the cache has of {url}",
                        self.endpoint
                    ));
                    Ok(texts)
                }
                None => Err(Error::Invalid(format!(
                    "cannot fetch {url} from {}: {problem}. Without a network, fetch it elsewhere (`hf download --repo-type \
                     dataset {} --local-dir DIR`) and name the directory",
                    self.endpoint, id.name
                ))),
            },
            Err(Failure::Refused(problem)) => Err(Error::Invalid(format!("{url}: {problem}"))),
        }
    }

    /// The directory of what the cache has of a revision.
    fn snapshot(&self, id: &Id) -> Option<PathBuf> {
        let cache = Cache::new(self.cache.clone()).repo(id.repo(&id.revision));
        let refs = self.cache.join(id.repo(&id.revision).folder_name()).join("refs");
        let commit = std::fs::read_to_string(refs.join(&id.revision)).ok();
        // A commit's full name needs no branch that points to it.
        let commit = commit.unwrap_or_else(|| id.revision.clone());
        Some(cache.pointer_path(commit.trim())).filter(|dir| dir.is_dir())
    }
}

/// Why nothing was chosen.
enum Missing {
    /// There are no texts.
    Texts(String),
    /// There are texts, and it was not said which.
    Choice(String),
}

impl Wanted {
    fn parse(url: &str, format: Option<Format>) -> Option<Self> {
        let rest = url.strip_prefix(SCHEME)?;
        let (org, rest) = rest.split_once('/')?;
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, path) = match rest.strip_prefix('@') {
            // Branches of the hub's own have slashes in their names.
            Some(rest) => match rest.strip_prefix("refs/") {
                Some(special) => {
                    let mut parts = special.splitn(3, '/');
                    let (kind, branch) = (parts.next()?, parts.next()?);
                    (Some(format!("refs/{kind}/{branch}")), parts.next().unwrap_or(""))
                }
                None => {
                    let (revision, path) = rest.split_once('/').unwrap_or((rest, ""));
                    (Some(revision.replace("%2F", "/").replace("%2f", "/")), path)
                }
            },
            None => (None, rest),
        };
        let revised = revision.is_some();
        let id = Id::parse(&format!("{org}/{name}@{}", revision.as_deref().unwrap_or("main")))?;
        Some(Self {
            id: Id {
                kind: RepoType::Dataset,
                ..id
            },
            revised,
            path: path.trim_matches('/').to_owned(),
            format,
        })
    }

    /// Which of a repository's files are wanted, sorted as paths.
    fn choose<'a>(&self, files: &[&'a str]) -> std::result::Result<Vec<&'a str>, Missing> {
        let inside = |name: &&&str| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        let files = || files.iter().filter(inside).copied();
        let mut names: Vec<&str> = if has_wildcards(&self.path) {
            let pattern = glob::Pattern::new(&self.path)
                .map_err(|e| Missing::Choice(format!("is no pattern of file names: {}", e.msg)))?;
            files().filter(|name| pattern.matches_with(name, MATCHING)).collect()
        } else {
            files().filter(|name| *name == self.path).collect()
        };
        if names.is_empty() && has_wildcards(&self.path) {
            return Err(Missing::Texts("no file of the data set matches this pattern".into()));
        }
        if names.is_empty() {
            let mut found: BTreeMap<Format, Vec<&str>> = BTreeMap::new();
            for name in files() {
                let below = match self.path.as_str() {
                    "" => Some(name),
                    path => name.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')),
                };
                let shown = below.is_some_and(|below| below.split('/').all(|part| !part.starts_with('.')));
                let last = name.rsplit('/').next().unwrap_or(name);
                if let (Some(format), _) = of_name(Path::new(name))
                    && shown
                    && !DESCRIPTIONS.contains(&last)
                {
                    found.entry(format).or_default().push(name);
                }
            }
            let none = self
                .format
                .map_or(found.is_empty(), |format| !found.contains_key(&format));
            names = of_one_kind(found, self.format).map_err(|problem| match none {
                true => Missing::Texts(problem),
                false => Missing::Choice(problem),
            })?;
        }
        names.sort_by_key(|name| Path::new(*name));
        Ok(names)
    }
}

/// The names of the files below a directory of the cache.
fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
    // What cannot be listed is not in the cache.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_dir() {
            walk(&path, &format!("{name}/"), names);
        } else if path.is_file() {
            names.push(name);
        }
    }
}
