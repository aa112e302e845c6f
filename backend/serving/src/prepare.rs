//! From a client's request to an engine's: everything that may take time or fail, off the engine's
//! thread.

use std::borrow::Cow;
use std::sync::Arc;

use rewind_checkpoint::Message;
use rewind_engine::sampling::Sampling;
use rewind_engine::{GateChoice, Refusal, Request, Stop, Token};
use rewind_monitor::controller::Offset;
use rewind_monitor::{Candidate, Gate, Profile};

use crate::budget::{Budget, Tally};
use crate::error::RequestError;
use crate::model::Model;
use crate::parameters::{DEFAULT_MAX_TOKENS, Parameters};
use crate::profiles::Selected;
use crate::prompt::Prompt;
use crate::value::Given;

/// A request ready for the engine, and what its answer has to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// For [`crate::Inflight::submit`] or the engine itself.
    pub request: Request,
    /// The prompt as it came, to stand before an answer that is not streamed; `None` for token ids.
    pub prompt_text: Option<String>,
    /// Tokens of the prompt, those of a chat template and begin-of-sequence included.
    pub prompt_tokens: u32,
    /// The seed, given or drawn.
    pub seed: u64,
    /// How its steps are judged; under `profile: auto`, if the prompt chooses the first candidate.
    pub frozen: Frozen,
    /// Under `profile: auto`: what the prompt chooses from, as [`rewind_engine::Event::GateChosen`] counts
    /// them.
    pub candidates: Vec<Frozen>,
    /// What it spends of the model's rewind budget, see [`Model::finished`].
    pub tally: Tally,
}

/// Detector and threshold as they were frozen at admission, and where they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Frozen {
    /// Name of the profile.
    pub profile: Arc<str>,
    /// Detector and threshold.
    pub gate: Gate,
    /// KT when the threshold was frozen.
    pub thermal_coefficient: f32,
}

impl Model {
    /// Checks and completes a request: length in bytes, chat template, tokens, policy, threshold
    /// (the thermal coefficient is sampled once, here), seed.
    ///
    /// # Errors
    /// What the client should change; see [`RequestError`]. Limits of the engine (pages, queue) are
    /// tested when the request is submitted.
    pub fn prepare(
        &self,
        prompt: Prompt,
        parameters: &Parameters,
    ) -> Result<Prepared, RequestError> {
        let (tokens, prompt_text) = self.tokenize(prompt, parameters.chat)?;
        let positions = self.limits().positions;
        let room = (positions as usize).saturating_sub(tokens.len());
        if room == 0 {
            return Err(Refusal::TooLong { prompt: tokens.len() as u64, limit: positions }.into());
        }
        let asked = parameters.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let min_tokens = parameters.min_tokens.unwrap_or(0);
        if min_tokens > asked {
            let allowed = format!("a whole number from 0 to max_tokens = {asked}");
            return Err(Given::Int(min_tokens.into()).bad("min_tokens", allowed));
        }
        // `room` fits: it is at most `positions`.
        let max_tokens = asked.min(room as u32);

        let options = self.options();
        let policy = parameters.policy.unwrap_or(options.policy);
        let window = parameters.window.unwrap_or(options.window);
        let refresh = parameters.refresh.unwrap_or(options.refresh);
        // A model's `prefill` binds the policies that leave a choice; `lossless` and `shadow` stay
        // within reach of every request.
        let prefill = match options.prefill {
            Some(weights) if policy.check_prefill(weights).is_ok() => weights,
            _ => policy.prefill(),
        };
        let policy = policy.with(window, refresh);
        let offset = self.budget().filter(|_| parameters.threshold.is_none()).map(Budget::admit);
        let (frozen, candidates, gate) = self.freeze_gate(parameters, offset)?;
        let seed = parameters.seed.or(options.seed).unwrap_or_else(draw_seed);
        let request = Request {
            prompt: tokens,
            max_tokens,
            min_tokens: min_tokens.min(max_tokens),
            stop: self.stop(parameters)?,
            sampling: self.sampling(parameters, seed)?,
            policy,
            gate,
            prefill,
            logprobs: parameters.logprobs.or(parameters.return_logprobs.then_some(0)),
        };
        Ok(Prepared {
            prompt_tokens: request.prompt.len() as u32,
            request,
            prompt_text,
            seed,
            frozen,
            candidates,
            tally: Tally::new(offset, policy),
        })
    }

    fn tokenize(
        &self,
        prompt: Prompt,
        chat: bool,
    ) -> Result<(Vec<Token>, Option<String>), RequestError> {
        let text = match prompt {
            Prompt::Tokens(_) if chat => {
                return Err(RequestError::Chat(
                    "a chat template needs a text prompt, not token ids".into(),
                ));
            }
            Prompt::Tokens(ids) => return Ok((self.check_ids(&ids)?, None)),
            Prompt::Text(text) => text,
        };
        // With a template even nothing becomes a prompt.
        if text.is_empty() && !chat {
            return Err(RequestError::EmptyPrompt);
        }
        // Tokenizing takes time and memory in proportion, so this comes before.
        let limit = self.prompt_bytes();
        if text.len() > limit {
            let positions = self.limits().positions;
            return Err(RequestError::TooManyBytes { bytes: text.len(), limit, positions });
        }
        let whole = if chat { Cow::Owned(self.render(&text)?) } else { Cow::Borrowed(&text) };
        // A rendered template already holds the special tokens, as text.
        let tokens = self
            .tokenizer()
            .encode(&whole, !chat)
            .map_err(|error| RequestError::Tokenizer(error.to_string()))?;
        if tokens.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        drop(whole);
        Ok((tokens, Some(text)))
    }

    fn render(&self, text: &str) -> Result<String, RequestError> {
        let template = self
            .chat_template()
            .ok_or_else(|| RequestError::Chat("this model has no chat template".into()))?;
        let message = Message { role: "user".into(), content: text.into() };
        template.render(&[message], true).map_err(|error| RequestError::Chat(error.to_string()))
    }

    fn check_ids(&self, ids: &[i32]) -> Result<Vec<Token>, RequestError> {
        if ids.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let vocabulary = self.limits().vocabulary;
        ids.iter()
            .enumerate()
            .map(|(index, &token)| {
                u32::try_from(token)
                    .ok()
                    .filter(|&id| id < vocabulary)
                    .ok_or(RequestError::BadToken { token, index, vocabulary })
            })
            .collect()
    }

    /// The gate, or those that the prompt chooses from. Temperature and offset are sampled once, so that
    /// all are of one moment.
    fn freeze_gate(
        &self,
        parameters: &Parameters,
        offset: Option<Offset>,
    ) -> Result<(Frozen, Vec<Frozen>, GateChoice), RequestError> {
        let selected = self.profiles().select(parameters.profile.as_deref())?;
        let detector = parameters.detector.or(self.options().detector).unwrap_or_default();
        let celsius = self.celsius();
        let offset = offset.map_or(0.0, |offset| offset.noise_floors);
        let freeze = |profile: &Profile| {
            let thermal_coefficient = profile.thermal_coefficient(celsius);
            let mut gate = profile.gate(detector, thermal_coefficient + offset)?;
            if let Some(threshold) = parameters.threshold {
                gate.threshold = threshold;
            }
            Ok::<_, RequestError>(Frozen {
                profile: profile.name.as_str().into(),
                gate,
                thermal_coefficient,
            })
        };
        let profiles = match selected {
            Selected::One(profile) => {
                let frozen = freeze(profile)?;
                let gate = frozen.gate.into();
                return Ok((frozen, Vec::new(), gate));
            }
            Selected::Auto(profiles) => profiles,
        };
        let mut candidates = Vec::new();
        let mut choice = Vec::new();
        for profile in profiles {
            let frozen = freeze(profile)?;
            choice.extend(profile.prompt.map(|prompts| Candidate { gate: frozen.gate, prompts }));
            candidates.push(frozen);
        }
        let first = candidates.first().cloned().ok_or(RequestError::NothingToChoose)?;
        Ok((first, candidates, GateChoice::ByPrompt(choice.into())))
    }

    fn stop(&self, parameters: &Parameters) -> Result<Stop, RequestError> {
        let vocabulary = self.limits().vocabulary;
        let mut tokens = parameters.stop_token_ids.clone();
        tokens.sort_unstable();
        tokens.dedup();
        if let Some(&id) = tokens.last().filter(|&&id| id >= vocabulary) {
            let allowed = format!("token ids below {vocabulary}");
            return Err(Given::Int(id.into()).bad("stop_token_ids", allowed));
        }
        let eos = if parameters.ignore_eos { Vec::new() } else { self.generation().eos.clone() };
        let mut strings = [&parameters.stop[..], &parameters.stop_words].concat();
        strings.sort();
        strings.dedup();
        Ok(Stop { eos, tokens, strings })
    }

    fn sampling(&self, parameters: &Parameters, seed: u64) -> Result<Sampling, RequestError> {
        let neutral = Sampling::GREEDY;
        let sampling = Sampling {
            // As vLLM has it; the checkpoint's suggestions are for chat front ends.
            temperature: parameters.temperature.unwrap_or(1.0),
            top_k: parameters.top_k.unwrap_or(neutral.top_k),
            top_p: parameters.top_p.unwrap_or(neutral.top_p),
            min_p: parameters.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: parameters.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            presence_penalty: parameters.presence_penalty.unwrap_or(neutral.presence_penalty),
            frequency_penalty: parameters.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            bias: parameters.logit_bias.clone(),
            seed,
        };
        sampling.validate(self.limits().vocabulary)?;
        Ok(sampling)
    }
}

/// A seed that nobody could have foreseen.
fn draw_seed() -> u64 {
    // Without a source of randomness the system would not have started; a fixed seed is still right,
    // since it is told with the answer.
    getrandom::u64().unwrap_or(0)
}
