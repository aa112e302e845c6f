//! Values as clients send them, and what they can be read as.
//!
//! Clients are loose with types: benchmarks send `"max_tokens": "100"`, JSON has one kind of number,
//! and request parameters have four. Reading is generous where the meaning is certain (`"100"`, `4.0`)
//! and names the key, the value and the allowed range where it is not.

use std::fmt;

use serde_json::Value as Json;

use crate::error::RequestError;

/// A typed scalar: a tensor's element or a request parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Whole number.
    Int(i64),
    /// Number.
    Double(f64),
    /// Truth value.
    Bool(bool),
    /// Text; also for numbers that come as text.
    String(String),
}

/// Any value that a key can be given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    Null,
    Bool(bool),
    Int(i128),
    Double(f64),
    String(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl From<Value> for Given {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(n) => Self::Int(n.into()),
            Value::Double(x) => Self::Double(x),
            Value::Bool(b) => Self::Bool(b),
            Value::String(s) => Self::String(s),
        }
    }
}

impl From<Json> for Given {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(b),
            Json::Number(n) => match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => Self::Int(n.into()),
                (_, Some(n)) => Self::Int(n.into()),
                _ => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Self::String(s),
            Json::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            Json::Object(map) => {
                Self::Object(map.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Double(x) => write!(f, "{x}"),
            Self::String(s) => write!(f, "{s:?}"),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Object(pairs) => {
                f.write_str("{")?;
                for (i, (key, value)) in pairs.iter().enumerate() {
                    write!(f, "{}{key:?}: {value}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

/// Most characters of a client's own text in an error message.
const MOST: usize = 80;

/// A client's text for error messages: at most 80 characters.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Given {
    /// For error messages: at most 80 characters.
    pub(crate) fn shortened(&self) -> String {
        // A value of megabytes is cut before it is formatted where that is easy.
        let text = match self {
            Self::String(s) => format!("{:?}", s.chars().take(MOST + 1).collect::<String>()),
            Self::List(list) if list.len() > MOST => Self::List(list[..MOST].to_vec()).to_string(),
            other => other.to_string(),
        };
        shortened(&text)
    }

    pub(crate) fn bad(&self, key: &str, allowed: impl Into<String>) -> RequestError {
        RequestError::BadValue { key: key.into(), value: self.shortened(), allowed: allowed.into() }
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<bool, RequestError> {
        match self {
            Self::Bool(b) => Ok(*b),
            Self::Int(0) => Ok(false),
            Self::Int(1) => Ok(true),
            Self::String(s) if s.eq_ignore_ascii_case("true") => Ok(true),
            Self::String(s) if s.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(self.bad(key, "true or false")),
        }
    }

    /// A whole number in `low ..= high`, from a number or its text.
    pub(crate) fn integer(
        &self,
        key: &str,
        low: i128,
        high: i128,
        allowed: &str,
    ) -> Result<i128, RequestError> {
        let whole = |x: f64| (x.fract() == 0.0).then_some(x as i128);
        let number = match self {
            Self::Int(n) => Some(*n),
            Self::Double(x) => whole(*x),
            Self::String(s) => {
                let s = s.trim();
                s.parse().ok().or_else(|| s.parse().ok().and_then(whole))
            }
            _ => None,
        };
        number.filter(|n| (low..=high).contains(n)).ok_or_else(|| self.bad(key, allowed))
    }

    /// A number that `fits`, from a number or its text. NaN never fits a comparison; infinities are
    /// for `fits` to judge.
    pub(crate) fn float(
        &self,
        key: &str,
        fits: impl Fn(f32) -> bool,
        allowed: &str,
    ) -> Result<f32, RequestError> {
        let number = match self {
            Self::Int(n) => Some(*n as f32),
            Self::Double(x) => Some(*x as f32),
            Self::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        number.filter(|x| fits(*x)).ok_or_else(|| self.bad(key, allowed))
    }

    pub(crate) fn text(&self, key: &str, allowed: &str) -> Result<&str, RequestError> {
        match self {
            Self::String(s) => Ok(s),
            _ => Err(self.bad(key, allowed)),
        }
    }

    /// One text, or a list of texts.
    pub(crate) fn texts(&self, key: &str, allowed: &str) -> Result<Vec<String>, RequestError> {
        match self {
            Self::String(s) => Ok(vec![s.clone()]),
            Self::List(list) => list
                .iter()
                .map(|item| match item {
                    Self::String(s) => Ok(s.clone()),
                    _ => Err(self.bad(key, allowed)),
                })
                .collect(),
            _ => Err(self.bad(key, allowed)),
        }
    }

    /// A list or object that came as text: request parameters know scalars only.
    pub(crate) fn unfolded(self) -> Self {
        match &self {
            Self::String(s) if s.trim_start().starts_with(['[', '{']) => {
                serde_json::from_str::<Json>(s).map_or(self, Self::from)
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_come_as_text_and_as_whole_doubles() {
        let four = [Given::Int(4), Given::Double(4.0), Given::String(" 4 ".into())];
        for given in four.iter().chain([&Given::String("4.0".into())]) {
            assert_eq!(given.integer("k", 0, 10, "x"), Ok(4));
            assert_eq!(given.float("k", |x| x > 0.0, "x"), Ok(4.0));
        }
        let odd = [Given::Double(4.5), Given::Bool(true), Given::Null, Given::Double(f64::NAN)];
        for given in odd.iter().chain([&Given::String("four".into()), &Given::Double(1e300)]) {
            assert!(given.integer("k", 0, 10, "x").is_err(), "{given}");
        }
        assert!(Given::String("NaN".into()).float("k", |x| x >= 0.0, "x").is_err());
        assert!(Given::Double(1e300).float("k", f32::is_finite, "x").is_err());
    }

    #[test]
    fn errors_shorten_what_they_quote() {
        let error = Given::String("y".repeat(10 << 20)).bad("stop", "less").to_string();
        assert!(error.len() < 200 && error.contains('…'), "{error}");
        let list = Given::List(vec![Given::Int(123_456); 1 << 20]);
        assert!(list.bad("stop", "less").to_string().len() < 200);
    }

    #[test]
    fn large_seeds_survive_json() {
        let json: Json = serde_json::from_str("18446744073709551615").unwrap();
        assert_eq!(Given::from(json), Given::Int(u64::MAX.into()));
    }
}
