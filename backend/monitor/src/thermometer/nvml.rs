//! NVIDIA GPUs through NVML, the driver's management library.

use std::ffi::OsStr;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use super::{Thermometer, ThermometerError, plausible};
use crate::Celsius;

/// The die of one GPU. The library is loaded when this is opened, never linked.
#[derive(Debug)]
pub struct Nvml {
    library: nvml_wrapper::Nvml,
    /// Where the GPU is on the bus; the first one without.
    pci_bus_id: Option<String>,
    name: String,
}

impl Nvml {
    /// The GPU at this place on the bus (`domain:bus:device.function`, as CUDA writes it), or the
    /// first.
    ///
    /// # Errors
    /// The library or its driver is absent, or there is no such GPU.
    pub fn open(pci_bus_id: Option<String>) -> Result<Self, ThermometerError> {
        let library = load().map_err(|source| ThermometerError::Nvml {
            action: "cannot be loaded".into(),
            source,
        })?;
        let name = format!("nvml:{}", pci_bus_id.as_deref().unwrap_or("0"));
        let nvml = Self { library, pci_bus_id, name };
        nvml.temperature()?;
        Ok(nvml)
    }

    fn temperature(&self) -> Result<u32, ThermometerError> {
        let device = match &self.pci_bus_id {
            Some(id) => self.library.device_by_pci_bus_id(id.as_str()),
            None => self.library.device_by_index(0),
        };
        device.and_then(|device| device.temperature(TemperatureSensor::Gpu)).map_err(|source| {
            ThermometerError::Nvml {
                action: format!("cannot read the temperature of {}", self.name),
                source,
            }
        })
    }
}

impl Thermometer for Nvml {
    fn read(&mut self) -> Result<Option<Celsius>, ThermometerError> {
        plausible(&self.name, Celsius(self.temperature()? as f32)).map(Some)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

fn load() -> Result<nvml_wrapper::Nvml, NvmlError> {
    nvml_wrapper::Nvml::init().or_else(|error| match error {
        // Containers get the driver's versioned file but not the link that a toolkit installs.
        NvmlError::LibloadingError(_) => {
            nvml_wrapper::Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
        }
        other => Err(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_first_gpu() {
        match Nvml::open(None) {
            Ok(mut nvml) => {
                let celsius =
                    nvml.read().expect("opening has read it once").expect("GPUs have one");
                assert!(celsius > Celsius(0.0), "{celsius}");
                assert_eq!(nvml.name(), "nvml:0");
            }
            Err(error) => println!("SKIP: this machine has no GPU to measure: {error}"),
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let error = Nvml::open(Some("FFFF:FF:1F.7".into())).unwrap_err();
        assert!(error.to_string().starts_with("NVML cannot"), "{error}");
    }
}
