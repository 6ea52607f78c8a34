//! The router over training runs, asked without a socket: one that is written, several, and damaged ones.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use std::fs;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use viewer::{Error, State, router};

/// A line of `metrics.jsonl`.
fn line(step: u64) -> String {
    let line = serde_json::json!({
        "step": step, "tokens": 10 * step, "epoch": 0, "lr": 1e-3, "loss": 0.5, "parts": {"mse": 0.25, "aux_k": 1.0},
        "l0": 4.0, "dead_share": 0.0,
    });
    format!("{line}\n")
}

/// Makes the directory of a run that has just begun.
fn begin(dir: &Path, k: usize) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let toml = format!("[sae]\nk = {k}\nd_sae = 64\n[train]\nsteps = 40\n");
    fs::write(dir.join("run.toml"), toml).unwrap();
    dir.to_owned()
}

async fn get(router: &Router, path: &str) -> (StatusCode, Vec<u8>) {
    let request = Request::get(path).header("host", "127.0.0.1:7860");
    let answer = router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let status = answer.status();
    (status, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
}

async fn json(router: &Router, path: &str) -> Value {
    let (status, body) = get(router, path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

fn steps(answer: &Value) -> Vec<u64> {
    let lines = answer["metrics"]["lines"].as_array().unwrap();
    lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn only_the_new_lines_of_a_run_that_is_written_travel() {
    let dir = TempDir::new().unwrap();
    let run = begin(&dir.path().join("a run"), 4);
    let router = router(State::open(std::slice::from_ref(&run)).unwrap());
    assert_eq!(json(&router, "/api/indexes").await, serde_json::json!([]));
    let begun = json(&router, "/api/runs/a-run").await;
    assert_eq!((&begun["stage"], &begun["steps"]), (&"training".into(), &40.into()));
    assert_eq!(
        (begun["name"].as_str(), begun["config"]["sae.k"].as_str()),
        (Some("a run"), Some("4"))
    );
    assert!(steps(&begun).is_empty() && begun["tokens_per_second"].is_null());

    let log = run.join("metrics.jsonl");
    fs::write(&log, line(1) + &line(2) + "{\"step\":").unwrap();
    let first = json(&router, "/api/runs/a-run?from=0").await;
    assert_eq!((steps(&first), &first["step"]), (vec![1, 2], &2.into()));
    let next = first["metrics"]["next"].as_u64().unwrap();
    fs::write(&log, line(1) + &line(2) + &line(3)).unwrap();
    let second = json(&router, &format!("/api/runs/a-run?from={next}")).await;
    assert_eq!(
        (steps(&second), second["metrics"]["from"].as_u64()),
        (vec![3], Some(next))
    );
    // A resume cuts the log back: everything again.
    fs::write(&log, line(1)).unwrap();
    let third = json(&router, &format!("/api/runs/a-run?from={next}")).await;
    assert_eq!((steps(&third), third["metrics"]["from"].as_u64()), (vec![1], Some(0)));
}

#[tokio::test]
async fn broken_lines_and_vanished_files_are_said_and_the_rest_is_given() {
    let dir = TempDir::new().unwrap();
    let run = begin(&dir.path().join("run"), 4);
    fs::write(run.join("metrics.jsonl"), line(1) + "nonsense\n" + &line(3)).unwrap();
    let router = router(State::open(std::slice::from_ref(&run)).unwrap());
    let answer = json(&router, "/api/runs/run").await;
    assert_eq!(steps(&answer), [1, 3]);
    let problem = answer["metrics"]["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("metrics.jsonl") && problem.contains("byte"),
        "{problem}"
    );
    fs::write(run.join("run.toml"), "[sae]\nkk = 3\n").unwrap();
    let answer = json(&router, "/api/runs/run").await;
    assert!(answer["stage"] == "unreadable" && answer["problem"].as_str().unwrap().contains("kk"));
    assert_eq!(steps(&answer), [1, 3]);
    fs::remove_dir_all(&run).unwrap();
    let answer = json(&router, "/api/runs/run?from=50").await;
    assert!(answer["stage"] == "unreadable" && steps(&answer).is_empty(), "{answer}");
}

#[tokio::test]
async fn runs_that_begin_later_appear_and_ids_stay() {
    let dir = TempDir::new().unwrap();
    // A grid whose first run has not begun.
    fs::write(dir.path().join("grid.toml"), "").unwrap();
    let router = router(State::open(&[dir.path().to_owned()]).unwrap());
    assert_eq!(json(&router, "/api/runs").await, serde_json::json!([]));
    begin(&dir.path().join("k=8"), 8);
    let ids = |list: &Value| -> Vec<(String, String)> {
        let text = |run: &Value, key: &str| run[key].as_str().unwrap().to_owned();
        let runs = list.as_array().unwrap();
        runs.iter().map(|run| (text(run, "id"), text(run, "name"))).collect()
    };
    let pair = |id: &str, name: &str| (id.to_owned(), name.to_owned());
    assert_eq!(ids(&json(&router, "/api/runs").await), [pair("k-8", "k=8")]);
    // Its name has the same letters and it comes first, but addresses of the other hold.
    begin(&dir.path().join("k 8"), 8);
    let list = json(&router, "/api/runs").await;
    assert_eq!(ids(&list), [pair("k-8-2", "k 8"), pair("k-8", "k=8")]);
    for (path, status) in [
        ("/run/k-8", StatusCode::OK),
        ("/run/k-9", StatusCode::NOT_FOUND),
        ("/run/..%2Fk-8", StatusCode::NOT_FOUND),
        ("/api/runs/..%2f..%2fetc", StatusCode::NOT_FOUND),
        ("/api/runs/k%3D8", StatusCode::NOT_FOUND),
        ("/api/runs/k-8?from=-1", StatusCode::BAD_REQUEST),
        ("/api/runs/k-8?path=/etc", StatusCode::BAD_REQUEST),
        ("/api/runs/k-8?from=18446744073709551615", StatusCode::OK),
        ("/feature/0", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(get(&router, path).await.0, status, "{path}");
    }
}

#[test]
fn a_directory_that_is_neither_is_refused_with_what_was_expected() {
    let dir = TempDir::new().unwrap();
    let run = begin(&dir.path().join("run"), 4);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let said = State::open(std::slice::from_ref(&empty)).err().unwrap().to_string();
    for part in ["empty", "feature index", "training run", "run.toml"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(matches!(State::open(&[run.clone(), empty.clone()]), Err(Error::Neither { path }) if path == empty));
    fs::write(empty.join("manifest.json"), "{}").unwrap();
    assert!(matches!(State::open(&[empty, run]), Err(Error::Both { .. })));
}
