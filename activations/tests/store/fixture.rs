//! A small text and its activations, which every test can make up again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use activations::product::Precision;
use activations::store::{CorpusRef, HookSpec, ModelRef, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, DocumentRef, RowRef, Spans};

/// Hooks of the store and their widths.
pub const HOOKS: [(&str, usize); 2] = [("blocks.0.hook_resid_post", 24), ("blocks.1.hook_mlp_out", 7)];

/// A specification with shards of five contexts.
pub fn spec(dtype: ActDtype) -> StoreSpec {
    let hooks = HOOKS.map(|(name, d_in)| HookSpec {
        name: name.into(),
        d_in,
    });
    let model = ModelRef {
        precision: Precision::F32,
        name: "tiny".into(),
        n_layers: 2,
        d_model: 24,
        vocab_size: 100,
        ..ModelRef::default()
    };
    let mut spec = StoreSpec::new(hooks.to_vec(), dtype, model, CorpusRef::default(), 12);
    spec.contexts_per_shard = 5;
    spec
}

/// Context `index`: lengths differ, position 0 is special. Every fifth does not know where its tokens come from; in
/// others the second half belongs to the next document.
pub fn context(index: u64) -> Context {
    let token = |p| if p == 0 { 1 } else { ((index * 31 + p) % 100) as u32 };
    let tokens: Vec<u32> = (0..2 + index * 7 % 11).map(token).collect();
    let n = tokens.len() as u64;
    let reference = |position: u64, document: u64| DocumentRef {
        position: position as u32,
        document,
        file: format!("part-{}.jsonl", document % 2).into(),
        record: document * 10,
    };
    let spans = match index % 5 {
        4 => Spans::default(),
        _ => Spans {
            starts: (0..n).map(|p| index * 50 + p * 3).collect(),
            ends: (0..n).map(|p| index * 50 + p * 3 + (p + index) % 4).collect(),
            documents: vec![reference(0, index / 3), reference(n / 2, index / 3 + 1)],
        },
    };
    Context {
        index,
        document: index / 3,
        tokens,
        spans,
    }
}

/// The activation of a column at a position: exact in every format.
pub fn value(hook: usize, context: u64, position: u32, column: usize) -> f32 {
    let n = context * 131 + u64::from(position) * 17 + column as u64 * 3 + hook as u64 * 7;
    (n % 255) as f32 - 127.0
}

/// Rows and activations of some contexts, position 0 left out.
pub fn harvest(contexts: &[Context]) -> (Vec<RowRef>, Vec<Vec<f32>>) {
    let positions = |(c, context): (&Context, u32)| {
        let positions = 1..c.tokens.len() as u32;
        positions.map(move |position| RowRef { context, position })
    };
    let rows: Vec<RowRef> = contexts.iter().zip(0..).flat_map(positions).collect();
    let acts = HOOKS.iter().enumerate().map(|(hook, &(_, d_in))| {
        let row = |r: &RowRef| {
            let (context, position) = (contexts[r.context as usize].index, r.position);
            (0..d_in).map(move |column| value(hook, context, position, column))
        };
        rows.iter().flat_map(row).collect()
    });
    let acts = acts.collect();
    (rows, acts)
}

/// Pushes contexts until `end` of them are there, `step` at a time.
pub fn push_until(writer: &mut StoreWriter, end: u64, step: u64) {
    while writer.next_context() < end {
        let next = writer.next_context();
        let contexts: Vec<Context> = (next..(next + step).min(end)).map(context).collect();
        let (rows, acts) = harvest(&contexts);
        let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
        writer.push(&contexts, &rows, &acts).unwrap();
    }
}

/// A store of `n` contexts in a new directory.
pub fn store(n: u64, dtype: ActDtype) -> tempfile::TempDir {
    store_of(n, &spec(dtype))
}

/// A store of `n` contexts of this specification in a new directory.
pub fn store_of(n: u64, spec: &StoreSpec) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), spec).unwrap();
    push_until(&mut writer, n, 4);
    writer.finish().unwrap();
    dir
}

/// Every file of a directory.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    paths
        .map(|path| (path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

/// Writes `values: [n, d]` as numpy would.
pub fn npy(path: &Path, d: usize, values: &[f32]) {
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {d}), }}\n",
        values.len() / d
    );
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}
