//! A request to `/generate_stream`, its events handed over as they arrive.

use std::io::{self, BufReader};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::answer::Event;
use crate::interrupt;
use crate::server::{self, Server};
use crate::sse::Events;

/// What is asked of the model.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    /// The user's words; the model's chat template is put around them.
    pub(crate) text: String,
    /// Length limit of the answer.
    pub(crate) max_tokens: u32,
    /// Another policy than the model's own.
    pub(crate) policy: Option<String>,
}

impl Prompt {
    /// The request's JSON: greedy, with what happened to each token.
    pub(crate) fn request(&self) -> Value {
        let mut request = json!({
            "text_input": self.text,
            "stream": true,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "chat": true,
            "return_rewind": true,
        });
        if let Some(policy) = &self.policy {
            request["policy"] = json!(policy);
        }
        request
    }
}

/// Streams the answer of `model` and shows `each` event with the time of its arrival.
///
/// The stream is read on a thread of its own, so that Ctrl-C and the death of the server are noticed while nothing
/// arrives. Leaving early drops the connection, which cancels the request.
pub(crate) fn stream(
    server: &mut Server,
    model: &str,
    prompt: &Prompt,
    mut each: impl FnMut(&Event, Instant) -> Result<()>,
) -> Result<()> {
    let url = server.url(&format!("/v2/models/{model}/generate_stream"));
    let body = prompt.request().to_string();
    let (sender, arrivals) = mpsc::channel();
    thread::spawn(move || {
        let failed = |error: anyhow::Error| {
            // The receiver is gone only when nobody wants to know any more.
            let _ = sender.send((Err(error), Instant::now()));
        };
        let answer = server::agent(None)
            .post(&url)
            .header("Content-Type", "application/json")
            .send(&body)
            .with_context(|| format!("cannot ask {url}"));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return failed(error),
        };
        if !answer.status().is_success() {
            let status = answer.status();
            let text = answer.into_body().read_to_string().unwrap_or_default();
            return failed(anyhow::anyhow!("{url} answered {status}: {text}"));
        }
        for event in Events::new(BufReader::new(answer.into_body().into_reader())) {
            let event: Result<String, io::Error> = event;
            if sender.send((event.context("the stream broke off"), Instant::now())).is_err() {
                return;
            }
        }
    });

    loop {
        match arrivals.recv_timeout(Duration::from_millis(50)) {
            Ok((event, when)) => each(&Event::read(&event?)?, when)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        interrupt::check()?;
        if let Some(status) = server.exited()? {
            bail!("the server stopped ({status}).\n{}", server.last_words());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::server::Ports;

    fn prompt() -> Prompt {
        Prompt { text: "a \"b\"".into(), max_tokens: 5, policy: None }
    }

    #[test]
    fn a_policy_is_sent_only_when_asked_for() {
        let request = prompt().request();
        assert_eq!(request["text_input"], "a \"b\"");
        assert_eq!(request["max_tokens"], 5);
        assert!(request.get("policy").is_none());
        let request = Prompt { policy: Some("lossless".into()), ..prompt() }.request();
        assert_eq!(request["policy"], "lossless");
    }

    /// Streams from a listener of our own, which answers its one client by `answer`.
    fn streaming(
        answer: impl FnOnce(&mut TcpStream) + Send + 'static,
        each: impl FnMut(&Event, Instant) -> Result<()>,
    ) -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let http = listener.local_addr().unwrap().port();
        let listening = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = BufReader::new(client.try_clone().unwrap());
            // All of the request: a connection that is closed with something unread is reset, and the client may
            // lose what it was sent.
            let (mut line, mut body) = (String::new(), 0);
            while request.read_line(&mut line).unwrap() > 2 {
                if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
                    body = length.trim().parse().unwrap();
                }
                line.clear();
            }
            io::copy(&mut request.take(body), &mut io::sink()).unwrap();
            answer(&mut client);
        });
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports { http, ..Ports::free().unwrap() };
        let mut server = Server::pretend(folder.path(), "exec sleep 60", ports);
        let result = stream(&mut server, "smollm2", &prompt(), each);
        listening.join().unwrap();
        result
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";

    fn chunk(client: &mut TcpStream, data: &[u8]) {
        write!(client, "{:x}\r\n", data.len()).unwrap();
        client.write_all(data).unwrap();
        client.write_all(b"\r\n").unwrap();
    }

    #[test]
    fn an_event_is_handed_over_before_the_next_is_sent() {
        let (seen, wait) = mpsc::channel();
        let mut text = String::new();
        streaming(
            move |client| {
                client.write_all(HEAD.as_bytes()).unwrap();
                for piece in
                    ["data: {\"text_output\":\"né\"}\n\n", "data: {\"text_output\":\"€\"}\n\n"]
                {
                    // Cut in the middle of the character.
                    let cut = piece.len() - 5;
                    chunk(client, &piece.as_bytes()[..cut]);
                    chunk(client, &piece.as_bytes()[cut..]);
                    let () = wait.recv_timeout(Duration::from_secs(10)).unwrap();
                }
                client.write_all(b"0\r\n\r\n").unwrap();
            },
            |event, _| {
                text.push_str(&event.text());
                seen.send(()).context("nobody waits")
            },
        )
        .unwrap();
        assert_eq!(text, "né€");
    }

    #[test]
    fn an_error_status_is_reported_with_its_body() {
        let error = streaming(
            |client| {
                let body = r#"{"error":"max_tokens: -1"}"#;
                let head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: ";
                write!(client, "{head}{}\r\n\r\n{body}", body.len()).unwrap();
            },
            |_, _| Ok(()),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("400") && error.contains("max_tokens: -1"), "{error}");
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let error = streaming(
            |client| {
                client.write_all(HEAD.as_bytes()).unwrap();
                chunk(client, b"data: {}\n\n");
            },
            |_, _| Ok(()),
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("broke off"), "{error:#}");
    }
}
