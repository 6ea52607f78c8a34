//! The standard output, whose reader may leave: `sae inspect acts/ | head -1` is not a mistake.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Prints `text`. If nobody reads any more, it is dropped and the work goes on; if it cannot be written for another
/// reason, such as a full disk, the process ends with an error.
pub fn text(text: Arguments) {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: writing to the standard output: {e}");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Prints a line, as `println!` does, and as [`text`] does.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::print::text(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
