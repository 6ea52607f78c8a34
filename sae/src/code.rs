//! What a dictionary says about a batch: which latents fire for each token, and how strongly.
//!
//! Rows are padded to the same number of slots, because that is what GPUs and sparse products want. A slot whose value
//! is 0 is inactive whatever its index, so nothing may read an index without its value.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::error::{Error, Result};

/// A sparse code on a device. On an autodiff device its values carry gradients.
#[derive(Clone, Debug)]
pub struct SparseCode {
    /// Latents. `[batch, slots]`
    pub indices: Tensor<2, Int>,
    /// Their values; 0 marks an inactive slot. `[batch, slots]`
    pub values: Tensor<2>,
}

impl SparseCode {
    /// Rows.
    pub fn batch(&self) -> usize {
        self.values.dims()[0]
    }

    /// Slots a row.
    pub fn slots(&self) -> usize {
        self.values.dims()[1]
    }

    /// Copies the code to the host: waits for the device.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the device failed on what was asked of it before.
    pub fn to_host(&self) -> Result<HostCode> {
        Ok(HostCode {
            slots: self.slots(),
            indices: to_host(self.indices.clone().try_into_data())?,
            values: to_host(self.values.clone().try_into_data())?,
        })
    }

    /// Copies a code to `device`.
    pub fn from_host(code: HostCode, device: &Device) -> Self {
        let shape = [code.batch(), code.slots];
        Self {
            indices: Tensor::from_data(TensorData::new(code.indices, shape), device),
            values: Tensor::from_data(TensorData::new(code.values, shape), device),
        }
    }
}

/// The elements of a tensor that was read back, as `E`.
pub(crate) fn to_host<E: burn::tensor::Element>(
    data: std::result::Result<TensorData, impl std::fmt::Debug>,
) -> Result<Vec<E>> {
    let failed = |e: &dyn std::fmt::Debug| Error::Invalid(format!("the device failed: {e:?}"));
    let data = data.map_err(|e| failed(&e))?.convert::<E>();
    data.into_vec().map_err(|e| failed(&e))
}

/// A sparse code on the host. Both vectors are `[batch, slots]`, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostCode {
    /// Slots a row.
    pub slots: usize,
    /// Latents, each below `d_sae`; no latent appears twice in a row.
    pub indices: Vec<i32>,
    /// Their values; 0 marks an inactive slot.
    pub values: Vec<f32>,
}

impl HostCode {
    /// Rows.
    pub fn batch(&self) -> usize {
        self.values.len().checked_div(self.slots).unwrap_or(0)
    }

    /// The active latents of row `row` with their values.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let slots = row * self.slots..(row + 1) * self.slots;
        let pairs = self.indices[slots.clone()].iter().zip(&self.values[slots]);
        pairs.filter(|(_, v)| **v != 0.0).map(|(&i, &v)| (i as usize, v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inactive_slots_are_not_listed() {
        let code = HostCode {
            slots: 2,
            indices: vec![4, 1, 0, 2],
            values: vec![-1.0, 2.0, 0.0, 3.0],
        };
        assert_eq!(code.batch(), 2);
        assert_eq!(code.row(0).collect::<Vec<_>>(), [(4, -1.0), (1, 2.0)]);
        assert_eq!(code.row(1).collect::<Vec<_>>(), [(2, 3.0)]);
    }

    #[test]
    fn a_code_survives_the_way_to_the_device_and_back() {
        let code = HostCode {
            slots: 3,
            indices: vec![4, 1, 0, 2, 7, 9],
            values: vec![-1.0, 2.0, 0.0, 3.0, 0.5, 0.0],
        };
        let device = Device::flex();
        let on_device = SparseCode::from_host(code.clone(), &device);
        assert_eq!((on_device.batch(), on_device.slots()), (2, 3));
        assert_eq!(on_device.to_host().unwrap(), code);
    }
}
