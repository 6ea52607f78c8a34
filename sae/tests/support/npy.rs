//! Arrays as numpy writes them, for the tests inside and outside the crate.

use std::fs;
use std::path::{Path, PathBuf};

/// Writes `rows: [n, d_in]` as a `.npy`.
pub fn npy(path: &Path, rows: &[f32], d_in: usize) -> PathBuf {
    let shape = format!("({}, {d_in})", rows.len() / d_in);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.iter().flat_map(|v| v.to_le_bytes()));
    fs::write(path, bytes).unwrap();
    path.to_owned()
}
