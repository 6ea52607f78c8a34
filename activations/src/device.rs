//! Where tensors live: `cpu`, `cuda[:i]`, `vulkan[:i]`.
//!
//! Opening a GPU that is not there panics deep inside its driver bindings, so everything that can be missing is looked
//! for first and named.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A compute device as the user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// A GPU with a Vulkan driver, by number; 0 is the default adapter.
    Vulkan(usize),
}

impl Device {
    /// The burn device, without autodiff.
    ///
    /// # Errors
    /// [`Error::Device`] when this build lacks the feature, or the machine the driver, naming what is missing.
    pub fn open(self) -> Result<burn::tensor::Device> {
        match self {
            Self::Cpu => Ok(burn::tensor::Device::flex()),
            #[cfg(feature = "cuda")]
            Self::Cuda(i) => {
                cuda::check(self)?;
                Ok(burn::tensor::Device::cuda(i))
            }
            #[cfg(feature = "vulkan")]
            Self::Vulkan(i) => vulkan::open(self, i),
            #[allow(unreachable_patterns)]
            _ => Err(self.error(format!(
                "this binary was built without it: build with `cargo build --release --features {}`",
                if matches!(self, Self::Cuda(_)) {
                    "cuda"
                } else {
                    "vulkan"
                }
            ))),
        }
    }

    fn error(self, problem: impl Into<String>) -> Error {
        Error::Device {
            device: self.to_string(),
            problem: problem.into(),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
            Self::Vulkan(i) => write!(f, "vulkan:{i}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let (kind, index) = s.split_once(':').unwrap_or((s, "0"));
        let index = index.parse().map_err(|_| unknown(s))?;
        match kind {
            "cpu" if !s.contains(':') => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "vulkan" => Ok(Self::Vulkan(index)),
            _ => Err(unknown(s)),
        }
    }
}

fn unknown(s: &str) -> Error {
    Error::Device {
        device: s.to_owned(),
        problem: "expected cpu, cuda, cuda:N, vulkan or vulkan:N".into(),
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::Path;

    use super::{Device, Result};

    /// Looks for the three things CUDA needs at run time: the driver, the run-time compiler and the headers.
    pub(super) fn check(device: Device) -> Result<()> {
        if !in_library_path("libcuda.so") {
            return Err(device.error("no NVIDIA driver found (libcuda.so): install it, or use --device cpu"));
        }
        if !in_library_path("libnvrtc.so") {
            return Err(device.error("the CUDA run-time compiler is missing (libnvrtc.so): install the CUDA toolkit and put its lib64 on LD_LIBRARY_PATH"));
        }
        let homes =
            std::env::var("CUDA_PATH")
                .into_iter()
                .chain(["/usr/local/cuda".into(), "/opt/cuda".into(), "/usr".into()]);
        if !homes
            .into_iter()
            .any(|home| Path::new(&home).join("include/cuda_runtime.h").exists())
        {
            return Err(device.error(
                "CUDA's headers are missing (include/cuda_runtime.h): install the CUDA toolkit or set CUDA_PATH to it",
            ));
        }
        Ok(())
    }

    /// Whether a shared library whose name starts with `name` lies where the loader looks.
    fn in_library_path(name: &str) -> bool {
        let from_env = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let cuda_path = std::env::var("CUDA_PATH").map(|p| format!("{p}/lib64")).ok();
        let usual = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/lib/x86_64-linux-gnu",
            "/usr/local/cuda/lib64",
            "/usr/local/nvidia/lib64",
            "/usr/local/nvidia/lib",
            "/opt/cuda/lib64",
            "/usr/lib/wsl/lib",
            "/run/opengl-driver/lib",
        ];
        from_env
            .split(':')
            .filter(|d| !d.is_empty())
            .chain(cuda_path.as_deref())
            .chain(usual)
            .any(|dir| {
                std::fs::read_dir(dir).is_ok_and(|entries| {
                    entries
                        .flatten()
                        .any(|e| e.file_name().to_string_lossy().starts_with(name))
                })
            })
    }
}

#[cfg(feature = "vulkan")]
mod vulkan {
    use super::{Device, Result};

    /// Opens adapter `index`, if the loader and at least one driver are there.
    pub(super) fn open(device: Device, index: usize) -> Result<burn::tensor::Device> {
        let dirs = [
            "/usr/share/vulkan/icd.d",
            "/etc/vulkan/icd.d",
            "/usr/local/share/vulkan/icd.d",
            "/usr/local/nvidia/share/vulkan/icd.d",
        ];
        let from_env = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"]
            .iter()
            .any(|v| std::env::var_os(v).is_some());
        let found = from_env
            || dirs
                .iter()
                .any(|d| std::fs::read_dir(d).is_ok_and(|mut entries| entries.next().is_some()));
        if cfg!(target_os = "linux") && !found {
            return Err(
                device.error("no Vulkan driver found: install your GPU's, or mesa-vulkan-drivers for a software one")
            );
        }
        let kind = if index == 0 {
            burn::tensor::DeviceKind::DefaultDevice
        } else {
            burn::tensor::DeviceKind::DiscreteGpu(index - 1)
        };
        Ok(burn::tensor::Device::vulkan(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_parse_and_print() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:1", Device::Cuda(1)),
            ("vulkan:2", Device::Vulkan(2)),
        ] {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "vulkan:-1"] {
            assert!(bad.parse::<Device>().is_err(), "{bad:?}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_the_build_lacks_names_the_feature() {
        let error = Device::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
