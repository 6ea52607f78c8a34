//! What a dictionary says about a batch: which latents fire for each token, and how strongly.
//!
//! Rows are padded to the same number of slots, because that is what GPUs and sparse products want. A slot whose value
//! is 0 is inactive whatever its index, so nothing may read an index without its value.

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
}
