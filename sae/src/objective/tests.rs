use burn::tensor::{Device, Int};

use super::*;
use crate::code::Rows;

/// Two rows of two, three latents; latent 2 is dead and its code is auxiliary.
pub(super) fn pass(device: &Device, with_aux: bool) -> Forward {
    let code = |indices: [i32; 2], values: [f32; 2]| SparseCode {
        rows: Rows::Equal { batch: 2, slots: 1 },
        indices: Tensor::<1, Int>::from_ints(indices, device),
        values: Tensor::<1>::from_floats(values, device),
    };
    Forward {
        target: Tensor::from_floats([[1.0, 2.0], [0.0, 2.0]], device),
        recon: Tensor::from_floats([[1.0, 0.0], [0.0, 1.0]], device),
        code: code([0, 1], [1.0, 2.0]),
        signed: false,
        aux: with_aux.then(|| code([2, 2], [0.5, -1.0])),
        near: None,
        gate: None,
        masked: None,
        w_dec: Tensor::from_floats([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], device),
        base: Tensor::zeros([1, 2], device),
        written: vec![2],
        n_dead: 1,
        variance: 4.0,
        search: Search::Auto,
        moment: Moment {
            step: 0,
            steps: 10,
            seed: 0,
        },
    }
}

fn standard(aux_weight: f64) -> Objective {
    Objective::new(&ObjectiveConfig::default(), aux_weight, 2)
}

/// The value of one term of `[objective]`.
fn value(config: &str, pass: &Forward) -> f32 {
    let config: ObjectiveConfig = toml::from_str(config).unwrap();
    let term = &config.terms()[0];
    to_host::<f32>(term.face().value(pass).unwrap().try_into_data()).unwrap()[0]
}

#[track_caller]
fn near(found: f32, expected: f64) {
    let off = (f64::from(found) - expected).abs();
    assert!(off < 1e-5 * (1.0 + expected.abs()), "{found}, expected {expected}");
}

#[test]
fn parts_are_what_their_formulas_say_by_hand() {
    let objective = standard(0.5);
    let (total, parts) = objective.loss(&pass(&Device::flex(), true)).read().unwrap();
    // Residuals (0, 2) and (0, 1): squares 4 + 1, mean over two rows, over the variance.
    assert_eq!(parts[0], ("mse", 5.0 / 2.0 / 4.0));
    // About their mean (0, 1.5): 0.25 twice. The auxiliary reconstructions are (0, -0.5) and (0, 1), the errors 2.5 and
    // 0. One dead latent of two for full weight.
    assert_eq!(parts[1], ("aux_k", 6.25 / 0.5 * 0.5));
    assert_eq!(total, parts[0].1 + 0.5 * parts[1].1);
}

#[test]
fn without_dead_latents_there_is_no_auxiliary_part() {
    let loss = standard(0.5).loss(&pass(&Device::flex(), false));
    let names: Vec<_> = loss.read().unwrap().1.iter().map(|p| p.0).collect();
    assert_eq!(names, ["mse"]);
    assert_eq!(standard(0.0).terms.len(), 1);
}

#[test]
fn a_perfect_reconstruction_has_a_finite_auxiliary_loss() {
    let device = Device::flex();
    let mut pass = pass(&device, true);
    pass.recon = pass.target.clone();
    let aux = pass.aux.as_mut().unwrap();
    aux.values = aux.values.clone() * 0.0;
    let (total, parts) = standard(0.5).loss(&pass).read().unwrap();
    assert_eq!((total, parts[1].1), (0.0, 0.0));
}

#[test]
fn normalised_errors_are_what_their_formulas_say_by_hand() {
    let pass = pass(&Device::flex(), false);
    // Squared errors 4 and 1; |x|^2 is 5 and 4; about their mean (0.5, 2) the rows are 0.25 off each.
    near(value("[mse]", &pass), 5.0 / 2.0 / 4.0);
    near(value("[mse]\nnormalize = \"none\"", &pass), 5.0 / 2.0);
    near(value("[mse]\nnormalize = \"batch\"", &pass), 5.0 / 0.5);
    near(
        value("[mse]\nnormalize = \"row\"", &pass),
        (4.0 / 5.0 + 1.0 / 4.0) / 2.0,
    );
}

#[test]
fn tilted_risk_lies_between_the_mean_and_the_worst_and_no_outlier_makes_it_infinite() {
    let mut pass = pass(&Device::flex(), false);
    let of = |t: f64, pass: &Forward| value(&format!("[tilted]\nt = {t:?}"), pass);
    // Errors over the variance: 1 and 0.25.
    near(of(2.0, &pass), ((2.0f64.exp() + 0.5f64.exp()) / 2.0).ln() / 2.0);
    assert!((of(1e-3, &pass) - 0.625).abs() < 1e-3);
    assert!((of(1e3, &pass) - 1.0).abs() < 1e-3);
    pass.target = pass.target * 1e6;
    assert!(of(10.0, &pass).is_finite());
}

#[test]
fn masked_errors_are_counted_where_nothing_was_seen() {
    let device = Device::flex();
    let mut pass = pass(&device, false);
    pass.masked = Some(MaskedPass {
        recon: Tensor::from_floats([[5.0, 3.0], [2.0, 9.0]], &device),
        hidden: Tensor::from_floats([[0.0, 1.0], [1.0, 0.0]], &device),
    });
    // One of two coordinates of each row, off by 1 and by 2.
    near(value("[masked]\nhidden = 0.5", &pass), (1.0 + 4.0) / 2.0 / 0.5 / 4.0);
    pass.masked = None;
    let config: ObjectiveConfig = toml::from_str("[masked]").unwrap();
    assert!(config.terms()[0].face().value(&pass).is_none());
}

#[test]
fn penalties_are_what_their_formulas_say_by_hand() {
    let device = Device::flex();
    let mut pass = pass(&device, false);
    // Values 1 and 2 with decoder rows of length 3 and 1.
    pass.w_dec = Tensor::from_floats([[0.0, 3.0], [1.0, 0.0], [1.0, 1.0]], &device);
    near(value("[l1]", &pass), (3.0 + 2.0) / 2.0 / 2.0);
    near(
        value("[tanh]\nscale = 0.5", &pass),
        (1.5f64.tanh() + 1.0f64.tanh()) / 2.0,
    );
    // Two hooks are written: a latent pays for each, 0 + 3 and 1 + 0, and the third for both.
    pass.written = vec![1, 1];
    near(value("[l1]", &pass), (3.0 + 2.0) / 2.0 / 2.0);
    pass.code.indices = Tensor::<1, Int>::from_ints([0, 2], &device);
    near(value("[l1]", &pass), (3.0 + 2.0 * 2.0) / 2.0 / 2.0);
    (pass.written, pass.code.indices) = (vec![2], Tensor::<1, Int>::from_ints([0, 1], &device));
    pass.code.values = Tensor::from_floats([-1.0, 2.0], &device);
    pass.signed = true;
    near(value("[l1]", &pass), (3.0 + 2.0) / 2.0 / 2.0);
    pass.near = Some(Near {
        pre: Tensor::from_floats([1.0, 0.0], &device),
        threshold: Tensor::from_floats([0.5, 0.5], &device),
        bandwidth: 0.1,
    });
    // The first row has one, the second none.
    near(value("[l0]", &pass), 0.5);
    near(value("[l0]\ntarget = 3.0", &pass), 2.0 / 3.0 * (4.0 + 9.0) / 2.0);
}

#[test]
fn a_warm_up_never_starts_at_nothing_and_ends_at_one() {
    let at = |step| {
        let moment = Moment {
            step,
            steps: 10,
            seed: 0,
        };
        moment.warmed_up(0.3)
    };
    assert_eq!([at(0), at(1), at(2), at(3), at(9)], [0.25, 0.5, 0.75, 1.0, 1.0]);
    let whole = Moment {
        step: 0,
        steps: 10,
        seed: 0,
    };
    assert_eq!(whole.warmed_up(0.0), 1.0);
}

#[test]
fn another_error_of_reconstruction_takes_the_place_of_the_mean_squared_one_which_is_still_reported() {
    let config: ObjectiveConfig = toml::from_str("[tilted]\nweight = 2.0").unwrap();
    let (total, parts) = Objective::new(&config, 0.0, 1)
        .loss(&pass(&Device::flex(), false))
        .read()
        .unwrap();
    assert_eq!(parts.iter().map(|p| p.0).collect::<Vec<_>>(), ["mse", "tilted"]);
    assert_eq!(total, 2.0 * parts[1].1);
    let both: ObjectiveConfig = toml::from_str("[mse]\n[tilted]").unwrap();
    let (total, parts) = Objective::new(&both, 0.0, 1)
        .loss(&pass(&Device::flex(), false))
        .read()
        .unwrap();
    assert_eq!(total, parts[0].1 + parts[1].1);
}

#[test]
fn tilted_risk_weighs_rows_by_the_softmax_of_their_errors() {
    let device = Device::flex().autodiff();
    let mut pass = pass(&device, false);
    let recon = pass.recon.clone().require_grad();
    pass.recon = recon.clone();
    let config: ObjectiveConfig = toml::from_str("[tilted]\nt = 3.0").unwrap();
    let grads = Objective::new(&config, 0.0, 1).loss(&pass).total.backward();
    let gradient = recon.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
    // Errors over the variance 1 and 0.25; the rows are off by (0, -2) and (0, -1), and 2 / 4 comes of the square.
    let share = 3.0f64.exp() / (3.0f64.exp() + 0.75f64.exp());
    for (found, expected) in gradient
        .iter()
        .zip([0.0, -2.0 * share * 0.5, 0.0, -(1.0 - share) * 0.5])
    {
        near(*found, expected);
    }
}

#[test]
fn prefixes_by_width_are_what_their_formula_says_by_hand() {
    let mut pass = pass(&Device::flex(), false);
    // Latents 0 and 1 with values 1 and 2, one a row; below width 1 is latent 0 alone. Errors of (1, 2) by (1, 0) and
    // of (0, 2) by nothing: 4 and 4. By all: 4, and (0, 2) by (0, 2): 0.
    near(
        value("[matryoshka]\nwidths = [1]", &pass),
        (8.0 + 4.0) / 2.0 / 2.0 / 4.0,
    );
    near(value("[matryoshka]\nwidths = [3]", &pass), 4.0 / 2.0 / 4.0);
    // A single level is the mean squared error.
    pass.recon = Tensor::from_floats([[1.0, 0.0], [0.0, 2.0]], &Device::flex());
    near(
        value("[matryoshka]\nwidths = [3]", &pass),
        f64::from(value("[mse]", &pass)),
    );
}

#[test]
fn prefixes_by_rank_are_what_their_formula_says_by_hand() {
    let device = Device::flex();
    let mut pass = pass(&device, false);
    pass.code = SparseCode {
        rows: Rows::Equal { batch: 2, slots: 2 },
        indices: Tensor::<1, Int>::from_ints([1, 0, 1, 2], &device),
        values: Tensor::<1>::from_floats([2.0, 1.0, 1.0, -1.0], &device),
    };
    // (1, 2): by (0, 2) off by (1, 0), by (1, 2) by nothing. (0, 2): by (0, 1) off by 1, by (0, 2) by nothing.
    near(value("[hierarchical]", &pass), (1.0 + 1.0) / 2.0 / 2.0 / 4.0);
}
