//! From a checkpoint's tensors to parameters: every one is asked for by name and shape, and none may be left over.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use super::config::ModelConfig;
use super::family::{Family, Param};
use crate::error::{Error, Result};
use crate::safetensors_file::SafeTensors;

/// Parameters of one block. Matrices are `[d_out, d_in]` transposed to `[d_in, d_out]` for `x W`. The gain of a norm is
/// folded into the matrices that read it, which are all that do: `(x * g) W = x (diag(g) W)`.
pub(super) struct BlockWeights {
    /// `[d_model, d_q]`
    pub q: Tensor<2>,
    /// `[d_model, d_kv]`
    pub k: Tensor<2>,
    /// `[d_model, d_kv]`
    pub v: Tensor<2>,
    /// `[d_q, d_model]`
    pub o: Tensor<2>,
    /// `[d_model, d_mlp]`
    pub gate: Tensor<2>,
    /// `[d_model, d_mlp]`
    pub up: Tensor<2>,
    /// `[d_mlp, d_model]`
    pub down: Tensor<2>,
}

/// All parameters.
pub(super) struct Weights {
    /// `[d_vocab, d_model]`
    pub embed: Tensor<2>,
    pub blocks: Vec<BlockWeights>,
    /// `[d_model]`
    pub final_norm: Tensor<1>,
    /// `[d_vocab, d_model]`; `None` when it is the embedding.
    pub unembed: Option<Tensor<2>>,
}

/// Reads every parameter of `config` from the checkpoint in `dir`.
pub(super) fn load(dir: &Path, family: &Family, config: &ModelConfig, device: &Device) -> Result<Weights> {
    let file = SafeTensors::open_model(dir)?;
    let mut loader = Loader {
        dir,
        family,
        file,
        device,
        used: BTreeSet::new(),
    };
    loader.check_all(config)?;
    let (d, mlp) = (config.d_model, config.d_mlp);
    let (d_q, d_kv) = (config.d_q(), config.d_kv());
    let embed = loader.matrix(Param::Embed, config.d_vocab, d)?;
    let final_norm = loader.vector(Param::FinalNorm, d)?;
    let blocks = (0..config.n_layers)
        .map(|i| {
            let attn_norm = loader.read(Param::AttnNorm(i), &[d])?;
            let mlp_norm = loader.read(Param::MlpNorm(i), &[d])?;
            Ok(BlockWeights {
                q: loader.product(Param::Q(i), d_q, d, Some(&attn_norm))?,
                k: loader.product(Param::K(i), d_kv, d, Some(&attn_norm))?,
                v: loader.product(Param::V(i), d_kv, d, Some(&attn_norm))?,
                o: loader.product(Param::O(i), d, d_q, None)?,
                gate: loader.product(Param::Gate(i), mlp, d, Some(&mlp_norm))?,
                up: loader.product(Param::Up(i), mlp, d, Some(&mlp_norm))?,
                down: loader.product(Param::Down(i), d, mlp, None)?,
            })
        })
        .collect::<Result<_>>()?;
    let unembed = match config.tied {
        true => None,
        false => Some(loader.matrix(Param::Unembed, config.d_vocab, d)?),
    };
    loader.refuse_leftovers(config)?;
    Ok(Weights {
        embed,
        blocks,
        final_norm,
        unembed,
    })
}

struct Loader<'a> {
    dir: &'a Path,
    family: &'a Family,
    file: SafeTensors,
    device: &'a Device,
    used: BTreeSet<String>,
}

impl Loader<'_> {
    /// A config may promise more layers than fit into memory; the file knows better, so that every block's first
    /// tensor is looked for before anything is read.
    fn check_all(&self, config: &ModelConfig) -> Result<()> {
        for i in 0..config.n_layers {
            let name = (self.family.tensor_name)(Param::AttnNorm(i));
            if self.file.shape(&name).is_none() {
                return Err(self.missing(&name, &[config.d_model]));
            }
        }
        Ok(())
    }

    fn missing(&self, name: &str, expected: &[usize]) -> Error {
        Error::bad_file(
            self.dir,
            format!("tensor {name} is missing; config.json expects it with shape {expected:?}"),
        )
    }

    fn read(&mut self, param: Param, expected: &[usize]) -> Result<Vec<f32>> {
        let name = (self.family.tensor_name)(param);
        let Some(shape) = self.file.shape(&name) else {
            return Err(self.missing(&name, expected));
        };
        if shape != expected {
            let path = self.file.file_of(&name).unwrap_or(self.dir);
            return Err(Error::bad_file(
                path,
                format!("tensor {name} has shape {shape:?}; config.json expects {expected:?}"),
            ));
        }
        let values = self.file.read_f32(&name)?;
        self.used.insert(name);
        Ok(values)
    }

    fn vector(&mut self, param: Param, n: usize) -> Result<Tensor<1>> {
        let values = self.read(param, &[n])?;
        Ok(Tensor::from_data(TensorData::new(values, [n]), self.device))
    }

    fn matrix(&mut self, param: Param, rows: usize, columns: usize) -> Result<Tensor<2>> {
        let values = self.read(param, &[rows, columns])?;
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), self.device))
    }

    /// A checkpoint's `[d_out, d_in]` as `[d_in, d_out]`, with the gain of the norm before it.
    fn product(&mut self, param: Param, d_out: usize, d_in: usize, gain: Option<&[f32]>) -> Result<Tensor<2>> {
        let mut values = self.read(param, &[d_out, d_in])?;
        if let Some(gain) = gain {
            for row in values.chunks_exact_mut(d_in) {
                row.iter_mut().zip(gain).for_each(|(v, g)| *v *= g);
            }
        }
        let matrix = Tensor::<2>::from_data(TensorData::new(values, [d_out, d_in]), self.device);
        Ok(matrix.transpose())
    }

    /// A tensor that nothing claims means that the forward pass would leave out something the model does.
    fn refuse_leftovers(&self, config: &ModelConfig) -> Result<()> {
        let unembed = (self.family.tensor_name)(Param::Unembed);
        let extra: Vec<&str> = self
            .file
            .names()
            .filter(|&n| !(self.used.contains(n) || (self.family.ignored)(n) || config.tied && n == unembed))
            .collect();
        let Some(first) = extra.first() else { return Ok(()) };
        let path = self.file.file_of(first).unwrap_or(self.dir);
        let more = extra.len() - 1;
        let others = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        Err(Error::bad_file(
            path,
            format!(
                "extra tensor {first}{others}: a {} model of this config.json has no such parameter",
                self.family.model_type
            ),
        ))
    }
}
