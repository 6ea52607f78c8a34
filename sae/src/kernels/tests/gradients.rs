//! Gradients against a dense code under burn's own autodiff and against finite differences, and that a whole step has
//! one answer whatever the threads.

use super::*;

/// A loss that uses everything: both codes, decoded, against x.
struct Loss {
    device: Device,
    kind: Kind,
    score: Score,
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
        let main = self.kind.selection(self.score, host.d_sae, device);
        let code = encode(x.clone(), w_enc.clone(), b_enc.clone(), main, aux, Search::Auto);
        let mut support = Vec::new();
        for code in [Some(&code.main), code.aux.as_ref()].into_iter().flatten() {
            let code = code.to_host().unwrap();
            for range in code.rows.ranges() {
                let mut row = code.indices[range].to_vec();
                row.sort();
                support.extend(row);
                support.push(-1);
            }
        }
        let mut loss = (decode(&code.main, w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        if let Some(aux) = &code.aux {
            loss = loss + (decode(aux, w_dec.clone()) - x.clone()).powi_scalar(2).sum();
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

    /// The same through a dense code under burn's own autodiff, given which entries fire.
    fn dense(&self, host: &Host) -> [Vec<f32>; 4] {
        let device = &self.device;
        let [batch, d_in, d_sae] = [host.batch(), host.d_in, host.d_sae];
        let x = matrix(&host.x, [batch, d_in], device).require_grad();
        let w_enc = matrix(&host.w_enc, [d_sae, d_in], device).require_grad();
        let b_enc = vector(&host.b_enc, device).require_grad();
        let w_dec = matrix(&host.w_dec, [d_sae, d_in], device).require_grad();
        let pre = x.clone().matmul(w_enc.clone().transpose()) + b_enc.clone().unsqueeze::<2>();
        let mask = |code: HostCode| {
            let mut mask = vec![0.0f32; batch * d_sae];
            for row in 0..batch {
                code.row(row).for_each(|(i, _)| mask[row * d_sae + i] = 1.0);
            }
            matrix(&mask, [batch, d_sae], device)
        };
        let main = host.encode(self.score, self.kind.budget(batch), &self.kind.bars(d_sae));
        let main = pre.clone() * mask(main);
        let mut loss = (main.matmul(w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        if let Some((score, k, dead)) = &self.aux {
            let score = match score {
                Score::Positive | Score::Value => Score::Value,
                Score::Magnitude => Score::Magnitude,
            };
            let aux = pre * mask(host.encode_aux(score, *k, dead));
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
        for (score, kind) in [
            (Score::Positive, Kind::PerToken(5)),
            (Score::Magnitude, Kind::PerToken(5)),
            (Score::Value, Kind::PerToken(15)),
            (Score::Positive, Kind::PerBatch(4)),
            (Score::Magnitude, Kind::PerBatch(5)),
            (Score::Positive, Kind::PerLatent(2)),
            (Score::Positive, Kind::Above { zero: true }),
            (Score::Positive, Kind::Above { zero: false }),
        ] {
            for aux in [None, Some((score, 4, vec![1, 2, 8, 13, 14, 20]))] {
                losses.push(Loss {
                    device: device.clone().autodiff(),
                    kind,
                    score,
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
        let main = Selection::PerToken {
            score: Score::Positive,
            k: 1,
        };
        let code = encode(
            x,
            w_enc.clone(),
            Tensor::zeros([2], &device),
            main,
            Some(aux),
            Search::Auto,
        );
        let aux = code.aux.unwrap();
        assert_eq!(read(aux.values.clone()), [-1.0]);
        let grads = aux.values.sum().backward();
        assert_eq!(read(w_enc.grad(&grads).unwrap()), [0.0, 0.0, 1.0, 0.0]);
    }
}

#[test]
fn inputs_off_the_autodiff_device_are_lifted_onto_it() {
    let plain = Device::flex();
    let w_enc = Tensor::<2>::ones([3, 2], &plain.clone().autodiff()).require_grad();
    let main = Selection::PerToken {
        score: Score::Positive,
        k: 1,
    };
    let code = encode(
        Tensor::ones([1, 2], &plain),
        w_enc.clone(),
        Tensor::zeros([3], &plain),
        main,
        None,
        Search::Auto,
    )
    .main;
    let recon = decode(&code, Tensor::ones([3, 2], &plain));
    let grads = recon.sum().backward();
    assert_eq!(read(w_enc.grad(&grads).unwrap()), [2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// Everything a step computes, as bits.
fn step_bits(kind: Kind) -> Vec<u32> {
    let host = host(9, 300, 130, 1030);
    let loss = Loss {
        device: Device::flex().autodiff(),
        kind,
        score: Score::Magnitude,
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
    for kind in [Kind::PerToken(17), Kind::PerBatch(17), Kind::Above { zero: false }] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| step_bits(kind))
        };
        let one = on(1);
        assert!(one.iter().any(|v| *v != 0));
        assert!(one == on(3), "one thread and three disagree");
        assert!(one == on(2), "one thread and two disagree");
    }
}
