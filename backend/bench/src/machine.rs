//! The machine that a measurement ran on.

use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What of a machine decides about speed, as far as it tells. Described at the start of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor, as it calls itself.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Last-level cache of the first core, where the system tells.
    pub last_level_cache_bytes: Option<u64>,
    /// All memory, where the system tells.
    pub memory_bytes: Option<u64>,
    /// Operating system and its kernel's version.
    pub system: String,
    /// How the clock follows the load, where the system tells; a virtual machine's does not.
    pub governor: Option<String>,
    /// Whether memory comes in huge pages: the system's setting.
    pub huge_pages: Option<String>,
    /// Running processes, averaged over 1, 5 and 15 minutes before the start. Above 0 something else
    /// was running, and figures are lower than they could be.
    pub load_average: Option<[f64; 3]>,
    /// What computes each copy of the weights, a line each, as the executor reports it.
    pub kernels: Vec<String>,
}

impl Machine {
    /// This one, with what the executor says of its kernels.
    pub fn describe(kernels: Vec<String>) -> Self {
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(wanted).ok();
        let load = System::load_average().ok();
        let brand = system.as_ref().and_then(|system| Some(system.cpus().first()?.brand().trim()));
        Self {
            cpu: brand.filter(|brand| !brand.is_empty()).unwrap_or("unknown").to_owned(),
            cores: thread::available_parallelism().map_or(1, |cores| cores.get()),
            last_level_cache_bytes: last_level_cache(),
            memory_bytes: system.as_ref().map(System::total_memory),
            system: System::kernel_long_version().unwrap_or_else(|_| "unknown".into()),
            governor: setting("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages: setting("/sys/kernel/mm/transparent_hugepage/enabled").map(chosen),
            load_average: load.map(|load| [load.one, load.five, load.fifteen]),
            kernels,
        }
    }
}

/// Bytes of the largest cache of the first core.
fn last_level_cache() -> Option<u64> {
    let size = |index| {
        let text = setting(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"))?;
        Some(text.strip_suffix('K')?.parse::<u64>().ok()? << 10)
    };
    (0..8).filter_map(size).max()
}

fn setting(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The one in brackets of several choices, as Linux shows them.
fn chosen(choices: String) -> String {
    let inside = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map(|(chosen, _)| chosen.to_owned()).unwrap_or(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::describe(vec!["draft: int8".into()]);
        assert!(machine.cores > 0 && machine.memory_bytes > Some(64 << 20), "{machine:?}");
        assert!(
            !machine.cpu.is_empty() && machine.system.contains(char::is_numeric),
            "{machine:?}"
        );
        assert_eq!(machine.kernels, ["draft: int8"]);
    }

    #[test]
    fn settings_of_several_choices() {
        assert_eq!(chosen("always [madvise] never".into()), "madvise");
        assert_eq!(chosen("never".into()), "never");
    }
}
