//! What every request must pass and every answer carries.
//!
//! A server on loopback is reachable by every page that the user's browser visits: by name (DNS rebinding) and by
//! blind requests. So the `Host` must be one that cannot be rebound, requests that another site's page causes are
//! refused, and answers forbid the page everything but its own files.

use std::net::IpAddr;

use axum::extract::{Request, State as Extract};
use axum::http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::reply::Problem;
use crate::state::{Hosts, State};

/// Bytes of path and query, at most: the longest address of our own is a few hundred.
const ADDRESS: usize = 4096;

/// Sent with every answer, errors included.
const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// The middleware around all routes.
pub async fn guard(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let mut response = match check(&state.0.hosts, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    for (name, value) in HEADERS {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
        response.headers_mut().insert(name, value);
    }
    response
}

fn check(hosts: &Hosts, request: &Request) -> Result<(), Problem> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are answered",
        ));
    }
    let length = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if length > ADDRESS {
        let text = format!("the address has {length} bytes, at most {ADDRESS} are read");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, text));
    }
    let headers = request.headers();
    let host = one(headers, HOST).filter(|host| hosts.answer_to(host)).ok_or_else(|| {
        Problem::new(
            StatusCode::FORBIDDEN,
            "this server does not answer to that host name; open it by its address, or name the host with --host",
        )
    })?;
    let elsewhere = one(headers, ORIGIN).is_some_and(|origin| origin.split_once("://").map(|o| o.1) != Some(host));
    let site = headers.get("sec-fetch-site").and_then(|v| v.to_str().ok());
    let embeds = site == Some("cross-site") && headers.get("sec-fetch-mode").is_none_or(|mode| mode != "navigate");
    if elsewhere || embeds {
        let text = "this server answers its own pages only, not requests from other sites";
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    Ok(())
}

/// The header's value if there is exactly one and it is text; an unreadable one counts as the empty string.
fn one(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    Some(if values.next().is_some() {
        ""
    } else {
        first.to_str().unwrap_or_default()
    })
}

impl Hosts {
    /// Whether a `Host` header names this server by something that no name server can redirect. The port is not
    /// compared: it differs behind a tunnel, and rebinding needs a name.
    fn answer_to(&self, header: &str) -> bool {
        let Some(name) = host_name(header) else {
            return false;
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.addresses || address.is_loopback();
        }
        let name = name.to_ascii_lowercase();
        name == "localhost" || self.name.as_deref() == Some(name.as_str())
    }
}

/// The name or address in `name`, `name:port`, `[v6]` or `[v6]:port`.
fn host_name(header: &str) -> Option<&str> {
    let (name, port) = match header.strip_prefix('[') {
        Some(rest) => {
            let (name, after) = rest.split_once(']')?;
            (
                name,
                if after.is_empty() {
                    None
                } else {
                    Some(after.strip_prefix(':')?)
                },
            )
        }
        None => match header.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (header, None),
        },
    };
    (!name.is_empty() && port.is_none_or(|p| p.parse::<u16>().is_ok())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_are_answered_whatever_the_port() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:7860",
            "localhost:1",
            "LOCALHOST",
            "[::1]:7860",
            "[::1]",
            "127.9.9.9:80",
        ] {
            assert!(Hosts::default().answer_to(host), "{host}");
        }
    }

    #[test]
    fn names_that_could_be_rebound_are_refused() {
        let hostile = [
            "evil.example",
            "evil.example:7860",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:7860@evil.example",
            "localhost:port",
            "192.168.1.5:7860",
            "::1",
            "[::1",
            "[::1]7860",
            ":7860",
            "",
        ];
        for host in hostile {
            assert!(!Hosts::default().answer_to(host), "{host}");
        }
    }

    #[test]
    fn beyond_loopback_addresses_and_the_given_name_are_answered() {
        let hosts = Hosts {
            addresses: true,
            name: Some("lab.example".into()),
        };
        for host in ["192.168.1.5:7860", "[fe80::1]:7860", "Lab.Example:7860", "localhost"] {
            assert!(hosts.answer_to(host), "{host}");
        }
        assert!(!hosts.answer_to("evil.example"));
    }
}
