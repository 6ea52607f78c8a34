//! The pages, as they are compiled into the binary. A name is looked up in this list; the disk is never asked.

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::reply::{Problem, tagged};

const CSS: &str = "text/css; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($name:literal: $kind:ident),* $(,)?) => {
        /// Name, content type, bytes.
        const ASSETS: &[(&str, &str, &[u8])] = &[$(($name, $kind, include_bytes!(concat!("../assets/", $name)))),*];
    };
}

assets! {
    "app.js": JS,
    "api.js": JS,
    "atlas.css": CSS,
    "atlas.js": JS,
    "base.css": CSS,
    "chart.js": JS,
    "dom.js": JS,
    "examples.js": JS,
    "feature.css": CSS,
    "feature.js": JS,
    "filter.js": JS,
    "format.js": JS,
    "help.js": JS,
    "histogram.js": JS,
    "icon.svg": SVG,
    "run.css": CSS,
    "run.js": JS,
    "runs.js": JS,
    "scatter.js": JS,
    "search.js": JS,
    "table.js": JS,
    "theme.js": JS,
    "tokens.js": JS,
    "tooltip.js": JS,
}

/// The one document: its modules read the address and draw the page.
pub async fn page(headers: HeaderMap) -> Response {
    tagged(&headers, HTML, &include_bytes!("../assets/index.html")[..])
}

/// A file of the pages, by its exact name.
pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, bytes)) => tagged(&headers, kind, *bytes),
        None => Problem::not_found("there is no such file").into_response(),
    }
}
