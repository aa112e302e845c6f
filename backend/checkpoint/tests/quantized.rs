//! Checkpoints that came quantized: their weights are those of the specification, their codes those of the file,
//! and what is wrong with them is named.

mod support;

use half::f16;
use rewind_checkpoint::{
    Architecture, Checkpoint, CheckpointError, ModelSpec, TensorData, TensorName,
};
use rewind_formats::ggml::GgmlType;
use rewind_formats::{FORMAT_NAMES, Format};
use serde_json::json;
use support::folder::Folder;
use support::quantized::{self, Gptq, Made, spec};
use support::tiny::Element;
use tempfile::TempDir;

fn open(folder: &Folder) -> Result<Checkpoint, CheckpointError> {
    let place = TempDir::new().unwrap();
    folder.write(place.path());
    Checkpoint::open(place.path())
}

/// Checks every matrix: dequantized they are the weights, rounded once; as they are stored they have this format and
/// are off by at most `bound`, of the weight and the largest of all.
fn check(made: &Made, format: &dyn Fn(usize) -> &'static str, bound: &dyn Fn(f64, f64) -> f64) {
    let checkpoint = open(&made.folder).unwrap();
    assert!(!made.values.is_empty());
    for (&name, values) in &made.values {
        let shape = spec().shape(name).unwrap();
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(tensor.shape, shape, "{name}");
        let TensorData::F16(halves) = &tensor.data else { panic!("{name}: {:?}", tensor.data) };
        for (at, (found, &expected)) in halves.iter().zip(values).enumerate() {
            // Through f32, as the reader does; only NF4 rounds there.
            let expected = f16::from_f32(expected as f32).to_f32();
            let off = (found.to_f32() - expected).abs();
            assert!(off <= expected.abs() / 1024.0, "{name} {at}: {found} for {expected}");
        }
        let stored = checkpoint.stored_tensor(name).unwrap();
        assert_eq!(stored.shape, shape, "{name}");
        let found = match &stored.data {
            TensorData::Packed(packed) => packed.format(),
            TensorData::F16(_) => Format::F16,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(found.to_string(), format(shape[1]), "{name}");
        assert_eq!(checkpoint.stored_format(name).unwrap(), Some(found), "{name}");
        assert_eq!(checkpoint.float_format(name).unwrap(), Some(Format::F16), "{name}");
        let largest = values.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for (at, (&found, &value)) in stored.data.to_f32().iter().zip(values).enumerate() {
            let off = (f64::from(found) - value).abs();
            assert!(off <= bound(value, largest), "{name} {at}: {found} for {value}");
        }
    }
    // What is no matrix of a layer stands as usual.
    let plain = checkpoint.stored_tensor(TensorName::Embedding).unwrap();
    assert!(matches!(plain.data, TensorData::F16(_)));
}

fn exact(_: f64, _: f64) -> f64 {
    0.0
}

/// An offset in f16, which is at most sixteen steps, as the largest weight is at most about.
fn rounded(_: f64, largest: f64) -> f64 {
    2.0 * largest / 2048.0
}

const GPTQ: Gptq =
    Gptq { bits: 4, group: 64, symmetric: true, second_version: false, ordered: true };

#[test]
fn gptq_in_every_kind() {
    for (gptq, wide, narrow) in [
        (Gptq { group: 32, ..GPTQ }, "int4-g32", "int4-g128"),
        (GPTQ, "int4-g64", "int4-g128"),
        (Gptq { group: 128, second_version: true, ..GPTQ }, "int4-g128", "int4-g128"),
        (Gptq { group: -1, ..GPTQ }, "int4-g128", "int4-g128"),
        (Gptq { bits: 8, group: 32, ..GPTQ }, "int8-g32", "int8"),
        (Gptq { bits: 8, group: -1, ..GPTQ }, "int8", "int8"),
    ] {
        // A row of 32 is one group, whatever the size of others.
        let format = move |cols: usize| if cols > 32 { wide } else { narrow };
        check(&quantized::gptq(&spec(), gptq), &format, &exact);
    }
    for (group, wide) in [(32, "int4a-g32"), (128, "int4a-g128")] {
        for second_version in [false, true] {
            let gptq = Gptq { group, symmetric: false, second_version, ..GPTQ };
            let format = move |cols: usize| if cols > 32 { wide } else { "int4a-g128" };
            check(&quantized::gptq(&spec(), gptq), &format, &rounded);
        }
    }
}

#[test]
fn what_is_in_no_format_is_dequantized() {
    let half = |value: f64, _: f64| value.abs() / 2048.0;
    let wide = |format: &'static str| move |cols: usize| if cols > 32 { "f16" } else { format };
    let shuffled = Gptq { ordered: false, ..GPTQ };
    check(&quantized::gptq(&spec(), shuffled), &wide("int4-g128"), &half);
    let bytes = Gptq { bits: 8, symmetric: false, ..GPTQ };
    check(&quantized::gptq(&spec(), bytes), &|_| "f16", &half);
    // Groups of 16.
    let made = quantized::packed_integers(&spec(), 4, 16, None);
    check(&made, &|_| "f16", &half);
}

#[test]
fn awq_becomes_asymmetric_groups() {
    for (group, wide) in [(32, "int4a-g32"), (64, "int4a-g64"), (128, "int4a-g128")] {
        let format = move |cols: usize| if cols > 32 { wide } else { "int4a-g128" };
        check(&quantized::awq(&spec(), group), &format, &rounded);
    }
}

#[test]
fn integers_of_compressed_tensors() {
    for (bits, group, wide, narrow) in [
        (4, 32, "int4-g32", "int4-g128"),
        (4, 128, "int4-g128", "int4-g128"),
        (4, 0, "int4-g128", "int4-g128"),
        (8, 0, "int8", "int8"),
        (8, 64, "int8-g64", "int8"),
    ] {
        let format = move |cols: usize| if cols > 32 { wide } else { narrow };
        check(&quantized::packed_integers(&spec(), bits, group, None), &format, &exact);
    }
    for zeros in ["I32", "I8"] {
        let format = |cols: usize| if cols > 32 { "int4a-g64" } else { "int4a-g128" };
        check(&quantized::packed_integers(&spec(), 4, 64, Some(zeros)), &format, &rounded);
    }
}

#[test]
fn floats_of_compressed_tensors() {
    for one_scale in [false, true] {
        check(&quantized::packed_floats(&spec(), one_scale), &|_| "fp8", &exact);
    }
}

#[test]
fn nf4_of_bitsandbytes_keeps_its_codes() {
    for nested in [false, true] {
        let made = quantized::bitsandbytes(&spec(), nested);
        let bound = |value: f64, largest: f64| {
            // A scale is off by the largest of its row over 510. Rows of 32 share blocks, and become f16.
            largest / 500.0 + value.abs() / 2048.0
        };
        let format = |cols: usize| if cols.is_multiple_of(64) { "nf4" } else { "f16" };
        check(&made, &format, &bound);
        let checkpoint = open(&made.folder).unwrap();
        let name = TensorName::Layer(1, rewind_checkpoint::LayerTensor::Up);
        let TensorData::Packed(packed) = checkpoint.stored_tensor(name).unwrap().data else {
            panic!("not packed");
        };
        let mut folder = made.folder;
        let bytes = &folder.tensor("model.layers.1.mlp.up_proj.weight").data;
        let swapped: Vec<u8> = bytes.iter().map(|byte| byte.rotate_left(4)).collect();
        assert_eq!(packed.codes(), swapped);
    }
}

#[test]
fn folders_of_rewind_are_taken_byte_for_byte() {
    for name in FORMAT_NAMES.split(", ") {
        let format: Format = name.parse().unwrap();
        check(&quantized::rewind(&spec(), format), &|_| name, &exact);
    }
    // In shards, each with its own header.
    let mut made = quantized::rewind(&spec(), Format::Nf4);
    made.folder.shards = 3;
    check(&made, &|_| "nf4", &exact);
}

#[test]
fn biases_of_zeros_are_no_part_of_the_model() {
    let mut made = quantized::gptq(&spec(), GPTQ);
    let bias = |data: Vec<u8>| support::folder::Tensor {
        name: "model.layers.0.mlp.up_proj.bias".into(),
        dtype: "F16",
        shape: vec![128],
        data,
    };
    made.folder.tensors.push(bias(vec![0; 256]));
    open(&made.folder).unwrap();
    made.folder.tensors.pop();
    made.folder.tensors.push(bias(vec![1; 256]));
    let error = open(&made.folder).unwrap_err().to_string();
    assert!(error.contains("up_proj.bias"), "{error}");
}

#[test]
fn settings_are_part_of_the_identity() {
    let mut made = quantized::gptq(&spec(), GPTQ);
    let first = open(&made.folder).unwrap();
    made.folder.config["quantization_config"]["checkpoint_format"] = "gptq_v2".into();
    assert_ne!(first.fingerprint(), open(&made.folder).unwrap().fingerprint());
}

/// A way to break a folder, and what the message must name.
type Case = (fn(&mut Folder), &'static str);

fn refuses(made: impl Fn() -> Made, cases: &[Case]) {
    for (spoil, said) in cases {
        let mut folder = made().folder;
        spoil(&mut folder);
        let opened = open(&folder);
        let name = TensorName::Layer(0, rewind_checkpoint::LayerTensor::Up);
        let error = opened.and_then(|checkpoint| checkpoint.stored_tensor(name).map(|_| ()));
        let error = error.expect_err(said).to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

const UP: &str = "model.layers.0.mlp.up_proj.";

fn part<'a>(folder: &'a mut Folder, part: &str) -> &'a mut support::folder::Tensor {
    folder.tensor(&format!("{UP}{part}"))
}

fn drop_part(folder: &mut Folder, part: &str) {
    let name = format!("{UP}{part}");
    folder.tensors.retain(|tensor| tensor.name != name);
}

/// Another shape, with as many bytes as it takes.
fn reshape(folder: &mut Folder, name: &str, shape: &[usize], width: usize) {
    let tensor = part(folder, name);
    tensor.shape = shape.to_vec();
    tensor.data = vec![0; shape.iter().product::<usize>() * width];
}

#[test]
fn broken_gptq_is_named() {
    refuses(
        || quantized::gptq(&spec(), GPTQ),
        &[
            (|f| drop_part(f, "qweight"), "up_proj.weight\" (layer 0 up projection) is missing"),
            (|f| drop_part(f, "qzeros"), "up_proj.qzeros\": is missing"),
            (|f| drop_part(f, "scales"), "up_proj.scales\": is missing"),
            (|f| reshape(f, "qweight", &[24, 127], 4), "up_proj.qweight\": has sizes [24, 127]"),
            (|f| reshape(f, "scales", &[2, 128], 2), "it must have [3, 128]"),
            (
                |f| part(f, "qzeros").dtype = "F32",
                "type of tensor \"model.layers.0.mlp.up_proj.qzeros",
            ),
            (
                |f| part(f, "g_idx").data[4..8].copy_from_slice(&[9, 0, 0, 0]),
                "has group 9 for input 1",
            ),
            (|f| part(f, "g_idx").data[..4].fill(255), "has group 4294967295 for input 0"),
            (|f| f.config["quantization_config"]["group_size"] = json!(128), "has sizes [3, "),
            (|f| f.config["quantization_config"]["bits"] = json!(8), "qweight\": has sizes"),
            (
                |f| f.config["quantization_config"]["quant_method"] = json!("awq"),
                "qweight\": has sizes",
            ),
            (|f| f.config["quantization_config"] = json!(null), "q_proj.weight\" (layer 0 query"),
            (|f| f.config["quantization_config"] = json!([]), "quant_method"),
        ],
    );
}

#[test]
fn broken_awq_and_compressed_tensors_are_named() {
    refuses(
        || quantized::awq(&spec(), 64),
        &[
            (|f| drop_part(f, "qzeros"), "up_proj.qzeros\": is missing"),
            (|f| reshape(f, "qweight", &[192, 15], 4), "it must have [192, 16]"),
            (|f| f.config["quantization_config"]["group_size"] = json!(32), "it must have [6, "),
        ],
    );
    refuses(
        || quantized::packed_integers(&spec(), 4, 64, Some("I32")),
        &[
            (|f| drop_part(f, "weight_scale"), "up_proj.weight_scale\": is missing"),
            (|f| reshape(f, "weight_scale", &[128, 2], 2), "and its scales have sizes"),
            (|f| part(f, "weight_shape").data[0] = 7, "weight_shape\": says [7, 192]"),
            (|f| reshape(f, "weight_zero_point", &[128, 3], 4), "it must have [16, 3]"),
            (
                |f| {
                    let groups = &mut f.config["quantization_config"]["config_groups"];
                    groups["group_0"]["weights"]["num_bits"] = json!(2);
                },
                "config_groups.group_0.weights.num_bits is 2",
            ),
            (
                |f| f.config["quantization_config"]["transform_config"] = json!({"R1": {}}),
                "transform_config",
            ),
        ],
    );
    refuses(
        || quantized::packed_floats(&spec(), false),
        &[
            (|f| part(f, "weight").data[200] = 0x7f, "row 1, byte 8 of the codes is 0x7f"),
            (|f| part(f, "weight_scale").data[..4].fill(255), "row 0 has the scale NaN"),
            (|f| reshape(f, "weight_scale", &[1, 2], 4), "it must have [128, 1] or [128]"),
        ],
    );
}

#[test]
fn broken_bitsandbytes_is_named() {
    refuses(
        || quantized::bitsandbytes(&spec(), true),
        &[
            (|f| drop_part(f, "weight.absmax"), "weight.absmax\": is missing"),
            (|f| drop_part(f, "weight.nested_absmax"), "weight.nested_absmax\": is missing"),
            (|f| drop_part(f, "weight.quant_map"), "weight.quant_map\": is missing"),
            (|f| drop_part(f, "weight.quant_state.bitsandbytes__nf4"), "quant_state"),
            (|f| part(f, "weight.quant_state.bitsandbytes__nf4").data[0] = b'x', "quant_state"),
            (
                |f| {
                    let state = br#"{"blocksize": 64, "shape": [1, 2]}"#.to_vec();
                    let tensor = part(f, "weight.quant_state.bitsandbytes__nf4");
                    (tensor.shape, tensor.data) = (vec![state.len()], state);
                },
                "has \"shape\" [1,2]; it must be [128,192]",
            ),
            (
                |f| {
                    let state = br#"{"blocksize": 0, "shape": [128, 192]}"#.to_vec();
                    let tensor = part(f, "weight.quant_state.bitsandbytes__nf4");
                    (tensor.shape, tensor.data) = (vec![state.len()], state);
                },
                "\"blocksize\"",
            ),
            (|f| reshape(f, "weight", &[100, 1], 1), "it must have [12288, 1]"),
            (|f| part(f, "weight.nested_absmax").data.fill(255), "as the scale of block 0"),
        ],
    );
}

#[test]
fn broken_folders_of_rewind_are_named() {
    let affine: Format = "int4a-g64".parse().unwrap();
    const NAME: &str = "model.layers.0.mlp.up_proj.weight";
    fn metadata(folder: &mut Folder, key: &str, value: &str) {
        folder.metadata.insert(key.to_owned(), value.into());
    }
    refuses(
        || quantized::rewind(&spec(), affine),
        &[
            (
                |f| drop_part(f, "weight.codes"),
                "up_proj.weight\" (layer 0 up projection) is missing",
            ),
            (|f| drop_part(f, "weight.offsets"), "weight.offsets\": is missing"),
            (|f| metadata(f, NAME, "int4-g32"), "weight.scales\": has sizes [128, 3]"),
            (|f| metadata(f, NAME, "int5"), "unknown weight format \"int5\""),
            (|f| metadata(f, "version", "2"), "metadata \"version\": is \"2\"; it must be \"1\""),
            (|f| metadata(f, &format!("{NAME}.cols"), "191"), "it must be \"192\""),
            (|f| f.metadata.clear(), "metadata \"format\": is missing"),
            (|f| part(f, "weight.offsets").data[1] = 0x7c, "row 0 has the offset NaN"),
            (|f| reshape(f, "weight.codes", &[128, 95], 1), "it must have [128, 96]"),
        ],
    );
    refuses(
        || quantized::rewind(&spec(), Format::Int8),
        &[
            (|f| part(f, "weight.codes").data[0] = 0x80, "row 0, byte 0 of the codes is 0x80"),
            (|f| part(f, "weight.scales").dtype = "I32", "type of tensor"),
            (|f| part(f, "weight.scales").data[..4].fill(0x7f), "row 0 has the scale 3"),
        ],
    );
}

#[test]
fn blocks_of_gguf_files_keep_their_codes() {
    let spec = ModelSpec {
        hidden_size: 256,
        intermediate_size: 512,
        ..support::tiny::spec(Architecture::Llama)
    };
    for (ty, format) in [
        (GgmlType::Q4_0, "int4-g32"),
        (GgmlType::Q8_0, "int8-g32"),
        (GgmlType::Q4_1, "int4a-g32"),
        (GgmlType::Q4K, "int4a-g32"),
        (GgmlType::Q6K, "f16"),
    ] {
        let mut file = support::tiny::gguf(&spec, Element::F32);
        for (number, tensor) in file.tensors.iter_mut().enumerate() {
            let &[cols, rows] = &tensor.dimensions[..] else { continue };
            if !cols.is_multiple_of(ty.block_len() as u64) {
                continue;
            }
            let bytes = ty.bytes((cols * rows) as usize).unwrap();
            // No infinity or NaN among the scales, and no code of -128.
            let byte = |i: usize| ((i * 37 + number) % 251) as u8 & 0x9f | 1;
            (tensor.ty, tensor.data) = (ty.id(), (0..bytes).map(byte).collect());
        }
        let place = TempDir::new().unwrap();
        let path = place.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let checkpoint = Checkpoint::open(path).unwrap();
        let mut kept = 0;
        // Query and key among them, whose rows lie in another order.
        for name in spec.tensors() {
            let (floats, stored) =
                (checkpoint.tensor(name).unwrap(), checkpoint.stored_tensor(name).unwrap());
            let found = match &stored.data {
                TensorData::Packed(packed) => Some(packed.format()),
                TensorData::F16(_) => Some(Format::F16),
                _ => None,
            };
            if floats.shape.len() == 2 {
                assert_eq!(checkpoint.stored_format(name).unwrap(), found, "{name}");
            }
            let Some(found) = found else {
                assert_eq!(floats, stored, "{name}");
                continue;
            };
            assert_eq!(found.to_string(), format, "{name}");
            kept += 1;
            let largest = floats.data.to_f32().iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (a, b) in floats.data.to_f32().iter().zip(stored.data.to_f32()) {
                assert!((a - b).abs() <= largest / 256.0, "{ty} {name}: {b} for {a}");
                if matches!(ty, GgmlType::Q4_0 | GgmlType::Q8_0) {
                    assert_eq!(f16::from_f32(b).to_f32(), *a, "{ty} {name}");
                }
            }
        }
        assert!(kept > 8, "{ty}: {kept}");
    }
}
