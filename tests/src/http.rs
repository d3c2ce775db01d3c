//! The least of an HTTP/1.1 client: one request on one connection, every byte under the test's control.
//!
//! Shares nothing with the product's client. Must never hide what the other side sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longer than any answer should take; a hung agent fails the test, it does not hang it.
const PATIENCE: Duration = Duration::from_secs(90);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, as sent.
    pub head: String,
    /// The body, unchunked.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).with_context(|| format!("no JSON under {}: {text}", self.head))
    }

    /// The message of an error in OpenAI's shape.
    ///
    /// # Errors
    /// When the body is not of that shape.
    pub fn message(&self) -> Result<String> {
        let body = self.json()?;
        let error = &body["error"];
        ensure!(error["type"].is_string(), "no error type in {body}");
        Ok(error["message"].as_str().with_context(|| format!("no message in {body}"))?.to_owned())
    }
}

/// A request as it should be: `Host`, `Content-Length`, and whatever else is given.
pub fn request(method: &str, path: &str, to: SocketAddr, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("host: {to}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends these bytes and reads the answer.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn send(to: SocketAddr, bytes: &[u8]) -> Result<Answer> {
    let mut stream = open(to, bytes)?;
    let mut body = Vec::new();
    stream.read_to_end(&mut body).context("the answer broke off")?;
    Ok(Answer { status: stream.status, head: stream.head, body })
}

/// Sends these bytes and returns the body while it comes.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn open(to: SocketAddr, bytes: &[u8]) -> Result<Body> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("nobody listens at {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A server may refuse and close before it has read everything: then its answer counts, not our write.
    let written = stream.write_all(bytes);
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let before = head.len();
        let read = reader.read_line(&mut head).with_context(|| format!("no answer (sent: {written:?})"))?;
        if read == 0 {
            bail!("the connection ended inside the head `{head}` (sent: {written:?})");
        }
        if head.get(before..) == Some("\r\n") {
            break;
        }
    }
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status in `{head}`"))?;
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let chunked = lower.contains("transfer-encoding: chunked");
    let left = if chunked { 0 } else { length.unwrap_or(u64::MAX) };
    Ok(Body { status, head, reader, chunked, left })
}

/// A body while it comes.
#[derive(Debug)]
pub struct Body {
    /// The status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    reader: BufReader<TcpStream>,
    chunked: bool,
    left: u64,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && self.chunked {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                line.clear();
                self.reader.read_line(&mut line)?;
            }
            let size = u64::from_str_radix(line.trim(), 16);
            self.left = size.map_err(|_| std::io::Error::other(format!("bad chunk size `{line}`")))?;
            self.chunked = self.left > 0;
        }
        let count = (&mut self.reader).take(self.left).read(into)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}
