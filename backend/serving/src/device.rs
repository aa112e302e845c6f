//! Where passes run: what the owner asks for, and what that comes to on this machine.
//!
//! [`Device`] is the wish, [`Processor`] what a model is on. Only `auto` has a way out: it takes the
//! first GPU that the kernels run on, else the CPU, and [`Choice`] says why, so that nobody has to guess
//! why a server is slow. A GPU that was named and cannot be used is an error, never the CPU instead.

use std::fmt;
use std::str::FromStr;

use rewind_cuda::{CudaError, is_supported};
use rewind_kernels::Description;
use rewind_monitor::Chip;

use crate::load_error::{LoadError, with_causes};
use crate::options::OptionsError;
use crate::size::format_bytes;

/// Where passes shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU that can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU with this number, counted from 0 as CUDA does.
    Cuda(u32),
}

/// Where the passes of a loaded model run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Processor {
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU with this number, counted from 0 as CUDA does.
    Cuda(u32),
}

/// Where the shadow weights lie when passes run on a GPU. On the CPU all weights are in host memory,
/// whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShadowPlacement {
    /// Beside the draft, in the GPU's memory.
    #[default]
    Gpu,
    /// In page-locked host memory; every shadow pass reads them over the bus.
    Host,
}

/// What a [`Device`] comes to on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where passes will run.
    pub processor: Processor,
    /// The GPU, if it is one.
    pub gpu: Option<Description>,
    /// Under `auto`: why no GPU was taken.
    pub no_gpu: Option<String>,
}

impl Device {
    /// What this comes to on this machine. The driver is asked unless the device is the CPU; nothing is
    /// allocated on the GPU.
    ///
    /// # Errors
    /// [`LoadError::Device`]: a GPU was named, and cannot be used. `auto` never fails.
    pub fn choose(self) -> Result<Choice, LoadError> {
        self.choose_from(rewind_cuda::gpus)
    }

    /// As [`Device::choose`], with the machine's GPUs from `gpus`: all that the driver lists, in order.
    pub(crate) fn choose_from(
        self,
        gpus: impl FnOnce() -> Result<Vec<Description>, CudaError>,
    ) -> Result<Choice, LoadError> {
        let on = |ordinal, gpu| Choice {
            processor: Processor::Cuda(ordinal),
            gpu: Some(gpu),
            no_gpu: None,
        };
        match self {
            Self::Cpu => Ok(Choice { processor: Processor::Cpu, gpu: None, no_gpu: None }),
            Self::Auto => {
                let why = match gpus() {
                    Ok(all) => {
                        let numbered = (0..).zip(&all);
                        let usable = numbered.into_iter().find(|(_, gpu)| is_supported(gpu));
                        if let Some((ordinal, gpu)) = usable {
                            return Ok(on(ordinal, gpu.clone()));
                        }
                        all.first().map_or(CudaError::NoGpu, too_old)
                    }
                    Err(error) => error,
                };
                let no_gpu = Some(with_causes(&why));
                Ok(Choice { processor: Processor::Cpu, gpu: None, no_gpu })
            }
            Self::Cuda(ordinal) => {
                let found = gpus().and_then(|all| match all.get(ordinal as usize) {
                    Some(gpu) if is_supported(gpu) => Ok(on(ordinal, gpu.clone())),
                    Some(gpu) => Err(too_old(gpu)),
                    None => {
                        Err(CudaError::NoSuchGpu { ordinal: ordinal as usize, count: all.len() })
                    }
                });
                let processor = Processor::Cuda(ordinal);
                found.map_err(|missing| LoadError::Device { processor, missing })
            }
        }
    }
}

fn too_old(gpu: &Description) -> CudaError {
    CudaError::Architecture { name: gpu.name.clone(), architecture: gpu.architecture.clone() }
}

impl Choice {
    /// The chip whose temperature counts.
    pub fn chip(&self) -> Chip {
        match &self.gpu {
            None => Chip::Cpu,
            // Never by number: CUDA counts the GPUs that this process may see, in an order of its own.
            Some(gpu) => Chip::Gpu { pci_bus_id: gpu.pci_bus_id.clone() },
        }
    }

    /// What was chosen, for people.
    pub fn describe(&self) -> String {
        match &self.gpu {
            None => self.processor.to_string(),
            Some(Description { name, architecture, memory, .. }) => {
                format!("{}, {name} ({architecture}, {})", self.processor, format_bytes(*memory))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cpu => Device::Cpu.fmt(f),
            Self::Cuda(ordinal) => Device::Cuda(ordinal).fmt(f),
        }
    }
}

impl fmt::Display for ShadowPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gpu => "gpu",
            Self::Host => "host",
        })
    }
}

impl FromStr for Device {
    type Err = OptionsError;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let bad = || OptionsError::BadValue {
            key: "device".into(),
            value: value.into(),
            allowed: "auto, cpu or cuda:N".into(),
        };
        match value {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let ids = value.strip_prefix("cuda:").ok_or_else(bad)?;
                // Digits only: a sign would parse as well.
                let digits = |id: &str| id.bytes().all(|byte| byte.is_ascii_digit());
                let numbers: Option<Vec<u32>> =
                    ids.split(',').map(|id| id.parse().ok().filter(|_| digits(id))).collect();
                match numbers.as_deref() {
                    Some(&[ordinal]) => Ok(Self::Cuda(ordinal)),
                    Some(_) => Err(OptionsError::SeveralDevices { value: value.into() }),
                    None => Err(bad()),
                }
            }
        }
    }
}

impl FromStr for ShadowPlacement {
    type Err = OptionsError;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value {
            "gpu" => Ok(Self::Gpu),
            "host" => Ok(Self::Host),
            _ => Err(OptionsError::BadValue {
                key: "shadow_placement".into(),
                value: value.into(),
                allowed: "gpu or host".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rewind_kernels::NotBuilt;

    use super::*;

    fn gpu(name: &str, architecture: &str) -> Description {
        Description {
            name: name.into(),
            architecture: architecture.into(),
            multiprocessors: 132,
            memory: 80 << 30,
            free_memory: 0,
            pci_bus_id: Some("0000:3B:00.0".into()),
        }
    }

    fn machine() -> Result<Vec<Description>, CudaError> {
        Ok(vec![gpu("Old", "sm_75"), gpu("New", "sm_90"), gpu("Newer", "sm_100")])
    }

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:17", Device::Cuda(17)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        let several = "cuda:0,1".parse::<Device>();
        assert_eq!(several, Err(OptionsError::SeveralDevices { value: "cuda:0,1".into() }));
        for text in
            ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:0,", "cuda:99999999999"]
        {
            let error = text.parse::<Device>().unwrap_err();
            assert!(matches!(error, OptionsError::BadValue { .. }), "{text}: {error}");
        }
        for placement in [ShadowPlacement::Gpu, ShadowPlacement::Host] {
            assert_eq!(placement.to_string().parse(), Ok(placement));
        }
        assert!("disk".parse::<ShadowPlacement>().unwrap_err().to_string().contains("gpu or host"));
    }

    #[test]
    fn auto_takes_the_first_gpu_that_the_kernels_run_on() {
        let choice = Device::Auto.choose_from(machine).unwrap();
        assert_eq!((choice.processor, choice.no_gpu), (Processor::Cuda(1), None));
        assert_eq!(choice.gpu.map(|gpu| gpu.name), Some("New".into()));
    }

    #[test]
    fn auto_without_a_gpu_is_the_cpu_and_says_why() {
        let why = |gpus: Result<Vec<Description>, CudaError>| {
            let choice = Device::Auto.choose_from(|| gpus).unwrap();
            assert_eq!((choice.processor, choice.gpu), (Processor::Cpu, None));
            choice.no_gpu.unwrap()
        };
        assert!(why(Err(CudaError::NoDriver)).contains("libcuda.so.1"));
        let unbuilt = NotBuilt { why: "built so" };
        assert!(why(Err(CudaError::NoKernels(unbuilt))).contains("built so"));
        let old = why(Ok(vec![gpu("Old", "sm_75")]));
        assert!(old.contains("Old") && old.contains("sm_75") && old.contains("sm_80"), "{old}");
        assert!(why(Ok(Vec::new())).contains("no GPU"));
    }

    #[test]
    fn the_cpu_asks_no_driver() {
        let choice = Device::Cpu.choose_from(|| panic!("asked")).unwrap();
        assert_eq!((choice.processor, &choice.no_gpu), (Processor::Cpu, &None));
        assert_eq!(choice.describe(), "cpu");
    }

    #[test]
    fn a_named_gpu_is_that_one_or_an_error() {
        let choice = Device::Cuda(2).choose_from(machine).unwrap();
        assert_eq!(choice.describe(), "cuda:2, Newer (sm_100, 80.0 GiB)");
        assert_eq!(choice.chip(), Chip::Gpu { pci_bus_id: Some("0000:3B:00.0".into()) });
        let error = |ordinal, gpus: Result<Vec<Description>, CudaError>| {
            Device::Cuda(ordinal).choose_from(|| gpus).unwrap_err().to_string()
        };
        let none = error(0, Err(CudaError::NoDriver));
        for part in ["device cuda:0", "libcuda.so.1", "\"cpu\""] {
            assert!(none.contains(part), "{none} lacks {part}");
        }
        let beyond = error(3, machine());
        assert!(beyond.contains("cuda:3") && beyond.contains("this machine has 3"), "{beyond}");
        let old = error(0, machine());
        assert!(old.contains("cuda:0") && old.contains("sm_75"), "{old}");
    }
}
