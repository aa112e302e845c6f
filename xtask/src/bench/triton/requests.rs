//! What every side is asked: prompts and answers of different lengths, greedy, never rewound.
//!
//! Answers of one length would end together and begin together; a batch of real traffic has sequences of all ages.

use serde_json::{Value, json};

/// Measures every token and rewinds none: the fastest step that a server with the monitor on can be asked for, so the one
/// beside which a server's own cost weighs most.
pub(super) const POLICY: &str = "observe";

/// Lengths of answers, in tokens, dealt out in a row.
pub(super) const LENGTHS: [u32; 5] = [56, 40, 72, 48, 64];

/// The requests as perf_analyzer's `--input-data`, one for each line of `prompts`.
pub(super) fn file(prompts: &str) -> Value {
    let lines = prompts.lines().filter(|line| !line.is_empty());
    let entries = lines.zip(LENGTHS.iter().cycle()).map(|(prompt, length)| {
        let sampling = json!({
            "max_tokens": length,
            "ignore_eos": true,
            "temperature": 0,
            "policy": POLICY,
        });
        json!({
            "text_input": [prompt],
            "stream": [true],
            "sampling_parameters": [sampling.to_string()],
        })
    });
    json!({ "data": entries.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_becomes_a_streaming_request() {
        let file = file("one \"word\"\n\ntwo\n");
        let data = file["data"].as_array().unwrap();
        assert_eq!(data.len(), 2);
        assert_eq!(data[0]["text_input"], json!(["one \"word\""]));
        assert_eq!(data[0]["stream"], json!([true]));
        let sampling = data[1]["sampling_parameters"][0].as_str().unwrap();
        let sampling: Value = serde_json::from_str(sampling).unwrap();
        assert_eq!(sampling["max_tokens"], LENGTHS[1]);
    }

    #[test]
    fn neighbours_in_a_batch_of_any_measured_size_have_all_lengths() {
        // Places of a batch walk through the prompts in steps of its size.
        for concurrency in [1, 4, 16] {
            assert_ne!(concurrency % LENGTHS.len(), 0);
        }
    }
}
