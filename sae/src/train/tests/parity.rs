//! One pass on the same weights and rows as SAELens, sparsify and dictionary_learning: codes, reconstructions, every part of the loss and
//! all gradients, within 1e-5 of the largest value. `tests/fixtures/peers/make.py` made the references.

use std::path::Path;

use activations::safetensors_file::SafeTensors;
use burn::tensor::{Device, Tensor, TensorData};

use super::super::course::Course;
use super::super::dead::Silence;
use super::super::laps::Laps;
use super::super::schedule::Schedule;
use super::super::sides::Sides;
use super::super::trainer::update::Gradients;
use super::super::trainer::{Optimizer, Trainer};
use crate::code::to_host;
use crate::config::{Decay, Method};
use crate::dictionary::{Place, Sae, Scale, Scales};
use crate::objective::{Forward, Objective};
use crate::optimizer::{Adam, MatrixState, Moments};
use crate::sparsifier::Gate;

const D_IN: usize = 16;
const D_SAE: usize = 48;
const BATCH: usize = 24;
const K: usize = 5;
const BANDWIDTH: f64 = 0.4;

/// The tensors of one case.
struct Peer {
    file: SafeTensors,
    name: &'static str,
}

impl Peer {
    fn new(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peers/peers.safetensors");
        let file = SafeTensors::open(&path).unwrap();
        Self { file, name }
    }

    fn read(&self, tensor: &str) -> Vec<f32> {
        self.file.read_f32(&format!("{}.{tensor}", self.name)).unwrap()
    }

    fn part(&self, part: &str) -> f32 {
        self.read(&format!("part.{part}"))[0]
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.shape(&format!("{}.{tensor}", self.name)).is_some()
    }

    /// A trainer with the case's weights. `objective` is `[objective]` as TOML.
    fn trainer(&self, method: Method, objective: &str, aux_weight: f64) -> Trainer {
        let device = Device::flex();
        let matrix = |name: &str, shape: [usize; 2]| {
            let matrix: Tensor<2> = Tensor::from_data(TensorData::new(self.read(name), shape), &device);
            Tensor::<2>::from_inner(matrix).require_grad()
        };
        let d_out = self.read("b_dec").len();
        let mut places = vec![Place {
            hook: None,
            width: D_IN,
        }];
        if self.has("target") {
            places.push(Place {
                hook: None,
                width: d_out,
            });
        }
        let one = |width| vec![Scale { width, scale: 1.0 }];
        let vector = |name: &str| {
            let values = self.read(name);
            let shape = [values.len()];
            Tensor::<1>::from_inner(Tensor::from_data(TensorData::new(values, shape), &device)).require_grad()
        };
        let moments = |n: usize| Moments::new([n], &device);
        Trainer {
            sae: Sae {
                per_token: false,
                w_enc: matrix("w_enc", [D_SAE, D_IN]),
                b_enc: vector("b_enc"),
                w_dec: matrix("w_dec", [D_SAE, d_out]),
                b_dec: vector("b_dec"),
                apply_b_dec_to_input: !self.has("target"),
                steps: Vec::new(),
                skip: self.has("skip").then(|| matrix("skip", [d_out, D_IN])),
                threshold: self.has("threshold").then(|| vector("threshold")),
                sparsifier: method.sparsifier(K),
            },
            optimizer: Optimizer {
                adam: Adam::default(),
                w_enc: Some(MatrixState::Adam(Moments::new([D_SAE, D_IN], &device))),
                b_enc: moments(D_SAE),
                w_dec: MatrixState::Adam(Moments::new([D_SAE, d_out], &device)),
                b_dec: moments(d_out),
                steps: Vec::new(),
                skip: self.has("skip").then(|| Moments::new([d_out, D_IN], &device)),
                threshold: self.has("threshold").then(|| moments(D_SAE)),
                gate: self.has("r_mag").then(|| [moments(D_SAE), moments(D_SAE)]),
            },
            gate: self.has("r_mag").then(|| Gate {
                r_mag: vector("r_mag"),
                b_mag: vector("b_mag"),
            }),
            average: None,
            silence: Silence::new(D_SAE, 1000),
            resampling: None,
            density: None,
            course: Course::default(),
            sides: Sides::new(&places, 1, self.has("target").then_some(&[1])),
            per_token: false,
            whitening: None,
            scales: Scales {
                read: one(D_IN),
                write: one(d_out),
            },
            variance: 1.0,
            objective: Objective::new(&toml::from_str(objective).unwrap(), aux_weight, D_IN / 2),
            schedule: Schedule {
                lr: 1e-3,
                steps: 10,
                warmup_steps: 0,
                decay: Decay::Linear,
                decay_steps: 0,
            },
            clip_norm: None,
            aux_k: D_IN / 2,
            bandwidth: BANDWIDTH,
            search: crate::kernels::Search::Auto,
            seed: 0,
            done: 0,
            laps: Laps::default(),
        }
    }

    fn forward(&self, trainer: &Trainer) -> Forward {
        let dead: Vec<i32> = (0..D_SAE as i32).step_by(4).collect();
        let tensor = |name: &str, width| -> Tensor<2> {
            Tensor::from_data(TensorData::new(self.read(name), [BATCH, width]), &Device::flex())
        };
        let x = tensor("x", D_IN);
        let target = match self.has("target") {
            true => tensor("target", trainer.sae.d_out()),
            false => x.clone(),
        };
        trainer.forward(x, target, &dead)
    }

    /// Code and reconstruction.
    fn check_forward(&self, pass: &Forward) {
        let code = pass.code.to_host().unwrap();
        let mut acts = vec![0.0; BATCH * D_SAE];
        for row in 0..BATCH {
            code.row(row).for_each(|(i, v)| acts[row * D_SAE + i] = v);
        }
        self.close("acts", &acts);
        self.close("recon", &read(&pass.recon));
    }

    fn check_gradients(&self, gradients: &Gradients) {
        let of = |name: &str| match name {
            "w_enc" => read(gradients.w_enc.as_ref().unwrap()),
            "b_enc" => read(&gradients.b_enc),
            "w_dec" => read(&gradients.w_dec),
            "b_dec" => read(&gradients.b_dec),
            "skip" => read(gradients.skip.as_ref().unwrap()),
            "threshold" => read(gradients.threshold.as_ref().unwrap()),
            "r_mag" => read(&gradients.gate.as_ref().unwrap()[0]),
            _ => read(&gradients.gate.as_ref().unwrap()[1]),
        };
        let mut names = vec![
            "w_enc",
            "b_enc",
            "w_dec",
            "b_dec",
            "skip",
            "threshold",
            "r_mag",
            "b_mag",
        ];
        names.retain(|name| self.has(&format!("grad.{name}")));
        assert!(names.len() >= 4);
        for name in names {
            self.close(&format!("grad.{name}"), &of(name));
        }
    }

    /// Holds `found` against a reference tensor.
    #[track_caller]
    fn close(&self, tensor: &str, found: &[f32]) {
        near(&format!("{}.{tensor}", self.name), found, &self.read(tensor));
    }
}

fn read<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    to_host(tensor.clone().no_grad().try_into_data()).unwrap()
}

/// Within 1e-5 of the largest value.
#[track_caller]
fn near(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(largest > 0.0, "{what} says something");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * largest,
            "{what}[{i}]: {a}, expected {b} (largest {largest})"
        );
    }
}

/// The sum of the squares of the residuals about their mean: what our auxiliary loss divides by, and theirs do not.
fn residual_spread(pass: &Forward) -> f64 {
    let (x, recon) = (read(&pass.target), read(&pass.recon));
    let residual: Vec<f64> = x.iter().zip(&recon).map(|(x, r)| f64::from(x - r)).collect();
    let mean = |j: usize| residual.iter().skip(j).step_by(D_IN).sum::<f64>() / BATCH as f64;
    (0..D_IN)
        .map(|j| {
            let mean = mean(j);
            residual
                .iter()
                .skip(j)
                .step_by(D_IN)
                .map(|r| (r - mean).powi(2))
                .sum::<f64>()
        })
        .sum()
}

/// Every method of SAELens that we have: name, ours, our objective and its names of the parts beside the mean squared
/// error with the weight that each has.
#[test]
fn saelens_has_the_same_codes_losses_and_gradients() {
    let mse = "[mse]\nnormalize = \"none\"\n";
    let none = "warmup_share = 0.0";
    let cases = [
        (
            "standard",
            Method::ReLU,
            format!("{mse}[l1]\nweight = 0.7\n{none}"),
            vec![("l1", "l1_loss", 0.7)],
        ),
        (
            "jumprelu_step",
            Method::JumpReLU,
            format!("{mse}[l0]\nweight = 0.3\n{none}"),
            vec![("l0", "l0_loss", 0.3)],
        ),
        (
            "jumprelu_tanh",
            Method::JumpReLU,
            format!("{mse}[tanh]\nweight = 0.3\nscale = 2.0\n{none}"),
            vec![("tanh", "l0_loss", 0.3)],
        ),
        (
            "jumprelu_quadratic",
            Method::JumpReLU,
            format!("{mse}[l0]\nweight = 0.3\ntarget = 4.0\n{none}"),
            vec![("l0", "l0_loss", 0.3)],
        ),
        (
            "gated",
            Method::Gated,
            format!("{mse}[gate]\nfrozen = false\n[l1]\nweight = 0.7\n{none}"),
            vec![("gate", "auxiliary_reconstruction_loss", 1.0), ("l1", "l1_loss", 0.7)],
        ),
        ("topk", Method::TopK, mse.into(), vec![]),
        ("abs_topk", Method::AbsTopK, mse.into(), vec![]),
        ("batch_topk", Method::BatchTopK, mse.into(), vec![]),
    ];
    for (name, method, objective, parts) in cases {
        let peer = Peer::new(name);
        let aux_name = "auxiliary_reconstruction_loss";
        // Theirs is a mean over the batch; ours is over the residual's spread, which has no gradient.
        let has_aux = peer.has(&format!("part.{aux_name}")) && method != Method::Gated;
        let aux_weight = match has_aux {
            true => 0.5 * residual_spread(&peer.forward(&peer.trainer(method, mse, 0.0))) / BATCH as f64,
            false => 0.0,
        };
        let trainer = peer.trainer(method, &objective, aux_weight);
        let pass = peer.forward(&trainer);
        peer.check_forward(&pass);
        let loss = trainer.objective.loss(&pass);
        let (total, found) = loss.read().unwrap();
        let value = |part: &str| found.iter().find(|p| p.0 == part).unwrap().1;
        near(&format!("{name} mse"), &[value("mse")], &[peer.part("mse_loss")]);
        for (ours, theirs, weight) in parts {
            near(&format!("{name} {ours}"), &[weight * value(ours)], &[peer.part(theirs)]);
        }
        if aux_weight > 0.0 {
            let aux = (aux_weight * f64::from(value("aux_k"))) as f32;
            near(&format!("{name} aux_k"), &[aux], &[peer.part(aux_name)]);
        }
        near(&format!("{name} loss"), &[total], &peer.read("loss"));
        drop(pass);
        peer.check_gradients(&trainer.gradients(loss));
    }
}

#[test]
fn the_matryoshka_of_saelens_is_ours_summed_over_its_levels() {
    let peer = Peer::new("matryoshka");
    let mse = "[mse]\nnormalize = \"none\"\n";
    let aux = 0.5 * residual_spread(&peer.forward(&peer.trainer(Method::BatchTopK, mse, 0.0))) / BATCH as f64;
    // Ours is the mean of the three.
    let nested = "[matryoshka]\nweight = 3.0\nwidths = [12, 30]";
    let trainer = peer.trainer(Method::BatchTopK, nested, aux);
    let pass = peer.forward(&trainer);
    peer.check_forward(&pass);
    let loss = trainer.objective.loss(&pass);
    let (total, parts) = loss.read().unwrap();
    let levels = peer.part("mse_loss") + peer.part("inner_mse_loss_12") + peer.part("inner_mse_loss_30");
    let ours = parts.iter().find(|p| p.0 == "matryoshka").unwrap().1;
    near("levels", &[3.0 * ours], &[levels]);
    near("loss", &[total], &peer.read("loss"));
    drop(pass);
    peer.check_gradients(&trainer.gradients(loss));
}

/// sparsify cuts its auxiliary code at zero and keeps its gradient from the encoder; ours reaches it on purpose. So the
/// candidates of this case are all positive, and of that part the value and the decoder's gradient are compared.
#[test]
fn sparsify_has_the_same_codes_losses_and_gradients_but_for_the_encoders_of_dead_latents() {
    let peer = Peer::new("sparsify");
    let mse = "[mse]\nnormalize = \"batch\"\n";
    let trainer = peer.trainer(Method::TopK, mse, 0.0);
    let pass = peer.forward(&trainer);
    peer.check_forward(&pass);
    let spread = residual_spread(&pass);
    let loss = trainer.objective.loss(&pass);
    near("fvu", &[loss.read().unwrap().0], &[peer.part("fvu")]);
    drop(pass);
    peer.check_gradients(&trainer.gradients(loss));

    // Theirs is over the variance of the batch.
    let x = peer.read("x");
    let mean = |j: usize| x.iter().skip(j).step_by(D_IN).map(|&v| f64::from(v)).sum::<f64>() / BATCH as f64;
    let variance: f64 = (0..x.len()).map(|n| (f64::from(x[n]) - mean(n % D_IN)).powi(2)).sum();
    let weight = spread / variance;
    let only_aux = format!("{mse}weight = 1e-30");
    let trainer = peer.trainer(Method::TopK, &only_aux, weight);
    let pass = peer.forward(&trainer);
    let loss = trainer.objective.loss(&pass);
    let aux = loss.read().unwrap().1[1].1;
    near("aux_k", &[(weight * f64::from(aux)) as f32], &[peer.part("auxk_loss")]);
    drop(pass);
    let gradients = trainer.gradients(loss);
    near("aux_k's w_dec", &read(&gradients.w_dec), &peer.read("grad_aux.w_dec"));
}

/// SAELens has transcoders and no trainer for them: their loss is that of its standard autoencoder, written down with the
/// references. sparsify trains skip transcoders of one width.
#[test]
fn transcoders_of_saelens_and_sparsify_have_the_same_codes_losses_and_gradients() {
    let l1 = "[mse]\nnormalize = \"none\"\n[l1]\nweight = 0.7\nwarmup_share = 0.0";
    let cases = [
        ("transcoder", Method::ReLU, l1, 12, 4),
        ("skip_transcoder", Method::ReLU, l1, 12, 5),
        // Theirs gives thresholds no gradient.
        ("jumprelu_transcoder", Method::JumpReLU, l1, 12, 4),
        (
            "sparsify_transcoder",
            Method::TopK,
            "[mse]\nnormalize = \"batch\"\n",
            16,
            5,
        ),
    ];
    for (name, method, objective, d_out, n_gradients) in cases {
        let peer = Peer::new(name);
        let trainer = peer.trainer(method, objective, 0.0);
        assert_eq!((trainer.sae.d_in(), trainer.sae.d_out()), (D_IN, d_out));
        let pass = peer.forward(&trainer);
        peer.check_forward(&pass);
        let loss = trainer.objective.loss(&pass);
        let (total, parts) = loss.read().unwrap();
        if name.starts_with("sparsify") {
            near(&format!("{name} fvu"), &[total], &[peer.part("fvu")]);
        } else {
            near(&format!("{name} mse"), &[parts[0].1], &[peer.part("mse_loss")]);
            near(&format!("{name} l1"), &[0.7 * parts[1].1], &[peer.part("l1_loss")]);
            near(&format!("{name} loss"), &[total], &peer.read("loss"));
        }
        drop(pass);
        let names = ["w_enc", "b_enc", "w_dec", "b_dec", "skip"];
        let there = names.iter().filter(|n| peer.has(&format!("grad.{n}")));
        assert_eq!(there.count(), n_gradients);
        peer.check_gradients(&trainer.gradients(loss));
    }
}

/// dictionary_learning cuts its auxiliary code at zero, so the candidates of these cases are all positive; its levels of
/// Matryoshka have weights, which are 1 here; and its gates' magnitudes count without the decoder's norms, which are 1 here
/// but have a gradient along the rows, which a step removes.
#[test]
fn dictionary_learning_has_the_same_codes_losses_and_gradients() {
    let mse = "[mse]\nnormalize = \"none\"\n";
    let gated = format!("{mse}[gate]\n[l1]\nweight = 0.7\nwarmup_share = 0.0");
    let cases = [
        (
            "dl_topk",
            Method::TopK,
            mse,
            &[("mse", "l2_loss"), ("aux_k", "auxk_loss")][..],
        ),
        (
            "dl_batch_topk",
            Method::BatchTopK,
            mse,
            &[("mse", "l2_loss"), ("aux_k", "auxk_loss")],
        ),
        (
            "dl_matryoshka",
            Method::BatchTopK,
            "[matryoshka]\nwidths = [12, 30]",
            &[("matryoshka", "l2_loss"), ("aux_k", "auxk_loss")],
        ),
        (
            "dl_gated",
            Method::Gated,
            &gated,
            &[("mse", "mse_loss"), ("gate", "aux_loss"), ("l1", "sparsity_loss")],
        ),
    ];
    for (name, method, objective, parts) in cases {
        let peer = Peer::new(name);
        let aux_weight = match method {
            Method::Gated => 0.0,
            _ => 1.0 / 32.0,
        };
        let trainer = peer.trainer(method, objective, aux_weight);
        let pass = peer.forward(&trainer);
        peer.check_forward(&pass);
        let loss = trainer.objective.loss(&pass);
        let (total, found) = loss.read().unwrap();
        for &(ours, theirs) in parts {
            let value = found.iter().find(|p| p.0 == ours).unwrap().1;
            near(&format!("{name} {ours}"), &[value], &[peer.part(theirs)]);
        }
        near(&format!("{name} loss"), &[total], &peer.read("loss"));
        drop(pass);
        let gradients = trainer.gradients(loss);
        peer.check_gradients(&gradients);
        if method == Method::Gated {
            let (mut found, rows) = (read(&gradients.w_dec), peer.read("w_dec"));
            for (gradient, row) in found.chunks_mut(D_IN).zip(rows.chunks(D_IN)) {
                let along: f32 = gradient.iter().zip(row).map(|(g, d)| g * d).sum();
                gradient.iter_mut().zip(row).for_each(|(g, d)| *g -= along * d);
            }
            peer.close("projected.w_dec", &found);
        }
    }
}

/// What was left out for being too close to call is said with the references.
#[test]
fn the_references_count_what_they_left_out() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peers/peers.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let metadata = header["__metadata__"].as_object().unwrap();
    let counted = metadata.iter().filter(|(key, _)| key.starts_with("left_out."));
    let counts: Vec<usize> = counted.map(|(_, n)| n.as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(counts.len(), 18);
    assert!(counts.iter().all(|n| *n <= 2), "{metadata:?}");
    assert!(
        ["sae-lens", "eai-sparsify", "dictionary-learning"]
            .iter()
            .all(|p| metadata.contains_key(*p))
    );
}
