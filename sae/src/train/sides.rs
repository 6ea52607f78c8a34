//! What a dictionary reads and what it writes, as columns of the rows that a run's input gives.
//!
//! The input knows places side by side and nothing of their parts in a dictionary; a dictionary knows two sides. Here they
//! meet. Where both sides are the same columns there is one side, and nothing is copied.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::dictionary::Place;

/// The two sides of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sides {
    /// Of the row, all places together.
    width: usize,
    /// What is read. Its places are the first of the row.
    pub read: Side,
    /// What is written.
    pub written: Side,
}

/// Some places of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// In the order of the columns.
    pub places: Vec<Place>,
    /// Where each begins in the row.
    starts: Vec<usize>,
}

impl Sides {
    /// Sides of rows that consist of `places`: the first `n_read` are read, and those numbered `written` are written, or
    /// what is read if that is `None`.
    pub fn new(places: &[Place], n_read: usize, written: Option<&[usize]>) -> Self {
        let side = |numbers: &[usize]| Side {
            places: numbers.iter().map(|&n| places[n].clone()).collect(),
            starts: numbers
                .iter()
                .map(|&n| places[..n].iter().map(|p| p.width).sum())
                .collect(),
        };
        let read: Vec<usize> = (0..n_read).collect();
        Self {
            width: places.iter().map(|p| p.width).sum(),
            read: side(&read),
            written: side(written.unwrap_or(&read)),
        }
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether what is written is what is read.
    pub fn same(&self) -> bool {
        self.read == self.written
    }

    /// Both sides of `rows: [batch, width]` on a device: what is read, and what is written.
    pub fn tensors(&self, rows: Vec<f32>, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let batch = rows.len() / self.width;
        let row = Tensor::from_data(TensorData::new(rows, [batch, self.width]), device);
        let read = self.read.of_tensor(&row);
        let written = match self.same() {
            true => read.clone(),
            false => self.written.of_tensor(&row),
        };
        (read, written)
    }
}

impl Side {
    /// Width, all places together.
    pub fn width(&self) -> usize {
        self.places.iter().map(|p| p.width).sum()
    }

    /// The names of its places.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.places.iter().map(Place::name).collect();
        names.join(", ")
    }

    /// The columns of each place in the row.
    pub fn columns(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let places = self.places.iter().zip(&self.starts);
        places.map(|(place, &start)| start..start + place.width)
    }

    /// This side of `rows`, which are `width` wide.
    pub fn of<'a>(&self, rows: &'a [f32], width: usize) -> Cow<'a, [f32]> {
        if self.whole(width) {
            return Cow::Borrowed(rows);
        }
        let mut side = Vec::with_capacity(rows.len() / width * self.width());
        for row in rows.chunks_exact(width) {
            self.columns().for_each(|columns| side.extend_from_slice(&row[columns]));
        }
        Cow::Owned(side)
    }

    fn of_tensor(&self, row: &Tensor<2>) -> Tensor<2> {
        let [_, width] = row.dims();
        if self.whole(width) {
            return row.clone();
        }
        let parts = self.columns().map(|c| row.clone().narrow(1, c.start, c.len()));
        Tensor::cat(parts.collect(), 1)
    }

    /// Whether it is all columns of the row in their order.
    fn whole(&self, width: usize) -> bool {
        let mut next = 0;
        let in_order = self.columns().all(|columns| {
            let follows = columns.start == next;
            next = columns.end;
            follows
        });
        in_order && next == width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(widths: &[usize]) -> Vec<Place> {
        widths.iter().map(|&width| Place { hook: None, width }).collect()
    }

    #[test]
    fn sides_are_the_columns_of_their_places_on_the_host_and_on_the_device() {
        let rows: Vec<f32> = (0..12).map(|v| v as f32).collect();
        // Reads the first two of three places, writes the last and the first.
        let sides = Sides::new(&places(&[1, 2, 3]), 2, Some(&[2, 0]));
        assert_eq!((sides.width(), sides.read.width(), sides.written.width()), (6, 3, 4));
        assert!(!sides.same());
        assert_eq!(*sides.read.of(&rows, 6), [0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
        let written = [3.0, 4.0, 5.0, 0.0, 9.0, 10.0, 11.0, 6.0];
        assert_eq!(*sides.written.of(&rows, 6), written);
        let (read, target) = sides.tensors(rows.clone(), &Device::flex());
        assert_eq!(
            read.into_data().to_vec::<f32>().unwrap(),
            [0.0, 1.0, 2.0, 6.0, 7.0, 8.0]
        );
        assert_eq!(target.into_data().to_vec::<f32>().unwrap(), written);
        // An autoencoder's side is the row itself.
        let sides = Sides::new(&places(&[6]), 1, None);
        assert!(sides.same() && matches!(sides.read.of(&rows, 6), Cow::Borrowed(_)));
    }
}
