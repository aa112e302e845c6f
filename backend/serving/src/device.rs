//! Where passes run.

use std::fmt;
use std::str::FromStr;

use crate::options::OptionsError;

/// Where passes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best there is: the CPU, in this version.
    Auto,
    /// The CPU.
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
        })
    }
}

impl FromStr for Device {
    type Err = OptionsError;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        let cuda = value.strip_prefix("cuda:").map(|ids| ids.split(',').collect::<Vec<_>>());
        match (value, cuda) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(ids)) if ids.iter().all(|id| number(id)) => Err(if ids.len() == 1 {
                OptionsError::NoCuda { value: value.into() }
            } else {
                OptionsError::SeveralDevices { value: value.into() }
            }),
            _ => Err(OptionsError::BadValue {
                key: "device".into(),
                value: value.into(),
                allowed: "auto, cpu or cuda:N".into(),
            }),
        }
    }
}
