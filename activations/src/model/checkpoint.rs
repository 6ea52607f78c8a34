//! The file, or files, that a model's tensors are read from.

use std::path::Path;

use crate::error::Result;
use crate::gguf_file::GgufFile;
use crate::safetensors_file::SafeTensors;

/// Tensors by name, whatever the format.
pub(super) enum Checkpoint {
    /// Of a directory in Hugging Face's layout.
    SafeTensors(SafeTensors),
    /// One file of llama.cpp's.
    Gguf(GgufFile),
}

impl Checkpoint {
    /// The checkpoint at `model`, a directory or a GGUF file.
    pub fn open(model: &Path) -> Result<Self> {
        Ok(match GgufFile::of_model(model)? {
            Some(path) => Self::Gguf(GgufFile::open(&path)?),
            None => Self::SafeTensors(SafeTensors::open_model(model)?),
        })
    }

    /// What says which tensors there should be, for errors.
    pub fn described_in(&self) -> &'static str {
        match self {
            Self::SafeTensors(_) => "config.json",
            Self::Gguf(_) => "the file's metadata",
        }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::SafeTensors(file) => file.names().collect(),
            Self::Gguf(file) => file.names().collect(),
        }
    }

    /// The shape of a tensor, rows first, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Self::SafeTensors(file) => file.shape(name),
            Self::Gguf(file) => file.shape(name),
        }
    }

    /// The values of a tensor, row-major.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self {
            Self::SafeTensors(file) => file.read_f32(name),
            Self::Gguf(file) => file.read_f32(name),
        }
    }

    /// The file that a tensor lies in, if there is one of that name.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        match self {
            Self::SafeTensors(file) => file.file_of(name),
            Self::Gguf(file) => file.shape(name).map(|_| file.path()),
        }
    }
}
