//! `sae serve` over a run while it trains.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Place, harvest};

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The JSON at `path` of the server at `address`.
fn ask(address: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    serde_json::from_str(body).unwrap()
}

#[test]
fn a_run_is_served_while_it_trains_and_when_it_is_finished() {
    let place = Place::new();
    harvest(&place, "acts");
    let line = "train --acts acts --out runs/a --set sae.d_sae=256 --set train.steps=500 --set train.batch=256 \
                --set train.log_every=5 --set train.eval_every=100";
    let train = place
        .command(line)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut train = Running(train);
    let mut said = BufReader::new(train.0.stderr.take().unwrap());
    let hint = said
        .by_ref()
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with("watch it:"));
    assert_eq!(hint.as_deref(), Some("watch it: sae serve runs/a"));
    // What else it says must not fill the pipe.
    let rest = std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    let began = Instant::now();
    while !place.path("runs/a/run.toml").exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut serve = place.command("serve runs/a --port 0");
    let mut serve = Running(serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(serve.0.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let address = ready
        .split_once("http://")
        .unwrap()
        .1
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();

    let (mut from, mut steps, mut looks) = (0, Vec::new(), 0);
    let (mut seen_training, mut densities) = (false, 0);
    let finished = loop {
        let now = ask(&address, &format!("/api/runs/a?from={from}"));
        let metrics = &now["metrics"];
        assert_eq!(
            (&metrics["from"], metrics["problems"].as_array().unwrap().len()),
            (&from.into(), 0)
        );
        for line in metrics["lines"].as_array().unwrap() {
            steps.push(line["step"].as_u64().unwrap());
            densities += u64::from(line["density"].is_object());
        }
        (from, looks) = (metrics["next"].as_u64().unwrap(), looks + 1);
        seen_training |= now["stage"] == "training";
        if now["stage"] == "finished" {
            break now;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "{now}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(seen_training, "it was finished within {looks} looks");
    assert!(steps.into_iter().eq((5..=500).step_by(5)) && densities == 5);
    assert_eq!((&finished["step"], &finished["steps"]), (&500.into(), &500.into()));
    assert!(finished["held_out"]["fvu"].as_f64().unwrap() < 1.0 && finished["d_in"].is_number());
    assert!(train.0.wait().unwrap().success());
    rest.join().unwrap().unwrap();
    // Beside a run, too, a directory that is none is refused by its name.
    assert!(place.error("serve nowhere runs/a").contains("nowhere"));
}
