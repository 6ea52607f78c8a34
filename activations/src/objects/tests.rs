use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::error::Error;

fn url(text: &str) -> ObjectUrl {
    match Place::of(Path::new(text)).unwrap() {
        Place::Remote(url) => url,
        Place::Local(path) => panic!("{} is no URL", path.display()),
    }
}

/// A bucket in memory with one object, `dir/a`, and that object.
fn one(bytes: &[u8]) -> (Bucket, Object) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bucket = Bucket::of(url("s3://lab/dir"), store);
    assert!(bucket.put("a", bytes.to_vec(), false).unwrap());
    let object = bucket.names().unwrap().remove(0).1;
    (bucket, object)
}

#[test]
fn urls_and_paths_are_told_apart() {
    let local = |text: &str| match Place::of(Path::new(text)).unwrap() {
        Place::Local(path) => path,
        Place::Remote(url) => panic!("{url}"),
    };
    for path in ["texts/a.txt", "/data", "a b://c", "s3:/x", "", "-"] {
        assert_eq!(local(path), Path::new(path));
    }
    assert_eq!(local("file:///data/a%20b.txt"), Path::new("/data/a b.txt"));
    assert_eq!(local("file://localhost/data/100%"), Path::new("/data/100%"));
    for (text, key, folder) in [
        ("s3://lab/a b/c%20d.txt", "a b/c%20d.txt", false),
        ("gs://lab/acts/", "acts", true),
        ("az://lab", "", true),
        ("abfss://lab@account.dfs.core.windows.net/x", "x", false),
    ] {
        let url = url(text);
        assert_eq!((url.key(), url.is_folder()), (key, folder), "{text}");
        assert_eq!(url.to_string().trim_end_matches('/'), text.trim_end_matches('/'));
    }
    for (bad, word) in [
        ("s3:///a", "no bucket"),
        ("file://a", "file:///"),
        ("http://a/b", "s3://"),
        ("hf://a/b", "--text"),
    ] {
        assert!(
            Place::of(Path::new(bad)).unwrap_err().to_string().contains(word),
            "{bad}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Reads and jumps over the borders of blocks, also behind the end.
    #[test]
    fn an_object_reads_as_the_file_it_was(
        length in prop_oneof![0usize..100, (4usize << 20) - 2..(4 << 20) + 3, 12_000_000usize..14_000_000],
        jumps in prop::collection::vec((0.0..1.1f64, 0usize..6_000_000), 1..6),
    ) {
        let bytes: Vec<u8> = (0..length).map(|i| (i / 3 + i / 70_000) as u8).collect();
        let (_, object) = one(&bytes);
        let mut reader = ObjectReader::new(Arc::new(object));
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).unwrap();
        prop_assert!(whole == bytes);
        for (share, n) in jumps {
            let at = (share * length as f64) as u64;
            reader.seek(SeekFrom::Start(at)).unwrap();
            let mut found = Vec::new();
            (&mut reader).take(n as u64).read_to_end(&mut found).unwrap();
            let start = (at as usize).min(length);
            prop_assert!(found == bytes[start..(start + n).min(length)]);
        }
    }
}

#[test]
fn an_object_that_changes_while_it_is_read_is_an_error() {
    let (bucket, object) = one(&vec![7; 9 << 20]);
    let mut reader = ObjectReader::new(Arc::new(object));
    reader.read_exact(&mut [0; 10]).unwrap();
    bucket.put("a", vec![8; 9 << 20], false).unwrap();
    reader.seek(SeekFrom::Start(8 << 20)).unwrap();
    // The blocks fetched ahead may be of before: what they hold was whole.
    let (mut rest, again) = (Vec::new(), ObjectReader::new(reader_object(&bucket)));
    match reader.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.iter().all(|b| *b == 7)),
        Err(e) => {
            let said = Error::remote_in(&e).unwrap().to_string();
            assert!(said.contains("s3://lab/dir/a") && said.contains("changed"), "{said}");
        }
    }
    let mut stale = again;
    bucket.put("a", vec![9; 9 << 20], false).unwrap();
    let e = stale.read(&mut [0; 1]).unwrap_err();
    assert!(Error::remote_in(&e).unwrap().to_string().contains("changed"));
}

fn reader_object(bucket: &Bucket) -> Arc<Object> {
    Arc::new(bucket.names().unwrap().remove(0).1)
}

#[test]
fn an_error_of_the_network_is_found_under_what_decoders_say() {
    let remote = Error::remote("s3://lab/a", "could not be read");
    let io = std::io::Error::other(remote);
    let wrapped = parquet::errors::ParquetError::External(Box::new(std::io::Error::other(io)));
    assert_eq!(
        Error::remote_in(&wrapped).unwrap().to_string(),
        "s3://lab/a: could not be read"
    );
    assert!(Error::remote_in(&std::io::Error::other("disk full")).is_none());
}

#[test]
fn a_name_is_taken_once() {
    let (bucket, _) = one(b"a");
    assert!(!bucket.put("a", b"b".to_vec(), true).unwrap());
    assert!(bucket.put("b", b"b".to_vec(), true).unwrap());
    bucket.delete("b").unwrap();
    bucket.delete("b").unwrap();
    assert_eq!(bucket.names().unwrap().len(), 1);
}

#[test]
fn a_file_of_many_parts_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big");
    let bytes: Vec<u8> = (0..20_000_001u32).map(|i| (i / 7) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let (bucket, _) = one(b"");
    bucket.put_file("big", &path).unwrap();
    let (_, object) = bucket.names().unwrap().remove(1);
    assert!(object.bytes().unwrap() == bytes);
}

#[test]
fn a_directory_that_stands_for_a_bucket_is_this_processs_alone_and_leaves_nothing() {
    let url = url("s3://lab/a_directory_that_stands_for_a_bucket");
    let staging = Staging::of(&url, "1/1").unwrap();
    fs::write(staging.dir().join("acts-00000.parquet.tmp"), "half").unwrap();
    let dir = staging.dir().to_owned();
    let said = Staging::of(&url, "1/1").err().unwrap().to_string();
    assert!(
        said.contains(&url.to_string()) && said.contains("another process"),
        "{said}"
    );
    assert!(Staging::of(&url, "2/2").unwrap().dir() != dir);
    drop(staging);
    assert!(!dir.exists());
    let again = Staging::of(&url, "1/1").unwrap();
    assert_eq!((again.dir(), fs::read_dir(&dir).unwrap().count()), (&*dir, 0));
}
