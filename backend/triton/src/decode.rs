//! From a Triton request to a prompt and its parameters.
//!
//! Three sources, each overriding those before it: request parameters, `sampling_parameters`, tensors.
//! Unknown request parameters are ignored, since front ends add their own (`id`); inputs that are not
//! of the interface cannot come from a client, they are control tensors of a batcher.

use rewind_serving::{Parameters, Prompt, Value};

use crate::ffi::{Code, DataType, Error, Input, ParameterValue, Request};

/// A decoded request.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// What to continue.
    pub(crate) prompt: Prompt,
    /// How.
    pub(crate) parameters: Parameters,
    /// Outputs that the client wants, by name.
    pub(crate) outputs: Vec<String>,
}

/// Decodes a request. `batched`: tensors have a batch dimension.
///
/// # Errors
/// The first input or parameter that is wrong, by name.
pub(crate) fn decode(request: &Request, batched: bool) -> Result<Decoded, Error> {
    let (prompt, parameters) = combine(&request.parameters()?, &request.inputs()?, batched)?;
    let outputs = request.outputs()?.into_iter().map(str::to_owned).collect();
    Ok(Decoded { prompt, parameters, outputs })
}

/// Makes Triton's error of one about a request.
pub(crate) fn request_error(error: rewind_serving::RequestError) -> Error {
    use rewind_serving::ErrorKind;
    let code = match error.kind() {
        ErrorKind::InvalidArgument => Code::InvalidArg,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unsupported,
        ErrorKind::Internal => Code::Internal,
    };
    Error::new(code, error.to_string())
}

fn combine(
    given: &[(&str, ParameterValue<'_>)],
    inputs: &[Input<'_>],
    batched: bool,
) -> Result<(Prompt, Parameters), Error> {
    let mut parameters = Parameters::default();
    let (mut text, mut tokens) = (None, None);
    let mut json = None;

    for (key, value) in given {
        match (*key, value) {
            ("text_input", ParameterValue::Text(bytes)) => {
                text = Some(utf8(key, bytes)?.to_owned());
            }
            ("sampling_parameters", ParameterValue::Text(bytes)) => {
                json = Some(utf8(key, bytes)?.to_owned());
            }
            (_, ParameterValue::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(value) => set(&mut parameters, key, Value::String(value.to_owned()))?,
                // Only a key that is ours may complain.
                Err(_) if is_ours(key) => {
                    utf8(key, bytes)?;
                }
                Err(_) => {}
            },
            (_, ParameterValue::Int(number)) => set(&mut parameters, key, Value::Int(*number))?,
            (_, ParameterValue::Bool(flag)) => set(&mut parameters, key, Value::Bool(*flag))?,
            (_, ParameterValue::Double(number)) => {
                set(&mut parameters, key, Value::Double(*number))?;
            }
            (_, ParameterValue::Other) => {}
        }
    }

    // Looked up first, since every other tensor overrides it.
    if let Some(input) = inputs.iter().find(|input| input.name == "sampling_parameters") {
        json = Some(one_text(input, batched)?);
    }
    if let Some(json) = json {
        parameters.merge_json(&json).map_err(request_error)?;
    }

    for input in inputs {
        match input.name {
            "sampling_parameters" => {}
            "text_input" => text = Some(one_text(input, batched)?),
            "input_ids" => tokens = Some(integers(input, batched)?),
            "stop_words" => {
                parameters.set_list(input.name, texts(input, batched)?).map_err(request_error)?;
            }
            "max_tokens" => {
                let value = one(input, integers(input, batched)?)?;
                set(&mut parameters, input.name, Value::Int(value.into()))?;
            }
            "stream"
            | "exclude_input_in_output"
            | "return_finish_reason"
            | "return_logprobs"
            | "return_num_input_tokens"
            | "return_num_output_tokens"
            | "return_rewind" => {
                let value = one(input, flags(input, batched)?)?;
                set(&mut parameters, input.name, Value::Bool(value))?;
            }
            _ => {}
        }
    }

    let prompt = match (text, tokens) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(tokens)) => Prompt::Tokens(tokens),
        (None, None) => {
            return Err(Error::invalid("the request has no prompt: give text_input or input_ids"));
        }
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "the request has two prompts: give text_input or input_ids",
            ));
        }
    };
    Ok((prompt, parameters))
}

fn set(parameters: &mut Parameters, key: &str, value: Value) -> Result<(), Error> {
    parameters.set(key, value).map(drop).map_err(request_error)
}

/// Whether a key means something to us, whatever its value.
fn is_ours(key: &str) -> bool {
    // An error means that it knew the key well enough to dislike the value.
    Parameters::default().set(key, Value::String(String::new())).unwrap_or(true)
}

fn one_text(input: &Input<'_>, batched: bool) -> Result<String, Error> {
    one(input, texts(input, batched)?)
}

fn one<T>(input: &Input<'_>, values: Vec<T>) -> Result<T, Error> {
    let count = values.len();
    let mut values = values.into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        _ => {
            Err(Error::invalid(format!("input '{}' has {count} elements: expected 1", input.name)))
        }
    }
}

fn flags(input: &Input<'_>, batched: bool) -> Result<Vec<bool>, Error> {
    let bytes = content::<1>(input, DataType::Bool, batched)?;
    Ok(bytes.into_iter().map(|[byte]| byte != 0).collect())
}

fn integers(input: &Input<'_>, batched: bool) -> Result<Vec<i32>, Error> {
    let bytes = content::<4>(input, DataType::Int32, batched)?;
    Ok(bytes.into_iter().map(i32::from_le_bytes).collect())
}

/// Elements of `SIZE` bytes each.
fn content<const SIZE: usize>(
    input: &Input<'_>,
    datatype: DataType,
    batched: bool,
) -> Result<Vec<[u8; SIZE]>, Error> {
    let count = expect(input, datatype, batched)?;
    let bytes = input.bytes();
    let (elements, rest) = bytes.as_chunks::<SIZE>();
    if elements.len() as u64 != count || !rest.is_empty() {
        return Err(Error::invalid(format!(
            "input '{}' has {} bytes: its shape {:?} needs {}",
            input.name,
            bytes.len(),
            input.shape,
            count.saturating_mul(SIZE as u64)
        )));
    }
    Ok(elements.to_vec())
}

/// Elements of a BYTES tensor: each a length of four bytes, then that many bytes.
fn texts(input: &Input<'_>, batched: bool) -> Result<Vec<String>, Error> {
    let count = expect(input, DataType::Bytes, batched)?;
    let bytes = input.bytes();
    let mut rest = bytes.as_ref();
    let mut texts = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((text, tail)) = tail.split_at_checked(length) else {
            return Err(Error::invalid(format!(
                "element {} of input '{}' says it has {length} bytes, and {} are left",
                texts.len(),
                input.name,
                tail.len()
            )));
        };
        texts.push(utf8(input.name, text)?.to_owned());
        rest = tail;
    }
    if !rest.is_empty() || texts.len() as u64 != count {
        return Err(Error::invalid(format!(
            "input '{}' holds {} strings and {} bytes more: its shape {:?} means {count} strings",
            input.name,
            texts.len(),
            rest.len(),
            input.shape
        )));
    }
    Ok(texts)
}

/// Checks type and shape, and tells the number of elements.
fn expect(input: &Input<'_>, datatype: DataType, batched: bool) -> Result<u64, Error> {
    if input.datatype != datatype {
        return Err(Error::invalid(format!(
            "input '{}' is {}: expected {datatype}",
            input.name, input.datatype
        )));
    }
    match (batched, input.shape) {
        (false, [count]) | (true, [1, count]) if *count >= 0 => Ok(*count as u64),
        _ => Err(Error::invalid(format!(
            "input '{}' has shape {:?}: expected {}",
            input.name,
            input.shape,
            if batched { "[1, n]" } else { "[n]" }
        ))),
    }
}

fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|error| {
        Error::invalid(format!(
            "'{name}' is not UTF-8: byte {} starts no character",
            error.valid_up_to()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::stand_in::{Given, Server};

    fn bytes_of(texts: &[&[u8]]) -> Vec<u8> {
        texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), *text].concat()).collect()
    }

    fn input<'a>(
        name: &'a str,
        datatype: DataType,
        shape: &'a [i64],
        pieces: &[&'a [u8]],
    ) -> Input<'a> {
        Input { name, datatype, shape, pieces: pieces.to_vec() }
    }

    fn refused(given: &[(&str, ParameterValue<'_>)], inputs: &[Input<'_>]) -> String {
        let error = combine(given, inputs, false).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArg);
        error.to_string()
    }

    #[test]
    fn reads_tensors_in_pieces() {
        let text = bytes_of(&["Größe".as_bytes()]);
        let (head, tail) = text.split_at(3);
        let stream = [1_u8];
        let (prompt, parameters) = combine(
            &[],
            &[
                input("text_input", DataType::Bytes, &[1], &[head, tail]),
                input("stream", DataType::Bool, &[1], &[&stream]),
            ],
            false,
        )
        .unwrap();
        assert_eq!(prompt, Prompt::Text("Größe".into()));
        assert!(parameters.stream);
    }

    #[test]
    fn reads_batched_tensors() {
        let ids: Vec<u8> = [1_i32, -1, 65_536].iter().flat_map(|id| id.to_le_bytes()).collect();
        let inputs = [input("input_ids", DataType::Int32, &[1, 3], &[&ids])];
        let (prompt, _) = combine(&[], &inputs, true).unwrap();
        assert_eq!(prompt, Prompt::Tokens(vec![1, -1, 65_536]));
        assert!(refused(&[], &inputs).contains("shape [1, 3]: expected [n]"));
    }

    #[test]
    fn later_sources_win() {
        let text = bytes_of(&[b"x"]);
        let json = bytes_of(&[br#"{"max_tokens": 7, "temperature": 0}"#]);
        let seven = 8_i32.to_le_bytes();
        let given = [("max_tokens", ParameterValue::Int(6)), ("id", ParameterValue::Text(b"\xff"))];
        let text = input("text_input", DataType::Bytes, &[1], &[&text]);
        let json = input("sampling_parameters", DataType::Bytes, &[1], &[&json]);
        let tensor = input("max_tokens", DataType::Int32, &[1], &[&seven]);
        let of = |inputs: &[Input<'_>]| combine(&given, inputs, false).unwrap().1;
        let parameters = |json: &str| {
            let mut parameters = Parameters::default();
            parameters.merge_json(json).unwrap();
            parameters
        };
        assert_eq!(of(std::slice::from_ref(&text)), parameters(r#"{"max_tokens": 6}"#));
        assert_eq!(
            of(&[json.clone(), text.clone()]),
            parameters(r#"{"max_tokens": 7, "temperature": 0}"#)
        );
        assert_eq!(of(&[tensor, json, text]), parameters(r#"{"max_tokens": 8, "temperature": 0}"#));
    }

    #[test]
    fn bad_input_is_named() {
        let good = bytes_of(&[b"x"]);
        let text = input("text_input", DataType::Bytes, &[1], &[&good]);
        assert!(refused(&[], &[]).contains("no prompt"));
        let ids = [0_u8; 4];
        let ids = input("input_ids", DataType::Int32, &[1], &[&ids]);
        assert!(refused(&[], &[text.clone(), ids]).contains("two prompts"));

        let latin = bytes_of(&[b"a\xe4"]);
        let wrong = input("text_input", DataType::Bytes, &[1], &[&latin]);
        assert!(refused(&[], &[wrong]).contains("'text_input' is not UTF-8: byte 1"));
        assert!(
            refused(&[("temperature", ParameterValue::Text(b"\xff"))], std::slice::from_ref(&text))
                .contains("'temperature' is not UTF-8")
        );

        let long = [200, 0, 0, 0, b'x'];
        let wrong = input("text_input", DataType::Bytes, &[1], &[&long]);
        assert!(refused(&[], &[wrong]).contains("says it has 200 bytes, and 1 are left"));
        let wrong = input("text_input", DataType::Bytes, &[2], &[&good]);
        assert!(refused(&[], &[wrong]).contains("shape [2] means 2 strings"));
        let two = bytes_of(&[b"x", b"y"]);
        let wrong = input("text_input", DataType::Bytes, &[2], &[&two]);
        assert!(refused(&[], &[wrong]).contains("has 2 elements: expected 1"));
        let wrong = input("text_input", DataType::Int32, &[1], &[&good]);
        assert!(refused(&[], &[wrong]).contains("is INT32: expected BYTES"));
        let wrong = input("max_tokens", DataType::Int32, &[1], &[&good[..3]]);
        assert!(
            refused(&[], &[text.clone(), wrong]).contains("has 3 bytes: its shape [1] needs 4")
        );
        let wrong = input("max_tokens", DataType::Int32, &[i64::MAX], &[&good]);
        assert!(refused(&[], &[text, wrong]).contains("'max_tokens'"));
    }

    #[test]
    fn reads_a_whole_request() {
        let text = bytes_of(&["Größe".as_bytes()]);
        let (head, tail) = text.split_at(5);
        let server = Server::new();
        let request = server.request(Given {
            parameters: &[
                ("max_tokens", ParameterValue::Text(b"6")),
                ("temperature", ParameterValue::Double(0.5)),
                ("top_k", ParameterValue::Int(3)),
                ("return_rewind", ParameterValue::Bool(true)),
                ("id", ParameterValue::Text(b"\xff")),
            ],
            inputs: &[
                input("text_input", DataType::Bytes, &[1, 1], &[head, tail]),
                input("START", DataType::Other(99), &[1], &[]),
            ],
            outputs: &["text_output", "entropy"],
            ..Given::default()
        });
        let decoded = decode(&request, true).unwrap();
        assert_eq!(decoded.prompt, Prompt::Text("Größe".into()));
        assert_eq!(decoded.outputs, ["text_output", "entropy"]);
        let mut expected = Parameters::default();
        expected.merge_json(r#"{"max_tokens": 6, "temperature": 0.5, "top_k": 3}"#).unwrap();
        expected.return_rewind = true;
        assert_eq!(decoded.parameters, expected);
    }

    #[test]
    fn errors_say_whose_fault_it_is() {
        use rewind_engine::Refusal;
        use rewind_serving::RequestError;
        let code = |error: RequestError| request_error(error).code();
        assert_eq!(code(RequestError::EmptyPrompt), Code::InvalidArg);
        assert_eq!(code(RequestError::EngineDead("x".into())), Code::Unavailable);
        assert_eq!(code(RequestError::ShuttingDown), Code::Unavailable);
        let full = Refusal::QueueFull { waiting: 1, limit: 1 };
        assert_eq!(code(full.into()), Code::Unavailable);
        let unsupported =
            RequestError::Unsupported { key: "n".into(), value: "2".into(), default: "1" };
        assert_eq!(code(unsupported), Code::Unsupported);
    }
}
