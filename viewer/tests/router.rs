//! The router, asked without a socket: what it gives, and what it refuses.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/story.rs"]
mod story;

use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use story::Story;
use tempfile::TempDir;
use tower::ServiceExt;
use viewer::{State, router};

/// Indexes in a directory of their own, and the router over them.
struct Site {
    _dir: TempDir,
    paths: Vec<PathBuf>,
    router: Router,
}

impl Site {
    fn new(stories: &[(&str, Story)]) -> Self {
        let dir = TempDir::new().unwrap();
        let paths: Vec<PathBuf> = stories.iter().map(|(name, _)| dir.path().join(name)).collect();
        for (path, (_, story)) in paths.iter().zip(stories) {
            story::write(path, story).unwrap();
        }
        let router = router(State::open(&paths).unwrap());
        Self {
            _dir: dir,
            paths,
            router,
        }
    }

    fn plain() -> Self {
        Self::new(&[("features", Story::default())])
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (
            parts.status,
            parts.headers,
            body.collect().await.unwrap().to_bytes().to_vec(),
        )
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, Vec<u8>) {
        self.ask(request(path).body(Body::empty()).unwrap()).await
    }

    async fn json(&self, path: &str) -> Value {
        let (status, headers, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        assert!(
            headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with("application/json")
        );
        serde_json::from_slice(&body).unwrap()
    }
}

fn request(path: &str) -> axum::http::request::Builder {
    Request::get(path).header("host", "127.0.0.1:7860")
}

#[tokio::test]
async fn indexes_are_listed_with_their_manifests_the_first_is_the_default() {
    let small = Story {
        d_sae: 3,
        ..Story::default()
    };
    let site = Site::new(&[("second run", small), ("a/features", small), ("b/features", small)]);
    let list = site.json("/api/indexes").await;
    let ids: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["second-run", "features", "features-2"]);
    assert_eq!(list[0]["manifest"]["d_sae"], 3);
    assert_eq!(list[0]["manifest"]["dictionary"]["k"], 32);
    for id in ids {
        assert_eq!(site.json(&format!("/api/indexes/{id}/features/2")).await["feature"], 2);
    }
}

#[tokio::test]
async fn summaries_are_columns_of_one_entry_a_feature() {
    let site = Site::plain();
    let index = sae::index::FeatureIndex::open(&site.paths[0]).unwrap();
    let columns = site.json("/api/indexes/features/summaries").await;
    for name in ["n_active", "max", "min", "mean_active", "top_tokens"] {
        assert_eq!(columns[name].as_array().unwrap().len(), 60, "{name}");
    }
    for (i, summary) in index.summaries().iter().enumerate() {
        assert_eq!(columns["n_active"][i], summary.n_active);
        let max = columns["max"][i].as_f64().unwrap();
        assert!(
            (max - f64::from(summary.max)).abs() <= 1e-4 * f64::from(summary.max),
            "{max} for {}",
            summary.max
        );
        let tokens: Vec<&Value> = columns["top_tokens"][i]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| &columns["texts"][t.as_u64().unwrap() as usize])
            .collect();
        for (text, token) in tokens.iter().zip(&summary.top_tokens) {
            let bytes = index.token_bytes(*token).unwrap();
            match std::str::from_utf8(bytes) {
                Ok(expected) if !expected.is_empty() => assert_eq!(text.as_str(), Some(expected)),
                _ => assert!(text.is_array()),
            }
        }
    }
}

#[tokio::test]
async fn a_feature_comes_with_the_texts_of_its_examples() {
    let site = Site::plain();
    let index = sae::index::FeatureIndex::open(&site.paths[0]).unwrap();
    let alive = index.summaries().iter().filter(|s| s.alive).map(|s| s.feature);
    for feature in alive.take(10) {
        let detail = index.feature(feature).unwrap();
        let page = site.json(&format!("/api/indexes/features/features/{feature}")).await;
        assert_eq!(page["max"].as_f64().unwrap() as f32, detail.summary.max);
        assert_eq!(page["strata"].as_array().unwrap().len(), detail.strata.len());
        assert_eq!(page["strata"][0]["stratum"], "top");
        assert_eq!(
            page["positive"]["counts"].as_array().unwrap().len(),
            detail.positive.counts.len()
        );
        assert_eq!(page["top_logits"].as_array().unwrap().len(), 10);
        let (shown, kept) = (&page["strata"][0]["examples"][0], &detail.strata[0].examples[0]);
        let text = &page["texts"][shown["text"].as_u64().unwrap() as usize];
        let context = index.context(kept.context).unwrap();
        assert_eq!(text["context"], kept.context);
        assert_eq!(text["tokens"], serde_json::json!(context.tokens));
        assert_eq!(text["pieces"].as_array().unwrap().len(), context.tokens.len());
        assert_eq!(shown["position"], kept.position);
        assert_eq!(shown["value"].as_f64().unwrap() as f32, kept.value);
        // What is drawn is the context's bytes, where they are UTF-8.
        let drawn: String = text["pieces"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let bytes: Vec<u8> = context
            .tokens
            .iter()
            .flat_map(|t| index.token_bytes(*t).unwrap())
            .copied()
            .collect();
        assert!(String::from_utf8_lossy(&bytes).contains(&drawn) || drawn.len() < bytes.len());
        assert!(drawn.contains("Once upon a time"));
    }
}

#[tokio::test]
async fn a_long_context_is_cut_to_a_window_around_the_example() {
    let site = Site::new(&[(
        "long",
        Story {
            d_sae: 12,
            contexts: 4,
            length: 1500,
            ..Story::default()
        },
    )]);
    let page = site.json("/api/indexes/long/features/0").await;
    for stratum in page["strata"].as_array().unwrap() {
        for example in stratum["examples"].as_array().unwrap() {
            let text = &page["texts"][example["text"].as_u64().unwrap() as usize];
            let (start, length) = (
                text["start"].as_u64().unwrap(),
                text["pieces"].as_array().unwrap().len() as u64,
            );
            assert_eq!(text["length"], 1500);
            assert_eq!(length, 512);
            let position = example["position"].as_u64().unwrap();
            assert!((start..start + length).contains(&position));
            for at in example["positions"].as_array().unwrap() {
                assert!((start..start + length).contains(&at.as_u64().unwrap()));
            }
        }
    }
}

#[tokio::test]
async fn signed_codes_have_both_poles_and_dead_features_no_examples() {
    let site = Site::new(&[(
        "signed",
        Story {
            signed: true,
            logits: false,
            ..Story::default()
        },
    )]);
    let columns = site.json("/api/indexes/signed/summaries").await;
    let is_both = |i: &usize| columns["max"][i].as_f64() > Some(0.0) && columns["min"][i].as_f64() < Some(0.0);
    let both = (0..60).find(is_both).unwrap();
    let page = site.json(&format!("/api/indexes/signed/features/{both}")).await;
    let strata = page["strata"].as_array().unwrap().iter();
    let strata: Vec<&str> = strata.map(|s| s["stratum"].as_str().unwrap()).collect();
    assert_eq!(&strata[..2], ["top", "bottom"]);
    assert!(page["min"].as_f64().unwrap() < 0.0);
    assert!(!page["negative"]["counts"].as_array().unwrap().is_empty());
    assert_eq!(page["top_logits"], serde_json::json!([]));
    let dead = site.json("/api/indexes/signed/features/7").await;
    assert_eq!(dead["alive"], false);
    assert_eq!(dead["strata"], serde_json::json!([]));
}

#[tokio::test]
async fn what_the_browser_has_is_not_sent_again() {
    let site = Site::plain();
    for path in [
        "/",
        "/assets/app.js",
        "/api/indexes/features/summaries",
        "/api/indexes/features/features/1",
    ] {
        let (status, headers, body) = site.get(path).await;
        assert_eq!(status, StatusCode::OK);
        assert!(!body.is_empty());
        let tag = headers["etag"].to_str().unwrap();
        for known in [tag.to_owned(), format!("\"other\", W/{tag}")] {
            let again = request(path)
                .header("if-none-match", known)
                .body(Body::empty())
                .unwrap();
            let (status, _, body) = site.ask(again).await;
            assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{path}");
        }
        let other = request(path)
            .header("if-none-match", "\"other\"")
            .body(Body::empty())
            .unwrap();
        assert_eq!(site.ask(other).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let site = Site::plain();
    for path in [
        "/",
        "/assets/base.css",
        "/api/indexes",
        "/api/nothing",
        "/nowhere",
        "/feature/999",
    ] {
        let (_, headers, _) = site.get(path).await;
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{path}");
        assert!(
            !policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'),
            "{policy}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn pages_name_no_other_origin_and_hold_nothing_inline() {
    let site = Site::plain();
    let (_, headers, body) = site.get("/").await;
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    let page = String::from_utf8(body).unwrap();
    assert!(!page.contains("http://www") && !page.contains("https:") && !page.contains("style=\""));
    let mut assets = 0;
    for part in page.split(['"', '\'']).filter(|p| p.starts_with("/assets/")) {
        let (status, headers, body) = site.get(part).await;
        assert_eq!(status, StatusCode::OK, "{part}");
        let kind = headers["content-type"].to_str().unwrap();
        assert!(
            ["text/css", "text/javascript", "image/svg+xml"]
                .iter()
                .any(|k| kind.starts_with(k)),
            "{part}: {kind}"
        );
        let text = String::from_utf8(body).unwrap();
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "https://",
            "@import",
        ] {
            assert!(!text.contains(forbidden), "{part} contains {forbidden}");
        }
        assets += 1;
    }
    assert!(assets > 15, "{assets}");
}

#[tokio::test]
async fn a_page_that_does_not_exist_is_the_page_with_status_404() {
    let site = Site::plain();
    for path in ["/feature/59", "/feature/0", "/"] {
        assert_eq!(site.get(path).await.0, StatusCode::OK, "{path}");
    }
    for path in [
        "/feature/60",
        "/feature/x",
        "/feature/-1",
        "/feature/99999999999999999999",
        "/nowhere",
        "/feature/",
    ] {
        let (status, headers, body) = site.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(
            headers["content-type"].to_str().unwrap().starts_with("text/html"),
            "{path}"
        );
        assert!(String::from_utf8(body).unwrap().contains("<main"));
    }
}

#[tokio::test]
async fn hostile_ids_are_not_found_and_never_repeated() {
    let site = Site::plain();
    let (bad, gone) = (StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND);
    let cases = [
        ("/api/indexes/features/features/60", gone),
        ("/api/indexes/features/features/-1", gone),
        ("/api/indexes/features/features/+1", gone),
        ("/api/indexes/features/features/1.0", gone),
        ("/api/indexes/features/features/0x1", gone),
        ("/api/indexes/features/features/4294967296", gone),
        ("/api/indexes/features/features/%20", gone),
        ("/api/indexes/features/features/NaN", gone),
        ("/api/indexes/nope/features/1", gone),
        ("/api/indexes/nope/summaries", gone),
        ("/api/indexes/..%2f..%2fetc%2fpasswd/summaries", gone),
        ("/api/indexes/../../manifest.json", gone),
        ("/api/indexes/%3Cscript%3E/summaries", gone),
        ("/api/indexes/%ff%fe/summaries", bad),
        ("/api/indexes/features/features/%ff", bad),
        ("/api/indexes/features/manifest.json", gone),
        ("/assets/..%2f..%2fCargo.toml", gone),
        ("/assets/..%5c..%5cCargo.toml", gone),
        ("/assets/%2e%2e%2flib.rs", gone),
        ("/assets/app.js%00.css", gone),
        ("/assets/APP.JS", gone),
        ("/api", gone),
        ("/api/", gone),
    ];
    for (path, expected) in cases {
        let (status, _, body) = site.get(path).await;
        assert_eq!(status, expected, "{path}");
        let text = String::from_utf8(body).unwrap();
        assert!(
            !text.contains("passwd") && !text.contains("root:") && !text.contains("[package]"),
            "{path}: {text}"
        );
        assert!(
            !text.contains("<script>alert") && !text.contains("%3C"),
            "{path}: {text}"
        );
        assert!(
            !text.contains(site.paths[0].parent().unwrap().to_str().unwrap()),
            "{path}: {text}"
        );
    }
}

#[tokio::test]
async fn a_foreign_or_missing_host_is_refused() {
    let site = Site::plain();
    let with_host = |host: &str| {
        Request::get("/api/indexes")
            .header("host", host)
            .body(Body::empty())
            .unwrap()
    };
    for host in ["127.0.0.1", "localhost:7860", "[::1]:7860"] {
        assert_eq!(site.ask(with_host(host)).await.0, StatusCode::OK, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "10.0.0.1:7860",
        "",
    ] {
        let (status, _, body) = site.ask(with_host(host)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{host}");
        assert!(!String::from_utf8(body).unwrap().contains("d_sae"));
    }
    let none = Request::get("/api/indexes").body(Body::empty()).unwrap();
    assert_eq!(site.ask(none).await.0, StatusCode::FORBIDDEN);
    let two = request("/api/indexes")
        .header("host", "evil.example")
        .body(Body::empty())
        .unwrap();
    assert_eq!(site.ask(two).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn requests_that_another_site_causes_are_refused() {
    let site = Site::plain();
    let with = |name: &str, value: &str| request("/api/indexes").header(name, value).body(Body::empty()).unwrap();
    assert_eq!(
        site.ask(with("origin", "http://127.0.0.1:7860")).await.0,
        StatusCode::OK
    );
    assert_eq!(
        site.ask(with("origin", "https://evil.example")).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        site.ask(with("origin", "http://127.0.0.1:9999")).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(site.ask(with("origin", "null")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(site.ask(with("sec-fetch-site", "same-origin")).await.0, StatusCode::OK);
    assert_eq!(
        site.ask(with("sec-fetch-site", "cross-site")).await.0,
        StatusCode::FORBIDDEN
    );
    // A link from elsewhere is followed.
    let link = request("/")
        .header("sec-fetch-site", "cross-site")
        .header("sec-fetch-mode", "navigate");
    assert_eq!(site.ask(link.body(Body::empty()).unwrap()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn only_reading_is_answered_and_long_addresses_are_not_read() {
    let site = Site::plain();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let request = Request::builder()
            .method(method)
            .uri("/api/indexes")
            .header("host", "localhost");
        let (status, ..) = site.ask(request.body(Body::from("{}")).unwrap()).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    let head = Request::head("/api/indexes")
        .header("host", "localhost")
        .body(Body::empty())
        .unwrap();
    let (status, _, body) = site.ask(head).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert_eq!(
        site.get(&format!("/?tokens={}", "a".repeat(4000))).await.0,
        StatusCode::OK
    );
    assert_eq!(
        site.get(&format!("/?tokens={}", "a".repeat(5000))).await.0,
        StatusCode::URI_TOO_LONG
    );
    assert_eq!(
        site.get(&format!("/{}", "a/".repeat(4000))).await.0,
        StatusCode::URI_TOO_LONG
    );
}

#[tokio::test]
async fn an_index_that_is_deleted_while_it_is_served_goes_on_being_read() {
    let site = Site::plain();
    std::fs::remove_dir_all(&site.paths[0]).unwrap();
    assert_eq!(site.json("/api/indexes/features/features/3").await["feature"], 3);
}

#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_served_is_an_error_that_names_it() {
    let site = Site::plain();
    let examples = site.paths[0].join("examples.parquet");
    let length = std::fs::metadata(&examples).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&examples).unwrap();
    file.set_len(8).unwrap();
    file.set_len(length).unwrap();
    let (status, _, body) = site.get("/api/indexes/features/features/3").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert!(
        problem["error"].as_str().unwrap().contains("examples.parquet"),
        "{problem}"
    );
    // The rest is served on.
    assert_eq!(site.get("/api/indexes/features/summaries").await.0, StatusCode::OK);
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let site = Site::plain();
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let asked = request(&format!("/api/indexes/features/features/{}", i % 60))
                .body(Body::empty())
                .unwrap();
            tokio::spawn(site.router.clone().oneshot(asked))
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}
