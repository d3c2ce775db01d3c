//! Owns finding the tokens that stand for themselves in a text: control tokens and those that a model's author defined.
//! Must never look inside the text between them.

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'text> {
    /// Still to be encoded; never empty.
    Text(&'text str),
    /// A token that stood there.
    Token(u32),
}

/// A token to be found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Special {
    pub text: String,
    pub token: u32,
    /// Swallows the blanks before it.
    pub strip_left: bool,
    /// Swallows the blanks after it.
    pub strip_right: bool,
}

/// Tokens to be found, the longest at the leftmost place first.
pub(super) struct Specials {
    /// By text, so that those that begin alike lie together.
    sorted: Vec<Special>,
    /// The bytes with which they begin: most positions of a text are passed over by one look here.
    first: [bool; 256],
}

impl Specials {
    pub(super) fn new(specials: impl Iterator<Item = Special>) -> Self {
        let mut sorted: Vec<Special> = specials.filter(|special| !special.text.is_empty()).collect();
        sorted.sort();
        let mut first = [false; 256];
        for special in &sorted {
            first[usize::from(special.text.as_bytes()[0])] = true;
        }
        Self { sorted, first }
    }

    pub(super) fn split<'text>(&self, text: &'text str) -> Vec<Fragment<'text>> {
        let mut fragments = Vec::new();
        let mut rest = text;
        let mut at = 0;
        while at < rest.len() {
            let Some(special) = self.longest_at(&rest.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            // Both are UTF-8, in which no character begins inside another: the match begins and ends between two.
            let (before, after) = rest.split_at(at);
            let before = if special.strip_left { before.trim_end() } else { before };
            if !before.is_empty() {
                fragments.push(Fragment::Text(before));
            }
            fragments.push(Fragment::Token(special.token));
            let after = &after[special.text.len()..];
            rest = if special.strip_right { after.trim_start() } else { after };
            at = 0;
        }
        if !rest.is_empty() {
            fragments.push(Fragment::Text(rest));
        }
        fragments
    }

    /// Narrows the tokens that begin as `bytes` do, byte by byte.
    fn longest_at(&self, bytes: &[u8]) -> Option<&Special> {
        if !self.first[usize::from(bytes[0])] {
            return None;
        }
        let mut candidates = self.sorted.as_slice();
        let mut longest = None;
        for (depth, byte) in bytes.iter().enumerate() {
            // `None`, the end of a token, sorts before every byte.
            let key = |special: &Special| special.text.as_bytes().get(depth).copied();
            let from = candidates.partition_point(|special| key(special) < Some(*byte));
            let to = candidates.partition_point(|special| key(special) <= Some(*byte));
            candidates = &candidates[from..to];
            match candidates.first() {
                None => break,
                Some(special) if special.text.len() == depth + 1 => longest = Some(special),
                Some(_) => {}
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(text: &str, token: u32) -> Special {
        Special { text: text.to_owned(), token, strip_left: false, strip_right: false }
    }

    #[test]
    fn the_longest_at_the_leftmost_place_wins() {
        let specials = Specials::new([special("<a>", 0), special("<a>b", 1), special("b", 2)].into_iter());
        assert_eq!(
            specials.split("x<a>b<a>é<a"),
            [Fragment::Text("x"), Fragment::Token(1), Fragment::Token(0), Fragment::Text("é<a"),]
        );
        assert_eq!(specials.split(""), []);
    }

    #[test]
    fn blanks_beside_a_stripping_token_vanish() {
        let stripping = Special { strip_left: true, strip_right: true, ..special("|", 7) };
        let specials = Specials::new(std::iter::once(stripping));
        assert_eq!(
            specials.split("a \n| b |"),
            [Fragment::Text("a"), Fragment::Token(7), Fragment::Text("b"), Fragment::Token(7)]
        );
    }
}
