//! Before a long command starts: what it will cost, and a refusal where that cannot fit.

use std::path::Path;

use anyhow::{Context, bail};

use crate::bars::bytes;

/// Refuses what cannot fit on the disk of `out` or in the free memory. Both in bytes.
///
/// The memory figure counts only what the command allocates; page cache is the system's business.
pub fn check(out: &Path, disk: u64, memory: u64) -> anyhow::Result<()> {
    let free_disk = free_disk(out)?;
    if disk > free_disk {
        bail!(
            "{}: {} are needed but {} are free on that disk",
            out.display(),
            bytes(disk),
            bytes(free_disk)
        );
    }
    let Ok(mut system) = sysinfo::System::new() else {
        return Ok(()); // a system that cannot be asked
    };
    system.refresh_memory();
    let free_memory = system.available_memory();
    if memory > free_memory {
        bail!(
            "{} of memory are needed but {} are free: use smaller sizes",
            bytes(memory),
            bytes(free_memory)
        );
    }
    Ok(())
}

/// One line for people before the work starts: `about 1.5 GB of memory, 80 MB of disk, 45 s`.
pub fn estimate(disk: u64, memory: u64, seconds: f64) -> String {
    format!(
        "about {} of memory, {} of disk, {}",
        bytes(memory),
        bytes(disk),
        duration(seconds)
    )
}

/// Free bytes, for this user, on the file system that will hold `out`, which need not exist yet.
#[cfg(unix)]
fn free_disk(out: &Path) -> anyhow::Result<u64> {
    let absolute = std::path::absolute(out).with_context(|| format!("{}", out.display()))?;
    let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(existing)
        .with_context(|| format!("asking for the free space of {}", existing.display()))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// Elsewhere the write itself says when the disk is full.
#[cfg(not(unix))]
fn free_disk(_: &Path) -> anyhow::Result<u64> {
    Ok(u64::MAX)
}

/// Seconds as people say them: `45 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_before_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("not/there/yet");
        assert!(check(&out, 1, 1).is_ok());
        let memory = check(&out, 1, u64::MAX).unwrap_err().to_string();
        assert!(memory.contains("memory"), "{memory}");
    }

    #[test]
    fn durations_read_like_speech() {
        assert_eq!(
            [duration(45.2), duration(200.0), duration(7500.0)],
            ["45 s", "3 min 20 s", "2 h 05 min"]
        );
    }
}
