//! On which device a model goes: the parameter `device` and the instance groups together.
//!
//! Triton gives each instance a kind, and `KIND_GPU` a GPU; the parameter says what the backend itself
//! understands. `KIND_GPU` means that GPU. `KIND_CPU` means the CPU, unless the parameter names a GPU: a
//! server that was built without GPU support refuses `KIND_GPU` and makes `KIND_CPU` of `KIND_AUTO`, and
//! must be able to serve on a GPU nevertheless. `KIND_MODEL` leaves it to the parameter.
//!
//! A model has one engine, so all of its instances must come to one device.

use rewind_serving::{Device, Processor};

use crate::ffi::{Error, InstanceKind};

/// The device of a model with these instances. Without instances it is that of the parameter.
///
/// # Errors
/// Invalid: an instance contradicts the parameter, or two instances are on different devices.
pub(crate) fn device(parameter: Device, instances: &[InstanceKind]) -> Result<Device, Error> {
    let mut devices = Vec::new();
    for &kind in instances {
        let device = device_of(parameter, kind)?;
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    match devices[..] {
        [] => Ok(parameter),
        [device] => Ok(device),
        [..] => {
            let names: Vec<_> = devices.iter().map(Device::to_string).collect();
            Err(Error::invalid(format!(
                "the instances of this model are on {}: one model on several devices is not supported \
                 yet. Keep one device in instance_group (KIND_GPU without gpus means all of them), and \
                 copy the model under another name for each further one",
                names.join(" and ")
            )))
        }
    }
}

/// The device of one instance.
fn device_of(parameter: Device, kind: InstanceKind) -> Result<Device, Error> {
    match (parameter, kind) {
        (Device::Auto, InstanceKind::Cpu) => Ok(Device::Cpu),
        (_, InstanceKind::Cpu | InstanceKind::Model) => Ok(parameter),
        (_, InstanceKind::Gpu(gpu)) => {
            let gpu = u32::try_from(gpu).map(Device::Cuda).map_err(|_| {
                Error::invalid(format!("an instance is {kind}: there is no such GPU"))
            })?;
            if parameter == Device::Auto || parameter == gpu {
                Ok(gpu)
            } else {
                Err(Error::invalid(format!(
                    "an instance is {kind}, which is device \"{gpu}\", and the parameter \"device\" is \
                     \"{parameter}\": remove one of the two, or make them agree"
                )))
            }
        }
    }
}

/// Checks that an instance may share the engine of a model that was loaded on `loaded`. Triton can add
/// instances to a loaded model.
///
/// # Errors
/// Invalid: it belongs on another device.
pub(crate) fn check(parameter: Device, kind: InstanceKind, loaded: Processor) -> Result<(), Error> {
    let fits = match device_of(parameter, kind)? {
        Device::Auto => true,
        Device::Cpu => loaded == Processor::Cpu,
        Device::Cuda(gpu) => loaded == Processor::Cuda(gpu),
    };
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "an instance is {kind}, and the model is loaded on {loaded}: unload and load the model to move it"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: InstanceKind = InstanceKind::Cpu;
    const MODEL: InstanceKind = InstanceKind::Model;

    fn gpu(id: i32) -> InstanceKind {
        InstanceKind::Gpu(id)
    }

    #[test]
    fn auto_follows_the_instances() {
        for (kinds, expected) in [
            (&[][..], Device::Auto),
            (&[MODEL], Device::Auto),
            (&[CPU, CPU], Device::Cpu),
            (&[gpu(2), gpu(2)], Device::Cuda(2)),
        ] {
            assert_eq!(device(Device::Auto, kinds), Ok(expected));
        }
    }

    #[test]
    fn a_named_device_stands_where_the_instances_name_none_or_the_same() {
        for (parameter, kind) in [
            (Device::Cpu, CPU),
            (Device::Cpu, MODEL),
            (Device::Cuda(1), MODEL),
            (Device::Cuda(1), CPU),
            (Device::Cuda(1), gpu(1)),
        ] {
            assert_eq!(device(parameter, &[kind]), Ok(parameter), "{kind}");
        }
    }

    #[test]
    fn contradictions_name_both_sides() {
        for parameter in [Device::Cpu, Device::Cuda(0)] {
            let error = device(parameter, &[gpu(1)]).unwrap_err().to_string();
            for part in ["KIND_GPU", "cuda:1", &format!("\"{parameter}\"")] {
                assert!(error.contains(part), "{error} lacks {part}");
            }
        }
        assert!(device(Device::Auto, &[gpu(-1)]).is_err());
    }

    #[test]
    fn several_devices_are_for_a_later_version() {
        for (kinds, names) in [
            (&[gpu(0), gpu(1)][..], "cuda:0 and cuda:1"),
            (&[CPU, gpu(0)], "cpu and cuda:0"),
            (&[MODEL, gpu(0)], "auto and cuda:0"),
        ] {
            let error = device(Device::Auto, kinds).unwrap_err().to_string();
            assert!(error.contains(names) && error.contains("not supported yet"), "{error}");
        }
    }

    #[test]
    fn instances_that_come_later_must_fit() {
        let (cpu, first) = (Processor::Cpu, Processor::Cuda(0));
        for (parameter, kind, loaded) in [
            (Device::Auto, MODEL, first),
            (Device::Auto, MODEL, cpu),
            (Device::Auto, CPU, cpu),
            (Device::Auto, gpu(0), first),
            (Device::Cuda(0), CPU, first),
        ] {
            assert_eq!(check(parameter, kind, loaded), Ok(()), "{parameter} {kind} {loaded}");
        }
        for (parameter, kind, loaded) in [
            (Device::Auto, CPU, first),
            (Device::Auto, gpu(1), first),
            (Device::Auto, gpu(0), cpu),
            (Device::Cpu, gpu(0), cpu),
        ] {
            let error = check(parameter, kind, loaded).unwrap_err().to_string();
            assert!(error.contains(&kind.to_string()), "{error}");
        }
    }
}
