//! Keeping the pages of freed tensors.
//!
//! Every step frees dozens of tensors of some megabytes and allocates as many again. glibc returns such memory to the
//! kernel at once and gets it back one cleared page at a time, which took 8% of a step. A program that trains can ask
//! it not to.

/// Tells glibc to keep up to a gigabyte of freed memory for the next allocations. For the start of a program that
/// trains: it holds for the whole process, and elsewhere than on Linux with glibc it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;

        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        // The largest that glibc takes: setting one threshold also stops it from adapting the other.
        let mmap_from = 32 << 20;
        // SAFETY: glibc's function of that name and signature; it takes a lock of its own and only changes when memory
        // is returned. A value that it refuses changes nothing.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, mmap_from);
            mallopt(M_TRIM_THRESHOLD, 1 << 30);
        }
    }
}
