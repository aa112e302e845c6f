//! The model configuration: what config.pbtxt says, what is filled in, and what cannot be served.
//!
//! Works on the configuration's JSON, so that what this backend does not know passes through.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::ffi::{Error, InstanceKind};

/// Prefix of the `parameters` that are Triton's own.
const TRITON_PARAMETER: &str = "TRITON_";

/// Idle time after which Triton drops a sequence, below which the owner is warned: Triton's default of
/// one second is shorter than a long prompt takes.
const LOW_IDLE_MICROSECONDS: u64 = 10_000_000;

/// Idle time above which the owner is warned too: `oldest` loses the place of a request that is
/// cancelled at the wrong instant, and frees it only when this is over.
const HIGH_IDLE_MICROSECONDS: u64 = 600_000_000;

/// A tensor of the interface. Dimensions do not count the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tensor {
    name: &'static str,
    datatype: &'static str,
    dims: &'static [i64],
}

const fn tensor(name: &'static str, datatype: &'static str, dims: &'static [i64]) -> Tensor {
    Tensor { name, datatype, dims }
}

/// Every input; each is optional.
const INPUTS: [Tensor; 12] = [
    tensor("text_input", "TYPE_STRING", &[1]),
    tensor("input_ids", "TYPE_INT32", &[-1]),
    tensor("stream", "TYPE_BOOL", &[1]),
    tensor("sampling_parameters", "TYPE_STRING", &[1]),
    tensor("exclude_input_in_output", "TYPE_BOOL", &[1]),
    tensor("max_tokens", "TYPE_INT32", &[1]),
    tensor("stop_words", "TYPE_STRING", &[-1]),
    tensor("return_finish_reason", "TYPE_BOOL", &[1]),
    tensor("return_logprobs", "TYPE_BOOL", &[1]),
    tensor("return_num_input_tokens", "TYPE_BOOL", &[1]),
    tensor("return_num_output_tokens", "TYPE_BOOL", &[1]),
    tensor("return_rewind", "TYPE_BOOL", &[1]),
];

/// Every output.
const OUTPUTS: [Tensor; 11] = [
    tensor("text_output", "TYPE_STRING", &[-1]),
    tensor("finish_reason", "TYPE_STRING", &[-1]),
    tensor("logprobs", "TYPE_STRING", &[-1]),
    tensor("num_input_tokens", "TYPE_UINT32", &[1]),
    tensor("num_output_tokens", "TYPE_UINT32", &[-1]),
    tensor("token_ids", "TYPE_INT32", &[-1]),
    tensor("entropy", "TYPE_FP32", &[-1]),
    tensor("score", "TYPE_FP32", &[-1]),
    tensor("threshold", "TYPE_FP32", &[-1]),
    tensor("decision", "TYPE_STRING", &[-1]),
    tensor("rewinds", "TYPE_UINT32", &[1]),
];

/// Whose loop calls the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scheduling {
    /// The engine's own.
    Inflight,
    /// Triton's sequence batcher: one execution is one iteration.
    Iterative {
        /// The INT32 tensor by which Triton's `direct` scheduler marks the places of a batch that nobody
        /// has: 0 there, 1 elsewhere.
        ready: Option<String>,
    },
}

/// What the configuration means to this backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Which driver serves.
    pub(crate) scheduling: Scheduling,
    /// Whether tensors have a batch dimension (of one, as the sequence batcher allows no more).
    pub(crate) batched: bool,
    /// What each group of instances is put on: a `KIND_GPU` once for each of its GPUs.
    pub(crate) instances: Vec<InstanceKind>,
    /// `parameters`, without Triton's own.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Config {
    /// Reads a configuration; with `complete`, fills in what is missing. Says whether it changed it.
    ///
    /// # Errors
    /// Invalid: something in it that this backend cannot serve, or something missing that may not be
    /// filled in.
    pub(crate) fn read(config: &mut Value, complete: bool) -> Result<(Self, bool), Error> {
        let before = config.clone();
        let scheduling = scheduling(config)?;
        let max_batch_size = integer(&config["max_batch_size"]).unwrap_or(0);
        match scheduling {
            Scheduling::Inflight if max_batch_size != 0 => {
                return Err(Error::invalid(format!(
                    "max_batch_size is {max_batch_size}: set it to 0, since the engine batches requests \
                     itself (or add sequence_batching {{ iterative_sequence: true }} to have Triton batch)"
                )));
            }
            Scheduling::Iterative { .. } if max_batch_size < 1 => {
                return Err(Error::invalid(
                    "max_batch_size is 0: with sequence_batching, set it to the number of sequences that \
                     one iteration may hold",
                ));
            }
            Scheduling::Inflight | Scheduling::Iterative { .. } => {}
        }
        let batched = max_batch_size > 0;
        tensors(config, "input", &INPUTS, complete, batched)?;
        tensors(config, "output", &OUTPUTS, complete, batched)?;
        decoupled(config, complete)?;
        let instances = instances(config)?;
        let read = Self { scheduling, batched, instances, parameters: parameters(config)? };
        Ok((read, *config != before))
    }
}

fn scheduling(config: &Value) -> Result<Scheduling, Error> {
    let Some(batching) = config.get("sequence_batching").filter(|value| !value.is_null()) else {
        return Ok(Scheduling::Inflight);
    };
    if batching["iterative_sequence"] != Value::Bool(true) {
        return Err(Error::invalid(
            "sequence_batching without iterative_sequence: true asks for sequences of many requests, and \
             here each request is a sequence of its own: add it, or remove sequence_batching",
        ));
    }
    let idle = integer(&batching["max_sequence_idle_microseconds"]).unwrap_or(0);
    let idle = u64::try_from(idle).unwrap_or(u64::MAX);
    if idle < LOW_IDLE_MICROSECONDS {
        tracing::warn!(
            "max_sequence_idle_microseconds is {idle}: Triton drops a sequence that waits longer for its \
             next iteration; {LOW_IDLE_MICROSECONDS} or more is safe"
        );
    }
    if idle > HIGH_IDLE_MICROSECONDS {
        tracing::warn!(
            "max_sequence_idle_microseconds is {idle}: Triton may keep the place of a cancelled request \
             taken for so long; {HIGH_IDLE_MICROSECONDS} or less is safe"
        );
    }
    let ready = ready(batching)?;
    if ready.is_none() && batching.get("oldest").is_none_or(Value::is_null) {
        return Err(Error::invalid(
            "sequence_batching without a READY control: the direct scheduler fills empty places of a batch \
             with requests of its own, which only that control tells apart; add control_input [ { name: \
             \"READY\" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] } ]",
        ));
    }
    Ok(Scheduling::Iterative { ready })
}

/// Name of the tensor that has the control CONTROL_SEQUENCE_READY.
fn ready(batching: &Value) -> Result<Option<String>, Error> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for input in list(&batching["control_input"]) {
        for control in list(&input["control"]) {
            // The first kind is protobuf's default, which its JSON may leave out as well.
            let kind = control["kind"].as_str().unwrap_or("CONTROL_SEQUENCE_START");
            if kind != "CONTROL_SEQUENCE_READY" {
                continue;
            }
            let values: Vec<_> = list(&control["int32_false_true"]).iter().map(integer).collect();
            let name = input["name"].as_str().unwrap_or_default();
            if values != [Some(0), Some(1)] || name.is_empty() {
                return Err(Error::invalid(format!(
                    "control_input {name:?} has the control CONTROL_SEQUENCE_READY: expected a name and \
                     int32_false_true: [ 0, 1 ]"
                )));
            }
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Checks the tensors of one side that are declared, and adds those that are not.
fn tensors(
    config: &mut Value,
    side: &str,
    known: &[Tensor],
    complete: bool,
    batched: bool,
) -> Result<(), Error> {
    let mut declared = match &config[side] {
        Value::Array(declared) => declared.clone(),
        _ => Vec::new(),
    };
    for entry in &declared {
        let name = entry["name"].as_str().unwrap_or_default();
        let Some(tensor) = known.iter().find(|tensor| tensor.name == name) else {
            let names: Vec<_> = known.iter().map(|tensor| tensor.name).collect();
            return Err(Error::invalid(format!(
                "unknown {side} '{name}': Rewind has {} (leave {side} out to have it filled in)",
                names.join(", ")
            )));
        };
        let datatype = entry["data_type"].as_str().unwrap_or_default();
        let dims: Vec<i64> =
            entry["dims"].as_array().into_iter().flatten().filter_map(integer).collect();
        if datatype != tensor.datatype || dims != tensor.dims {
            return Err(Error::invalid(format!(
                "{side} '{name}' is {datatype} {dims:?}: Rewind's is {} {:?}{} (leave {side} out to have \
                 it filled in)",
                tensor.datatype,
                tensor.dims,
                if batched { ", not counting the batch" } else { "" }
            )));
        }
    }
    let has = |declared: &[Value], name: &str| declared.iter().any(|entry| entry["name"] == name);
    if complete {
        for tensor in known {
            if has(&declared, tensor.name) {
                continue;
            }
            let mut entry = json!({
                "name": tensor.name, "data_type": tensor.datatype, "dims": tensor.dims,
            });
            if side == "input" {
                entry["optional"] = true.into();
                // Else only requests with equally long lists would share an iteration.
                if batched && tensor.dims == [-1] {
                    entry["allow_ragged_batch"] = true.into();
                }
            }
            declared.push(entry);
        }
    } else {
        let needed: &[&str] =
            if side == "input" { &["text_input", "input_ids"] } else { &["text_output"] };
        if !needed.iter().any(|name| has(&declared, name)) {
            return Err(Error::invalid(format!(
                "no {side} {} is declared, and the server may not fill it in: declare it, or start \
                 tritonserver without --disable-auto-complete-config",
                needed.join(" or ")
            )));
        }
    }
    config[side] = declared.into();
    Ok(())
}

/// Every answer may have many parts, so the model must be decoupled.
fn decoupled(config: &mut Value, complete: bool) -> Result<(), Error> {
    let policy = config.get("model_transaction_policy").filter(|value| !value.is_null());
    match policy.map(|policy| policy["decoupled"] == Value::Bool(true)) {
        Some(true) => Ok(()),
        None if complete => {
            config["model_transaction_policy"] = json!({ "decoupled": true });
            Ok(())
        }
        Some(false) | None => Err(Error::invalid(
            "model_transaction_policy: decoupled must be true, since an answer may be streamed in many \
             responses",
        )),
    }
}

/// What the instances are put on. Triton has replaced `KIND_AUTO`, and filled in the GPUs of a
/// `KIND_GPU` without any, before it shows the configuration to a backend.
fn instances(config: &Value) -> Result<Vec<InstanceKind>, Error> {
    let mut kinds = Vec::new();
    for group in config["instance_group"].as_array().into_iter().flatten() {
        match group["kind"].as_str().unwrap_or("KIND_AUTO") {
            "KIND_CPU" => kinds.push(InstanceKind::Cpu),
            "KIND_GPU" => {
                let gpus = group["gpus"].as_array().into_iter().flatten();
                for gpu in gpus {
                    let id =
                        integer(gpu).and_then(|id| i32::try_from(id).ok()).ok_or_else(|| {
                            Error::invalid(format!(
                                "instance_group: gpus has {gpu}, which is no GPU"
                            ))
                        })?;
                    kinds.push(InstanceKind::Gpu(id));
                }
            }
            _ => kinds.push(InstanceKind::Model),
        }
    }
    Ok(kinds)
}

fn parameters(config: &Value) -> Result<BTreeMap<String, String>, Error> {
    let Some(parameters) = config["parameters"].as_object() else { return Ok(BTreeMap::new()) };
    parameters
        .iter()
        .filter(|(key, _)| !key.starts_with(TRITON_PARAMETER))
        .map(|(key, value)| match value["string_value"].as_str() {
            Some(text) => Ok((key.clone(), text.to_owned())),
            None => Err(Error::invalid(format!("parameter '{key}' has no string_value"))),
        })
        .collect()
}

/// A 64-bit integer, which protobuf's JSON may write as a string.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Value {
        json!({
            "name": "m", "backend": "rewind", "max_batch_size": 0, "input": [], "output": [],
            "parameters": { "model": { "string_value": "model.gguf" },
                            "TRITON_ENABLE_X": { "string_value": "1" } },
        })
    }

    fn iterative() -> Value {
        let mut config = bare();
        config["max_batch_size"] = 8.into();
        config["sequence_batching"] = json!({ "iterative_sequence": true, "max_sequence_idle_microseconds": "60000000",
                    "direct": {}, "control_input": [{ "name": "READY", "control": [
                        { "kind": "CONTROL_SEQUENCE_READY", "int32_false_true": [0, 1] }] }] });
        config
    }

    #[test]
    fn empty_places_can_be_told_apart() {
        let scheduling = |config: &Value| {
            let read = Config::read(&mut config.clone(), true);
            read.map(|(read, _)| read.scheduling).map_err(|error| error.to_string())
        };
        let mut config = iterative();
        assert_eq!(scheduling(&config), Ok(Scheduling::Iterative { ready: Some("READY".into()) }));
        config["sequence_batching"]["control_input"][0]["control"][0]["int32_false_true"] =
            json!([1, 0]);
        let swapped = scheduling(&config).unwrap_err();
        assert!(swapped.contains("READY") && swapped.contains("[ 0, 1 ]"), "{swapped}");
        config["sequence_batching"]["control_input"] = json!([]);
        let missing = scheduling(&config).unwrap_err();
        assert!(missing.contains("CONTROL_SEQUENCE_READY"), "{missing}");
        config["sequence_batching"]["oldest"] = json!({});
        assert_eq!(scheduling(&config), Ok(Scheduling::Iterative { ready: None }));
    }

    #[test]
    fn fills_in_everything_for_the_inflight_driver() {
        let mut config = bare();
        let (read, changed) = Config::read(&mut config, true).unwrap();
        assert!(changed);
        assert_eq!(read.scheduling, Scheduling::Inflight);
        assert!(!read.batched);
        assert_eq!(read.parameters, BTreeMap::from([("model".into(), "model.gguf".into())]));
        assert_eq!(config["input"].as_array().unwrap().len(), INPUTS.len());
        assert_eq!(config["output"].as_array().unwrap().len(), OUTPUTS.len());
        assert_eq!(config["model_transaction_policy"]["decoupled"], true);
        assert!(config["input"].as_array().unwrap().iter().all(|input| input["optional"] == true));
        // What was filled in is accepted as if an owner had written it, completed or not.
        assert!(!Config::read(&mut config, true).unwrap().1);
        assert!(!Config::read(&mut config, false).unwrap().1);
    }

    #[test]
    fn iterative_lists_may_be_ragged() {
        let mut config = iterative();
        let (read, _) = Config::read(&mut config, true).unwrap();
        assert!(matches!(read.scheduling, Scheduling::Iterative { .. }));
        assert!(read.batched);
        let inputs = config["input"].as_array().unwrap();
        let ids = inputs.iter().find(|input| input["name"] == "input_ids").unwrap();
        assert_eq!(ids["allow_ragged_batch"], true);
    }

    #[test]
    fn instances_are_read_from_their_groups() {
        let mut config = bare();
        let mut instances = |groups: Value| {
            config["instance_group"] = groups;
            let read = Config::read(&mut config, true);
            read.map(|(read, _)| read.instances).map_err(|error| error.to_string())
        };
        assert_eq!(instances(Value::Null), Ok(vec![]));
        let groups = json!([{ "kind": "KIND_CPU", "count": 2, "gpus": [] },
                            { "kind": "KIND_GPU", "count": 1, "gpus": [0, "3"] },
                            { "kind": "KIND_MODEL", "count": 1 }, { "count": 1 }]);
        use InstanceKind::{Cpu, Gpu, Model};
        assert_eq!(instances(groups), Ok(vec![Cpu, Gpu(0), Gpu(3), Model, Model]));
        let odd = instances(json!([{ "kind": "KIND_GPU", "gpus": ["first"] }])).unwrap_err();
        assert!(odd.contains("gpus has \"first\""), "{odd}");
    }

    #[test]
    fn keeps_what_the_owner_declared() {
        let mut config = bare();
        config["input"] = json!([{ "name": "max_tokens", "data_type": "TYPE_INT32", "dims": ["1"],
                                   "optional": true, "remark": "kept" }]);
        Config::read(&mut config, true).unwrap();
        let inputs = config["input"].as_array().unwrap();
        assert_eq!(inputs.len(), INPUTS.len());
        assert_eq!(inputs[0]["remark"], "kept");
    }

    fn refused(change: impl FnOnce(&mut Value), complete: bool) -> String {
        let mut config = bare();
        change(&mut config);
        Config::read(&mut config, complete).unwrap_err().to_string()
    }

    #[test]
    fn contradictions_are_named() {
        let wrong_type = refused(
            |c| {
                c["input"] =
                    json!([{ "name": "max_tokens", "data_type": "TYPE_FP32", "dims": [1] }]);
            },
            true,
        );
        assert!(
            wrong_type.contains("max_tokens") && wrong_type.contains("TYPE_INT32"),
            "{wrong_type}"
        );
        let wrong_dims = refused(
            |c| {
                c["output"] = json!([{ "name": "entropy", "data_type": "TYPE_FP32", "dims": [1] }]);
            },
            true,
        );
        assert!(wrong_dims.contains("entropy") && wrong_dims.contains("[-1]"), "{wrong_dims}");
        let unknown = refused(
            |c| c["input"] = json!([{ "name": "image", "data_type": "TYPE_STRING", "dims": [1] }]),
            true,
        );
        assert!(unknown.contains("unknown input 'image'"), "{unknown}");
        assert!(refused(|c| c["max_batch_size"] = 4.into(), true).contains("set it to 0"));
        let plain = refused(|c| c["sequence_batching"] = json!({ "oldest": {} }), true);
        assert!(plain.contains("iterative_sequence"), "{plain}");
        let unbatched =
            refused(|c| c["sequence_batching"] = iterative()["sequence_batching"].clone(), true);
        assert!(unbatched.contains("max_batch_size is 0"), "{unbatched}");
        let coupled =
            refused(|c| c["model_transaction_policy"] = json!({ "decoupled": false }), true);
        assert!(coupled.contains("decoupled must be true"), "{coupled}");
        assert!(refused(|_| {}, false).contains("--disable-auto-complete-config"));
        let nothing = refused(|c| c["parameters"]["model"] = json!({}), true);
        assert!(nothing.contains("'model' has no string_value"), "{nothing}");
    }
}
