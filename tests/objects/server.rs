//! moto's S3 server, started by the test and ended with it; and S3 as it is spoken with a signature that nobody looks at.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A running server.
pub struct Server {
    /// Such as `http://127.0.0.1:40123`.
    pub endpoint: String,
    process: Child,
    /// The server ends when this is closed.
    stdin: Option<ChildStdin>,
}

impl Server {
    pub fn start() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python =
            std::env::var("SAE_TEST_PYTHON").map_or_else(|_| here.join(".venv/bin/python"), |python| python.into());
        let mut process = Command::new(&python)
            .arg(here.join("tests/objects/serve.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| {
                panic!(
                    "{}: {e}; SAE_TEST_PYTHON names a Python with moto[server]",
                    python.display()
                )
            });
        let mut endpoint = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut endpoint)
            .unwrap();
        assert!(
            endpoint.starts_with("http://"),
            "moto did not start: is moto[server] installed?"
        );
        Self {
            endpoint: endpoint.trim().to_owned(),
            stdin: process.stdin.take(),
            process,
        }
    }

    /// Makes an object, or a bucket of `/name`.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let (status, body) = request(&self.endpoint, "PUT", path, bytes);
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    }

    /// The bytes of an object, if it is there.
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        match request(&self.endpoint, "GET", path, b"") {
            (200, body) => Some(body),
            (404, _) => None,
            (status, body) => panic!("{path}: {status} {}", String::from_utf8_lossy(&body)),
        }
    }

    /// The names below a prefix, sorted.
    pub fn list(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let (status, body) = request(
            &self.endpoint,
            "GET",
            &format!("/{bucket}?list-type=2&prefix={prefix}"),
            b"",
        );
        assert_eq!(status, 200);
        let body = String::from_utf8(body).unwrap();
        let keys = body
            .split("<Key>")
            .skip(1)
            .map(|rest| rest.split("</Key>").next().unwrap());
        let mut names: Vec<String> = keys.map(|key| key.strip_prefix(prefix).unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.process.wait();
    }
}

/// Sends a request and waits for the answer: its status and its body.
fn request(endpoint: &str, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let host = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let length = body.len();
    // Who signs may do everything; what is put here, everybody may read.
    let credential =
        "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Authorization: {credential}\r\nx-amz-acl: public-read\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}
