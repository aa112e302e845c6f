//! From a part of an answer to the tensors of a response.
//!
//! Front ends write tensors as JSON, which has no NaN and no infinities: [`finite`] says what stands
//! for them.

use std::ffi::CStr;

use rewind_engine::{Committed, FinishReason, TokenLogprob};
use rewind_serving::Frozen;
use serde_json::{Map, Value, json};

use crate::answer::{Part, Terms};
use crate::ffi::{DataType, Error, ParameterOut, Response};

/// What a response is built with, besides its content.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a, T> {
    /// The request's terms.
    pub(crate) terms: &'a Terms,
    /// Whether tensors have a batch dimension.
    pub(crate) batched: bool,
    /// Tells the text of a token on its own.
    pub(crate) token_text: T,
}

impl<T: Fn(u32) -> String> Encoder<'_, T> {
    /// Fills a response. The last one of a request also tells what repeats the answer.
    ///
    /// # Errors
    /// Triton gives no memory for an output.
    pub(crate) fn fill(&self, response: &mut Response<'_>, part: &Part) -> Result<(), Error> {
        let Terms { wanted, frozen: Frozen { gate, .. }, prompt_tokens, .. } = self.terms;
        let tokens = &part.tokens;
        if wanted.text {
            self.texts(response, c"text_output", [part.text.as_str()])?;
        }
        if wanted.finish_reason {
            let reason = part.finish.map_or("None", FinishReason::name);
            self.texts(response, c"finish_reason", [reason])?;
        }
        if wanted.logprobs {
            let text = logprobs(tokens, &self.token_text);
            self.texts(response, c"logprobs", [text.as_str()])?;
        }
        if wanted.num_input_tokens {
            self.words(
                response,
                c"num_input_tokens",
                DataType::Uint32,
                [prompt_tokens.to_le_bytes()],
            )?;
        }
        if wanted.num_output_tokens {
            let count = (tokens.len() as u32).to_le_bytes();
            self.words(response, c"num_output_tokens", DataType::Uint32, [count])?;
        }
        if wanted.token_ids {
            let ids = tokens.iter().map(|committed| committed.token.to_le_bytes());
            self.words(response, c"token_ids", DataType::Int32, ids)?;
        }
        // Policy `off` measures nothing; a made-up number would be worse than none.
        let measured = tokens.iter().all(|committed| committed.statistics.is_some());
        let statistics = || tokens.iter().filter_map(|committed| committed.statistics);
        if wanted.entropy && measured {
            let values = statistics().map(|row| finite(row.entropy).to_le_bytes());
            self.words(response, c"entropy", DataType::Fp32, values)?;
        }
        if wanted.score && measured {
            let values = statistics().map(|row| finite(gate.detector.score(&row)).to_le_bytes());
            self.words(response, c"score", DataType::Fp32, values)?;
        }
        if wanted.threshold && measured {
            let values = tokens.iter().map(|_| finite(gate.threshold).to_le_bytes());
            self.words(response, c"threshold", DataType::Fp32, values)?;
        }
        if wanted.decision {
            let names = tokens.iter().map(|committed| committed.decision.name());
            self.texts(response, c"decision", names)?;
        }
        if wanted.rewinds {
            self.words(response, c"rewinds", DataType::Uint32, [part.rewinds.to_le_bytes()])?;
        }
        if part.finish.is_some() {
            self.repeatable(response)?;
        }
        Ok(())
    }

    fn repeatable(&self, response: &mut Response<'_>) -> Result<(), Error> {
        // Triton's integers are signed; a seed beyond them is written as text.
        match i64::try_from(self.terms.seed) {
            Ok(seed) => response.parameter(c"seed", ParameterOut::Int(seed))?,
            Err(_) => {
                response.parameter(c"seed", ParameterOut::Text(&self.terms.seed.to_string()))?;
            }
        }
        let coefficient = f64::from(self.terms.frozen.thermal_coefficient);
        response.parameter(c"thermal_coefficient", ParameterOut::Double(coefficient))?;
        response.parameter(c"profile", ParameterOut::Text(&self.terms.frozen.profile))
    }

    fn texts<'t>(
        &self,
        response: &mut Response<'_>,
        name: &CStr,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for text in texts {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
            count += 1;
        }
        self.output(response, name, DataType::Bytes, count, &bytes)
    }

    fn words(
        &self,
        response: &mut Response<'_>,
        name: &CStr,
        datatype: DataType,
        words: impl IntoIterator<Item = [u8; 4]>,
    ) -> Result<(), Error> {
        let bytes: Vec<u8> = words.into_iter().flatten().collect();
        self.output(response, name, datatype, bytes.len() as i64 / 4, &bytes)
    }

    fn output(
        &self,
        response: &mut Response<'_>,
        name: &CStr,
        datatype: DataType,
        count: i64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let shape = [1, count];
        let shape = if self.batched { &shape[..] } else { &shape[1..] };
        response.output(name, datatype, shape, bytes)
    }
}

/// A number that JSON can write: ±`f32::MAX` for the infinities, and −1, which is no entropy and no
/// score of risk, for what could not be measured.
fn finite(value: f32) -> f32 {
    if value.is_nan() { -1.0 } else { value.clamp(f32::MIN, f32::MAX) }
}

/// vLLM's form: for each token an object of the candidates by id, or null if none were asked for.
fn logprobs(tokens: &[Committed], token_text: &dyn Fn(u32) -> String) -> String {
    if tokens.iter().all(|committed| committed.logprobs.is_empty()) {
        return Value::Null.to_string();
    }
    let candidates = |candidates: &[TokenLogprob]| {
        let mut map = Map::new();
        for candidate in candidates {
            map.entry(candidate.token.to_string()).or_insert_with(|| {
                json!({
                    "logprob": candidate.logprob,
                    "rank": candidate.rank,
                    "decoded_token": token_text(candidate.token),
                })
            });
        }
        Value::Object(map)
    };
    tokens.iter().map(|committed| candidates(&committed.logprobs)).collect::<Value>().to_string()
}

#[cfg(test)]
mod tests {
    use rewind_engine::Decision;
    use rewind_monitor::{Detector, Gate, Statistics};

    use super::*;
    use crate::answer::Wanted;
    use crate::ffi::Responder;
    use crate::ffi::stand_in::{Act, Given, Sent, Server, number};

    fn committed(logprobs: &[TokenLogprob]) -> Committed {
        Committed {
            token: 7,
            text: "x".into(),
            statistics: None,
            decision: Decision::Draft,
            logprobs: logprobs.into(),
        }
    }

    #[test]
    fn logprobs_look_like_vllms() {
        let seven = TokenLogprob { token: 7, logprob: -0.5, rank: 2 };
        let nine = TokenLogprob { token: 9, logprob: -0.25, rank: 1 };
        let text = logprobs(&[committed(&[seven, nine, seven])], &|token| format!("<{token}>"));
        let parsed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            parsed,
            json!([{ "7": { "logprob": -0.5, "rank": 2, "decoded_token": "<7>" },
                     "9": { "logprob": -0.25, "rank": 1, "decoded_token": "<9>" } }])
        );
        assert_eq!(logprobs(&[committed(&[])], &|_| String::new()), "null");
    }

    #[test]
    fn json_gets_only_finite_numbers() {
        assert_eq!(finite(f32::INFINITY), f32::MAX);
        assert_eq!(finite(f32::NEG_INFINITY), f32::MIN);
        assert_eq!(finite(f32::NAN), -1.0);
        assert_eq!(finite(0.25), 0.25);
    }

    /// What a client gets of a part.
    fn sent(terms: &Terms, batched: bool, part: &Part) -> Sent {
        let server = Server::new();
        let responder = Responder::new(&server.request(Given::default())).unwrap();
        let encoder = Encoder { terms, batched, token_text: |token| format!("<{token}>") };
        responder.finish(|response| encoder.fill(response, part)).unwrap();
        let Some(Act::Sent(sent)) = server.acts().pop() else { panic!("nothing was sent") };
        sent
    }

    fn terms(wanted: Wanted) -> Terms {
        Terms {
            wanted,
            frozen: Frozen {
                profile: "prose".into(),
                gate: Gate { detector: Detector::Entropy, threshold: 1.5 },
                thermal_coefficient: 1.25,
            },
            prompt_tokens: 5,
            seed: 9,
        }
    }

    const ALL: Wanted = Wanted {
        text: true,
        finish_reason: true,
        logprobs: true,
        num_input_tokens: true,
        num_output_tokens: true,
        token_ids: true,
        entropy: true,
        score: true,
        threshold: true,
        decision: true,
        rewinds: true,
    };

    fn part() -> Part {
        let statistics = Statistics {
            entropy: 0.5,
            varentropy: 0.25,
            top1: 0.75,
            margin: f32::INFINITY,
            finite: true,
        };
        let token = Committed { statistics: Some(statistics), ..committed(&[]) };
        Part {
            text: "Größe".into(),
            tokens: vec![token.clone(), token],
            rewinds: 3,
            finish: Some(FinishReason::Length),
        }
    }

    fn bytes(sent: &Sent, name: &str) -> Vec<u8> {
        sent.output(name).unwrap().bytes.clone()
    }

    #[test]
    fn fills_every_output() {
        let sent = sent(&terms(ALL), false, &part());
        assert_eq!(bytes(&sent, "text_output"), b"\x07\0\0\0Gr\xc3\xb6\xc3\x9fe");
        assert_eq!(bytes(&sent, "finish_reason"), b"\x06\0\0\0length");
        assert_eq!(bytes(&sent, "logprobs"), b"\x04\0\0\0null");
        assert_eq!(bytes(&sent, "num_input_tokens"), 5_u32.to_le_bytes());
        assert_eq!(bytes(&sent, "num_output_tokens"), 2_u32.to_le_bytes());
        assert_eq!(bytes(&sent, "token_ids"), [7_i32.to_le_bytes(); 2].concat());
        assert_eq!(bytes(&sent, "entropy"), [0.5_f32.to_le_bytes(); 2].concat());
        assert_eq!(bytes(&sent, "score"), [0.5_f32.to_le_bytes(); 2].concat());
        assert_eq!(bytes(&sent, "threshold"), [1.5_f32.to_le_bytes(); 2].concat());
        assert_eq!(bytes(&sent, "decision"), b"\x05\0\0\0draft".repeat(2));
        assert_eq!(bytes(&sent, "rewinds"), 3_u32.to_le_bytes());
        let ids = sent.output("token_ids").unwrap();
        assert_eq!((ids.datatype, &ids.shape[..]), (number(DataType::Int32), &[2][..]));
        let parameters = [("seed", "9"), ("thermal_coefficient", "1.25"), ("profile", "prose")];
        let parameters = parameters.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(sent.parameters, parameters);
    }

    #[test]
    fn shapes_have_the_batch_where_tensors_do() {
        let sent = sent(&terms(ALL), true, &part());
        assert_eq!(sent.output("token_ids").unwrap().shape, [1, 2]);
        assert_eq!(sent.output("text_output").unwrap().shape, [1, 1]);
    }

    #[test]
    fn tells_no_more_than_is_wanted_and_known() {
        let text = Wanted { text: true, ..Wanted::default() };
        let unfinished = Part { finish: None, ..part() };
        let sent_text = sent(&terms(text), false, &unfinished);
        assert_eq!(sent_text.outputs.len(), 1);
        // What repeats the answer comes with its end.
        assert_eq!(sent_text.parameters, []);
        let unmeasured = Part { tokens: vec![committed(&[])], ..part() };
        let sent = sent(&terms(ALL), false, &unmeasured);
        for name in ["entropy", "score", "threshold"] {
            assert_eq!(sent.output(name), None);
        }
    }

    #[test]
    fn a_seed_beyond_tritons_integers_is_text() {
        let terms = Terms { seed: u64::MAX, ..terms(Wanted::default()) };
        let sent = sent(&terms, false, &part());
        assert_eq!(sent.parameters[0], ("seed".into(), u64::MAX.to_string()));
    }
}
