use proptest::prelude::*;

use super::*;
use crate::safetensors_file::SafeTensors;

/// Writes GGUF files by hand, wrong ones too.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    /// A key whose value has that kind and those bytes.
    pub(crate) fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &text(value))
    }

    pub(crate) fn number(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn array(self, key: &str, kind: u32, elements: &[Vec<u8>]) -> Self {
        let head = [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, &[head, elements.concat()].concat())
    }

    fn tensor(mut self, name: &str, dims: &[u64], format: u32, offset: u64) -> Self {
        let dims: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        let count = (dims.len() as u32 / 8).to_le_bytes();
        self.tensors.push(
            [
                &text(name),
                &count[..],
                &dims,
                &format.to_le_bytes(),
                &offset.to_le_bytes(),
            ]
            .concat(),
        );
        self
    }

    fn data(mut self, bytes: &[u8]) -> Self {
        self.data.extend_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.keys.len() as u64].map(u64::to_le_bytes);
        let mut bytes = [b"GGUF", &3u32.to_le_bytes()[..], &counts.concat()].concat();
        bytes.extend(self.keys.iter().chain(&self.tensors).flatten());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

fn open(bytes: &[u8]) -> Result<GgufFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

fn good() -> Writer {
    let scale = half::f16::from_f32(0.5).to_le_bytes();
    let block = [&scale[..], &[0x18; 16]].concat();
    Writer::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 2)
        .key("a.signed", 5, &(-3i32).to_le_bytes())
        .key("a.flag", 7, &[1])
        .array("a.list", 8, &[text("x"), text("yz")])
        .array(
            "a.numbers",
            6,
            &[1.5f32.to_le_bytes().into(), (-2f32).to_le_bytes().into()],
        )
        .tensor("plain", &[2, 1], 0, 0)
        .tensor("quantised", &[32], 2, 32)
        .data(&[1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat())
        .data(&[0; 24])
        .data(&block)
}

#[test]
fn keys_have_their_kinds_and_tensors_their_values() {
    let file = open(&good().bytes()).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.integer("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.number("a.signed").unwrap(), Some(-3.0));
    assert_eq!(file.flag("a.flag").unwrap(), Some(true));
    assert_eq!(file.texts("a.list").unwrap(), Some(vec!["x", "yz"]));
    assert_eq!(file.numbers("a.numbers").unwrap(), Some(vec![1.5, -2.0]));
    assert_eq!(file.text("nothing").unwrap(), None);
    for error in [
        file.text("a.flag").err(),
        file.integer("a.signed").err(),
        file.integers("a.list").err(),
    ] {
        let error = error.unwrap().to_string();
        assert!(error.contains("x.gguf: a.") && error.contains("expected"), "{error}");
    }
    assert_eq!(file.names().collect::<Vec<_>>(), ["plain", "quantised"]);
    assert_eq!(file.shape("plain"), Some(&[1, 2][..]), "rows come first");
    assert_eq!(file.read_f32("plain").unwrap(), [1.0, -2.0]);
    // The low half of 0x18 is 8, which stands for 0, and the high one 1, which stands for -7 halves.
    assert_eq!(file.read_f32("quantised").unwrap(), [[0.0; 16], [-3.5; 16]].concat());
    assert!(
        file.read_f32("other")
            .unwrap_err()
            .to_string()
            .contains("tensor other is missing")
    );
}

#[test]
fn every_format_has_the_values_of_the_gguf_package() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let file = GgufFile::open(&dir.join("formats.gguf")).unwrap();
    let values = SafeTensors::open(&dir.join("formats.safetensors")).unwrap();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(names.len(), 12, "all but those of one value a block");
    assert_eq!(names, values.names().collect::<Vec<_>>());
    for name in names {
        assert_eq!(file.format(name), Some(name));
        assert_eq!(file.shape(name), values.shape(name));
        let (ours, theirs) = (file.read_f32(name).unwrap(), values.read_f32(name).unwrap());
        let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, f32::max);
        assert!(
            largest > 1.0 && worst <= 1e-6 * largest,
            "{name}: {worst:e} of {largest}"
        );
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    let mut cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "not a GGUF file"),
        (b"GGML\x03\0\0\0".to_vec(), "not a GGUF file"),
        (b"GGUF\x01\0\0\0".to_vec(), "of version 1; expected 2 or 3"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (b"GGUF\x03\0\0\0".to_vec(), "truncated"),
        (good().key("z", 13, &[]).bytes(), "z: is of kind 13"),
        (good().key("z", 8, &u64::MAX.to_le_bytes()).bytes(), "z: truncated"),
        (
            good()
                .key("z", 8, &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())
                .bytes(),
            "z: is a text that is not UTF-8",
        ),
        (good().number("a.flag", 1).bytes(), "a.flag is there twice"),
        (
            good().key("z", 9, &[&9u32.to_le_bytes()[..], &[0; 8]].concat()).bytes(),
            "z: is an array of arrays",
        ),
        (
            good()
                .key(
                    "z",
                    9,
                    &[&10u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat(),
                )
                .bytes(),
            "z: truncated: 2305843009213693952 elements",
        ),
        (good().number("general.alignment", 0).bytes(), "general.alignment"),
        (good().tensor("z", &[], 0, 0).bytes(), "tensor z: has 0 dimensions"),
        (good().tensor("z", &[1; 5], 0, 0).bytes(), "tensor z: has 5 dimensions"),
        (
            good().tensor("z", &[256], 16, 64).bytes(),
            "tensor z: has ggml's format 16, which is not supported",
        ),
        (
            good().tensor("z", &[33], 2, 64).bytes(),
            "tensor z: rows of 33 values are no whole blocks of 32",
        ),
        (
            good().tensor("z", &[1 << 40, 1 << 40], 0, 64).bytes(),
            "tensor z: truncated",
        ),
        (good().tensor("z", &[2], 0, u64::MAX - 4).bytes(), "tensor z: truncated"),
        (good().tensor("z", &[2], 0, 4).bytes(), "overlap"),
        (
            good().tensor("plain", &[1], 0, 8).bytes(),
            "tensor plain is there twice",
        ),
    ];
    let mut promising = good().bytes();
    promising[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    cases.push((
        promising,
        "truncated: it promises 6 keys and 18446744073709551615 tensors",
    ));
    for (bytes, expected) in cases {
        let error = open(&bytes).err().expect(expected).to_string();
        assert!(
            error.contains(expected) && error.contains("x.gguf"),
            "{error} should say {expected}"
        );
    }
}

#[test]
fn a_directory_means_its_only_file_unless_it_is_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.gguf"), dir.path().join("b.GGUF"));
    assert_eq!(GgufFile::of_model(dir.path()).unwrap(), None);
    std::fs::write(&b, "").unwrap();
    assert_eq!(GgufFile::of_model(dir.path()).unwrap(), Some(b.clone()));
    assert_eq!(GgufFile::of_model(&b).unwrap(), Some(b));
    std::fs::write(a, "").unwrap();
    let error = GgufFile::of_model(dir.path()).unwrap_err().to_string();
    assert!(error.contains("name one of a.gguf, b.GGUF"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(GgufFile::of_model(dir.path()).unwrap(), None);
}

/// Reads everything that a file says.
fn read_all(file: &GgufFile) {
    for key in file.metadata.keys() {
        let _ = (file.text(key), file.integer(key), file.number(key), file.flag(key));
        let _ = (file.texts(key), file.integers(key), file.numbers(key));
    }
    for name in file.names() {
        let values: usize = file.shape(name).unwrap().iter().product();
        assert_eq!(file.read_f32(name).unwrap().len(), values);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    /// 2,048 files each time; 100,000 were tried.
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), keep: prop::sample::Index) {
        let mut bytes = good().bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Half of them are whole.
        bytes.truncate((2 * keep.index(bytes.len())).max(1));
        if let Ok(file) = open(&bytes) {
            read_all(&file);
        }
    }
}
