//! Training runs, while they train and afterwards. A run gets an id when it is first seen and keeps it: runs that begin
//! later, such as the next ones of a grid, appear by themselves. Ids are looked up here and never touch a path.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path as PathOf, Query, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sae::config::{GRID_TOML, RUN_TOML};
use sae::train::follow::{Tail, Watched, tail, watch};
use sae::train::runs::find;
use serde::{Deserialize, Serialize};

use crate::api::{Answer, malformed};
use crate::assets;
use crate::reply::{Problem, json};
use crate::serve::not_found;
use crate::state::{State, unique_id};
use crate::{Error, Result};

/// The runs below the directories that were given.
pub(crate) struct Runs {
    roots: Vec<PathBuf>,
    known: Mutex<Vec<Known>>,
}

/// A run that was seen.
#[derive(Clone)]
struct Known {
    /// What addresses call it: never a path.
    id: String,
    /// What people call it: its place below the directory that was given, or that directory.
    name: String,
    path: PathBuf,
}

/// A run in the list.
#[derive(Serialize)]
struct Listed {
    id: String,
    name: String,
    #[serde(flatten)]
    run: Watched,
}

/// A run, and what its log says from a number of bytes on.
#[derive(Serialize)]
struct Followed {
    #[serde(flatten)]
    listed: Listed,
    metrics: Tail,
}

/// From where on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    #[serde(default)]
    from: u64,
}

/// Whether a directory is a run's, a grid's, or one with runs in it.
pub(crate) fn is_runs(path: &Path) -> bool {
    path.join(RUN_TOML).exists() || path.join(GRID_TOML).exists() || find(path).is_ok_and(|runs| !runs.is_empty())
}

impl Runs {
    /// Those in `roots`, of which each [`is_runs`].
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            known: Mutex::default(),
        }
    }

    /// Looks for runs that are new, and gives those there are, in the order of the directories.
    fn look(&self) -> Result<Vec<Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for root in &self.roots {
            for path in find(root).map_err(Error::Index)? {
                let same = known.iter().find(|run| run.path == path).cloned();
                let run = same.unwrap_or_else(|| {
                    let name = name(root, &path);
                    let is_free = |id: &str| known.iter().all(|other| other.id != id);
                    let id = unique_id(&name, "run", is_free);
                    Known { id, name, path }
                });
                if known.iter().all(|other| other.path != run.path) {
                    known.push(run.clone());
                }
                found.push(run);
            }
        }
        // The same directory may have been given twice.
        let mut seen = Vec::new();
        found.retain(|run: &Known| {
            let new = !seen.contains(&run.id);
            seen.push(run.id.clone());
            new
        });
        Ok(found)
    }

    fn get(&self, id: &str) -> Option<Known> {
        let of = |runs: &[Known]| runs.iter().find(|run| run.id == id).cloned();
        let known = of(&self.known.lock().unwrap_or_else(PoisonError::into_inner));
        // An address from before this server was started, or of a run that has just begun.
        known.or_else(|| of(&self.look().ok()?))
    }
}

/// What people call the run at `path` in `root`.
fn name(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    match below.as_os_str().is_empty() {
        false => below.display().to_string(),
        true => {
            let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            resolved.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
    }
}

/// Every run, as it is now.
pub async fn list(Extract(state): Extract<State>, headers: HeaderMap) -> Answer {
    let runs = blocking(move || {
        let runs = state.0.runs.look().map_err(|e| e.to_string())?;
        Ok(runs.into_iter().map(listed).collect::<Vec<_>>())
    });
    Ok(json(&headers, &runs.await?))
}

/// One run, with the lines of its log from `?from=` on.
pub async fn run(
    Extract(state): Extract<State>,
    id: std::result::Result<PathOf<String>, PathRejection>,
    query: std::result::Result<Query<Since>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let PathOf(id) = id.map_err(malformed)?;
    let Ok(Query(Since { from })) = query else {
        let text = "the query of a run is ?from= and a number of bytes";
        return Err(Problem::new(StatusCode::BAD_REQUEST, text));
    };
    let followed = blocking(move || {
        let Some(known) = state.0.runs.get(&id) else {
            return Ok(None);
        };
        let metrics = tail(&known.path, from).map_err(|e| e.to_string())?;
        let listed = listed(known);
        Ok(Some(Followed { listed, metrics }))
    });
    match followed.await? {
        Some(followed) => Ok(json(&headers, &followed)),
        None => Err(Problem::not_found(
            "there is no such run; /api/runs lists those there are",
        )),
    }
}

fn listed(known: Known) -> Listed {
    let run = watch(&known.path);
    let Known { id, name, .. } = known;
    Listed { id, name, run }
}

/// Reads files aside from the server's threads.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, Problem> {
    let failed = |text: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|e| failed(e.to_string()))?.map_err(failed)
}

/// The page of a run; its status says whether there is such a one.
pub async fn page(Extract(state): Extract<State>, PathOf(id): PathOf<String>, headers: HeaderMap) -> Response {
    let found = blocking(move || Ok(state.0.runs.get(&id).is_some()));
    match found.await {
        Ok(true) => assets::page(headers).await,
        Ok(false) => not_found().await,
        Err(problem) => problem.into_response(),
    }
}
