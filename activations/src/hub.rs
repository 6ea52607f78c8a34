//! Models and data sets of the Hugging Face hub, fetched into the cache that Python's tools use too.
//!
//! The one decision: **a directory that exists is that directory, and everything else must look like an id.** A mistyped
//! path then never turns into a download. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (or a token saved by `hf auth login`),
//! `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean in Python. All files come from one commit, and a copy in the
//! cache is used, and said to be, when the hub cannot be reached.

mod datasets;

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

pub use self::datasets::{DatasetTexts, is_url};
use crate::error::{Error, Result};
use crate::gguf_file::GgufFile;
use crate::progress::Progress;
use crate::safetensors_file::SafeTensors;

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir {
    /// Its directory, or the GGUF file that it is.
    pub path: PathBuf,
    /// What people call it: the directory's name, or the hub's id.
    pub name: String,
}

impl ModelDir {
    /// The model in a directory or a GGUF file, called as that is.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no current directory to start from.
    pub fn local(path: &Path) -> Result<Self> {
        let whole = std::path::absolute(path).map_err(Error::io(path))?;
        let name = whole.file_name().unwrap_or(whole.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            path: path.to_owned(),
        })
    }
}

/// Where models that are not directories come from.
pub struct Hub {
    /// Such as `https://huggingface.co`.
    pub endpoint: String,
    /// The cache's `hub` directory.
    pub cache: PathBuf,
    /// For models that are not public.
    pub token: Option<String>,
    /// Whether only the cache is to be looked at.
    pub offline: bool,
}

/// How often a download that broke off is continued.
const RETRIES: usize = 5;

impl Hub {
    /// As the environment describes it.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let usual = Cache::from_env();
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: variable("HF_TOKEN").or_else(|| usual.token()),
            cache: variable("HF_HUB_CACHE").map_or_else(|| usual.path().clone(), PathBuf::from),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
        }
    }

    /// The model that `model` means: a directory, a GGUF file, or `org/name[@revision]`, which is fetched if it is not in the cache.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is neither; if the hub does not have it, wants a token, or cannot be reached and the
    /// cache does not have it either.
    pub fn find(&self, model: &str, progress: &dyn Progress) -> Result<ModelDir> {
        let path = Path::new(model);
        if path.is_dir() || path.is_file() && GgufFile::of_model(path)?.is_some() {
            return ModelDir::local(path);
        }
        let Some(id) = Id::parse(model) else {
            return Err(Error::Invalid(format!(
                "no model {model:?}: expected a directory with config.json and model.safetensors, a .gguf file, or an \
                 id of the Hugging Face hub such as EleutherAI/pythia-70m or org/name@revision"
            )));
        };
        let found = |path| ModelDir {
            path,
            name: model.to_owned(),
        };
        if self.offline {
            let missing = || {
                Error::Invalid(format!(
                    "{model} is not in the cache {} and HF_HUB_OFFLINE is set: unset it, or name a directory",
                    self.cache.display()
                ))
            };
            return self.cached(&id).map(found).ok_or_else(missing);
        }
        match self.fetch(&id, progress) {
            Ok(path) => Ok(found(path)),
            Err(Failure::Unreachable(problem)) => match self.cached(&id) {
                Some(path) => {
                    progress.warn(&format!(
                        "{} cannot be reached; using the cached {model}",
                        self.endpoint
                    ));
                    Ok(found(path))
                }
                None => Err(Error::Invalid(format!(
                    "cannot fetch {model} from {}: {problem}. Without a network, fetch it elsewhere \
                     (`hf download {} --local-dir DIR`) and name the directory",
                    self.endpoint, id.name
                ))),
            },
            Err(Failure::Refused(problem)) => Err(Error::Invalid(format!("{model}: {problem}"))),
        }
    }

    /// Fetches what is missing of the newest commit, and gives the directory.
    fn fetch(&self, id: &Id, progress: &dyn Progress) -> std::result::Result<PathBuf, Failure> {
        Ok(self.fetch_files(id, progress, wanted)?.0)
    }

    /// Fetches what is missing of those files of the newest commit that are `wanted` of all there are. Gives their
    /// directory, and their names.
    fn fetch_files(
        &self,
        id: &Id,
        progress: &dyn Progress,
        mut wanted: impl for<'a> FnMut(&[&'a str]) -> std::result::Result<Vec<&'a str>, String>,
    ) -> std::result::Result<(PathBuf, Vec<String>), Failure> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_retries(RETRIES)
            .build()?;
        let info = api.repo(id.repo(&id.revision)).info()?;
        let files: Vec<&str> = info.siblings.iter().map(|s| &s.rfilename[..]).collect();
        let wanted = wanted(&files).map_err(Failure::Refused)?;
        // By the commit's name: a branch may move between two files.
        let repo = id.repo(&info.sha);
        let remote = api.repo(repo.clone());
        let local = Cache::new(self.cache.clone()).repo(repo);
        let dir = local.pointer_path(&info.sha);
        for name in &wanted {
            // A link whose file is gone is not there.
            if !dir.join(name).exists() {
                download(&remote, name, progress)?;
            }
        }
        let branch = Cache::new(self.cache.clone()).repo(id.repo(&id.revision));
        branch.create_ref(&info.sha).map_err(ApiError::from)?;
        Ok((dir, wanted.into_iter().map(str::to_owned).collect()))
    }

    /// The directory of a copy that is complete.
    fn cached(&self, id: &Id) -> Option<PathBuf> {
        let cache = Cache::new(self.cache.clone()).repo(id.repo(&id.revision));
        let by_branch = cache.get("config.json");
        // A commit's full name needs no branch that points to it.
        let by_commit = || Some(cache.pointer_path(&id.revision).join("config.json"));
        let config = by_branch.or_else(by_commit).filter(|path| path.is_file())?;
        let dir = config.parent()?;
        SafeTensors::open_model(dir).is_ok().then(|| dir.to_owned())
    }
}

/// An id of the hub.
struct Id {
    kind: RepoType,
    name: String,
    revision: String,
}

impl Id {
    /// `org/name` or `org/name@revision`.
    fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, model) = name.split_once('/')?;
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        let rest = revision.split('/').all(plain);
        (plain(org) && plain(model) && rest).then(|| Self {
            kind: RepoType::Model,
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.clone(), self.kind, revision.to_owned())
    }

    /// Another revision of the same.
    fn at(&self, revision: &str) -> Self {
        Self {
            kind: self.kind,
            name: self.name.clone(),
            revision: revision.to_owned(),
        }
    }
}

/// Which files of a repository make a model.
fn wanted<'a>(files: &[&'a str]) -> std::result::Result<Vec<&'a str>, String> {
    let there = |name: &str| files.iter().find(|&&f| f == name).copied();
    let Some(config) = there("config.json") else {
        let gguf: Vec<&str> = files.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
        return Err(match &gguf[..] {
            [] => "the repository has no config.json: it is no model".into(),
            some => format!(
                "the repository has GGUF files only: fetch one (`hf download ORG/NAME FILE --local-dir DIR`) and name it. \
                 It has {}",
                some.join(", ")
            ),
        });
    };
    let mut wanted = vec![config];
    wanted.extend(there("tokenizer.json"));
    match (there("model.safetensors"), there("model.safetensors.index.json")) {
        (Some(single), _) => wanted.push(single),
        (None, Some(index)) => {
            wanted.push(index);
            let shard = |name: &&&str| name.starts_with("model-") && name.ends_with(".safetensors");
            wanted.extend(files.iter().filter(shard));
        }
        (None, None) => return Err("the repository has no safetensors weights".into()),
    }
    Ok(wanted)
}

/// Why a fetch failed.
enum Failure {
    /// The hub did not answer.
    Unreachable(String),
    /// It answered, and the answer is no.
    Refused(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let status = match &error {
            ApiError::RequestError(e) => match **e {
                ureq::Error::StatusCode(status) => Some(status),
                _ => None,
            },
            _ => None,
        };
        match (status, error) {
            (Some(401 | 403), _) => Self::Refused(
                "the hub wants a token for it, or does not have it: accept its licence there if it has one, and set \
                 HF_TOKEN"
                    .into(),
            ),
            (Some(404), _) => Self::Refused("the hub has no such model, data set or revision".into()),
            (Some(status), _) => Self::Unreachable(format!("it answered with status {status}")),
            (None, ApiError::RequestError(e)) => Self::Unreachable(e.to_string()),
            (None, ApiError::TooManyRetries(e)) => Self::Unreachable(format!("the download broke off: {e}")),
            (None, e) => Self::Refused(e.to_string()),
        }
    }
}

/// Downloads one file into the cache.
fn download(repo: &ApiRepo, name: &str, progress: &dyn Progress) -> std::result::Result<PathBuf, Failure> {
    let stage = format!("fetch {name}");
    let bar = Bar { stage, progress };
    Ok(repo.download_with_progress(name, bar)?)
}

/// Our progress, told by the crate.
struct Bar<'a> {
    stage: String,
    progress: &'a dyn Progress,
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.progress.begin(&self.stage, Some(size as u64), "bytes");
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {
        self.progress.finish();
    }
}

#[cfg(test)]
mod tests;
