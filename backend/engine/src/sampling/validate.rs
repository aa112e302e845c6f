//! Limits of the sampling parameters.

use crate::executor::Token;

use super::Sampling;

/// A sampling parameter is out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSampling {
    /// A number is out of its range.
    #[error("{key} is {value}: it must be {allowed}")]
    OutOfRange {
        /// Name of the parameter, as requests give it.
        key: &'static str,
        /// Its value.
        value: f32,
        /// What would be right.
        allowed: &'static str,
    },
    /// A biased token does not exist.
    #[error("logit_bias names token {token}: token ids must be below {vocabulary}")]
    UnknownBiasToken {
        /// The id.
        token: Token,
        /// Ids are below this.
        vocabulary: u32,
    },
    /// A bias is out of its range.
    #[error("logit_bias of token {token} is {value}: it must be a number from -100 to 100")]
    BiasOutOfRange {
        /// The token.
        token: Token,
        /// Its bias.
        value: f32,
    },
    /// The biased tokens do not ascend.
    #[error(
        "logit_bias lists token {token} twice or out of order: list each token once, in ascending order"
    )]
    BiasOutOfOrder {
        /// The token that is not above the one before it.
        token: Token,
    },
}

impl Sampling {
    /// Checks every parameter.
    ///
    /// `vocabulary` is the number of token ids.
    ///
    /// # Errors
    /// The first parameter that is out of its range, in the order of the struct's fields.
    pub fn validate(&self, vocabulary: u32) -> Result<(), InvalidSampling> {
        let check = |key, value: f32, ok: bool, allowed| {
            if ok { Ok(()) } else { Err(InvalidSampling::OutOfRange { key, value, allowed }) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check(
            "temperature",
            temperature,
            temperature.is_finite() && temperature >= 0.0,
            "a finite number of at least 0",
        )?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        check(
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty.is_finite() && repetition_penalty > 0.0,
            "a finite number above 0",
        )?;
        for (key, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check(key, value, (-2.0..=2.0).contains(&value), "from -2 to 2")?;
        }

        let mut next = 0;
        for &(token, value) in &self.bias {
            if token >= vocabulary {
                return Err(InvalidSampling::UnknownBiasToken { token, vocabulary });
            }
            if token < next {
                return Err(InvalidSampling::BiasOutOfOrder { token });
            }
            if !(-100.0..=100.0).contains(&value) {
                return Err(InvalidSampling::BiasOutOfRange { token, value });
            }
            next = token + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut Sampling)) -> String {
        let mut sampling = Sampling::GREEDY;
        change(&mut sampling);
        sampling.validate(100).expect_err("it is out of range").to_string()
    }

    #[test]
    fn takes_everything_that_is_allowed() {
        let edges = Sampling {
            temperature: f32::MAX,
            top_k: u32::MAX,
            top_p: f32::MIN_POSITIVE,
            min_p: 1.0,
            repetition_penalty: f32::MIN_POSITIVE,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            bias: vec![(0, -100.0), (99, 100.0)],
            seed: u64::MAX,
        };
        assert_eq!(Sampling::GREEDY.validate(1), Ok(()));
        assert_eq!(edges.validate(100), Ok(()));
    }

    #[test]
    fn names_key_value_and_range() {
        assert_eq!(
            message(|s| s.temperature = f32::NAN),
            "temperature is NaN: it must be a finite number of at least 0"
        );
        assert_eq!(
            message(|s| s.temperature = -0.5),
            "temperature is -0.5: it must be a finite number of at least 0"
        );
        assert!(message(|s| s.temperature = f32::INFINITY).starts_with("temperature is inf"));
        assert_eq!(message(|s| s.top_p = 0.0), "top_p is 0: it must be above 0 and at most 1");
        assert!(message(|s| s.top_p = 1.5).starts_with("top_p is 1.5"));
        assert_eq!(message(|s| s.min_p = -0.1), "min_p is -0.1: it must be from 0 to 1");
        assert_eq!(
            message(|s| s.repetition_penalty = 0.0),
            "repetition_penalty is 0: it must be a finite number above 0"
        );
        assert!(message(|s| s.repetition_penalty = f32::INFINITY).contains("inf"));
        assert_eq!(
            message(|s| s.presence_penalty = 2.5),
            "presence_penalty is 2.5: it must be from -2 to 2"
        );
        assert!(
            message(|s| s.frequency_penalty = f32::NAN).starts_with("frequency_penalty is NaN")
        );
        assert_eq!(
            message(|s| s.bias = vec![(100, 0.0)]),
            "logit_bias names token 100: token ids must be below 100"
        );
        assert_eq!(
            message(|s| s.bias = vec![(7, -100.5)]),
            "logit_bias of token 7 is -100.5: it must be a number from -100 to 100"
        );
        assert!(message(|s| s.bias = vec![(7, f32::NAN)]).contains("token 7 is NaN"));
        assert!(message(|s| s.bias = vec![(7, 0.0), (7, 0.0)]).contains("token 7 twice"));
        assert!(message(|s| s.bias = vec![(7, 0.0), (3, 0.0)]).contains("token 3 twice"));
    }
}
