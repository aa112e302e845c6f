//! Bytes that a pass must read from the device's memory, whatever computes it.

use rewind_checkpoint::ModelSpec;
use rewind_cuda::{CudaExecutor, Driver, Exact, Placement, plan};
use rewind_formats::Format;
use rewind_kernels::arguments::PAGE_TOKENS;
use rewind_kernels::packing;

/// Bytes of the weights that a pass reads: everything once, but of the embedding only a row for each
/// token, which is not counted.
pub fn weights(spec: &ModelSpec, format: Format) -> u64 {
    let all = plan(spec, Some(&format.into()), Exact::Bf16, Placement::Device).draft;
    // The LM head is the embedding where they are tied, and read as such.
    if spec.tied_head {
        return all;
    }
    all - packing::bytes(format.ends(), spec.vocab_size, spec.hidden_size) as u64
}

/// Bytes of keys and values that `rows` rows read, each of a sequence of its own and seeing `context`
/// positions.
pub fn cache(spec: &ModelSpec, rows: usize, context: usize) -> u64 {
    let page = CudaExecutor::<Driver>::page_bytes(spec);
    (rows * context * page / PAGE_TOKENS as usize) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::shapes;

    #[test]
    fn weights_are_parameters_times_bits() {
        for shape in shapes() {
            let spec = &shape.spec;
            let embedding = (spec.vocab_size * spec.hidden_size) as u64;
            let read = spec.parameters() - if spec.tied_head { 0 } else { embedding };
            let layers = read - embedding;
            let close = |format: &str, expected: u64| {
                let found = weights(spec, format.parse().unwrap());
                // Norms, and the scales of rows, are small change.
                assert!(found.abs_diff(expected) < expected / 500, "{format}: {found} {expected}");
            };
            close("bf16", 2 * read);
            close("int8-g32", read * 17 / 16);
            close("int8", layers + embedding * 17 / 16);
            close("int4-g32", layers * 9 / 16 + embedding * 17 / 16);
            close("int4-g128", layers * 33 / 64 + embedding * 17 / 16);
        }
    }

    #[test]
    fn a_position_of_llama_takes_128_kib() {
        let spec = &shapes()[0].spec;
        assert_eq!(cache(spec, 1, 1), 131_072);
        assert_eq!(cache(spec, 64, 8192), 64 << 30);
    }
}
