//! What the processor can do, found out when the program runs.
//!
//! A build for the oldest processor would leave most of a new one idle, and a build for the newest would not start on the
//! old. So kernels are compiled once for every level, and pick one here.
//!
//! `SAE_CPU=scalar|avx2|avx512|avx512_vnni|avx512_bf16` lowers the level: to compare, and to reproduce what another machine computed.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The variable that lowers the level.
pub const VARIABLE: &str = "SAE_CPU";

/// Instruction sets, each with all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the architecture has.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors, and sums of products of bytes.
    Avx512Vnni,
    /// 512-bit vectors, sums of products of bytes, and products of pairs of bf16 numbers.
    Avx512Bf16,
}

impl Level {
    /// All of them, the least first.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// As `SAE_CPU` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512_vnni",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }

    fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Invalid(format!("{VARIABLE}={name}: expected one of {known}"))
        })
    }
}

/// The level in use: the best that this processor has, or less if `SAE_CPU` says so. A value that is no level counts as
/// absent here; programs ask [`check`] first.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(
        || match std::env::var(VARIABLE).ok().and_then(|name| Level::named(&name).ok()) {
            Some(wanted) => wanted.min(detected()),
            None => detected(),
        },
    )
}

/// Refuses a `SAE_CPU` that is no level.
///
/// # Errors
/// [`Error::Invalid`] naming the levels.
pub fn check() -> Result<()> {
    match std::env::var(VARIABLE) {
        Ok(name) => Level::named(&name).map(drop),
        Err(_) => Ok(()),
    }
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Level {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        Level::Scalar
    } else if !(is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq"))
    {
        Level::Avx2
    } else if !is_x86_feature_detected!("avx512vnni") {
        Level::Avx512
    } else if !is_x86_feature_detected!("avx512bf16") {
        Level::Avx512Vnni
    } else {
        Level::Avx512Bf16
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Level {
    Level::Scalar
}

/// `name(level, arguments)` runs `body::<FMA>(arguments)` compiled for `level`.
#[macro_export]
macro_rules! for_each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::cpu::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                // A level that this processor lacks would be undefined behaviour, whoever asked for it.
                match level.min($crate::cpu::level()) {
                    $crate::cpu::Level::Scalar => {}
                    // SAFETY: `level()` is at most what was detected on this processor.
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above; the levels above this one have all of its instructions.
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = level;
            $body::<false>($($arg),*)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_read_back_from_its_name_and_others_are_refused() {
        for level in Level::ALL {
            assert_eq!(Level::named(level.name()).unwrap(), level);
        }
        let error = Level::named("sse9").unwrap_err().to_string();
        assert!(
            error.contains("SAE_CPU=sse9") && error.contains("avx512_bf16"),
            "{error}"
        );
    }

    #[test]
    fn the_level_in_use_is_one_that_this_processor_has() {
        assert!(level() <= detected());
    }
}
