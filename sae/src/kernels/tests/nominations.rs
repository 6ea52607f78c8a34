//! Selections whose nominees come from a product of few bits, against the twin that knows all pre-activations.

use super::super::nominate::{self, Encoder};
use super::super::rough::Product;
use super::*;

const PRODUCTS: [Product; 2] = [Product::Int8, Product::Bf16];

/// However many nominees there are.
fn nominated(case: &Case, host: &Host, product: Product) -> (HostCode, HostCode) {
    let encoder = Encoder {
        x: &host.x,
        w_enc: &host.w_enc,
        b_enc: &host.b_enc,
        d_in: host.d_in,
    };
    let bars = case.kind.bars(case.d_sae);
    let mut main = nominate::select(encoder, case.plan(), &bars, &case.dead, (product, 1)).unwrap();
    let aux_indices = main.indices.split_off(main.rows.len());
    let aux_values = main.values.split_off(main.rows.len());
    (main, HostCode::equal(case.k_aux, aux_indices, aux_values))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_few_bits_nominate_and_f32_decides_is_what_the_twin_selects(case in cases(), scale in -20i32..20) {
        // Budgets of latents are left to f32.
        prop_assume!(case.plan().budget != Budget::PerLatent);
        let mut host = host(case.seed, case.batch, case.d_in, case.d_sae);
        if scale > -10 {
            // Rows of other sizes have other errors, and in a batch they compete.
            let factor = 1.5f32.powi(scale.min(6));
            host.x.chunks_mut(host.d_in).step_by(3).flatten().for_each(|x| *x *= factor);
        }
        for product in PRODUCTS {
            let (code, aux) = nominated(&case, &host, product);
            judge_selection(&case, &host, &code, &aux);
        }
    }
}

#[test]
fn on_wide_dictionaries_the_sets_are_those_of_f32() {
    for (kind, score) in [
        (Kind::PerToken(16), Score::Positive),
        (Kind::PerToken(16), Score::Magnitude),
        (Kind::PerBatch(16), Score::Positive),
        (Kind::PerBatch(16), Score::Magnitude),
    ] {
        let case = Case {
            seed: 5,
            batch: 400,
            d_in: 97,
            d_sae: 2051,
            kind,
            score,
            dead: vec![0],
            k_aux: 1,
        };
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let expected = host.encode(score, kind.budget(case.batch), &[]);
        let sets = |code: &HostCode| -> Vec<Vec<usize>> {
            let rows = (0..case.batch).map(|row| {
                let mut latents: Vec<usize> = code.row(row).map(|(i, _)| i).collect();
                latents.sort_unstable();
                latents
            });
            rows.collect()
        };
        let expected = sets(&expected);
        for product in PRODUCTS {
            let found = sets(&nominated(&case, &host, product).0);
            let missing = |(a, b): (&Vec<usize>, &Vec<usize>)| b.iter().filter(|i| !a.contains(i)).count();
            // The twin adds in f64: two scores may be nearer to each other than f32 can tell.
            let missing: usize = found.iter().zip(&expected).map(missing).sum();
            assert!(
                missing <= 2,
                "{product:?}, {kind:?} by {score:?}: {missing} of {} entries",
                16 * case.batch
            );
        }
    }
}

#[test]
fn rows_of_zeros_of_giants_and_of_no_numbers_are_coded_as_by_f32() {
    for kind in [Kind::PerToken(3), Kind::PerBatch(3), Kind::Above { zero: true }] {
        for score in [Score::Positive, Score::Magnitude] {
            let case = Case {
                seed: 3,
                batch: 9,
                d_in: 10,
                d_sae: 120,
                kind,
                score,
                dead: vec![0, 7],
                k_aux: 2,
            };
            let mut host = host(case.seed, case.batch, case.d_in, case.d_sae);
            host.x[..10].fill(0.0);
            host.x[10..20].fill(1e-39);
            host.x[25] = 1e30;
            host.x[37] = f32::NAN;
            host.x[41] = f32::INFINITY;
            host.x[52] = 1e12;
            host.x.truncate(90);
            let expected = host.encode(score, kind.budget(9), &kind.bars(120));
            for (product, row) in PRODUCTS.into_iter().flat_map(|p| (0..9).map(move |row| (p, row))) {
                let (code, _) = nominated(&case, &host, product);
                let entries = |code: &HostCode| {
                    let mut entries: Vec<_> = code.row(row).collect();
                    entries.sort_by_key(|(i, _)| *i);
                    entries
                };
                let (found, expected) = (entries(&code), entries(&expected));
                let latents = |code: &[(usize, f32)]| code.iter().map(|(i, _)| *i).collect::<Vec<_>>();
                assert_eq!(
                    latents(&found),
                    latents(&expected),
                    "{product:?}, {kind:?} by {score:?}, row {row}"
                );
                for ((_, a), (_, b)) in found.iter().zip(&expected) {
                    assert!(a == b || (a - b).abs() <= 1e-4 * b.abs(), "{a}, expected {b}");
                }
            }
        }
    }
}

#[test]
fn a_batch_that_is_not_sparse_is_left_to_f32() {
    let host = host(1, 40, 8, 64);
    let encoder = Encoder {
        x: &host.x,
        w_enc: &host.w_enc,
        b_enc: &host.b_enc,
        d_in: 8,
    };
    let plan = |budget| ops::EncodePlan {
        score: Score::Positive,
        budget,
        aux_score: Score::Value,
        aux_k: 0,
        exact: false,
    };
    let coded = |budget, bars, with| nominate::select(encoder, plan(budget), bars, &[], with).is_some();
    for product in PRODUCTS {
        assert!(coded(Budget::PerToken(1), &[], (product, 8)), "{product:?}");
        assert!(!coded(Budget::PerToken(20), &[], (product, 8)), "{product:?}");
        assert!(!coded(Budget::Above, &[0.0; 64], (product, 8)), "{product:?}");
    }
}

#[test]
fn integers_are_tried_first_and_pay_for_less_where_bf16_is_next() {
    assert_eq!(nominate::products(Level::Avx512, 768), []);
    assert_eq!(nominate::products(Level::Avx512Vnni, 768), [(Product::Int8, 16)]);
    let both = [(Product::Int8, 64), (Product::Bf16, 16)];
    assert_eq!(nominate::products(Level::Avx512Bf16, 768), both);
    assert_eq!(nominate::products(Level::Avx512Bf16, 100_000), both[1..]);
}
