//! The routes, and the server around them.

use std::future::Future;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::state::{Hosts, State};
use crate::{Error, Result, api, assets, guard, runs};

/// How long requests in progress may take to end after Ctrl-C.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Options {
    /// An address of this machine, or a name that resolves to one. Beyond loopback everyone who can reach the machine
    /// can read what is served.
    pub host: String,
    /// A port; 0 takes any that is free.
    pub port: u16,
}

impl Default for Options {
    /// Loopback, port 7860.
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 7860,
        }
    }
}

/// Serves feature indexes, or training runs, until Ctrl-C (or a request to terminate), then returns. `on_ready` is called once, with the
/// address to open, when requests are answered.
///
/// # Errors
/// If a directory is neither an index nor a run, or cannot be read; if the port is taken, or the host is no address of this machine.
pub fn serve(directories: Vec<PathBuf>, options: Options, on_ready: impl FnOnce(&str)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Server)?;
    let served = runtime.block_on(async {
        // The port first: with it taken there is no point in reading an index.
        let listener = listen(&options).await?;
        let address = listener.local_addr().map_err(Error::Server)?;
        let state = State::open_for(&directories, hosts(&options.host, address.ip()))?;
        let ended = stopped()?;
        on_ready(&url(&options.host, address.ip(), address.port()));
        let (farewell, said) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router(state)).with_graceful_shutdown(async move {
            ended.await;
            let _ = farewell.send(());
        });
        tokio::select! {
            done = server.into_future() => done.map_err(Error::Server),
            // A connection that never ends must not keep the program.
            () = async { let _ = said.await; tokio::time::sleep(FAREWELL).await } => Ok(()),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

/// The routes over what is open: what [`serve`] serves, without a socket.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/", get(assets::page))
        .route("/feature/{feature}", get(feature_page))
        .route("/run/{id}", get(runs::page))
        .route("/assets/{name}", get(assets::asset))
        .route("/api/indexes", get(api::indexes))
        .route("/api/indexes/{id}/summaries", get(api::summaries))
        .route("/api/indexes/{id}/features/{feature}", get(api::feature))
        .route("/api/runs", get(runs::list))
        .route("/api/runs/{id}", get(runs::run))
        .route("/api/{*rest}", get(api::unknown))
        .fallback(not_found)
        .layer(from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

/// The page is the same for every feature; its status says whether an index has one of that number.
async fn feature_page(Extract(state): Extract<State>, Path(number): Path<String>, headers: HeaderMap) -> Response {
    match api::parse_feature(&number) {
        Some(feature) if state.has_feature(feature) => assets::page(headers).await,
        _ => not_found().await,
    }
}

/// The page says kindly that there is nothing here.
pub async fn not_found() -> Response {
    let mut response = assets::page(HeaderMap::new()).await;
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.into_response()
}

async fn listen(options: &Options) -> Result<TcpListener> {
    let (host, port) = (options.host.clone(), options.port);
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    TcpListener::bind((name.as_str(), port))
        .await
        .map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => Error::PortTaken { host, port },
            _ => Error::Listen { host, port, source },
        })
}

/// Which `Host` headers to answer, when told to listen on `host` and listening on `address`.
fn hosts(host: &str, address: IpAddr) -> Hosts {
    Hosts {
        addresses: !address.is_loopback(),
        name: Some(host.to_ascii_lowercase()),
    }
}

/// What to open: a wildcard address is not one that a browser can visit.
fn url(host: &str, address: IpAddr, port: u16) -> String {
    if address.is_unspecified() {
        return format!("http://127.0.0.1:{port}");
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V6(address)) => format!("http://[{address}]:{port}"),
        Ok(IpAddr::V4(address)) => format!("http://{address}:{port}"),
        Err(_) => format!("http://{host}:{port}"),
    }
}

/// Installs the handlers and returns what ends at Ctrl-C, or at a request to terminate.
fn stopped() -> Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminated =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(Error::Server)?;
    #[cfg(unix)]
    let mut interrupted =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(Error::Server)?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_to_open_is_one_that_a_browser_can_visit() {
        let url = |host: &str, address: &str| url(host, address.parse().unwrap(), 7860);
        assert_eq!(url("127.0.0.1", "127.0.0.1"), "http://127.0.0.1:7860");
        assert_eq!(url("localhost", "127.0.0.1"), "http://localhost:7860");
        assert_eq!(url("0.0.0.0", "0.0.0.0"), "http://127.0.0.1:7860");
        assert_eq!(url("::1", "::1"), "http://[::1]:7860");
        assert_eq!(url("[::1]", "::1"), "http://[::1]:7860");
    }
}
