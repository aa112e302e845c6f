//! Where the chip's temperature comes from.
//!
//! A [`Thermometer`] only reads; [`crate::ThermalWatch`] polls one off the hot path. Not to have one
//! is normal (containers and virtual machines rarely show sensors) and never an error under `auto`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Celsius;

mod hwmon;
mod nvml;

pub use hwmon::Hwmon;
pub use nvml::Nvml;

/// A source of the chip's temperature.
pub trait Thermometer: Send {
    /// The temperature now; `None` if this source has none to tell.
    ///
    /// # Errors
    /// The sensor could not be read this time.
    fn read(&mut self) -> Result<Option<Celsius>, ThermometerError>;

    /// What it is, for logs.
    fn name(&self) -> &str;
}

/// Why a temperature could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ThermometerError {
    /// The kernel shows no sensor of a CPU package.
    #[error(
        "no CPU temperature sensor ({drivers}) under {root}: load its kernel module, or set the \
         thermometer to fixed:T or none"
    )]
    NoSensor {
        /// Folder that was searched.
        root: PathBuf,
        /// Drivers that were looked for.
        drivers: String,
    },
    /// A sensor's file could not be read.
    #[error("cannot read the temperature sensor {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sensor's file holds something else than a number.
    #[error("the temperature sensor {path} holds {text:?}: expected thousandths of a degree")]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// No chip has this temperature.
    #[error("{name} reads {celsius}: expected {MIN} to {MAX}")]
    Implausible {
        /// The thermometer.
        name: String,
        /// Its reading.
        celsius: Celsius,
    },
    /// The NVIDIA management library is absent or failed.
    #[error("NVML {action}: {source}")]
    Nvml {
        /// What was tried.
        action: String,
        /// What the library said.
        source: nvml_wrapper::error::NvmlError,
    },
}

/// Lowest temperature that is believed.
pub const MIN: Celsius = Celsius(-50.0);
/// Highest temperature that is believed.
pub const MAX: Celsius = Celsius(150.0);

fn plausible(name: &str, celsius: Celsius) -> Result<Celsius, ThermometerError> {
    if (MIN..=MAX).contains(&celsius) {
        Ok(celsius)
    } else {
        Err(ThermometerError::Implausible { name: name.into(), celsius })
    }
}

/// A temperature that was set by hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fixed(pub Celsius);

impl Thermometer for Fixed {
    fn read(&mut self) -> Result<Option<Celsius>, ThermometerError> {
        Ok(Some(self.0))
    }

    fn name(&self) -> &str {
        "fixed"
    }
}

/// No thermometer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent;

impl Thermometer for Absent {
    fn read(&mut self) -> Result<Option<Celsius>, ThermometerError> {
        Ok(None)
    }

    fn name(&self) -> &str {
        "none"
    }
}

/// The chip whose temperature matters: the one that computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chip {
    /// The CPU packages, the hottest of them.
    Cpu,
    /// An NVIDIA GPU.
    Gpu {
        /// Where it is on the bus, `domain:bus:device.function`; the first GPU if that is not known.
        pci_bus_id: Option<String>,
    },
}

/// Which thermometer the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ThermometerSetting {
    /// The one of the chip in use, if it has one.
    #[default]
    Auto,
    /// None: KT is 1.
    None,
    /// This temperature.
    Fixed(Celsius),
    /// Linux hwmon, CPU packages.
    Hwmon,
    /// NVIDIA's management library; GPU 0 unless the chip in use is another.
    Nvml,
}

/// The setting does not name a thermometer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown thermometer {0:?}: expected auto, none, hwmon, nvml, or fixed:T with T in °C from {min} to \
     {max}, for example fixed:45",
    min = MIN.0,
    max = MAX.0
)]
pub struct UnknownThermometer(pub String);

impl FromStr for ThermometerSetting {
    type Err = UnknownThermometer;

    fn from_str(setting: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownThermometer(setting.into());
        Ok(match setting {
            "auto" => Self::Auto,
            "none" => Self::None,
            "hwmon" => Self::Hwmon,
            "nvml" => Self::Nvml,
            _ => {
                let number = setting.strip_prefix("fixed:").ok_or_else(unknown)?;
                let celsius = Celsius(number.trim().parse().map_err(|_| unknown())?);
                Self::Fixed(plausible("fixed", celsius).map_err(|_| unknown())?)
            }
        })
    }
}

impl fmt::Display for ThermometerSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Fixed(celsius) => write!(f, "fixed:{}", celsius.0),
            Self::Hwmon => f.write_str("hwmon"),
            Self::Nvml => f.write_str("nvml"),
        }
    }
}

/// Opens the thermometer that the setting asks for.
///
/// # Errors
/// The setting names a source that this machine does not have. `auto` never fails.
pub fn choose_thermometer(
    setting: ThermometerSetting,
    chip: Chip,
) -> Result<Box<dyn Thermometer>, ThermometerError> {
    Ok(match (setting, chip) {
        (ThermometerSetting::None, _) => Box::new(Absent),
        (ThermometerSetting::Fixed(celsius), _) => Box::new(Fixed(celsius)),
        (ThermometerSetting::Hwmon, _) => Box::new(Hwmon::system()?),
        (ThermometerSetting::Nvml, Chip::Cpu) => Box::new(Nvml::open(None)?),
        (ThermometerSetting::Nvml, Chip::Gpu { pci_bus_id }) => Box::new(Nvml::open(pci_bus_id)?),
        (ThermometerSetting::Auto, Chip::Cpu) => or_absent(Hwmon::system()),
        (ThermometerSetting::Auto, Chip::Gpu { pci_bus_id }) => or_absent(Nvml::open(pci_bus_id)),
    })
}

fn or_absent<T: Thermometer + 'static>(
    opened: Result<T, ThermometerError>,
) -> Box<dyn Thermometer> {
    match opened {
        Ok(thermometer) => Box::new(thermometer),
        Err(error) => {
            tracing::info!("no thermometer, the thermal coefficient stays 1: {error}");
            Box::new(Absent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_written() {
        for text in ["auto", "none", "hwmon", "nvml", "fixed:45", "fixed:-3.5"] {
            assert_eq!(text.parse::<ThermometerSetting>().unwrap().to_string(), text);
        }
        for text in ["", "Auto", "fixed", "fixed:", "fixed:warm", "fixed:NaN", "fixed:151", "45"] {
            let error = text.parse::<ThermometerSetting>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "unknown thermometer {text:?}: expected auto, none, hwmon, nvml, or fixed:T with T \
                     in °C from -50 to 150, for example fixed:45"
                )
            );
        }
    }

    #[test]
    fn auto_never_fails() {
        let gpu = |id: Option<&str>| Chip::Gpu { pci_bus_id: id.map(str::to_owned) };
        for chip in [Chip::Cpu, gpu(None), gpu(Some("FFFF:FF:1F.7"))] {
            let mut thermometer =
                choose_thermometer(ThermometerSetting::Auto, chip.clone()).unwrap();
            let reading = thermometer.read().unwrap();
            assert_eq!(reading.is_none(), thermometer.name() == "none", "{chip:?}");
        }
    }

    #[test]
    fn fixed_and_none_tell_what_they_are_told() {
        let read = |setting| choose_thermometer(setting, Chip::Cpu).unwrap().read().unwrap();
        let fixed = ThermometerSetting::Fixed(Celsius(61.5));
        assert_eq!(read(fixed), Some(Celsius(61.5)));
        assert_eq!(read(ThermometerSetting::None), None);
    }
}
