//! The server with a socket: where it listens, and how it says that it cannot.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/story.rs"]
mod story;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use story::Story;
use tempfile::TempDir;
use viewer::{Error, Options, serve};

fn index() -> TempDir {
    let dir = TempDir::new().unwrap();
    story::write(dir.path(), &Story::default()).unwrap();
    dir
}

fn options(host: &str, port: u16) -> Options {
    Options {
        host: host.into(),
        port,
    }
}

#[test]
fn the_server_says_where_it_is_and_answers_there() {
    let dir = index();
    let (ready, address) = mpsc::channel();
    let path = dir.path().to_owned();
    // It serves until the process ends: nothing short of a signal stops it.
    std::thread::spawn(move || {
        serve(vec![path], options("127.0.0.1", 0), |url| {
            ready.send(url.to_owned()).unwrap()
        })
    });
    let url = address.recv_timeout(Duration::from_secs(20)).unwrap();
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(
        stream,
        "GET /api/indexes HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"d_sae\":60"));
}

#[test]
fn a_taken_port_is_an_error_that_names_the_option() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = index();
    let error = serve(vec![dir.path().to_owned()], options("127.0.0.1", port), |_| {
        panic!("ready")
    })
    .unwrap_err();
    assert!(matches!(error, Error::PortTaken { port: p, .. } if p == port));
    let text = error.to_string();
    assert!(text.contains("--port") && text.contains(&port.to_string()), "{text}");
}

#[test]
fn a_host_that_is_not_of_this_machine_is_an_error_that_names_the_option() {
    let dir = index();
    // An address for documentation, which no machine has.
    let error = serve(vec![dir.path().to_owned()], options("192.0.2.1", 0), |_| {
        panic!("ready")
    })
    .unwrap_err();
    assert!(error.to_string().contains("--host"), "{error}");
}

#[test]
fn without_an_index_or_with_a_wrong_one_nothing_is_served() {
    let error = serve(Vec::new(), options("127.0.0.1", 0), |_| panic!("ready")).unwrap_err();
    assert!(matches!(error, Error::NoIndex));
    let empty = TempDir::new().unwrap();
    let error = serve(vec![empty.path().to_owned()], options("127.0.0.1", 0), |_| {
        panic!("ready")
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("not a feature index") && error.to_string().contains("run.toml"),
        "{error}"
    );
    let missing = empty.path().join("nowhere");
    let error = serve(vec![missing], options("127.0.0.1", 0), |_| panic!("ready")).unwrap_err();
    assert!(error.to_string().contains("sae features"), "{error}");
}
