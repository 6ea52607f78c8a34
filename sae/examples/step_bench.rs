//! How long a training step takes, and where: one line of JSON.
//!
//! ```text
//! cargo run --release -p sae --example step_bench -- --d-in 768 --d-sae 16384 --k 32 --batch 4096 --steps 10
//! ```
//!
//! Random data and weights, a TopK dictionary (`--score magnitude` for AbsTopK; `--select exact` for a search in f32), the mean squared error, Adam with unit
//! decoder rows. `--aux N` adds an auxiliary code of N slots over a quarter of the latents. Times are medians over the
//! steps after two to warm up; `select` is what `encode` costs over its dense product, which is timed on its own.
//!
//! `--orthogonality N` alternates such steps with ones that keep decoder rows apart, in chunks of 8,192 latents, and says
//! by how much a run is slower that does so every N-th step (`orthogonality_ratio`).

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use sae::Score;
use sae::kernels::{
    AuxSelection, Search, Selection, cosines, decode, encode, keep_freed_memory, level, nearest, product,
};
use sae::optimizer::{Adam, Constraint, Moments};

struct Options {
    d_in: usize,
    d_sae: usize,
    k: usize,
    aux: usize,
    batch: usize,
    steps: usize,
    score: Score,
    select: Search,
    orthogonality: usize,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        d_in: 768,
        d_sae: 16384,
        k: 32,
        aux: 0,
        batch: 4096,
        steps: 10,
        score: Score::Positive,
        select: Search::Auto,
        orthogonality: 0,
    };
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        let value = args.next().ok_or(format!("{key} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|e| format!("{key} {value}: {e}"));
        match key.as_str() {
            "--d-in" => options.d_in = number()?,
            "--d-sae" => options.d_sae = number()?,
            "--k" => options.k = number()?,
            "--aux" => options.aux = number()?,
            "--batch" => options.batch = number()?,
            "--steps" => options.steps = number()?,
            "--orthogonality" => options.orthogonality = number()?,
            "--select" if value == "auto" => options.select = Search::Auto,
            "--select" if value == "exact" => options.select = Search::Exact,
            "--score" if value == "positive" => options.score = Score::Positive,
            "--score" if value == "magnitude" => options.score = Score::Magnitude,
            _ => return Err(format!("{key} {value}: see the head of step_bench.rs")),
        }
    }
    Ok(options)
}

struct Params {
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    w_dec: Tensor<2>,
    b_dec: Tensor<1>,
}

/// Most latents of a chunk.
const CHUNK: usize = 8192;

/// The mean squared cosine of decoder rows with the nearest other of their chunk.
fn closeness(w_dec: &Tensor<2>, search: Search) -> Tensor<1> {
    let d_sae = w_dec.dims()[0];
    let chunks = d_sae.div_ceil(CHUNK) as i32;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for chunk in 0..chunks {
        let latents: Vec<i32> = (chunk..d_sae as i32).step_by(chunks as usize).collect();
        let shape = [latents.len()];
        let latents = Tensor::<1, Int>::from_data(TensorData::new(latents, shape), &w_dec.device());
        others.push(nearest(w_dec.clone(), latents.clone(), false, search));
        ours.push(latents);
    }
    let cosines = cosines(w_dec.clone(), Tensor::cat(ours, 0), Tensor::cat(others, 0));
    (cosines.clone() * cosines).mean()
}

/// Seconds by part, every step.
#[derive(Default)]
struct Clock(BTreeMap<&'static str, Vec<f64>>);

impl Clock {
    fn time<T>(&mut self, part: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0.entry(part).or_default().push(start.elapsed().as_secs_f64());
        result
    }

    fn medians(&self) -> BTreeMap<&'static str, f64> {
        let median = |times: &Vec<f64>| {
            let mut times = times[times.len().min(2)..].to_vec();
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        self.0.iter().map(|(part, times)| (*part, median(times))).collect()
    }
}

fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn main() -> Result<(), String> {
    keep_freed_memory();
    let o = options()?;
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    plain.seed(1);
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &plain);
    let w = random([o.d_sae, o.d_in]);
    let w = w.clone() / w.powi_scalar(2).sum_dim(1).sqrt();
    let leaf = |w: &Tensor<2>| Tensor::<2>::from_data(w.to_data(), &device).require_grad();
    let mut p = Params {
        w_enc: leaf(&w),
        b_enc: Tensor::zeros([o.d_sae], &device).require_grad(),
        w_dec: leaf(&w),
        b_dec: Tensor::zeros([o.d_in], &device).require_grad(),
    };
    drop(w);
    let mut m = (
        Moments::new([o.d_sae, o.d_in], &plain),
        Moments::new([o.d_sae], &plain),
        Moments::new([o.d_sae, o.d_in], &plain),
        Moments::new([o.d_in], &plain),
    );
    let adam = Adam::default();
    let x_plain = random([o.batch, o.d_in]);
    let mut clock = Clock::default();
    let kinds = if o.orthogonality > 0 { 2 } else { 1 };
    for number in 0..kinds * (o.steps + 2) {
        let apart = number % kinds == 1;
        let step = Instant::now();
        let x = Tensor::<2>::from_inner(x_plain.clone());
        let aux = (o.aux > 0).then(|| AuxSelection {
            score: o.score,
            k: o.aux,
            candidates: Tensor::<1, Int>::arange(0..(o.d_sae / 4) as i64, &device),
        });
        let main = Selection::PerToken { score: o.score, k: o.k };
        let code = clock.time("encode", || {
            let centred = x.clone() - p.b_dec.clone().unsqueeze::<2>();
            encode(centred, p.w_enc.clone(), p.b_enc.clone(), main, aux, o.select)
        });
        let (main, aux) = (code.main, code.aux);
        let recon = clock.time("decode", || decode(&main, p.w_dec.clone()));
        drop(main);
        let loss = clock.time("loss", || {
            let error = x - recon - p.b_dec.clone().unsqueeze::<2>();
            let mut loss = error.clone().powi_scalar(2).mean();
            if let Some(aux) = aux {
                let target = error.detach();
                loss = loss + (decode(&aux, p.w_dec.clone()) - target).powi_scalar(2).mean();
            }
            loss
        });
        let loss = match apart {
            true => loss + clock.time("orthogonality", || closeness(&p.w_dec, o.select)) * 0.25,
            false => loss,
        };
        let backward = if apart { "backward_orthogonality" } else { "backward" };
        let mut grads = clock.time(backward, || loss.backward());
        drop(loss);
        clock.time("optimizer", || {
            let (lr, free) = (1e-4, Constraint::Free);
            let missing = "every parameter has a gradient";
            let (w_enc, b_enc) = (p.w_enc.grad_remove(&mut grads), p.b_enc.grad_remove(&mut grads));
            let (w_dec, b_dec) = (p.w_dec.grad_remove(&mut grads), p.b_dec.grad_remove(&mut grads));
            take(&mut p.w_enc, |p| {
                adam.step(p, w_enc.expect(missing), &mut m.0, lr, 1.0, free)
            });
            take(&mut p.b_enc, |p| {
                adam.step(p, b_enc.expect(missing), &mut m.1, lr, 1.0, free)
            });
            take(&mut p.w_dec, |p| {
                adam.step(p, w_dec.expect(missing), &mut m.2, lr, 1.0, Constraint::UnitRows)
            });
            take(&mut p.b_dec, |p| {
                adam.step(p, b_dec.expect(missing), &mut m.3, lr, 1.0, free)
            });
        });
        let kind = if apart { "step_orthogonality" } else { "step" };
        clock.0.entry(kind).or_default().push(step.elapsed().as_secs_f64());
    }
    let peak = peak_rss_mb();
    let on_host = |t: Tensor<2>| t.into_data().into_vec::<f32>().map_err(|e| format!("{e:?}"));
    let (x, w_enc) = (on_host(x_plain)?, on_host(p.w_enc.inner())?);
    // The tiles of the encoder.
    let rows = ((1 << 23) / o.d_sae).clamp(1, o.batch);
    let mut pre = vec![0.0; rows * o.d_sae];
    for _ in 0..o.steps + 2 {
        clock.time("product", || {
            for x in x.chunks(rows * o.d_in) {
                product::rows(x, &w_enc, o.d_in, &mut pre[..x.len() / o.d_in * o.d_sae]);
            }
        });
    }
    let mut parts = clock.medians();
    let step_s = parts.remove("step").unwrap_or(0.0);
    let select = (parts["encode"] - parts["product"]).max(0.0);
    parts.insert("select", select);
    let ratio = parts.get("step_orthogonality").map(|apart| {
        let n = o.orthogonality as f64;
        (apart + (n - 1.0) * step_s) / (n * step_s)
    });
    let report = serde_json::json!({
        "d_in": o.d_in, "d_sae": o.d_sae, "k": o.k, "aux": o.aux, "batch": o.batch, "steps": o.steps,
        "cpu": format!("{:?}", level()).to_lowercase(), "threads": rayon::current_num_threads(),
        "step_s": step_s, "tokens_per_s": o.batch as f64 / step_s, "peak_rss_mb": peak, "parts": parts,
        "orthogonality_every": o.orthogonality, "orthogonality_ratio": ratio,
    });
    println!("{report}");
    Ok(())
}

/// Replaces a parameter by what `step` makes of it, so that the optimiser is its only holder.
fn take<const D: usize>(param: &mut Tensor<D>, step: impl FnOnce(Tensor<D>) -> Tensor<D>) {
    let taken = std::mem::replace(param, Tensor::zeros([0; D], &Device::flex()));
    *param = step(taken);
}
