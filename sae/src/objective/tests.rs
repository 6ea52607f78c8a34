use burn::tensor::{Device, Int};

use super::*;

/// Two rows of two, three latents; latent 2 is dead and its code is auxiliary.
fn pass(device: &Device, with_aux: bool) -> Forward {
    let slots = if with_aux { 2 } else { 1 };
    let indices = Tensor::<2, Int>::from_ints([[0, 2], [1, 2]], device).narrow(1, 0, slots);
    let values = Tensor::<2>::from_floats([[1.0, 0.5], [2.0, -1.0]], device).narrow(1, 0, slots);
    Forward {
        x: Tensor::from_floats([[1.0, 2.0], [0.0, 2.0]], device),
        recon: Tensor::from_floats([[1.0, 0.0], [0.0, 1.0]], device),
        selected: Selected { indices, values, k: 1 },
        w_dec: Tensor::from_floats([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], device),
        n_dead: 1,
        variance: 4.0,
    }
}

#[test]
fn parts_are_what_their_formulas_say_by_hand() {
    let objective = Objective::standard(0.5, 2);
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
    let loss = Objective::standard(0.5, 2).loss(&pass(&Device::flex(), false));
    let names: Vec<_> = loss.read().unwrap().1.iter().map(|p| p.0).collect();
    assert_eq!(names, ["mse"]);
    assert_eq!(Objective::standard(0.0, 2).terms.len(), 1);
}

#[test]
fn a_perfect_reconstruction_has_a_finite_auxiliary_loss() {
    let device = Device::flex();
    let mut pass = pass(&device, true);
    pass.recon = pass.x.clone();
    pass.selected.values = pass.selected.values * 0.0;
    let (total, parts) = Objective::standard(0.5, 2).loss(&pass).read().unwrap();
    assert_eq!((total, parts[1].1), (0.0, 0.0));
}
