use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::order::{End, Units};
use super::*;

/// Contexts of `len` tokens with numbers of their own behind a token without a row, id 0; a row is its token's id.
struct Fake {
    lengths: Vec<usize>,
    /// Contexts that were computed.
    computed: AtomicU64,
    /// The context with this number is an error.
    bad: Option<usize>,
    /// Rows hold a NaN.
    broken: AtomicBool,
}

impl Fake {
    fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self {
            lengths: lengths.into_iter().collect(),
            computed: AtomicU64::new(0),
            bad: None,
            broken: AtomicBool::new(false),
        }
    }

    fn rows(&self) -> u64 {
        self.lengths.iter().map(|&n| n as u64).sum()
    }
}

impl Model for Fake {
    fn d_in(&self) -> usize {
        2
    }

    fn contexts(&self) -> Box<dyn Iterator<Item = Result<Context>> + Send> {
        let bad = self.bad;
        let mut next = 1;
        let contexts = self
            .lengths
            .clone()
            .into_iter()
            .enumerate()
            .map(move |(index, length)| {
                let mut tokens = vec![0];
                tokens.extend(next..next + length as u32);
                next += length as u32;
                match bad == Some(index) {
                    true => Err(Error::Invalid(format!("record {index} is bad"))),
                    false => Ok(Context {
                        index: index as u64,
                        tokens,
                        ..Context::default()
                    }),
                }
            });
        Box::new(contexts)
    }

    fn has_row(&self, token: u32) -> bool {
        token != 0
    }

    fn record(&self, contexts: &[Context]) -> Result<(Vec<f32>, Vec<RowRef>)> {
        self.computed.fetch_add(contexts.len() as u64, Ordering::SeqCst);
        let (mut acts, mut rows) = (Vec::new(), Vec::new());
        for (number, context) in contexts.iter().enumerate() {
            for (position, &id) in context.tokens.iter().enumerate().filter(|(_, id)| **id != 0) {
                acts.extend([id as f32, -(id as f32)]);
                rows.push(RowRef {
                    context: number as u32,
                    position: position as u32,
                });
            }
        }
        if self.broken.load(Ordering::SeqCst)
            && let Some(last) = acts.last_mut()
        {
            *last = f32::NAN;
        }
        Ok((acts, rows))
    }
}

fn plan(window_rows: u64, pool_rows: u64, waiting_contexts: u64, wanted: u64) -> MixPlan {
    MixPlan {
        sizes: Sizes {
            seed: 7,
            unit: 3,
            window_rows,
            waiting_bytes: waiting_contexts * (48 + 4 * 11),
            pool_rows,
            wanted,
        },
        group: 2,
        unit_rows: 33,
    }
}

fn reader(model: &Arc<Fake>, plan: MixPlan, from: Option<(MixState, u64)>) -> StreamReader {
    StreamReader::new(Arc::clone(model) as Arc<dyn Model>, plan, from)
}

/// The ids of the next `n` rows.
fn ids(reader: &mut StreamReader, n: u64) -> Vec<u32> {
    let mut out = vec![0.0; 2 * n as usize];
    reader.next_batch(&mut out).unwrap();
    assert!(out.chunks(2).all(|row| row[1] == -row[0]));
    out.chunks(2).map(|row| row[0] as u32).collect()
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids
}

/// Hundred contexts of ten rows; and contexts of all lengths.
fn texts() -> [Arc<Fake>; 2] {
    [
        Arc::new(Fake::new([10; 100])),
        Arc::new(Fake::new((0..157).map(|i| (i * 7) % 11))),
    ]
}

#[test]
fn every_row_comes_exactly_once_an_epoch() {
    for model in texts() {
        let n = model.rows();
        let all: Vec<u32> = (1..=n as u32).collect();
        // Windows of a part of the text, of about all of it, and a pool that keeps it.
        for plan in [
            plan(100, 100, 20, 3 * n),
            plan(n - 1, n - 1, 1000, 3 * n),
            plan(5 * n, 5 * n, 3, 3 * n),
            plan(2 * n, 2 * n, 1000, 3 * n),
            plan(64, 2 * n, 1000, n),
        ] {
            let mut reader = reader(&model, plan, None);
            let mut before = Vec::new();
            for epoch in 0..plan.sizes.wanted / n {
                assert_eq!(reader.state().epoch, epoch.saturating_sub(1));
                let epoch_ids = ids(&mut reader, n);
                assert_eq!(reader.state().epoch, epoch);
                assert_ne!(epoch_ids, before, "another order each epoch");
                before.clone_from(&epoch_ids);
                assert_eq!(sorted(epoch_ids), all);
            }
        }
    }
}

#[test]
fn what_follows_a_state_does_not_depend_on_how_it_was_reached() {
    for model in texts() {
        let n = model.rows();
        for plan in [
            plan(100, 100, 20, 2 * n),
            plan(n, n, 1000, 2 * n),
            plan(300, 300, 5, 2 * n),
        ] {
            let mut whole = reader(&model, plan, None);
            let (mut states, mut batches) = (Vec::new(), Vec::new());
            let mut left = 2 * n;
            for size in (1..).map(|i| 1 + i * 13 % 40) {
                states.push((whole.state(), 2 * n - left));
                batches.push(ids(&mut whole, size.min(left)));
                left -= size.min(left);
                if left == 0 {
                    break;
                }
            }
            for (at, &from) in states.iter().enumerate() {
                // Computed in groups of another size, too: a group decides only how much is done side by side.
                let group = 1 + at % 5;
                let mut resumed = reader(&model, MixPlan { group, ..plan }, Some(from));
                let again: Vec<Vec<u32>> = batches[at..]
                    .iter()
                    .map(|b| ids(&mut resumed, b.len() as u64))
                    .collect();
                assert_eq!(again, batches[at..], "from {from:?}");
                assert_eq!(resumed.state(), whole.state());
            }
        }
    }
}

#[test]
fn a_window_mixes_contexts_from_far_and_near() {
    let model = Arc::new(Fake::new([10; 1000]));
    let mut reader = reader(&model, plan(500, 500, 400, 10_000), None);
    let first = ids(&mut reader, 100);
    let contexts: std::collections::BTreeSet<u32> = first.iter().map(|id| (id - 1) / 10).collect();
    assert!(
        contexts.len() > 40,
        "a batch of 100 from {} of the window's 50",
        contexts.len()
    );
    assert!(
        contexts.iter().any(|&c| c < 100) && contexts.iter().any(|&c| c > 300),
        "{contexts:?}"
    );
}

#[test]
fn the_model_computes_no_more_than_the_pool_holds_and_the_run_wants() {
    let model = Arc::new(Fake::new([10; 1000]));
    let mut reader = reader(&model, plan(200, 200, 50, 2000), None);
    ids(&mut reader, 1);
    // Everything that has room is computed meanwhile, and no more: a window and the groups on the way.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let ahead = model.computed.load(Ordering::SeqCst);
    let most = (200 + 33) / 10 + 3 * 6;
    assert!((20..=most).contains(&ahead), "{ahead} contexts, at most {most}");
    ids(&mut reader, 1999);
    let slots = reader.pool.as_ref().unwrap().slots();
    assert!(slots <= 200 + 33, "{slots} slots");
    drop(reader);
    let computed = model.computed.load(Ordering::SeqCst);
    assert!(
        computed <= 200 + 10 * 3,
        "{computed} contexts for 2,000 rows of 10 a context"
    );
}

#[test]
fn only_the_windows_that_matter_are_computed_again() {
    let model = Arc::new(Fake::new([10; 1000]));
    let plan = plan(200, 200, 50, 10_000);
    let mut whole = reader(&model, plan, None);
    ids(&mut whole, 9950);
    let from = (whole.state(), 9950);
    let rest = ids(&mut whole, 50);
    drop(whole);
    std::thread::sleep(std::time::Duration::from_millis(100));
    model.computed.store(0, Ordering::SeqCst);
    assert_eq!(ids(&mut reader(&model, plan, Some(from)), 50), rest);
    let computed = model.computed.load(Ordering::SeqCst);
    assert!(computed < 70, "{computed} of 1,000 contexts");
}

#[test]
fn a_text_that_stays_passes_the_model_once() {
    let model = Arc::new(Fake::new([10; 100]));
    let mut reader = reader(&model, plan(400, 2000, 1000, 5000), None);
    ids(&mut reader, 5000);
    assert_eq!(model.computed.load(Ordering::SeqCst), 100);
}

#[test]
fn seeds_and_limits_decide_the_order_and_nothing_else_does() {
    let model = Arc::new(Fake::new([10; 300]));
    let order = |plan: MixPlan| ids(&mut reader(&model, plan, None), 500);
    let usual = plan(200, 200, 50, 3000);
    assert_eq!(order(usual), order(usual));
    assert_eq!(order(usual), order(MixPlan { group: 9, ..usual }));
    for other in [
        MixPlan {
            sizes: Sizes { seed: 8, ..usual.sizes },
            ..usual
        },
        plan(300, 300, 50, 3000),
        plan(200, 200, 40, 3000),
    ] {
        assert_ne!(order(usual), order(other));
    }
}

#[test]
fn windows_and_the_epoch_end_where_their_units_do() {
    let model = Fake::new([10; 20]);
    let mut units = Units::begin(&model, plan(55, 55, 4, 1000).sizes, 0).unwrap();
    let mut found = Vec::new();
    while let Some(unit) = units.next().unwrap() {
        found.push((unit.rows, unit.ends));
    }
    let window = [(30, None), (30, Some(End::Window))];
    let mut expected = window.repeat(3);
    expected.push((20, Some(End::Epoch)));
    assert_eq!(found, expected);
}

#[test]
fn an_error_of_the_text_or_the_model_is_the_readers() {
    let mut bad = Fake::new([10; 100]);
    bad.bad = Some(70);
    let mut reader_of_bad = reader(&Arc::new(bad), plan(100, 100, 5, 5000), None);
    let mut out = vec![0.0; 2 * 10];
    let error = (0..100).find_map(|_| reader_of_bad.next_batch(&mut out).err()).unwrap();
    assert_eq!(error.to_string(), "record 70 is bad");

    let broken = Arc::new(Fake::new([10; 100]));
    broken.broken.store(true, Ordering::SeqCst);
    let error = reader(&broken, plan(100, 100, 5, 5000), None)
        .next_batch(&mut out)
        .unwrap_err();
    assert!(
        error.to_string().contains("position 10") && error.to_string().contains("column 1"),
        "{error}"
    );

    let model = Arc::new(Fake::new([10; 10]));
    let nowhere = |windows, draws| {
        let state = MixState {
            epoch: 0,
            windows,
            draws,
        };
        let mut reader = reader(&model, plan(50, 50, 5, 5000), Some((state, 0)));
        reader.next_batch(&mut [0.0; 2]).unwrap_err().to_string()
    };
    assert!(nowhere(9, 0).contains("changed") && nowhere(0, 99).contains("changed"));
    let empty = Arc::new(Fake::new([0; 10]));
    let error = reader(&empty, plan(50, 50, 5, 5000), None)
        .next_batch(&mut [0.0; 2])
        .unwrap_err();
    assert!(error.to_string().contains("no rows"), "{error}");
}

#[test]
fn the_plan_divides_the_memory_and_says_what_is_the_least() {
    let options = |mib: u64, batch: usize, rows: u64| StreamOptions {
        seed: 0,
        memory_bytes: mib << 20,
        batch,
        rows,
    };
    let plan = |mib, batch, rows| MixPlan::new(288, (4, 1024), 16, &options(mib, batch, rows));
    let bytes = |plan: &MixPlan| {
        let groups = IN_FLIGHT * plan.group as u64 * 1024 * 4 * 288;
        plan.sizes.waiting_bytes + plan.most_rows(true).max(plan.most_rows(false)) * (4 * 288 + 16) + groups
    };
    let mut sizes = BTreeMap::new();
    for (mib, batch, rows) in [
        (1024, 4096, 5_000_000),
        (1024, 4096, 10_000),
        (64, 4096, 50_000_000),
        (16, 64, 7),
    ] {
        let plan = plan(mib, batch, rows).unwrap();
        assert!(bytes(&plan) <= mib << 20, "{plan:?}");
        assert!(plan.sizes.window_rows <= plan.sizes.pool_rows);
        sizes.insert((mib, rows), plan.sizes.window_rows);
    }
    // Eight windows of five million rows; one window of ten thousand; what the pool holds of fifty million.
    assert_eq!((sizes[&(1024, 5_000_000)], sizes[&(1024, 10_000)]), (625_000, 10_000));
    assert!((35_000..45_000).contains(&sizes[&(64, 50_000_000)]), "{sizes:?}");
    let least = plan(4, 4096, 5_000_000).unwrap_err();
    assert!(plan(least.div_ceil(1 << 20), 4096, 5_000_000).is_ok());
    assert!(plan(least / (1 << 20), 4096, 5_000_000).is_err());
}
