//! `/api/...`: data for the pages. Ids are looked up among the open indexes and never touch a path.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use sae::index::IndexManifest;
use serde::Serialize;

use crate::detail;
use crate::reply::{JSON, Problem, json, tagged};
use crate::state::{Served, State};

/// How long a request waits for its turn to read before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(5);

pub type Answer = Result<Response, Problem>;

#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    manifest: &'a IndexManifest,
}

/// Every index, the default first.
pub async fn indexes(Extract(state): Extract<State>, headers: HeaderMap) -> Response {
    let list: Vec<_> = state.all().map(|(id, manifest)| Listed { id, manifest }).collect();
    json(&headers, &list)
}

/// The statistics of all features.
pub async fn summaries(
    Extract(state): Extract<State>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Answer {
    let Path(id) = id.map_err(malformed)?;
    Ok(tagged(&headers, JSON, find(&state, &id)?.summaries.clone()))
}

/// Everything about one feature.
pub async fn feature(
    Extract(state): Extract<State>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Answer {
    let Path((id, number)) = path.map_err(malformed)?;
    let served = find(&state, &id)?.clone();
    let d_sae = served.index.manifest().d_sae;
    let feature = parse_feature(&number)
        .filter(|n| (*n as usize) < d_sae)
        .ok_or_else(|| {
            Problem::not_found(format!(
                "there is no such feature: they are numbered 0 to {}",
                d_sae.saturating_sub(1)
            ))
        })?;
    let turn = tokio::time::timeout(PATIENCE, state.0.reads.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let text = "too many features are being read at once; try again in a moment";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        detail::read(&served.index, feature)
    });
    let damaged = |text: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let detail = read.await.map_err(|e| damaged(e.to_string()))?;
    Ok(json(&headers, &detail.map_err(|e| damaged(e.to_string()))?))
}

/// Whatever else is asked for below `/api`.
pub async fn unknown() -> Problem {
    Problem::not_found("there is no such address")
}

/// A feature's number as pages write it: digits, nothing else.
pub fn parse_feature(text: &str) -> Option<u32> {
    (text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn find<'a>(state: &'a State, id: &str) -> Result<&'a Arc<Served>, Problem> {
    // The id is not repeated: it came from outside.
    state
        .index(id)
        .ok_or_else(|| Problem::not_found("there is no such index; /api/indexes lists those there are"))
}

pub fn malformed(_: PathRejection) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the address is not valid UTF-8")
}
