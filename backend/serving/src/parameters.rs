//! What one request may set.
//!
//! Three sources say the same things in different types: tensors, Triton's request parameters and the
//! JSON of `sampling_parameters`. All of them end in [`Parameters`], key by key; a key given twice
//! holds its last value. Keys inside `sampling_parameters` are checked strictly, since a misspelled
//! one would silently change the answer; among request parameters, where Triton puts its own, unknown
//! ones are the caller's to ignore.

use rewind_monitor::DetectorName;
use serde_json::Value as Json;

use crate::error::RequestError;
use crate::nearest::nearest;
use crate::options::MAX_WINDOW;
use crate::policy::{POLICY_NAMES, PolicyName};
use crate::value::{Given, Value, shortened};

/// Tokens generated when a request does not say, as vLLM has it.
pub const DEFAULT_MAX_TOKENS: u32 = 16;
/// Log-probabilities per token, at most.
pub const MAX_LOGPROBS: u8 = 20;
/// Stop strings of one request, at most: every token is tested against each.
pub const MAX_STOP_STRINGS: usize = 64;
/// Bytes of one stop string, at most: that much text can be held back.
pub const MAX_STOP_BYTES: usize = 1024;

/// Settings of one request; `None` and empty mean "not given".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Answer token by token.
    pub stream: bool,
    /// Leave the prompt out of the answer; see [`Parameters::echoes_prompt`].
    pub exclude_input_in_output: Option<bool>,
    /// Answer why the sequence ended.
    pub return_finish_reason: bool,
    /// Answer log-probabilities; the chosen token's only, unless `logprobs` asks for more.
    pub return_logprobs: bool,
    /// Answer the number of prompt tokens.
    pub return_num_input_tokens: bool,
    /// Answer the number of generated tokens.
    pub return_num_output_tokens: bool,
    /// Answer entropies, thresholds and decisions.
    pub return_rewind: bool,

    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: Option<u32>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) seed: Option<u64>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_words: Vec<String>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) policy: Option<PolicyName>,
    pub(crate) profile: Option<String>,
    pub(crate) detector: Option<DetectorName>,
    pub(crate) threshold: Option<f32>,
    pub(crate) window: Option<u32>,
    pub(crate) refresh: Option<u32>,
    pub(crate) chat: bool,
}

/// Keys of `sampling_parameters`.
pub const SAMPLING_KEYS: [&str; 23] = [
    "chat",
    "detector",
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "policy",
    "presence_penalty",
    "profile",
    "refresh",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
    "threshold",
    "top_k",
    "top_p",
    "window",
];

/// Keys of vLLM that this version does not act on, with the one value that needs no action. `n` is
/// among them: it is known, and only 1 is served.
const INERT: [(&str, Neutral); 22] = [
    ("allowed_token_ids", Neutral::Null),
    ("bad_words", Neutral::Empty),
    ("best_of", Neutral::Number("1", 1.0)),
    ("detokenize", Neutral::Flag("true", true)),
    ("early_stopping", Neutral::Flag("false", false)),
    ("extra_args", Neutral::Null),
    ("flat_logprobs", Neutral::Flag("false", false)),
    ("guided_decoding", Neutral::Null),
    ("include_stop_str_in_output", Neutral::Flag("false", false)),
    ("length_penalty", Neutral::Number("1", 1.0)),
    ("logits_processors", Neutral::Null),
    ("lora_name", Neutral::Null),
    ("n", Neutral::Number("1", 1.0)),
    ("output_kind", Neutral::Number("0", 0.0)),
    ("prompt_logprobs", Neutral::Null),
    ("skip_reading_prefix_cache", Neutral::Flag("false", false)),
    ("skip_special_tokens", Neutral::Flag("true", true)),
    ("spaces_between_special_tokens", Neutral::Flag("true", true)),
    ("structured_outputs", Neutral::Null),
    ("thinking_token_budget", Neutral::Null),
    ("truncate_prompt_tokens", Neutral::Null),
    ("use_beam_search", Neutral::Flag("false", false)),
];

/// The value of an [`INERT`] key that asks for nothing; null always does.
#[derive(Clone, Copy)]
enum Neutral {
    Null,
    Empty,
    Flag(&'static str, bool),
    Number(&'static str, f32),
}

impl Parameters {
    /// Adds the keys of `sampling_parameters`.
    ///
    /// # Errors
    /// Not JSON, not an object, an unknown key, a bad value, or a feature this version lacks.
    pub fn merge_json(&mut self, json: &str) -> Result<(), RequestError> {
        let parsed: Json =
            serde_json::from_str(json).map_err(|error| RequestError::BadJson(error.to_string()))?;
        let map = match parsed {
            Json::Object(map) => map,
            Json::Null => return Err(RequestError::NotAnObject("null")),
            Json::Bool(_) => return Err(RequestError::NotAnObject("a truth value")),
            Json::Number(_) => return Err(RequestError::NotAnObject("a number")),
            Json::String(_) => return Err(RequestError::NotAnObject("a string")),
            Json::Array(_) => return Err(RequestError::NotAnObject("a list")),
        };
        for (key, value) in map {
            if !self.set_sampling(&key, value.into())? {
                let nearest = nearest(&key, SAMPLING_KEYS);
                return Err(RequestError::UnknownKey { key: shortened(&key), nearest });
            }
        }
        Ok(())
    }

    /// Sets one key, of `sampling_parameters` or of the request's own. `Ok(false)`: no such key, which
    /// is for the caller to judge.
    ///
    /// # Errors
    /// A bad value, or a feature this version lacks.
    pub fn set(&mut self, key: &str, value: Value) -> Result<bool, RequestError> {
        let flag = match key {
            "sampling_parameters" => {
                let given = Given::from(value);
                self.merge_json(given.text(key, "a JSON object as text")?)?;
                return Ok(true);
            }
            "stop_words" => {
                let given = Given::from(value).unfolded();
                self.set_list(key, given.texts(key, "texts")?)?;
                return Ok(true);
            }
            "exclude_input_in_output" => {
                self.exclude_input_in_output = Some(Given::from(value).boolean(key)?);
                return Ok(true);
            }
            "stream" => &mut self.stream,
            "return_finish_reason" => &mut self.return_finish_reason,
            "return_logprobs" => &mut self.return_logprobs,
            "return_num_input_tokens" => &mut self.return_num_input_tokens,
            "return_num_output_tokens" => &mut self.return_num_output_tokens,
            "return_rewind" => &mut self.return_rewind,
            _ => return self.set_sampling(key, Given::from(value).unfolded()),
        };
        *flag = Given::from(value).boolean(key)?;
        Ok(true)
    }

    /// Sets a key whose value is a list of texts: `stop_words` (where empty texts are padding) and
    /// `stop`. `Ok(false)`: no such key.
    ///
    /// # Errors
    /// Too many texts, or too long ones.
    pub fn set_list(&mut self, key: &str, values: Vec<String>) -> Result<bool, RequestError> {
        match key {
            "stop_words" => {
                let values = values.into_iter().filter(|value| !value.is_empty()).collect();
                self.stop_words = stop_strings(key, values)?;
            }
            "stop" => self.stop = stop_strings(key, values)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the prompt stands before the answer: as vLLM's backend has it, yes unless streaming or
    /// told otherwise.
    ///
    /// # Errors
    /// Streaming, and told to repeat the prompt.
    pub fn echoes_prompt(&self) -> Result<bool, RequestError> {
        match (self.stream, self.exclude_input_in_output) {
            (true, Some(false)) => Err(Given::Bool(false).bad(
                "exclude_input_in_output",
                "true, or nothing, when streaming: deltas do not repeat the prompt",
            )),
            (stream, exclude) => Ok(!exclude.unwrap_or(stream)),
        }
    }

    fn set_sampling(&mut self, key: &str, given: Given) -> Result<bool, RequestError> {
        if let Some((_, neutral)) = INERT.iter().find(|(name, _)| *name == key) {
            check_inert(key, &given, *neutral)?;
            return Ok(true);
        }
        if !SAMPLING_KEYS.contains(&key) {
            return Ok(false);
        }
        if given == Given::Null {
            return Ok(true);
        }
        match key {
            "max_tokens" => {
                let tokens = given.integer(key, 1, i128::MAX, "a whole number of at least 1")?;
                // More than any sequence can hold is the same as that; the model's limit caps it.
                self.max_tokens = Some(u32::try_from(tokens).unwrap_or(u32::MAX));
            }
            "min_tokens" => {
                let allowed = "a whole number of at least 0";
                let tokens = given.integer(key, 0, i128::MAX, allowed)?;
                self.min_tokens = Some(u32::try_from(tokens).unwrap_or(u32::MAX));
            }
            "temperature" => {
                let fits = |x: f32| x.is_finite() && x >= 0.0;
                self.temperature = Some(given.float(key, fits, "a finite number of at least 0")?);
            }
            "top_p" => {
                let fits = |x| x > 0.0 && x <= 1.0;
                self.top_p = Some(given.float(key, fits, "a number above 0, at most 1")?);
            }
            "top_k" => {
                let allowed = "a whole number of at least 1, or 0 or -1 for all";
                let k = given.integer(key, -1, i32::MAX.into(), allowed)?;
                self.top_k = Some(k.max(0) as u32);
            }
            "min_p" => {
                let fits = |x| (0.0..=1.0).contains(&x);
                self.min_p = Some(given.float(key, fits, "a number from 0 to 1")?);
            }
            "presence_penalty" => self.presence_penalty = Some(penalty(key, &given)?),
            "frequency_penalty" => self.frequency_penalty = Some(penalty(key, &given)?),
            "repetition_penalty" => {
                let fits = |x| x > 0.0 && x <= 10.0;
                let allowed = "a number above 0, at most 10";
                self.repetition_penalty = Some(given.float(key, fits, allowed)?);
            }
            "logit_bias" => self.logit_bias = logit_bias(key, &given)?,
            "seed" => {
                let allowed = "a whole number from 0 to 2^64 - 1";
                self.seed = Some(given.integer(key, 0, u64::MAX.into(), allowed)? as u64);
            }
            "logprobs" => {
                let most = i128::from(MAX_LOGPROBS);
                let allowed = format!("a whole number from 0 to {most}");
                self.logprobs = Some(given.integer(key, 0, most, &allowed)? as u8);
            }
            "stop" => {
                self.stop = stop_strings(key, given.texts(key, "a text or a list of texts")?)?;
            }
            "stop_token_ids" => self.stop_token_ids = token_ids(key, &given)?,
            "ignore_eos" => self.ignore_eos = given.boolean(key)?,
            "policy" => {
                let name = given.text(key, POLICY_NAMES)?;
                self.policy = Some(name.parse().map_err(|_| given.bad(key, POLICY_NAMES))?);
            }
            "profile" => self.profile = Some(given.text(key, "the name of a profile")?.to_owned()),
            "detector" => {
                let allowed = DetectorName::ALLOWED;
                let name = given.text(key, allowed)?;
                self.detector = Some(name.parse().map_err(|_| given.bad(key, allowed))?);
            }
            "threshold" => {
                self.threshold = Some(given.float(key, |x| !x.is_nan(), "a number")?);
            }
            "window" => self.window = Some(up_to_window(key, &given, 1)?),
            "refresh" => self.refresh = Some(up_to_window(key, &given, 0)?),
            "chat" => self.chat = given.boolean(key)?,
            _ => unreachable!("every key of SAMPLING_KEYS has an arm; a test sets each"),
        }
        Ok(true)
    }
}

fn penalty(key: &str, given: &Given) -> Result<f32, RequestError> {
    given.float(key, |x| (-2.0..=2.0).contains(&x), "a number from -2 to 2")
}

fn up_to_window(key: &str, given: &Given, low: i128) -> Result<u32, RequestError> {
    let allowed = format!("a whole number from {low} to {MAX_WINDOW}");
    Ok(given.integer(key, low, MAX_WINDOW.into(), &allowed)? as u32)
}

fn token_ids(key: &str, given: &Given) -> Result<Vec<u32>, RequestError> {
    let allowed = "a list of token ids";
    let id = |item: &Given| {
        item.integer(key, 0, u32::MAX.into(), allowed)
            .map(|id| id as u32)
            .map_err(|_| given.bad(key, allowed))
    };
    match given {
        Given::List(list) => list.iter().map(id).collect(),
        Given::String(text) => {
            text.split(',').map(|part| id(&Given::String(part.into()))).collect()
        }
        one => Ok(vec![id(one)?]),
    }
}

fn logit_bias(key: &str, given: &Given) -> Result<Vec<(u32, f32)>, RequestError> {
    let allowed = "an object of token ids with numbers from -100 to 100";
    let Given::Object(pairs) = given else { return Err(given.bad(key, allowed)) };
    let mut bias = pairs
        .iter()
        .map(|(id, value)| {
            let id = id.trim().parse::<u32>().map_err(|_| given.bad(key, allowed))?;
            let value = value
                .float(key, |x| (-100.0..=100.0).contains(&x), allowed)
                .map_err(|_| given.bad(key, allowed))?;
            Ok((id, value))
        })
        .collect::<Result<Vec<_>, RequestError>>()?;
    bias.sort_by_key(|(id, _)| *id);
    // JSON keys differ as texts ("7" and "07") where their ids do not.
    if bias.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(given.bad(key, format!("{allowed}, each id once")));
    }
    Ok(bias)
}

fn stop_strings(key: &str, values: Vec<String>) -> Result<Vec<String>, RequestError> {
    if values.len() > MAX_STOP_STRINGS {
        let given = Given::List(values.into_iter().map(Given::String).collect());
        return Err(given.bad(key, format!("at most {MAX_STOP_STRINGS} texts")));
    }
    match values.iter().find(|value| value.is_empty() || value.len() > MAX_STOP_BYTES) {
        Some(value) => Err(Given::String(value.clone())
            .bad(key, format!("texts of 1 to {MAX_STOP_BYTES} bytes each"))),
        None => Ok(values),
    }
}

fn check_inert(key: &str, given: &Given, neutral: Neutral) -> Result<(), RequestError> {
    let (name, at_default) = match neutral {
        Neutral::Null => ("null", false),
        Neutral::Empty => {
            ("[]", given.texts(key, "").is_ok_and(|t| t.iter().all(String::is_empty)))
        }
        Neutral::Flag(name, flag) => (name, given.boolean(key) == Ok(flag)),
        Neutral::Number(name, number) => (name, given.float(key, f32::is_finite, "") == Ok(number)),
    };
    if at_default || *given == Given::Null {
        return Ok(());
    }
    Err(RequestError::Unsupported { key: key.into(), value: given.shortened(), default: name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn json(text: &str) -> Result<Parameters, RequestError> {
        let mut parameters = Parameters::default();
        parameters.merge_json(text).map(|()| parameters)
    }

    #[test]
    fn every_sampling_key_is_read() {
        let read = json(
            r#"{"chat": true, "detector": "margin", "frequency_penalty": -0.5, "ignore_eos": true,
                "logit_bias": {"7": 1.5, "3": -100}, "logprobs": 5, "max_tokens": "100",
                "min_p": 0.1, "min_tokens": 3, "n": 1, "policy": "window", "presence_penalty": 2,
                "profile": "code", "refresh": 0, "repetition_penalty": 1.1,
                "seed": 18446744073709551615, "stop": ["a", "b"], "stop_token_ids": [1, 2],
                "temperature": "0.8", "threshold": 2.5, "top_k": -1, "top_p": 0.9, "window": 8}"#,
        )
        .unwrap();
        let expected = Parameters {
            chat: true,
            detector: Some(DetectorName::Margin),
            frequency_penalty: Some(-0.5),
            ignore_eos: true,
            logit_bias: vec![(3, -100.0), (7, 1.5)],
            logprobs: Some(5),
            max_tokens: Some(100),
            min_p: Some(0.1),
            min_tokens: Some(3),
            policy: Some(PolicyName::Window),
            presence_penalty: Some(2.0),
            profile: Some("code".into()),
            refresh: Some(0),
            repetition_penalty: Some(1.1),
            seed: Some(u64::MAX),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![1, 2],
            temperature: Some(0.8),
            threshold: Some(2.5),
            top_k: Some(0),
            top_p: Some(0.9),
            window: Some(8),
            ..Parameters::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn every_known_key_has_an_arm_and_takes_null() {
        for key in SAMPLING_KEYS.into_iter().chain(INERT.map(|(key, _)| key)) {
            assert_eq!(json(&format!("{{\"{key}\": null}}")), Ok(Parameters::default()), "{key}");
            // Must not panic, whatever it says.
            let _ = json(&format!("{{\"{key}\": 1}}"));
            let _ = json(&format!("{{\"{key}\": []}}"));
        }
    }

    #[test]
    fn sampling_parameters_must_be_an_object() {
        for (text, named) in [
            ("[1]", "a list"),
            ("null", "null"),
            ("3", "a number"),
            ("\"x\"", "a string"),
            ("true", "a truth value"),
        ] {
            assert_eq!(json(text), Err(RequestError::NotAnObject(named)));
        }
        for text in ["", "{", "{\"temperature\": NaN}", "{'a': 1}"] {
            let error = json(text).unwrap_err();
            assert!(error.to_string().contains("not valid JSON"), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_errors_in_json_and_ignored_as_parameters() {
        let error = json("{\"temprature\": 1}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown key \"temprature\" in sampling_parameters: did you mean \"temperature\"?"
        );
        // Flags of the request are no sampling parameters.
        assert!(json("{\"stream\": true}").is_err());
        let mut parameters = Parameters::default();
        assert_eq!(parameters.set("id", Value::String("7".into())), Ok(false));
        assert_eq!(parameters, Parameters::default());
    }

    #[test]
    fn bad_values_name_key_value_and_what_is_allowed() {
        for (text, parts) in [
            (r#"{"max_tokens": 0}"#, ["max_tokens", "0", "at least 1"]),
            (r#"{"max_tokens": -5}"#, ["max_tokens", "-5", "at least 1"]),
            (r#"{"max_tokens": 1.5}"#, ["max_tokens", "1.5", "whole"]),
            (r#"{"temperature": "NaN"}"#, ["temperature", "NaN", "finite"]),
            (r#"{"temperature": "inf"}"#, ["temperature", "inf", "finite"]),
            (r#"{"temperature": -1}"#, ["temperature", "-1", "at least 0"]),
            (r#"{"top_p": 0}"#, ["top_p", "0", "above 0"]),
            (r#"{"top_k": -2}"#, ["top_k", "-2", "at least 1"]),
            (r#"{"min_p": 1.1}"#, ["min_p", "1.1", "from 0 to 1"]),
            (r#"{"logprobs": 21}"#, ["logprobs", "21", "from 0 to 20"]),
            (r#"{"logprobs": true}"#, ["logprobs", "true", "from 0 to 20"]),
            (r#"{"seed": -1}"#, ["seed", "-1", "2^64"]),
            (r#"{"stop": ""}"#, ["stop", "\"\"", "1 to 1024 bytes"]),
            (r#"{"stop": [1]}"#, ["stop", "[1]", "texts"]),
            (r#"{"stop_token_ids": ["x"]}"#, ["stop_token_ids", "x", "token ids"]),
            (r#"{"logit_bias": {"x": 1}}"#, ["logit_bias", "x", "token ids"]),
            (r#"{"logit_bias": {"1": 101}}"#, ["logit_bias", "101", "-100 to 100"]),
            (r#"{"logit_bias": {"7": 1, "07": 1}}"#, ["logit_bias", "07", "once"]),
            (r#"{"policy": "yolo"}"#, ["policy", "yolo", "lossless"]),
            (r#"{"detector": "fuzed"}"#, ["detector", "fuzed", "margin or fused"]),
            (r#"{"threshold": "nan"}"#, ["threshold", "nan", "number"]),
            (r#"{"window": 0}"#, ["window", "0", "from 1 to 64"]),
            (r#"{"refresh": 65}"#, ["refresh", "65", "from 0 to 64"]),
            (r#"{"chat": "maybe"}"#, ["chat", "maybe", "true or false"]),
            (r#"{"presence_penalty": 3}"#, ["presence_penalty", "3", "-2 to 2"]),
        ] {
            let error = json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            for part in parts {
                assert!(error.to_string().contains(part), "{text}: {error} lacks {part}");
            }
        }
    }

    #[test]
    fn huge_max_tokens_is_left_to_the_models_limit() {
        for huge in ["9999999999", "99999999999999999999", "1e300", "\"4294967296\""] {
            let parameters = json(&format!("{{\"max_tokens\": {huge}}}")).unwrap();
            assert_eq!(parameters.max_tokens, Some(u32::MAX), "{huge}");
        }
    }

    #[test]
    fn unsupported_keys_pass_at_their_default_only() {
        json(r#"{"n": 1, "best_of": null, "use_beam_search": false, "skip_special_tokens": true}"#)
            .unwrap();
        json(r#"{"bad_words": [""], "length_penalty": 1.0, "n": "1"}"#).unwrap();
        for text in [
            r#"{"n": 2}"#,
            r#"{"use_beam_search": true}"#,
            r#"{"guided_decoding": {"json": {}}}"#,
            r#"{"bad_words": ["damn"]}"#,
            r#"{"prompt_logprobs": 0}"#,
        ] {
            assert_eq!(json(text).unwrap_err().kind(), ErrorKind::Unsupported, "{text}");
        }
    }

    #[test]
    fn request_parameters_take_every_type() {
        let mut p = Parameters::default();
        assert_eq!(p.set("stream", Value::Bool(true)), Ok(true));
        assert_eq!(p.set("return_rewind", Value::String("true".into())), Ok(true));
        assert_eq!(p.set("return_num_input_tokens", Value::Int(1)), Ok(true));
        assert_eq!(p.set("temperature", Value::Double(0.5)), Ok(true));
        assert_eq!(p.set("max_tokens", Value::String("7".into())), Ok(true));
        assert_eq!(p.set("stop", Value::String("[\"x\", \"y\"]".into())), Ok(true));
        assert_eq!(p.set("stop_token_ids", Value::String("4, 5".into())), Ok(true));
        assert_eq!(p.set("logit_bias", Value::String("{\"1\": 2}".into())), Ok(true));
        let all = r#"{"top_k": 4}"#;
        assert_eq!(p.set("sampling_parameters", Value::String(all.into())), Ok(true));
        assert_eq!(p.set_list("stop_words", vec!["".into(), "z".into()]), Ok(true));
        let expected = Parameters {
            stream: true,
            return_rewind: true,
            return_num_input_tokens: true,
            temperature: Some(0.5),
            max_tokens: Some(7),
            stop: vec!["x".into(), "y".into()],
            stop_words: vec!["z".into()],
            stop_token_ids: vec![4, 5],
            logit_bias: vec![(1, 2.0)],
            top_k: Some(4),
            ..Parameters::default()
        };
        assert_eq!(p, expected);
        assert!(p.set("stream", Value::Double(0.5)).is_err());
    }

    #[test]
    fn the_prompt_is_echoed_as_vllm_does() {
        let with = |stream, exclude| Parameters {
            stream,
            exclude_input_in_output: exclude,
            ..Parameters::default()
        };
        assert_eq!(with(false, None).echoes_prompt(), Ok(true));
        assert_eq!(with(false, Some(true)).echoes_prompt(), Ok(false));
        assert_eq!(with(false, Some(false)).echoes_prompt(), Ok(true));
        assert_eq!(with(true, None).echoes_prompt(), Ok(false));
        assert!(with(true, Some(false)).echoes_prompt().is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_json_panics(text in "\\PC{0,64}") {
            let _ = json(&text);
        }

        #[test]
        fn no_value_panics(key in proptest::sample::select(&SAMPLING_KEYS[..]), number: f64) {
            let mut p = Parameters::default();
            let _ = p.set(key, Value::Double(number));
            let _ = p.set(key, Value::String(number.to_string()));
            if let Some(t) = p.temperature {
                proptest::prop_assert!(t.is_finite() && t >= 0.0);
            }
        }
    }
}
