//! From a checkpoint's tensors to parameters: every one is asked for by name and shape, and none may be left over.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use super::checkpoint::Checkpoint;
use super::config::{ModelConfig, NormKind, Placement, Positions, QkNorm, Unembed};
use super::family::{Family, Param, Part, Place};
use crate::error::{Error, Result};
use crate::product::{Bf16Matrix, Precision};

/// A row of parameters, where the loops over slices and where burn's operations want it.
pub(super) struct Vector {
    pub values: Vec<f32>,
    pub tensor: Tensor<1>,
}

/// Gain and bias of a norm.
pub(super) struct Affine {
    pub gain: Vector,
    pub bias: Option<Vector>,
}

/// `x W + b`.
pub(super) enum Linear {
    /// In f32, on any device.
    Plain(Box<Plain>),
    /// In bf16, on the processor.
    Bf16(Bf16Matrix),
}

/// Parameters of a product in f32.
pub(super) struct Plain {
    /// `[d_in, d_out]`
    pub weight: Tensor<2>,
    /// `[d_out]`
    pub bias: Option<Vector>,
}

/// Parameters of one block. Gain and bias of a norm before a product are folded into that product: `(x * g + b) W + c =
/// x (diag(g) W) + (b W + c)`.
pub(super) struct BlockWeights {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// The product whose result `mlp.hook_pre` shows: the gate, in a gated MLP.
    pub mlp_in: Linear,
    /// What the gate is multiplied with.
    pub up: Option<Linear>,
    pub down: Linear,
    pub q_norm: Option<Affine>,
    pub k_norm: Option<Affine>,
    /// The norm behind attention, or of the sum.
    pub attn_behind: Option<Affine>,
    /// The norm behind the MLP, or of the sum.
    pub mlp_behind: Option<Affine>,
}

/// All parameters.
pub(super) struct Weights {
    /// `[d_vocab, d_model]`
    pub embed: Tensor<2>,
    /// `[max_context, d_model]`
    pub positions: Option<Tensor<2>>,
    /// What is added to every embedding: an encoder's first token type, `[d_model]`.
    pub token_type: Option<Vector>,
    pub embed_norm: Option<Affine>,
    pub blocks: Vec<BlockWeights>,
    pub final_norm: Option<Affine>,
    /// `[d_vocab, d_model]`; `None` when it is the embedding, or there is none.
    pub unembed: Option<Tensor<2>>,
    /// Number of parameters read.
    pub count: u64,
}

/// Reads every parameter of `config` from the checkpoint at `dir`.
pub(super) fn load(
    dir: &Path,
    family: &Family,
    config: &ModelConfig,
    device: &Device,
    precision: Precision,
) -> Result<Weights> {
    let file = Checkpoint::open(dir)?;
    let mut loader = Loader {
        dir,
        family,
        config,
        prefix: prefix(&file, family, config),
        file,
        device,
        precision,
        used: BTreeSet::new(),
        count: 0,
    };
    loader.check_all()?;
    let embed = loader.matrix(Param::Embed, config.d_vocab)?;
    let of_sum = config.placement == Placement::OfSum;
    let positions = match config.positions {
        Positions::Learned => Some(loader.matrix(Param::Positions, config.max_context)?),
        Positions::Rotary { .. } => None,
    };
    let token_type = family.token_types.map(|name| loader.token_type(name)).transpose()?;
    let embed_norm = loader.affine_if(of_sum, Param::EmbedNorm, config.d_model)?;
    let blocks = (0..config.n_layers).map(|i| loader.block(i)).collect::<Result<_>>()?;
    let final_norm = loader.affine_if(!of_sum, Param::FinalNorm, config.d_model)?;
    let unembed = match config.unembed {
        Unembed::Own => Some(loader.matrix(Param::Unembed, config.d_vocab)?),
        Unembed::Tied | Unembed::None => None,
    };
    loader.refuse_leftovers()?;
    Ok(Weights {
        embed,
        positions,
        token_type,
        embed_norm,
        blocks,
        final_norm,
        unembed,
        count: loader.count,
    })
}

/// What stands before the names in this file: a model saved without its head lacks the family's usual prefix.
fn prefix(file: &Checkpoint, family: &Family, config: &ModelConfig) -> &'static str {
    let embed = (family.place)(config, Param::Embed).map_or_else(String::new, |place| place.name);
    let there = |p: &&&str| file.shape(&format!("{p}{embed}.weight")).is_some();
    let found = family.prefixes.iter().find(there);
    found.or(family.prefixes.first()).copied().unwrap_or_default()
}

struct Loader<'a> {
    dir: &'a Path,
    family: &'a Family,
    config: &'a ModelConfig,
    prefix: &'static str,
    file: Checkpoint,
    device: &'a Device,
    precision: Precision,
    used: BTreeSet<String>,
    count: u64,
}

/// Values of the norm that a product's input went through.
struct Folded {
    gain: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Loader<'_> {
    /// A config may promise more layers than fit into memory; the file knows better, so that a tensor of every block is
    /// looked for before anything is read.
    fn check_all(&self) -> Result<()> {
        for i in 0..self.config.n_layers {
            let name = self.name(Param::Down(i), &self.place(Param::Down(i))?, "weight");
            if self.file.shape(&name).is_none() {
                return Err(Error::bad_file(
                    self.dir,
                    format!(
                        "tensor {name} is missing: {} expects {} blocks",
                        self.file.described_in(),
                        self.config.n_layers
                    ),
                ));
            }
        }
        Ok(())
    }

    fn block(&mut self, i: usize) -> Result<BlockWeights> {
        let c = self.config;
        let (d, mlp, d_q, d_kv) = (c.d_model, c.d_mlp, c.d_q(), c.d_kv());
        let before = !matches!(c.placement, Placement::Behind | Placement::OfSum);
        let behind = !matches!(c.placement, Placement::Before | Placement::Parallel);
        let attn_norm = self.folded_if(before, Param::AttnNorm(i))?;
        let mlp_norm = self.folded_if(before, Param::MlpNorm(i))?;
        let (q_width, k_width) = match c.attention.qk_norm {
            Some(QkNorm::Heads) => (d_q, d_kv),
            _ => (c.d_head, c.d_head),
        };
        let qk = c.attention.qk_norm.is_some();
        let up = match c.gated {
            true => Some(self.linear(Param::Up(i), mlp, d, c.biases.mlp, mlp_norm.as_ref())?),
            false => None,
        };
        let mlp_in = if c.gated { Param::Gate(i) } else { Param::Up(i) };
        Ok(BlockWeights {
            q: self.linear(Param::Q(i), d_q, d, c.biases.qkv, attn_norm.as_ref())?,
            k: self.linear(Param::K(i), d_kv, d, c.biases.qkv, attn_norm.as_ref())?,
            v: self.linear(Param::V(i), d_kv, d, c.biases.qkv, attn_norm.as_ref())?,
            o: self.linear(Param::O(i), d, d_q, c.biases.o, None)?,
            mlp_in: self.linear(mlp_in, mlp, d, c.biases.mlp, mlp_norm.as_ref())?,
            up,
            down: self.linear(Param::Down(i), d, mlp, c.biases.mlp, None)?,
            q_norm: self.affine_if(qk, Param::QNorm(i), q_width)?,
            k_norm: self.affine_if(qk, Param::KNorm(i), k_width)?,
            attn_behind: self.affine_if(behind, Param::AttnBehind(i), d)?,
            mlp_behind: self.affine_if(behind, Param::MlpBehind(i), d)?,
        })
    }

    fn place(&self, param: Param) -> Result<Place> {
        let none = || Error::Invalid(format!("a {} model has no {param:?}", self.family.model_type));
        (self.family.place)(self.config, param).ok_or_else(none)
    }

    fn name(&self, param: Param, place: &Place, kind: &str) -> String {
        let prefix = if param == Param::Unembed { "" } else { self.prefix };
        format!("{prefix}{}.{kind}", place.name)
    }

    /// The rows of `param`, `[rows, columns]` row-major; `columns` is `None` for a vector.
    fn read(&mut self, param: Param, kind: &str, rows: usize, columns: Option<usize>) -> Result<Vec<f32>> {
        let place = self.place(param)?;
        let name = self.name(param, &place, kind);
        let part = place.part.unwrap_or(Part {
            first: 0,
            block: rows,
            stride: rows,
            of: rows,
        });
        let expected = match columns {
            None => vec![part.of],
            Some(columns) if place.transposed => vec![columns, part.of],
            Some(columns) => vec![part.of, columns],
        };
        let Some(shape) = self.file.shape(&name) else {
            return Err(Error::bad_file(
                self.dir,
                format!(
                    "tensor {name} is missing; {} expects it with shape {expected:?}",
                    self.file.described_in()
                ),
            ));
        };
        if shape != expected {
            let path = self.file.file_of(&name).unwrap_or(self.dir);
            return Err(Error::bad_file(
                path,
                format!(
                    "tensor {name} has shape {shape:?}; {} expects {expected:?}",
                    self.file.described_in()
                ),
            ));
        }
        let values = self.file.read_f32(&name)?;
        self.used.insert(name);
        self.count += (rows * columns.unwrap_or(1)) as u64;
        let columns = columns.unwrap_or(1);
        let values = match place.transposed {
            true => transposed(&values, columns, part.of),
            false => values,
        };
        let values = part.take(values, rows, columns);
        Ok(match place.paired {
            true => unpaired(&values, self.config.d_head, columns),
            false => values,
        })
    }

    fn tensor(&self, values: &[f32]) -> Vector {
        Vector {
            tensor: Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), self.device),
            values: values.to_vec(),
        }
    }

    fn matrix(&mut self, param: Param, rows: usize) -> Result<Tensor<2>> {
        let columns = self.config.d_model;
        let values = self.read(param, "weight", rows, Some(columns))?;
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), self.device))
    }

    /// The first row of the token types: everything is of that type.
    fn token_type(&mut self, name: &str) -> Result<Vector> {
        let name = format!("{}{name}.weight", self.prefix);
        let d_model = self.config.d_model;
        let found = self.file.shape(&name);
        if !found.is_some_and(|shape| matches!(shape, [n, d] if *n > 0 && *d == d_model)) {
            return Err(Error::bad_file(
                self.dir,
                format!("tensor {name} should be [types, {d_model}], found {found:?}"),
            ));
        }
        let rows = self.file.read_f32(&name)?;
        self.count += rows.len() as u64;
        self.used.insert(name);
        Ok(self.tensor(&rows[..d_model]))
    }

    fn gain(&mut self, param: Param, width: usize) -> Result<Folded> {
        let mut gain = self.read(param, "weight", width, None)?;
        if self.config.norm.gain_from_one {
            gain.iter_mut().for_each(|g| *g += 1.0);
        }
        let bias = match self.config.norm.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.read(param, "bias", width, None)?),
        };
        Ok(Folded { gain, bias })
    }

    fn folded_if(&mut self, there: bool, param: Param) -> Result<Option<Folded>> {
        there.then(|| self.gain(param, self.config.d_model)).transpose()
    }

    fn affine_if(&mut self, there: bool, param: Param, width: usize) -> Result<Option<Affine>> {
        if !there {
            return Ok(None);
        }
        let Folded { gain, bias } = self.gain(param, width)?;
        Ok(Some(Affine {
            gain: self.tensor(&gain),
            bias: bias.map(|bias| self.tensor(&bias)),
        }))
    }

    /// A checkpoint's `[d_out, d_in]` as `[d_in, d_out]`, with the norm before it.
    fn linear(
        &mut self,
        param: Param,
        d_out: usize,
        d_in: usize,
        biased: bool,
        norm: Option<&Folded>,
    ) -> Result<Linear> {
        let mut values = self.read(param, "weight", d_out, Some(d_in))?;
        let mut bias = match biased {
            true => Some(self.read(param, "bias", d_out, None)?),
            false => None,
        };
        if let Some(norm) = norm {
            if let Some(shift) = &norm.bias {
                let bias = bias.get_or_insert_with(|| vec![0.0; d_out]);
                for (b, row) in bias.iter_mut().zip(values.chunks_exact(d_in)) {
                    let moved: f64 = row.iter().zip(shift).map(|(w, s)| f64::from(*w) * f64::from(*s)).sum();
                    *b = (f64::from(*b) + moved) as f32;
                }
            }
            for row in values.chunks_exact_mut(d_in) {
                row.iter_mut().zip(&norm.gain).for_each(|(v, g)| *v *= g);
            }
        }
        if self.precision == Precision::Bf16 {
            return Ok(Linear::Bf16(Bf16Matrix::new(&values, d_in, bias.as_deref())));
        }
        let matrix = Tensor::<2>::from_data(TensorData::new(values, [d_out, d_in]), self.device);
        Ok(Linear::Plain(Box::new(Plain {
            weight: matrix.transpose(),
            bias: bias.map(|bias| self.tensor(&bias)),
        })))
    }

    /// A tensor that nothing claims means that the forward pass would leave out something the model does.
    fn refuse_leftovers(&self) -> Result<()> {
        let unembed = self.place(Param::Unembed);
        let unembed = unembed.map_or_else(|_| String::new(), |place| self.name(Param::Unembed, &place, "weight"));
        let tied = self.config.unembed != Unembed::Own;
        let extra: Vec<&str> = self
            .file
            .names()
            .into_iter()
            .filter(|&n| !(self.used.contains(n) || (self.family.ignored)(n) || tied && n == unembed))
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
                "extra tensor {first}{others}: {} describes a {} model without such a parameter",
                self.file.described_in(),
                self.family.model_type
            ),
        ))
    }
}

/// Rows whose two halves of each head lie side by side, row `j` of the second behind row `j` of the first, with the second
/// half behind the first. `values: [heads * d_head, columns]`
fn unpaired(values: &[f32], d_head: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(d_head * columns) {
        for half in 0..2 {
            let rows = head.chunks_exact(columns).skip(half).step_by(2);
            rows.for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}
