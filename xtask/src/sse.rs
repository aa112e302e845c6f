//! Server-sent events, as `/generate_stream` sends them.
//!
//! Lines are cut out of the byte stream before they are read as text, so that it does not matter how the network cut the
//! stream: in the middle of a line or of a character.

use std::io::{self, BufRead};

/// The data of each event of a stream.
#[derive(Debug)]
pub(crate) struct Events<R> {
    lines: R,
}

impl<R: BufRead> Events<R> {
    pub(crate) fn new(lines: R) -> Self {
        Self { lines }
    }
}

impl<R: BufRead> Iterator for Events<R> {
    /// An error for a stream that breaks off or is not UTF-8.
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut data: Option<String> = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            match self.lines.read_until(b'\n', &mut line) {
                Err(error) => return Some(Err(error)),
                // The standard drops an event that its empty line does not close; a server that forgets the last
                // empty line has still sent the event.
                Ok(0) => return data.map(Ok),
                Ok(_) => {}
            }
            let text = match str::from_utf8(&line) {
                Ok(text) => text.trim_end_matches(['\n', '\r']),
                Err(error) => return Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            };
            if text.is_empty() {
                match data.take() {
                    Some(data) => return Some(Ok(data)),
                    None => continue,
                }
            }
            // Other fields (event, id, retry) and comments mean nothing to us.
            let Some(value) = text.strip_prefix("data:") else { continue };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => data = Some(value.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    /// Gives at most `size` bytes at a time.
    struct Chunks<'a> {
        rest: &'a [u8],
        size: usize,
    }

    impl Read for Chunks<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.size.min(self.rest.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.rest[..count]);
            self.rest = &self.rest[count..];
            Ok(count)
        }
    }

    fn events(stream: &[u8], size: usize) -> Vec<String> {
        let chunks = BufReader::new(Chunks { rest: stream, size });
        Events::new(chunks).collect::<io::Result<_>>().unwrap()
    }

    #[test]
    fn events_do_not_depend_on_how_the_stream_is_cut() {
        let stream = "data: {\"text\":\"né€😀\"}\n\ndata: two\n\n".as_bytes();
        for size in 1..=stream.len() {
            assert_eq!(events(stream, size), ["{\"text\":\"né€😀\"}", "two"], "chunks of {size}");
        }
    }

    #[test]
    fn lines_of_one_event_are_joined_and_other_fields_ignored() {
        let stream =
            b": hello\r\nevent: token\r\ndata: one\r\ndata:two\r\nid: 1\r\n\r\n\r\ndata:  x\n\n";
        assert_eq!(events(stream, 7), ["one\ntwo", " x"]);
    }

    #[test]
    fn a_last_event_without_its_empty_line_still_counts() {
        assert_eq!(events(b"data: one\n\ndata: two", 3), ["one", "two"]);
        assert!(events(b"", 1).is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error() {
        let error = Events::new(&b"data: \xff\n\n"[..]).next().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
