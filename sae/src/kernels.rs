//! The arithmetic of sparse codes: a plain twin that says what each kernel computes, and the fast one beside it.

pub mod select;
