//! What networks and accounts do: refusals, servers that are busy, lines that break.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{HARVEST, HOOK, Place, data, error_of, harvest, json_of, records};

/// A server before the server, which does what networks do.
struct Proxy {
    endpoint: String,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// Requests that will be answered with status 500.
    busy: AtomicUsize,
    /// Answers of more than 64 KiB that will break off in the middle.
    cut: AtomicUsize,
    /// Requests so far.
    seen: AtomicUsize,
}

/// Takes one, if there is one.
fn take(count: &AtomicUsize) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

impl Proxy {
    fn start(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = endpoint.strip_prefix("http://").unwrap().to_owned();
        let faults = Arc::new(Faults::default());
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&faults);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (to, faults) = (to.clone(), Arc::clone(&shared));
                // A client that hangs up early is its own affair.
                std::thread::spawn(move || pass(stream.unwrap(), &to, &faults).ok());
            }
        });
        Self { endpoint, faults }
    }
}

/// Passes one request on, and its answer back.
fn pass(mut client: TcpStream, to: &str, faults: &Faults) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let lower = line.to_lowercase();
        if let Some(n) = lower.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        if !lower.starts_with("connection:") && line != "\r\n" {
            head += &line;
        }
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    faults.seen.fetch_add(1, Ordering::SeqCst);
    if take(&faults.busy) {
        let text = "InternalError: please try again";
        return write!(
            client,
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    let mut server = TcpStream::connect(to)?;
    write!(server, "{head}Connection: close\r\n\r\n")?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    if answer.len() > 64 << 10 && take(&faults.cut) {
        answer.truncate(answer.len() / 2);
    }
    client.write_all(&answer)
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_that_is_busy_or_breaks_off_is_asked_again() {
    let place = Place::new();
    let proxy = Proxy::start(&place.server.endpoint);
    place.json(&harvest("disk"));
    let run = |line: &str| json_of(line, place.command_at(&proxy.endpoint, line).output().unwrap());

    // Writing.
    proxy.faults.busy.store(3, Ordering::SeqCst);
    run(&harvest("s3://lab/acts"));
    assert_eq!(proxy.faults.busy.load(Ordering::SeqCst), 0);
    for (name, bytes) in place.files("disk") {
        assert!(
            place.server.get(&format!("/lab/acts/{name}")).unwrap() == bytes,
            "{name}"
        );
    }
    // Reading a store.
    proxy.faults.busy.store(3, Ordering::SeqCst);
    proxy.faults.cut.store(4, Ordering::SeqCst);
    run(&format!("train --acts s3://lab/acts --out run {}", super::SMALL));
    assert_eq!(proxy.faults.cut.load(Ordering::SeqCst), 0, "lines were broken");
    assert!(data(place.files("run/acts")) == data(place.files("disk")));
    // Reading a text.
    let text = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/storyteller/stories.txt")).unwrap();
    place.server.put("/lab/stories.txt", &text);
    proxy.faults.cut.store(2, Ordering::SeqCst);
    run(&harvest("read").replace("TEXT", "s3://lab/stories.txt"));
    assert_eq!(proxy.faults.cut.load(Ordering::SeqCst), 0);
    assert!(data(place.files("read")) == data(place.files("disk")));
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_that_stays_broken_is_reported_with_url_cause_and_what_to_check() {
    let place = Place::new();
    let names = records(&place);
    let proxy = Proxy::start(&place.server.endpoint);
    let line = format!("{HARVEST} --hook {HOOK} --out x").replace("TEXT", "s3://lab/crawl");
    let failed = |endpoint: &str| error_of(&line, place.command_at(endpoint, &line).output().unwrap());
    for name in &names {
        place
            .server
            .put(&format!("/lab/crawl/{name}"), &fs::read(place.path(name)).unwrap());
    }
    proxy.faults.busy.store(usize::MAX, Ordering::SeqCst);
    let said = failed(&proxy.endpoint);
    for word in ["s3://lab/crawl", "500", "retries", "AWS_ENDPOINT_URL"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(proxy.faults.seen.load(Ordering::SeqCst) >= 9, "it was asked again");
    let said = failed("http://127.0.0.1:1");
    for word in ["s3://lab/crawl", "AWS_ENDPOINT_URL"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!place.path("x").exists());

    // A harvest whose bucket goes away in the middle stays one that can be resumed.
    proxy.faults.busy.store(0, Ordering::SeqCst);
    let line = harvest("s3://lab/acts");
    let child = place
        .command_at(&proxy.endpoint, &line)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while place.server.get("/lab/acts/acts-00002.parquet").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    proxy.faults.busy.store(usize::MAX, Ordering::SeqCst);
    let said = error_of(&line, child.wait_with_output().unwrap());
    assert!(
        said.contains("s3://lab/acts/") && said.contains("written") && said.contains("500"),
        "{said}"
    );
    place.json(&format!("{line} --resume"));
    place.json(&harvest("disk"));
    for (name, bytes) in place.files("disk") {
        assert!(
            place.server.get(&format!("/lab/acts/{name}")).unwrap() == bytes,
            "{name}"
        );
    }
    assert!(place.is_tidy());
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_mistakes_are_answered_with_what_is_wrong() {
    let place = Place::new();
    place.server.put("/lab/a.txt", b"once");
    place.server.put("/lab/both/a.txt", b"once");
    place.server.put("/lab/both/a.jsonl", b"{}");
    place.server.put("/lab/bad.jsonl.gz", b"not gzip");
    place.server.put("/lab/short.parquet", b"PAR1");
    place.server.put("/lab/full/notes.md", b"years of work");
    place.server.put("/lab/rows.npy", b"rows");
    let to = |text: &str| format!("{HARVEST} --hook {HOOK} --out x").replace("TEXT", text);
    for (line, words) in [
        (to("s3://nowhere/a.txt"), &["s3://nowhere/a.txt", "bucket"][..]),
        (to("s3://lab/b.txt"), &["s3://lab/b.txt", "no object"]),
        (to("s3://lab/*.csv"), &["s3://lab/*.csv", "no object matches"]),
        (to("s3://lab/both"), &["s3://lab/both", "several kinds", "--format"]),
        (to("s3://lab/full"), &["s3://lab/full", "no text file"]),
        (to("s3://lab/bad.jsonl.gz"), &["s3://lab/bad.jsonl.gz", "no gzip data"]),
        (to("s3://lab/short.parquet"), &["s3://lab/short.parquet", "footer"]),
        (to("s3:///a.txt"), &["s3:///a.txt", "no bucket"]),
        (to("ftp://lab/a.txt"), &["ftp://lab/a.txt", "s3://", "file://"]),
        (to("file://a.txt"), &["file://a.txt", "file:///"]),
        (
            harvest("s3://nowhere/acts"),
            &["s3://nowhere/acts", "AWS_ACCESS_KEY_ID"],
        ),
        (harvest("s3://lab/full"), &["s3://lab/full", "notes.md"]),
        (
            format!("{} --resume", harvest("s3://lab/none")),
            &["s3://lab/none", "nothing to resume"],
        ),
        (
            "train --acts s3://lab/none --out y".into(),
            &["s3://lab/none", "no object below"],
        ),
        (
            "train --acts s3://lab/rows.npy --out y".into(),
            &["s3://lab/rows.npy", "copy it"],
        ),
        (
            "features --sae y --acts s3://lab/none --out z".into(),
            &["s3://lab/none"],
        ),
        ("inspect s3://lab/full".into(), &["s3://lab/full", "manifest.json"]),
    ] {
        let said = place.error(&line);
        assert!(
            words.iter().all(|word| said.contains(word)),
            "sae {line}\n{said}{words:?}"
        );
    }
    // Without keys, and with a machine that has none either.
    let line = to("s3://lab/a.txt");
    let mut command = place.command(&line);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let said = error_of(
        &line,
        command
            .env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
            .output()
            .unwrap(),
    );
    assert!(
        said.contains("no credentials") && said.contains("AWS_ACCESS_KEY_ID"),
        "{said}"
    );
    // A public bucket needs none.
    let line = to("s3://lab/a.txt").replace("--out x", "--out open");
    let mut command = place.command(&line);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    json_of(&line, command.env("AWS_SKIP_SIGNATURE", "true").output().unwrap());
    assert!(!place.path("x").exists() && !place.path("y").exists() && place.is_tidy());
}
