//! Writes quantized folders, each layout by its specification, and keeps what their weights are.

use std::collections::BTreeMap;

use half::f16;
use rewind_checkpoint::{ModelSpec, TensorName};
use rewind_formats::{Format, Packed, Scales, nf4};
use serde_json::{Value, json};

use super::folder::{Folder, Tensor, hf_name};
use super::tiny::{self, Element};

/// A folder, and the exact weights of its quantized matrices.
pub(crate) struct Made {
    pub(crate) folder: Folder,
    pub(crate) values: BTreeMap<TensorName, Vec<f64>>,
}

/// Sizes that the layouts can pack, with rows of one group and of several.
pub(crate) fn spec() -> ModelSpec {
    ModelSpec {
        hidden_size: 192,
        intermediate_size: 128,
        ..tiny::spec(rewind_checkpoint::Architecture::Qwen2)
    }
}

struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % below
    }

    /// A scale that f16 holds.
    fn scale(&mut self) -> f16 {
        f16::from_f32((1 + self.next(1000)) as f32 / 65_536.0)
    }
}

/// Puts other tensors in the place of each matrix of the layers. `write` gives them, by what follows the name
/// without `weight`, and the weights.
fn replace(
    spec: &ModelSpec,
    config: Value,
    mut write: impl FnMut(&str, [usize; 2], &mut Noise) -> (Vec<Tensor>, Vec<f64>),
) -> Made {
    let mut folder = Folder::new(spec, Element::F16);
    folder.config["quantization_config"] = config;
    let mut values = BTreeMap::new();
    let mut noise = Noise(5);
    for name in spec.tensors() {
        let (TensorName::Layer(..), Some(&[rows, cols])) = (name, spec.shape(name).as_deref())
        else {
            continue;
        };
        let in_file = hf_name(name);
        folder.tensors.retain(|tensor| tensor.name != in_file);
        let (tensors, weights) = write(&in_file, [rows, cols], &mut noise);
        folder.tensors.extend(tensors);
        values.insert(name, weights);
    }
    Made { folder, values }
}

fn tensor(name: String, dtype: &'static str, shape: &[usize], data: Vec<u8>) -> Tensor {
    Tensor { name, dtype, shape: shape.to_vec(), data }
}

fn sibling(name: &str, part: &str) -> String {
    name.replace("weight", part)
}

fn words(codes: &[Vec<usize>], bits: usize) -> Vec<u8> {
    let word = |codes: &Vec<usize>| {
        codes.iter().enumerate().fold(0_u32, |word, (i, &code)| word | (code as u32) << (i * bits))
    };
    codes.iter().flat_map(|codes| word(codes).to_le_bytes()).collect()
}

/// Random codes, scales and zeros: `[row][col]`, `[row][group]`, `[row][group]`, and the weights.
type Random = (Vec<Vec<usize>>, Vec<Vec<f16>>, Vec<Vec<usize>>, Vec<f64>);

fn random(
    noise: &mut Noise,
    [rows, cols]: [usize; 2],
    bits: usize,
    symmetric: bool,
    group_of: &dyn Fn(usize) -> usize,
) -> Random {
    let groups = (0..cols).map(group_of).max().unwrap() + 1;
    // From 1: no code of 8 bits is -128, and no zero less one is below zero.
    let mut code = |_: usize| 1 + noise.next((1 << bits) - 1);
    let codes: Vec<Vec<_>> = (0..rows).map(|_| (0..cols).map(&mut code).collect()).collect();
    let middle = 1 << (bits - 1);
    let zeros: Vec<Vec<_>> = (0..rows)
        .map(|_| (0..groups).map(|g| if symmetric { middle } else { code(g) }).collect())
        .collect();
    let scales: Vec<Vec<_>> =
        (0..rows).map(|_| (0..groups).map(|_| noise.scale()).collect()).collect();
    let value = |row: usize, col: usize| {
        let g = group_of(col);
        (codes[row][col] as f64 - zeros[row][g] as f64) * scales[row][g].to_f64()
    };
    let weights = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    let weights = weights.map(|(row, col)| value(row, col)).collect();
    (codes, scales, zeros, weights)
}

/// What a GPTQ checkpoint is like.
#[derive(Clone, Copy)]
pub(crate) struct Gptq {
    pub(crate) bits: usize,
    /// -1 for whole rows.
    pub(crate) group: i64,
    pub(crate) symmetric: bool,
    pub(crate) second_version: bool,
    /// Whether inputs are in groups as they come.
    pub(crate) ordered: bool,
}

pub(crate) fn gptq(spec: &ModelSpec, gptq: Gptq) -> Made {
    let Gptq { bits, group, symmetric, second_version, ordered } = gptq;
    let config = json!({
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric,
        "desc_act": !ordered, "checkpoint_format": if second_version { "gptq_v2" } else { "gptq" },
    });
    replace(spec, config, |name, [rows, cols], noise| {
        let len = if group < 0 { cols } else { group as usize };
        let groups = cols.div_ceil(len);
        let group_of = move |col: usize| if ordered { col / len } else { (cols - 1 - col) / len };
        let (codes, scales, zeros, weights) =
            random(noise, [rows, cols], bits, symmetric, &group_of);
        let n = 32 / bits;
        let less = usize::from(!second_version);
        let qweight: Vec<Vec<_>> = (0..cols / n)
            .flat_map(|i| (0..rows).map(move |row| (i, row)))
            .map(|(i, row)| codes[row][i * n..][..n].to_vec())
            .collect();
        let qzeros: Vec<Vec<_>> = (0..groups)
            .flat_map(|g| (0..rows / n).map(move |o| (g, o)))
            .map(|(g, o)| (0..n).map(|i| zeros[o * n + i][g] - less).collect())
            .collect();
        let scales = (0..groups).flat_map(|g| scales.iter().map(move |row| row[g]));
        let scales = scales.flat_map(|scale| scale.to_le_bytes()).collect();
        let index = (0..cols).flat_map(|col| (group_of(col) as i32).to_le_bytes()).collect();
        let tensors = vec![
            tensor(sibling(name, "qweight"), "I32", &[cols / n, rows], words(&qweight, bits)),
            tensor(sibling(name, "qzeros"), "I32", &[groups, rows / n], words(&qzeros, bits)),
            tensor(sibling(name, "scales"), "F16", &[groups, rows], scales),
            tensor(sibling(name, "g_idx"), "I32", &[cols], index),
        ];
        (tensors, weights)
    })
}

pub(crate) fn awq(spec: &ModelSpec, group: usize) -> Made {
    let config = json!({
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm",
    });
    replace(spec, config, |name, [rows, cols], noise| {
        let (codes, scales, zeros, weights) =
            random(noise, [rows, cols], 4, false, &|col| col / group);
        let groups = cols.div_ceil(group);
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        let pack = |of: &dyn Fn(usize, usize) -> usize, count: usize| {
            let places = (0..count).flat_map(|i| (0..rows / 8).map(move |o| (i, o)));
            let packed: Vec<Vec<_>> =
                places.map(|(i, o)| order.map(|place| of(i, 8 * o + place)).to_vec()).collect();
            words(&packed, 4)
        };
        let scales = (0..groups).flat_map(|g| scales.iter().map(move |row| row[g]));
        let scales = scales.flat_map(|scale| scale.to_le_bytes()).collect();
        let (qweight, qzeros) =
            (pack(&|i, row| codes[row][i], cols), pack(&|g, row| zeros[row][g], groups));
        let tensors = vec![
            tensor(sibling(name, "qweight"), "I32", &[cols, rows / 8], qweight),
            tensor(sibling(name, "qzeros"), "I32", &[groups, rows / 8], qzeros),
            tensor(sibling(name, "scales"), "F16", &[groups, rows], scales),
        ];
        (tensors, weights)
    })
}

/// `group` 0 is for whole rows; `zeros` is the type of the zeros, if there are any.
pub(crate) fn packed_integers(
    spec: &ModelSpec,
    bits: usize,
    group: usize,
    zeros_type: Option<&'static str>,
) -> Made {
    let (strategy, size) =
        if group == 0 { ("channel", Value::Null) } else { ("group", json!(group)) };
    let weights = json!({
        "num_bits": bits, "type": "int", "strategy": strategy, "group_size": size,
        "symmetric": zeros_type.is_none(),
    });
    let config = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    });
    replace(spec, config, |name, [rows, cols], noise| {
        let len = if group == 0 { cols } else { group };
        let groups = cols.div_ceil(len);
        let symmetric = zeros_type.is_none();
        let (codes, scales, zeros, weights) =
            random(noise, [rows, cols], bits, symmetric, &|col| col / len);
        let n = 32 / bits;
        let codes: Vec<Vec<_>> =
            codes.iter().flat_map(|row| row.chunks(n).map(<[_]>::to_vec)).collect();
        let scales = scales.iter().flatten().flat_map(|scale| scale.to_le_bytes()).collect();
        let shape = [rows, cols].iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
        let mut tensors = vec![
            tensor(
                sibling(name, "weight_packed"),
                "I32",
                &[rows, cols.div_ceil(n)],
                words(&codes, bits),
            ),
            tensor(sibling(name, "weight_scale"), "F16", &[rows, groups], scales),
            tensor(sibling(name, "weight_shape"), "I64", &[2], shape),
        ];
        let zero_point = sibling(name, "weight_zero_point");
        match zeros_type {
            None => {}
            Some("I8") => {
                let signed = |&zero: &usize| (zero as i32 - (1 << (bits - 1))) as i8 as u8;
                let zeros = zeros.iter().flatten().map(signed).collect();
                tensors.push(tensor(zero_point, "I8", &[rows, groups], zeros));
            }
            Some(_) => {
                let places = (0..rows.div_ceil(n)).flat_map(|r| (0..groups).map(move |g| (r, g)));
                let zeros: Vec<Vec<_>> = places
                    .map(|(r, g)| zeros[r * n..rows.min(r * n + n)].iter().map(|z| z[g]).collect())
                    .collect();
                let data = words(&zeros, bits);
                tensors.push(tensor(zero_point, "I32", &[rows.div_ceil(n), groups], data));
            }
        }
        (tensors, weights)
    })
}

pub(crate) fn packed_floats(spec: &ModelSpec, one_scale: bool) -> Made {
    let config = json!({
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 8, "type": "float", "strategy": if one_scale { "tensor" } else { "channel" },
        }}},
    });
    replace(spec, config, |name, [rows, cols], noise| {
        // All but NaN.
        let codes: Vec<u8> =
            (0..rows * cols).map(|_| (noise.next(127) | noise.next(2) << 7) as u8).collect();
        let scales: Vec<f16> =
            (0..if one_scale { 1 } else { rows }).map(|_| noise.scale()).collect();
        let weights = codes.iter().enumerate().map(|(i, &code)| {
            let scale = scales[if one_scale { 0 } else { i / cols }];
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2.0_f64.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2.0_f64.powi(exponent - 7),
            };
            scale.to_f64() * if code < 128 { magnitude } else { -magnitude }
        });
        let weights = weights.collect();
        let shape: &[usize] = if one_scale { &[] } else { &[rows, 1] };
        let data = scales.iter().flat_map(|&s| s.to_f32().to_le_bytes()).collect();
        let tensors = vec![
            tensor(name.to_owned(), "F8_E4M3", &[rows, cols], codes),
            tensor(sibling(name, "weight_scale"), "F32", shape, data),
        ];
        (tensors, weights)
    })
}

/// NF4 with scales in single precision, or nested.
pub(crate) fn bitsandbytes(spec: &ModelSpec, nested: bool) -> Made {
    let config = json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": "uint8",
    });
    replace(spec, config, |name, [rows, cols], noise| {
        let count = rows * cols;
        let codes: Vec<u8> = (0..count).map(|_| noise.next(16) as u8).collect();
        let blocks = count.div_ceil(64);
        let part = |part: &str| format!("{name}.{part}");
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut state = json!({
            "quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [rows, cols],
        });
        let mut tensors = Vec::new();
        let scales: Vec<f64> = if nested {
            let codes: Vec<u8> = (0..blocks).map(|_| noise.next(256) as u8).collect();
            let numbers: Vec<f32> = (0..256).map(|i| (i as f32 - 100.0) / 200.0).collect();
            let outer: Vec<f32> =
                (0..blocks.div_ceil(256)).map(|_| noise.scale().to_f32()).collect();
            state["nested_blocksize"] = 256.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = json!(0.0625);
            let scale = |(i, &code): (usize, &u8)| {
                f64::from(numbers[usize::from(code)]) * f64::from(outer[i / 256]) + 0.0625
            };
            let scales = codes.iter().enumerate().map(scale).collect();
            tensors.push(tensor(part("nested_absmax"), "F32", &[outer.len()], floats(&outer)));
            tensors.push(tensor(part("nested_quant_map"), "F32", &[256], floats(&numbers)));
            tensors.push(tensor(part("absmax"), "U8", &[blocks], codes));
            scales
        } else {
            let scales: Vec<f32> = (0..blocks).map(|_| noise.scale().to_f32()).collect();
            tensors.push(tensor(part("absmax"), "F32", &[blocks], floats(&scales)));
            scales.into_iter().map(f64::from).collect()
        };
        let bytes = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        tensors.push(tensor(name.to_owned(), "U8", &[count / 2, 1], bytes));
        tensors.push(tensor(part("quant_map"), "F32", &[16], floats(&nf4::NUMBERS)));
        let state = state.to_string().into_bytes();
        let shape = [state.len()];
        tensors.push(tensor(part("quant_state.bitsandbytes__nf4"), "U8", &shape, state));
        let value =
            |(i, &code): (usize, &u8)| f64::from(nf4::NUMBERS[usize::from(code)]) * scales[i / 64];
        (tensors, codes.iter().enumerate().map(value).collect())
    })
}

/// A folder of `rewind quantize`, of weights between -1 and 1. Embedding too, so that nothing is plain.
pub(crate) fn rewind(spec: &ModelSpec, format: Format) -> Made {
    let mut packed = Vec::new();
    let config = json!({"quant_method": "rewind", "version": 1});
    let mut made = replace(spec, config, |name, [rows, cols], noise| {
        let weights: Vec<f32> =
            (0..rows * cols).map(|_| noise.next(2001) as f32 / 1000.0 - 1.0).collect();
        let matrix = Packed::quantize(format, rows, cols, &weights).unwrap();
        let part = |part: &str| format!("{name}.{part}");
        let groups = format.groups_per_row(cols);
        let singles = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let halves = |values: &[f16]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let codes = matrix.codes().to_vec();
        let mut tensors = vec![tensor(part("codes"), "U8", &[rows, matrix.row_bytes()], codes)];
        match matrix.scales() {
            Scales::None => {}
            Scales::PerRow(scales) => {
                tensors.push(tensor(part("scales"), "F32", &[rows], singles(scales)));
            }
            Scales::PerGroup(scales) => {
                tensors.push(tensor(part("scales"), "F16", &[rows, groups], halves(scales)));
            }
            Scales::Affine { scales, offsets } => {
                tensors.push(tensor(part("scales"), "F16", &[rows, groups], halves(scales)));
                tensors.push(tensor(part("offsets"), "F16", &[rows, groups], halves(offsets)));
            }
            Scales::Nested { rows: scales, groups: factors } => {
                tensors.push(tensor(part("scales"), "F32", &[rows], singles(scales)));
                let factors = factors.to_vec();
                tensors.push(tensor(part("factors"), "U8", &[rows, groups], factors));
            }
        }
        packed.push((name.to_owned(), cols));
        let values = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        (tensors, values.map(|(row, col)| matrix.value(row, col).into()).collect())
    });
    let metadata = &mut made.folder.metadata;
    metadata.insert("format".to_owned(), "rewind".into());
    metadata.insert("version".to_owned(), "1".into());
    for (name, cols) in packed {
        metadata.insert(format!("{name}.cols"), cols.to_string().into());
        metadata.insert(name, format.to_string().into());
    }
    made
}
