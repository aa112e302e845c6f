//! What a GPU would have to hold: computed from shapes, so it can be asked where there is no GPU.

use anyhow::Result;
use rewind_checkpoint::Checkpoint;
use rewind_cuda::{CudaExecutor, Driver};
use rewind_formats::DraftFormats;
use rewind_monitor::Chip;
use rewind_serving::{Device, Draft, ShadowPlacement, format_bytes, gpu_plan};
use serde::Serialize;

/// Tokens of a KV page.
const PAGE_TOKENS: u64 = 32;

/// Which device a model would be served on.
#[derive(Debug, Serialize)]
pub(super) struct Where {
    /// As asked for.
    device: String,
    /// What that is on this machine, if it can be used.
    chosen: Option<String>,
    /// Why it is no GPU, or cannot be used.
    reason: Option<String>,
    /// The chip whose temperature counts.
    #[serde(skip)]
    pub(super) chip: Chip,
}

/// Costs of a model on a GPU.
#[derive(Debug, Serialize)]
pub(super) struct Costs {
    kv_bytes_per_token: u64,
    /// 10⁹ bytes a second, assumed.
    bus_bandwidth: f64,
    plans: Vec<Plan>,
}

/// One draft, one placement of the shadow.
#[derive(Debug, Serialize)]
struct Plan {
    draft: String,
    shadow_placement: String,
    /// Weights in the GPU's memory.
    gpu_bytes: u64,
    /// Weights in page-locked host memory.
    host_bytes: u64,
    /// What every shadow pass moves over the bus.
    bus_bytes_per_shadow_pass: u64,
    /// How long that takes at least, at that bandwidth.
    bus_seconds_per_shadow_pass: f64,
}

impl Where {
    pub(super) fn ask(device: Device) -> Self {
        match device.choose() {
            Ok(choice) => Self {
                device: device.to_string(),
                chosen: Some(choice.describe()),
                chip: choice.chip(),
                reason: choice.no_gpu,
            },
            Err(error) => Self {
                device: device.to_string(),
                chosen: None,
                reason: Some(error.to_string()),
                chip: Chip::Cpu,
            },
        }
    }

    pub(super) fn describe(&self) -> String {
        let Self { device, chosen, reason, .. } = self;
        match (chosen, reason) {
            (Some(chosen), None) if chosen == device => chosen.clone(),
            (Some(chosen), None) => format!("{device}: {chosen}"),
            (Some(chosen), Some(why)) => format!("{device}: {chosen}, no GPU: {why}"),
            (None, why) => why.clone().unwrap_or_else(|| device.clone()),
        }
    }
}

impl Costs {
    pub(super) fn of(
        checkpoint: &Checkpoint,
        drafts: &[(&Draft, DraftFormats)],
        bus_bandwidth: f64,
    ) -> Self {
        let placements = [ShadowPlacement::Gpu, ShadowPlacement::Host];
        let cases = drafts.iter().flat_map(|draft| placements.map(|placement| (draft, placement)));
        let plans = cases.map(|((draft, formats), placement)| {
            let plan = gpu_plan(checkpoint, None, formats, placement);
            Plan {
                draft: draft.to_string(),
                shadow_placement: placement.to_string(),
                gpu_bytes: plan.device,
                host_bytes: plan.host,
                bus_bytes_per_shadow_pass: plan.streamed,
                bus_seconds_per_shadow_pass: plan.streamed as f64 / (bus_bandwidth * 1e9),
            }
        });
        Self {
            kv_bytes_per_token: CudaExecutor::<Driver>::page_bytes(checkpoint.spec()) as u64
                / PAGE_TOKENS,
            bus_bandwidth,
            plans: plans.collect(),
        }
    }

    pub(super) fn print(&self, entry: impl Fn(&str, String) -> Result<()>) -> Result<()> {
        for plan in &self.plans {
            let (gpu, host) = (format_bytes(plan.gpu_bytes), format_bytes(plan.host_bytes));
            let text = match plan.host_bytes {
                0 => format!("{}: {gpu} of weights", plan.draft),
                _ => format!(
                    "{}, shadow_placement host: {gpu} there and {host} on the host; each shadow pass \
                     moves {} over the bus, {} at {} GB/s",
                    plan.draft,
                    format_bytes(plan.bus_bytes_per_shadow_pass),
                    duration(plan.bus_seconds_per_shadow_pass),
                    self.bus_bandwidth
                ),
            };
            entry("on a GPU", text)?;
        }
        let kv = format_bytes(self.kv_bytes_per_token);
        entry("on a GPU", format!("{kv} of KV cache for each token"))
    }
}

/// With a unit and at least two digits.
fn duration(seconds: f64) -> String {
    match seconds {
        0.9995.. => format!("{seconds:.2} s"),
        0.01.. => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{:.2} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_fitting_unit() {
        let cases =
            [(1.25, "1.25 s"), (0.9998, "1.00 s"), (0.598, "598 ms"), (0.008493, "8.49 ms")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
