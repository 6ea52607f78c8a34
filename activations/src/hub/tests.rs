use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;
use crate::corpus::Format;
use crate::progress::Silent;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A stand-in for the hub on this machine: one repository, `acme/tiny`.
struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>, token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, token, &seen);
            }
        });
        Self { endpoint, requests }
    }

    fn hub(&self, cache: &TempDir) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: cache.path().join("hub"),
            token: None,
            offline: false,
        }
    }
}

/// Answers one request and closes.
fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, token: Option<&str>, seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let (mut range, mut authorised) = (None, token.is_none());
    for line in lines
        .map_while(std::result::Result::ok)
        .take_while(|line| !line.is_empty())
    {
        let line = line.to_lowercase();
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            range = Some(bytes.to_owned());
        }
        authorised |= token.is_some_and(|t| line == format!("authorization: bearer {t}"));
    }
    seen.lock().unwrap().push(path.clone());
    let mut reply = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        // A client that hangs up early is its own affair.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if !authorised {
        return reply("401 Unauthorized", "", b"");
    }
    let revision = ["/api/models/acme/tiny/revision/", "/api/datasets/acme/tiny/revision/"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix));
    if let Some(revision) = revision {
        // Files of the branch that the hub makes have its name before theirs.
        let of_branch = |name: &str| name.starts_with("default/") == (revision == "refs%2Fconvert%2Fparquet");
        let names: Vec<&String> = files.keys().filter(|name| of_branch(name)).collect();
        if names.is_empty() {
            return reply("404 Not Found", "", b"");
        }
        let siblings: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
        return reply("200 OK", "", info.to_string().as_bytes());
    }
    let name = path
        .trim_start_matches("/datasets")
        .strip_prefix(&format!("/acme/tiny/resolve/{COMMIT}/"));
    let Some(file) = name.and_then(|name| files.get(name)) else {
        return reply("404 Not Found", "", b"");
    };
    let range = range.unwrap_or("0-".into());
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse::<usize>().map_or(file.len(), |end| (end + 1).min(file.len()));
    let headers = format!(
        "X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\nContent-Range: bytes {start}-{}/{}\r\n",
        path.replace('/', "_"),
        end.saturating_sub(1),
        file.len()
    );
    reply("206 Partial Content", &headers, &file[start..end]);
}

/// The files of a tiny model, and something that is none of it.
fn tiny() -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama_linear_biased");
    let mut files: BTreeMap<_, _> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.insert("pytorch_model.bin".into(), vec![0; 10]);
    files
}

fn error(hub: &Hub, model: &str) -> String {
    hub.find(model, &Silent).unwrap_err().to_string()
}

#[test]
fn a_model_is_fetched_once_and_found_in_the_cache_afterwards() {
    let server = Server::start(tiny(), None);
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(&cache);
    let fetched = hub.find("acme/tiny", &Silent).unwrap();
    assert_eq!(fetched.name, "acme/tiny");
    assert!(fetched.path.ends_with(format!("models--acme--tiny/snapshots/{COMMIT}")));
    for (name, bytes) in tiny() {
        let there = std::fs::read(fetched.path.join(&name)).ok();
        let part = name.ends_with(".json") || name.starts_with("model-");
        assert_eq!(there, part.then_some(bytes), "{name}");
    }
    let requests = server.requests.lock().unwrap().len();
    assert_eq!(hub.find("acme/tiny", &Silent).unwrap(), fetched);
    assert_eq!(
        server.requests.lock().unwrap().len(),
        requests + 1,
        "only the commit is asked for"
    );

    hub.offline = true;
    assert_eq!(hub.find("acme/tiny", &Silent).unwrap(), fetched);
    assert_eq!(
        hub.find(&format!("acme/tiny@{COMMIT}"), &Silent).unwrap().path,
        fetched.path
    );
    assert!(error(&hub, "acme/other").contains("HF_HUB_OFFLINE"));

    hub.offline = false;
    hub.endpoint = "http://127.0.0.1:1".into();
    assert_eq!(
        hub.find("acme/tiny", &Silent).unwrap(),
        fetched,
        "the cache helps without a network"
    );
}

#[test]
fn a_copy_that_lost_a_shard_is_not_taken_for_the_model() {
    let server = Server::start(tiny(), None);
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(&cache);
    let dir = hub.find("acme/tiny", &Silent).unwrap().path;
    std::fs::remove_file(dir.join("model-00002-of-00002.safetensors"))
        .or_else(|_| std::fs::remove_file(dir.join("model-00002-of-00003.safetensors")))
        .unwrap();
    hub.offline = true;
    assert!(error(&hub, "acme/tiny").contains("not in the cache"));
    hub.offline = false;
    let again = hub.find("acme/tiny", &Silent).unwrap();
    assert!(SafeTensors::open_model(&again.path).is_ok());
}

#[test]
fn without_a_network_the_error_says_how_to_do_without() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
    };
    let error = error(&hub, "acme/tiny");
    assert!(
        error.contains("hf download acme/tiny") && error.contains("127.0.0.1:1"),
        "{error}"
    );
}

#[test]
fn a_token_is_sent_and_its_lack_is_said() {
    let server = Server::start(tiny(), Some("secret"));
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(&cache);
    assert!(error(&hub, "acme/tiny").contains("HF_TOKEN"));
    hub.token = Some("secret".into());
    assert!(hub.find("acme/tiny", &Silent).is_ok());
}

#[test]
fn what_the_hub_does_not_have_is_said() {
    let mut files = tiny();
    files.retain(|name, _| !name.starts_with("model"));
    let server = Server::start(files, None);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(&cache);
    assert!(error(&hub, "acme/tiny").contains("no safetensors weights"));
    assert!(error(&hub, "acme/other").contains("no such model"));
}

#[test]
fn a_mistyped_path_is_no_id() {
    let hub = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        cache: PathBuf::new(),
        token: None,
        offline: false,
    };
    for model in [
        "./models/tiny",
        "/models/tiny",
        "models/tiny/",
        "a/b/c",
        "gpt2",
        "../x",
        "org/na me",
        "",
        "a/b@../x",
    ] {
        let error = error(&hub, model);
        assert!(error.contains("expected a directory"), "{model:?}: {error}");
    }
}

/// Files of a data set of these names, each of which says which it is.
fn dataset(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    names
        .iter()
        .map(|name| (name.to_string(), name.as_bytes().to_vec()))
        .collect()
}

/// The names of the files that a URL means, below the directory of the commit.
fn texts(hub: &Hub, url: &str, format: Option<Format>) -> Result<Vec<String>> {
    let found = hub.texts(url, format, &Silent)?;
    let snapshot = format!("datasets--acme--tiny/snapshots/{COMMIT}/");
    let names = found.files.iter().map(|path| {
        let whole = path.to_str().unwrap();
        let name = whole.split_once(&snapshot).unwrap().1.to_owned();
        assert_eq!(std::fs::read(path).unwrap(), name.as_bytes());
        name
    });
    Ok(names.collect())
}

#[test]
fn texts_of_a_data_set_are_those_that_a_directory_of_its_files_would_give() {
    let names = [
        ".hidden/a.parquet",
        "README.md",
        "data/test-0.parquet",
        "data/train-0.parquet",
        "data/train-1.parquet",
        "dataset_infos.json",
        "extra/notes.jsonl.gz",
    ];
    let server = Server::start(dataset(&names), None);
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(&cache);
    let parquet = [names[2], names[3], names[4]];
    let url = "hf://datasets/acme/tiny";
    let said = texts(&hub, url, None).unwrap_err().to_string();
    assert!(said.contains("several kinds") && said.contains("--format"), "{said}");
    assert_eq!(
        server.requests.lock().unwrap().len(),
        1,
        "nothing is fetched before it is known what"
    );
    for (path, format, expected) in [
        ("", Some(Format::Parquet), &parquet[..]),
        ("/data", None, &parquet),
        ("/data/", None, &parquet),
        ("@main/data/train-*", None, &parquet[1..]),
        ("/**/*.jsonl.gz", None, &names[6..]),
        ("/extra", None, &names[6..]),
        ("/data/test-0.parquet", None, &parquet[..1]),
        (&format!("@{COMMIT}/data"), None, &parquet),
    ] {
        assert_eq!(
            texts(&hub, &format!("{url}{path}"), format).unwrap(),
            expected,
            "{path}"
        );
    }
    assert_eq!(
        hub.texts(&format!("{url}/data"), None, &Silent).unwrap().name,
        "acme/tiny/data"
    );
    for (path, word) in [
        ("/nothing", "no text file"),
        ("/*.csv", "no file of the data set"),
        ("@../y", "expected hf://"),
    ] {
        let said = texts(&hub, &format!("{url}{path}"), None).unwrap_err().to_string();
        assert!(said.contains(word), "{path}: {said}");
    }
    for bad in [
        "hf://acme/tiny",
        "hf://datasets/acme",
        "hf://models/acme/tiny",
        "hf://datasets/ac me/tiny",
    ] {
        assert!(
            texts(&hub, bad, None)
                .unwrap_err()
                .to_string()
                .contains("expected hf://datasets/org/name"),
            "{bad}"
        );
    }

    // What was fetched is there without a network, and it is said how to do without where it is not.
    hub.offline = true;
    assert_eq!(texts(&hub, &format!("{url}/data"), None).unwrap(), parquet);
    let said = texts(&hub, "hf://datasets/acme/other", None).unwrap_err().to_string();
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
    hub.offline = false;
    hub.endpoint = "http://127.0.0.1:1".into();
    assert_eq!(texts(&hub, &format!("{url}/data"), None).unwrap(), parquet);
    let said = texts(&hub, "hf://datasets/acme/other", None).unwrap_err().to_string();
    assert!(
        said.contains("--repo-type dataset acme/other") && said.contains("127.0.0.1:1"),
        "{said}"
    );
}

#[test]
fn a_data_set_without_text_files_is_read_from_the_hubs_parquet_copy() {
    let converted = ["default/train/0000.parquet", "default/train/0001.parquet"];
    let server = Server::start(dataset(&["README.md", "loader.py", converted[0], converted[1]]), None);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(&cache);
    let url = "hf://datasets/acme/tiny";
    assert_eq!(texts(&hub, url, None).unwrap(), converted);
    let branch = format!("{url}@refs/convert/parquet/default/train/0001.parquet");
    assert_eq!(texts(&hub, &branch, None).unwrap(), converted[1..]);
    let said = texts(&hub, &format!("{url}@main"), None).unwrap_err().to_string();
    assert!(said.contains("no text file"), "{said}");

    let server = Server::start(dataset(&["README.md", "loader.py"]), None);
    let said = texts(&server.hub(&cache), url, None).unwrap_err().to_string();
    assert!(
        said.contains("no text file") && said.contains("refs/convert/parquet"),
        "{said}"
    );
}
