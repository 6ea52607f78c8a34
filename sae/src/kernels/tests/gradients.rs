//! Gradients against a dense code under burn's own autodiff and against finite differences, and that a whole step has
//! one answer whatever the threads.

use super::*;

/// A loss that uses everything: both codes, decoded, against x.
struct Loss {
    device: Device,
    main: Selection,
    aux: Option<(Score, usize, Vec<i32>)>,
}

impl Loss {
    /// Loss, gradients of x, w_enc, b_enc and w_dec, and the latents of every row, ascending.
    fn run(&self, host: &Host) -> (f64, [Vec<f32>; 4], Vec<i32>) {
        let device = &self.device;
        let x = matrix(&host.x, [host.batch(), host.d_in], device).require_grad();
        let w_enc = matrix(&host.w_enc, [host.d_sae, host.d_in], device).require_grad();
        let b_enc = vector(&host.b_enc, device).require_grad();
        let w_dec = matrix(&host.w_dec, [host.d_sae, host.d_in], device).require_grad();
        let aux = self.aux.as_ref().map(|(score, k, dead)| AuxSelection {
            score: *score,
            k: *k,
            candidates: Tensor::from_data(TensorData::new(dead.clone(), [dead.len()]), device),
        });
        let code = encode(x.clone(), w_enc.clone(), b_enc.clone(), self.main, aux);
        let [_, slots] = code.indices.dims();
        let mut support: Vec<i32> = code.indices.clone().into_data().convert::<i32>().to_vec().unwrap();
        support.chunks_mut(slots).for_each(|row| row.sort());
        let main = code.main();
        let mut loss = (decode(main.indices, main.values, w_dec.clone()) - x.clone())
            .powi_scalar(2)
            .sum();
        if let Some(aux) = code.aux() {
            loss = loss
                + (decode(aux.indices, aux.values, w_dec.clone()) - x.clone())
                    .powi_scalar(2)
                    .sum();
        }
        let grads = loss.backward();
        let gradients = [
            read(x.grad(&grads).unwrap()),
            read(w_enc.grad(&grads).unwrap()),
            read(b_enc.grad(&grads).unwrap()),
            read(w_dec.grad(&grads).unwrap()),
        ];
        (f64::from(read(loss)[0]), gradients, support)
    }

    /// The same through a dense code under burn's own autodiff, given which slots fire.
    fn dense(&self, host: &Host) -> [Vec<f32>; 4] {
        let device = &self.device;
        let [batch, d_in, d_sae] = [host.batch(), host.d_in, host.d_sae];
        let x = matrix(&host.x, [batch, d_in], device).require_grad();
        let w_enc = matrix(&host.w_enc, [d_sae, d_in], device).require_grad();
        let b_enc = vector(&host.b_enc, device).require_grad();
        let w_dec = matrix(&host.w_dec, [d_sae, d_in], device).require_grad();
        let pre = x.clone().matmul(w_enc.clone().transpose()) + b_enc.clone().unsqueeze::<2>();
        let mask = |rank: Rank, k: usize, latents: &[i32]| {
            let mut mask = vec![0.0f32; batch * d_sae];
            for (row, pre) in host.pre().chunks(d_sae).enumerate() {
                let subset: Vec<f32> = latents.iter().map(|&i| pre[i as usize]).collect();
                let (winners, values) = select::top_k_twin(&subset, rank, k);
                for (&i, &v) in winners.iter().zip(&values) {
                    mask[row * d_sae + latents[i as usize] as usize] = f32::from(v != 0.0);
                }
            }
            matrix(&mask, [batch, d_sae], device)
        };
        let all: Vec<i32> = (0..d_sae as i32).collect();
        let main = pre.clone() * mask(Rank::Score(self.main.score), self.main.k, &all);
        let mut loss = (main.matmul(w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        if let Some((score, k, dead)) = &self.aux {
            let rank = match score {
                Score::Positive => Rank::Value,
                Score::Magnitude => Rank::Score(Score::Magnitude),
            };
            let aux = pre * mask(rank, *k, dead);
            loss = loss + (aux.matmul(w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        }
        let grads = loss.backward();
        [
            read(x.grad(&grads).unwrap()),
            read(w_enc.grad(&grads).unwrap()),
            read(b_enc.grad(&grads).unwrap()),
            read(w_dec.grad(&grads).unwrap()),
        ]
    }
}

fn losses(devices: &[Device]) -> Vec<Loss> {
    let mut losses = Vec::new();
    for device in devices {
        for score in [Score::Positive, Score::Magnitude] {
            for aux in [None, Some((score, 4, vec![1, 2, 8, 13, 14, 20]))] {
                losses.push(Loss {
                    device: device.clone().autodiff(),
                    main: Selection { score, k: 5 },
                    aux,
                });
            }
        }
    }
    losses
}

#[test]
fn gradients_equal_those_of_a_dense_code_under_burns_autodiff() {
    for loss in losses(&devices()) {
        let host = host(3, 7, 9, 23);
        let (_, sparse, _) = loss.run(&host);
        let dense = loss.dense(&host);
        for ((sparse, dense), what) in sparse.iter().zip(&dense).zip(["x", "w_enc", "b_enc", "w_dec"]) {
            assert!(dense.iter().any(|v| *v != 0.0), "{what} has a gradient");
            assert_close(sparse, dense, what);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for loss in losses(&[Device::flex()]) {
        let mut host = host(5, 4, 6, 23);
        let (_, gradients, support) = loss.run(&host);
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut checked = 0;
        for (which, gradient) in gradients.iter().enumerate() {
            for _ in 0..8 {
                let at = rng.random_range(0..gradient.len());
                let mut shifted = |by: f32| {
                    let parameter = match which {
                        0 => &mut host.x,
                        1 => &mut host.w_enc,
                        2 => &mut host.b_enc,
                        _ => &mut host.w_dec,
                    };
                    parameter[at] += by;
                    loss.run(&host)
                };
                let step = 2e-3;
                let ((up, _, up_support), (down, _, down_support)) = (shifted(step), shifted(-2.0 * step));
                shifted(step);
                // The loss jumps where one latent overtakes another: there is no slope to compare with.
                if up_support != support || down_support != support {
                    continue;
                }
                checked += 1;
                let slope = (up - down) / (2.0 * f64::from(step));
                let error = (slope - f64::from(gradient[at])).abs();
                assert!(
                    error < 2e-2 * (1.0 + slope.abs()),
                    "input {which}[{at}]: {} and {slope}",
                    gradient[at]
                );
            }
        }
        assert!(checked >= 24, "only {checked} of 32 coordinates compared");
    }
}

#[test]
fn a_dead_latent_below_zero_gets_a_gradient_through_the_auxiliary_code() {
    for device in devices() {
        let device = device.autodiff();
        let x = Tensor::<2>::from_floats([[1.0, 0.0]], &device);
        let w_enc = Tensor::<2>::from_floats([[2.0, 0.0], [-1.0, 0.0]], &device).require_grad();
        let aux = AuxSelection {
            score: Score::Positive,
            k: 1,
            candidates: Tensor::from_ints([1], &device),
        };
        let main = Selection {
            score: Score::Positive,
            k: 1,
        };
        let code = encode(x, w_enc.clone(), Tensor::zeros([2], &device), main, Some(aux));
        let aux = code.aux().unwrap();
        assert_eq!(read(aux.values.clone()), [-1.0]);
        let grads = aux.values.sum().backward();
        assert_eq!(read(w_enc.grad(&grads).unwrap()), [0.0, 0.0, 1.0, 0.0]);
    }
}

#[test]
fn inputs_off_the_autodiff_device_are_lifted_onto_it() {
    let plain = Device::flex();
    let w_enc = Tensor::<2>::ones([3, 2], &plain.clone().autodiff()).require_grad();
    let main = Selection {
        score: Score::Positive,
        k: 1,
    };
    let code = encode(
        Tensor::ones([1, 2], &plain),
        w_enc.clone(),
        Tensor::zeros([3], &plain),
        main,
        None,
    )
    .main();
    let recon = decode(code.indices, code.values, Tensor::ones([3, 2], &plain));
    let grads = recon.sum().backward();
    assert_eq!(read(w_enc.grad(&grads).unwrap()), [2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// Everything a step computes, as bits.
fn step_bits() -> Vec<u32> {
    let host = host(9, 300, 130, 1030);
    let loss = Loss {
        device: Device::flex().autodiff(),
        main: Selection {
            score: Score::Magnitude,
            k: 17,
        },
        aux: Some((Score::Magnitude, 20, (0..1030).step_by(3).collect())),
    };
    let (value, gradients, _) = loss.run(&host);
    let mut param = host.w_dec.clone();
    let (mut m, mut v) = (vec![0.0; param.len()], vec![0.0; param.len()]);
    let step = AdamStep {
        beta_1: 0.9,
        beta_2: 0.99,
        eps: 1e-8,
        rate: 0.1,
        root_correction: 10.0,
        grad_scale: 1.0,
        unit_rows: true,
    };
    adam::update(&mut param, &gradients[3], &mut m, &mut v, 130, step);
    let squares = sum_of_squares(&gradients[1]);
    let all = gradients.iter().flatten().chain(&param).chain(&m).chain(&v);
    let mut bits: Vec<u32> = all.map(|v| v.to_bits()).collect();
    bits.extend([(value as f32).to_bits(), (squares as f32).to_bits()]);
    bits
}

#[test]
fn a_step_has_the_same_bytes_whatever_the_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(step_bits)
    };
    let one = on(1);
    assert!(one.iter().any(|v| *v != 0));
    assert!(one == on(3), "one thread and three disagree");
    assert!(one == on(2), "one thread and two disagree");
}
