//! Chat templates: Jinja programs that turn messages into a prompt.
//!
//! They come with the model and are programs of strangers, so they run with a bound on steps,
//! recursion and output. Built-in functions follow what the Python library offers to templates.

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::Formatter;

/// Instructions that one rendering may take; a long chat takes some ten thousand.
const FUEL: u64 = 10_000_000;
/// Nesting of blocks and macros.
const RECURSION: usize = 100;
/// Longest prompt that a template may make, in bytes.
const MAX_OUTPUT: usize = 1 << 26;
/// Longest template, in bytes.
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks, as the template knows it: usually `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    fn to_value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template. The tokens are their texts, empty if the model has none.
    ///
    /// # Errors
    ///
    /// A syntax error, with its line, or a template of more than a megabyte.
    pub fn new(
        source: String,
        bos_token: String,
        eos_token: String,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLong { bytes: source.len() });
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        // As the Python library sets them, and so as templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self { environment, source, bos_token, eos_token })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of the begin-of-sequence token that it is rendered with; empty if there is none.
    pub fn bos_token(&self) -> &str {
        &self.bos_token
    }

    /// The text of the end-of-sequence token that it is rendered with; empty if there is none.
    pub fn eos_token(&self) -> &str {
        &self.eos_token
    }

    /// Renders a conversation. With `add_generation_prompt` the result ends where the assistant's
    /// answer begins.
    ///
    /// The result holds special tokens as text: tokenize it without adding any.
    ///
    /// # Errors
    ///
    /// What the template raises (an unexpected role, say), or that it exceeded its bounds.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let failed = |error: Error| TemplateError::Render(describe(&error));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let context = context! {
            messages => messages.iter().map(Message::to_value).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        let mut output = Bounded { bytes: Vec::new() };
        template.render_captured_to(context, &mut output).map_err(failed)?;
        // Only strings are ever written.
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Render(error.to_string()))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a chat template failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is no chat template at all.
    #[error("the chat template has {bytes} bytes; at most {MAX_SOURCE} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It does not compile.
    #[error("the chat template does not compile: {0}")]
    Syntax(String),
    /// It raised an error or exceeded its bounds.
    #[error("the chat template failed: {0}")]
    Render(String),
}

/// The message of an error and of what caused it.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Output that refuses to grow without end.
struct Bounded {
    bytes: Vec<u8>,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("output exceeds {MAX_OUTPUT} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// JSON in Python's spacing, with characters as they are: what models saw in training. MiniJinja's
/// own filter is compact and escapes HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted as Python does; neither can change the result.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "cannot write as JSON").with_source(error)
    };
    let mut out = Vec::new();
    match indent {
        None => {
            let mut json = serde_json::Serializer::with_formatter(&mut out, PythonSpacing);
            value.serialize(&mut json).map_err(failed)?;
        }
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut json = serde_json::Serializer::with_formatter(&mut out, pretty);
            value.serialize(&mut json).map_err(failed)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// A space after each comma and colon.
struct PythonSpacing;

impl Formatter for PythonSpacing {
    fn begin_array_value<W: Write + ?Sized>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned()).unwrap()
    }

    fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect()
    }

    #[test]
    fn messages_and_generation_prompt() {
        let template = template(
            "{{ bos_token }}{% for m in messages %}\n\
             [{{ m['role'] }}] {{ m.content }}{{ eos_token }}\n\
             {% endfor %}\n\
             {% if add_generation_prompt %}[assistant] {% endif %}",
        );
        let messages = chat(&[("user", "hi <b>"), ("assistant", "yes")]);
        // Line ends after blocks are dropped; no HTML is escaped.
        let expected = "<s>[user] hi <b></s>\n[assistant] yes</s>\n";
        assert_eq!(template.render(&messages, false).unwrap(), expected);
        assert_eq!(template.render(&messages, true).unwrap(), format!("{expected}[assistant] "));
    }

    #[test]
    fn python_idioms_of_real_templates() {
        let template = template(
            "{%- set ns = namespace(last=-1) -%}\
             {%- for message in messages[::-1] -%}\
             {%- set index = (messages|length - 1) - loop.index0 -%}\
             {%- if ns.last < 0 and message.role == 'user' and message.content is string -%}\
             {%- set ns.last = index -%}\
             {%- endif -%}\
             {%- endfor -%}\
             {{ ns.last }}|{{ messages[0].content.strip().split(' ')[-1].upper() }}|\
             {{ messages[0].content.startswith(' a') }}|\
             {{ tools is defined and tools }}|{{ messages[1:]|map(attribute='role')|join(',') }}|\
             {{ messages[0]|tojson }}",
        );
        let messages = chat(&[("user", " a ñ \"q\" "), ("assistant", "x"), ("user", "y")]);
        assert_eq!(
            template.render(&messages, false).unwrap(),
            "2|\"Q\"|True|False|assistant,user|{\"role\": \"user\", \"content\": \" a ñ \\\"q\\\" \"}"
        );
    }

    #[test]
    fn json_can_be_indented() {
        let template = template("{{ [1, 'a']|tojson(indent=2) }}");
        assert_eq!(template.render(&[], false).unwrap(), "[\n  1,\n  \"a\"\n]");
    }

    #[test]
    fn exceptions_reach_the_caller() {
        let template =
            template("{% if not messages %}{{ raise_exception('need a message') }}{% endif %}ok");
        let error = template.render(&[], false).unwrap_err().to_string();
        assert!(error.contains("need a message"), "{error}");
        assert_eq!(template.render(&chat(&[("user", "x")]), false).unwrap(), "ok");
    }

    #[test]
    fn the_date_is_formatted() {
        let year = template("{{ strftime_now('%Y') }}").render(&[], false).unwrap();
        assert!(year.len() == 4 && year.parse::<u16>().unwrap() >= 2024, "{year}");
        let error = template("{{ strftime_now('%!') }}").render(&[], false).unwrap_err();
        assert!(error.to_string().contains("strftime_now"), "{error}");
    }

    #[test]
    fn faults_are_named() {
        let make = |source: String| ChatTemplate::new(source, String::new(), String::new());
        let error = make("a\n{% if x %}".to_owned()).unwrap_err();
        assert!(matches!(&error, TemplateError::Syntax(_)), "{error}");
        assert!(error.to_string().contains('2'), "no line in {error}");
        let error = make(" ".repeat(MAX_SOURCE + 1)).unwrap_err();
        assert_eq!(error, TemplateError::TooLong { bytes: MAX_SOURCE + 1 });
    }

    #[test]
    fn hostile_templates_end() {
        let nested = "{% for a in range(99999) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
        for source in [
            nested.as_str(),
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% set x = 'a' * 1000000 %}{% for a in range(99999) %}{{ x }}{% endfor %}",
        ] {
            let result = template(source).render(&[], false);
            assert!(matches!(result, Err(TemplateError::Render(_))), "{source}: {result:?}");
        }
    }
}
