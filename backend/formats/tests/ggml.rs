//! GGML dequantization against values recorded from an independent implementation.
//! `golden/ggml.py` made them and says how.

use rewind_formats::ggml::GgmlType;

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn values_are_those_of_the_reference() {
    let mut seen = vec!["F32".to_owned()];
    for line in include_str!("golden/ggml.txt").lines() {
        let [name, blocks, values] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let ty = GgmlType::ALL.into_iter().find(|ty| ty.to_string() == name).unwrap();
        let expected: Vec<f32> = unhex(values)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(expected.len(), 2 * ty.block_len(), "{name}");
        let mut got = vec![f32::NAN; expected.len()];
        ty.dequantize(&unhex(blocks), &mut got).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&expected), "{name}");
        seen.push(name.to_owned());
    }
    // F32 needs no reference; every other type must have been in the file.
    seen.sort();
    let mut all: Vec<_> = GgmlType::ALL.iter().map(ToString::to_string).collect();
    all.sort();
    assert_eq!(seen, all);
}

#[test]
fn f32_is_copied() {
    let values = [0.0_f32, -1.5, f32::MIN_POSITIVE, f32::MAX];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut got = [0.0; 4];
    GgmlType::F32.dequantize(&bytes, &mut got).unwrap();
    assert_eq!(got, values);
}
