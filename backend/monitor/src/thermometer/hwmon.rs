//! CPU packages as Linux shows them under `/sys/class/hwmon`.
//!
//! Each `hwmonN` folder is one device: `name` is its driver, `tempM_input` a reading in thousandths
//! of a degree, `tempM_label` what is measured. The layout is in the kernel's documentation,
//! "Naming and data format standards for sysfs files".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Thermometer, ThermometerError, plausible};
use crate::Celsius;

const ROOT: &str = "/sys/class/hwmon";

/// Drivers of CPU packages, with the start of the labels of the whole package, best first. The
/// other sensors of these drivers are single cores or chiplets.
const DRIVERS: [(&str, &[&str]); 3] = [
    ("coretemp", &["Package id"]),
    // Tctl may carry an offset that steers fans; Tdie is the silicon.
    ("k10temp", &["Tdie", "Tctl"]),
    ("zenpower", &["Tdie", "Tctl"]),
];

/// The hottest CPU package.
#[derive(Clone, Debug)]
pub struct Hwmon {
    /// One input for each package, in order of path.
    inputs: Vec<PathBuf>,
}

impl Hwmon {
    /// The sensors of this machine.
    ///
    /// # Errors
    /// [`ThermometerError::NoSensor`] if there are none.
    pub fn system() -> Result<Self, ThermometerError> {
        Self::under(Path::new(ROOT))
    }

    /// The sensors under another root with the same layout.
    ///
    /// # Errors
    /// [`ThermometerError::NoSensor`] if there are none.
    pub fn under(root: &Path) -> Result<Self, ThermometerError> {
        let mut inputs: Vec<PathBuf> =
            entries(root).iter().filter_map(|device| package_input(device)).collect();
        inputs.sort();
        if inputs.is_empty() {
            let drivers = DRIVERS.map(|(driver, _)| driver).join(", ");
            return Err(ThermometerError::NoSensor { root: root.into(), drivers });
        }
        Ok(Self { inputs })
    }
}

impl Thermometer for Hwmon {
    fn read(&mut self) -> Result<Option<Celsius>, ThermometerError> {
        let mut hottest: Option<Celsius> = None;
        for path in &self.inputs {
            let celsius = read_input(path)?;
            if hottest.is_none_or(|other| celsius > other) {
                hottest = Some(celsius);
            }
        }
        Ok(hottest)
    }

    fn name(&self) -> &str {
        "hwmon"
    }
}

/// The input of a device that stands for the whole package, if it is a CPU's.
fn package_input(device: &Path) -> Option<PathBuf> {
    let driver = text(&device.join("name")).ok()?;
    let (_, labels) = DRIVERS.iter().find(|(known, _)| *known == driver)?;
    let mut inputs: Vec<PathBuf> =
        entries(device).into_iter().filter(|path| is_input(path)).collect();
    inputs.sort();
    let labelled = |start: &&str| {
        inputs.iter().find(|path| label(path).is_some_and(|label| label.starts_with(start)))
    };
    // Old kernels give k10temp one input and no label.
    let unlabelled = || inputs.iter().find(|path| label(path).is_none());
    labels.iter().find_map(labelled).or_else(unlabelled).cloned()
}

fn is_input(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix("temp")?.strip_suffix("_input"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

fn label(input: &Path) -> Option<String> {
    let name = input.file_name()?.to_str()?.strip_suffix("_input")?;
    text(&input.with_file_name(format!("{name}_label"))).ok()
}

fn read_input(path: &Path) -> Result<Celsius, ThermometerError> {
    let text =
        text(path).map_err(|source| ThermometerError::Unreadable { path: path.into(), source })?;
    match text.parse::<i32>() {
        Ok(thousandths) => {
            plausible(&path.display().to_string(), Celsius(thousandths as f32 / 1e3))
        }
        Err(_) => Err(ThermometerError::NotANumber { path: path.into(), text }),
    }
}

fn text(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// What a folder holds; nothing if it cannot be listed, which is how a missing one looks.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as the kernel shows it: files of each device.
    fn tree(devices: &[&[(&str, &str)]]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (index, files) in devices.iter().enumerate() {
            let device = root.path().join(format!("hwmon{index}"));
            fs::create_dir(&device).unwrap();
            for (name, text) in *files {
                fs::write(device.join(name), format!("{text}\n")).unwrap();
            }
        }
        root
    }

    const DISK: &[(&str, &str)] = &[("name", "nvme"), ("temp1_input", "99000")];

    #[test]
    fn the_hottest_package_of_two() {
        let package = |label: &'static str, input: &'static str| {
            [
                ("name", "coretemp"),
                ("temp1_label", label),
                ("temp1_input", input),
                ("temp2_label", "Core 0"),
                ("temp2_input", "95000"),
                ("temp1_max", "100000"),
            ]
        };
        let (zero, one) = (package("Package id 0", "41000"), package("Package id 1", "52500"));
        let root = tree(&[DISK, &zero, &one]);
        let mut hwmon = Hwmon::under(root.path()).unwrap();
        assert_eq!(hwmon.read().unwrap(), Some(Celsius(52.5)));
        // The reading is taken anew each time.
        fs::write(root.path().join("hwmon1/temp1_input"), "60000\n").unwrap();
        assert_eq!(hwmon.read().unwrap(), Some(Celsius(60.0)));
    }

    #[test]
    fn the_die_before_the_control_value() {
        let root = tree(&[&[
            ("name", "k10temp"),
            ("temp1_label", "Tctl"),
            ("temp1_input", "80000"),
            ("temp2_label", "Tdie"),
            ("temp2_input", "53000"),
            ("temp3_label", "Tccd1"),
            ("temp3_input", "55000"),
        ]]);
        assert_eq!(Hwmon::under(root.path()).unwrap().read().unwrap(), Some(Celsius(53.0)));
    }

    #[test]
    fn one_input_without_a_label() {
        let root = tree(&[&[("name", "k10temp"), ("temp1_input", "-1500")]]);
        assert_eq!(Hwmon::under(root.path()).unwrap().read().unwrap(), Some(Celsius(-1.5)));
    }

    #[test]
    fn no_sensor_of_a_cpu() {
        let cores_only: &[_] =
            &[("name", "coretemp"), ("temp2_label", "Core 0"), ("temp2_input", "1")];
        for devices in [&[][..], &[DISK], &[cores_only], &[&[("name", "k10temp")]]] {
            let root = tree(devices);
            let error = Hwmon::under(root.path()).unwrap_err();
            assert!(matches!(error, ThermometerError::NoSensor { .. }), "{error}");
            assert!(error.to_string().contains("coretemp, k10temp, zenpower"), "{error}");
        }
        let missing = Hwmon::under(Path::new("no such folder")).unwrap_err();
        assert!(matches!(missing, ThermometerError::NoSensor { .. }), "{missing}");
    }

    #[test]
    fn bad_readings_say_what_is_wrong() {
        let root =
            tree(&[&[("name", "zenpower"), ("temp1_label", "Tdie"), ("temp1_input", "hot")]]);
        let mut hwmon = Hwmon::under(root.path()).unwrap();
        let path = root.path().join("hwmon0/temp1_input");
        let mut error = || hwmon.read().unwrap_err();
        assert!(matches!(error(), ThermometerError::NotANumber { text, .. } if text == "hot"));
        fs::write(&path, "-273150").unwrap();
        assert!(error().to_string().ends_with("reads -273.15 °C: expected -50 °C to 150 °C"));
        fs::remove_file(&path).unwrap();
        assert!(matches!(error(), ThermometerError::Unreadable { .. }));
    }
}
