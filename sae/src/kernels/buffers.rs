//! Large buffers that come back every step: tiles of pre-activations, the gradients of the matrices, weights in few bits.
//!
//! Allocated anew they would be cleared page by page by the kernel, which takes longer than filling them. Whoever takes
//! one overwrites all of it.

use std::sync::{Mutex, PoisonError};

use burn_flex::FlexTensor;

use super::rough::{Product, RoughMatrix};

/// Buffers kept: two gradients and a tile, and as many again while shapes change.
const KEPT: usize = 6;

/// Elements from which a buffer is worth keeping.
const LARGE: usize = 1 << 18;

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

fn pool() -> std::sync::MutexGuard<'static, Vec<Vec<f32>>> {
    // Whole buffers go in and out: a panic elsewhere leaves nothing half done.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `len` elements of whatever was there before.
pub fn take(len: usize) -> Vec<f32> {
    let mut pool = pool();
    match pool.iter().position(|buffer| buffer.len() == len) {
        Some(at) => pool.swap_remove(at),
        None => vec![0.0; len],
    }
}

/// Keeps `buffer` for the next who wants its length; the one kept longest makes room.
pub fn give_back(buffer: Vec<f32>) {
    if buffer.len() < LARGE {
        return;
    }
    let mut pool = pool();
    if pool.len() == KEPT {
        pool.remove(0);
    }
    pool.push(buffer);
}

/// Keeps the buffer of a contiguous tensor that nobody else holds.
pub fn recycle(tensor: FlexTensor) {
    // `TensorData::into_vec` would copy bytes that were allocated as something else than floats.
    if tensor.is_unique()
        && let Ok(buffer) = tensor.into_data().bytes.try_into_vec::<f32>()
    {
        give_back(buffer);
    }
}

/// One of each kind: their memory is of different sizes.
static MATRICES: [Mutex<Option<RoughMatrix>>; 2] = [Mutex::new(None), Mutex::new(None)];

fn matrix(product: Product) -> Option<std::sync::MutexGuard<'static, Option<RoughMatrix>>> {
    let kept = match product {
        Product::Int8 => &MATRICES[0],
        Product::Bf16 => &MATRICES[1],
        Product::F32 => return None,
    };
    Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// [`RoughMatrix::new`] of `rows: [d_out, d_in]`, in the memory of the one given back last. Whoever comes while another one
/// uses it makes his own.
pub fn take_rough(product: Product, rows: &[f32], d_in: usize, bias: Option<&[f32]>) -> Option<RoughMatrix> {
    let kept = matrix(product)?.take();
    match kept {
        Some(mut matrix) => {
            matrix.renew(rows, d_in, bias);
            Some(matrix)
        }
        None => RoughMatrix::new(product, rows, d_in, bias),
    }
}

/// Keeps the memory of a matrix for the next one.
pub fn give_back_rough(used: RoughMatrix) {
    if let Some(mut kept) = matrix(used.numbers()) {
        *kept = Some(used);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn a_buffer_given_back_is_taken_again_by_its_length_alone() {
        // No other test uses this length.
        let len = LARGE + 77;
        let buffer = vec![1.0; len];
        let address = buffer.as_ptr();
        let tensor = FlexTensor::from_data(TensorData::new(buffer, [len]));
        let shared = tensor.clone();
        recycle(tensor);
        let other = take(len);
        assert_ne!(other.as_ptr(), address, "somebody still holds it");
        recycle(shared);
        let longer = take(len + 1);
        assert_ne!(longer.as_ptr(), address);
        let again = take(len);
        assert_eq!((again.as_ptr(), again[0]), (address, 1.0));
    }
}
