//! From tokens to text as it is told: whole characters, nothing that may become a stop string, cut at the first.
//!
//! Told piece by piece or at once, the text is the same. Must never see a model: bytes of tokens only.

/// The text of one answer.
#[derive(Debug)]
pub(crate) struct Text {
    bytes: Vec<u8>,
    stops: Vec<Vec<u8>>,
    /// How much was told.
    told: usize,
    stopped: bool,
}

impl Text {
    /// An empty answer that ends before any of `stops`, none of which is empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().map(String::into_bytes).collect();
        Self { bytes: Vec::new(), stops, told: 0, stopped: false }
    }

    /// Adds a token's bytes; true if the answer ends here, before a stop string.
    pub(crate) fn push(&mut self, token: &[u8]) -> bool {
        if self.stopped {
            return true;
        }
        // A stop string may begin in an earlier token, but ends in this one.
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let from = (self.bytes.len() + 1).saturating_sub(longest);
        self.bytes.extend_from_slice(token);
        let cut = self.stops.iter().filter_map(|stop| find(&self.bytes[from..], stop)).min();
        if let Some(cut) = cut {
            self.bytes.truncate(from + cut);
            self.stopped = true;
        }
        self.stopped
    }

    /// Bytes so far, a stop string and what follows it cut off.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that were told.
    pub(crate) fn told(&self) -> usize {
        self.told
    }

    /// What can be told now and was not; with `all` the rest, broken characters replaced.
    pub(crate) fn fresh(&mut self, all: bool) -> String {
        let mut end = self.bytes.len();
        if !all && !self.stopped {
            end -= self.stops.iter().map(|stop| begun(&self.bytes, stop)).max().unwrap_or(0);
            end = self.told + whole_characters(self.bytes.get(self.told..end).unwrap_or_default());
        }
        let fresh = String::from_utf8_lossy(self.bytes.get(self.told..end).unwrap_or_default()).into_owned();
        self.told = self.told.max(end);
        fresh
    }
}

/// Bytes at the end of `text` that may be the beginning of `stop`.
fn begun(text: &[u8], stop: &[u8]) -> usize {
    (1..stop.len()).rev().find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// How many of these bytes can be told without cutting a character whose end may still come.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Err(error) = std::str::from_utf8(&bytes[whole..]) {
        whole += error.valid_up_to();
        // Bytes that no continuation makes a character are told at once, as what they are.
        let Some(wrong) = error.error_len() else { return whole };
        whole += wrong;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_byte_by_byte_or_at_once_the_text_is_the_same() {
        // Good characters, a broken one before a good one, one that never ends, and noise.
        let texts: [&[u8]; 4] =
            ["caf\u{e9} \u{20ac}".as_bytes(), b"\xe2\xe2\x82\xac", b"\xf0\x9f\x98", b"\xff\xe2\x82a\xc3\xa9"];
        for bytes in texts {
            let mut text = Text::new(vec!["zzz".into()]);
            let mut told = String::new();
            for byte in bytes {
                text.push(&[*byte]);
                told.push_str(&text.fresh(false));
            }
            told.push_str(&text.fresh(true));
            assert_eq!(told, String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_stop_string_is_never_told_wherever_tokens_cut_it() {
        for tokens in [&["one ST", "OP two"][..], &["one S", "T", "O", "P"], &["one STOP"], &["one SSTOP"]] {
            let mut text = Text::new(vec!["STOP".into(), "never".into()]);
            let mut told = String::new();
            let stopped = tokens.iter().any(|token| {
                let stopped = text.push(token.as_bytes());
                told.push_str(&text.fresh(false));
                stopped
            });
            told.push_str(&text.fresh(true));
            assert!(stopped);
            assert_eq!(told.trim_end_matches('S'), "one ");
        }
    }

    #[test]
    fn what_only_looks_like_a_stop_string_is_told() {
        let mut text = Text::new(vec!["STOP".into()]);
        assert!(!text.push(b"one STO"));
        assert_eq!(text.fresh(false), "one ");
        assert!(!text.push(b"RM"));
        assert_eq!(text.fresh(false), "STORM");
        assert!(!text.push(b" ST"));
        assert_eq!((text.fresh(false).as_str(), text.fresh(true).as_str()), (" ", "ST"));
    }
}
