//! The store from outside: what is written comes back, a killed writer continues to the same bytes, and whatever is
//! wrong is named.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use activations::source::Activations;
use activations::store::{CorpusRef, HookSpec, ModelRef, Store, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, ContextSource, RowRef};

const HOOKS: [(&str, usize); 2] = [("blocks.0.hook_resid_post", 24), ("blocks.1.hook_mlp_out", 7)];

fn spec(dtype: ActDtype) -> StoreSpec {
    let hooks = HOOKS.map(|(name, d_in)| HookSpec {
        name: name.into(),
        d_in,
    });
    let model = ModelRef {
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

/// Context `index` of a text that everybody can make up again: lengths differ, position 0 is special.
fn context(index: u64) -> Context {
    let length = 2 + (index * 7 % 11);
    Context {
        index,
        document: index / 3,
        tokens: (0..length)
            .map(|p| if p == 0 { 1 } else { ((index * 31 + p) % 100) as u32 })
            .collect(),
    }
}

/// The value of a column at a position: exact in every format.
fn value(hook: usize, context: u64, position: u32, column: usize) -> f32 {
    let n = context * 131 + u64::from(position) * 17 + column as u64 * 3 + hook as u64 * 7;
    (n % 255) as f32 - 127.0
}

/// Rows and activations of some contexts.
fn harvest(contexts: &[Context]) -> (Vec<RowRef>, Vec<Vec<f32>>) {
    let rows: Vec<RowRef> = contexts
        .iter()
        .zip(0..)
        .flat_map(|(c, context)| (1..c.tokens.len() as u32).map(move |position| RowRef { context, position }))
        .collect();
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

/// Pushes contexts up to `end`, `step` at a time.
fn push_until(writer: &mut StoreWriter, end: u64, step: u64) {
    while writer.next_context() < end {
        let next = writer.next_context();
        let contexts: Vec<Context> = (next..(next + step).min(end)).map(context).collect();
        let (rows, acts) = harvest(&contexts);
        let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
        writer.push(&contexts, &rows, &acts).unwrap();
    }
}

/// A store of `n` contexts in a new directory.
fn store(n: u64, dtype: ActDtype) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), &spec(dtype)).unwrap();
    push_until(&mut writer, n, 4);
    writer.finish().unwrap();
    dir
}

#[test]
fn what_is_written_comes_back_in_natural_order_in_every_format() {
    for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32] {
        let dir = store(17, dtype);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.manifest().shards.len(), 4);
        for (hook, (name, d_in)) in HOOKS.iter().enumerate() {
            let mut source = store.contexts(name).unwrap();
            assert_eq!((source.d_in(), source.n_contexts()), (*d_in, Some(17)));
            let mut next = 0;
            let mut all = Vec::new();
            while let Some(batch) = source.next_batch().unwrap() {
                let contexts: Vec<Context> = (next..next + batch.contexts.len() as u64).map(context).collect();
                assert_eq!(batch.contexts, contexts);
                let (rows, acts) = harvest(&contexts);
                assert_eq!(batch.rows, rows);
                assert_eq!(batch.acts, acts[hook]);
                next += contexts.len() as u64;
                all.extend(batch.acts);
            }
            assert_eq!(next, 17);
            let source = Activations::open(dir.path(), Some(name)).unwrap();
            assert_eq!((source.n_rows() as usize * d_in, source.d_in()), (all.len(), *d_in));
            let mut read = vec![0.0; all.len()];
            source.read_rows(0..source.n_rows(), &mut read).unwrap();
            assert_eq!(read, all);
        }
    }
}
