//! Owns cutting a text into the words inside which byte pairs are joined, by the rules of each family of models.
//! Must never run a pattern that a stranger wrote: a vocabulary names its rules, and they are listed here.
//!
//! The patterns are those of the models' own `tokenizer.json`. One thing in them is not regular, and would make the
//! cost of a text depend on what it holds: `\s+(?!\S)`, blanks but for the last one before a word. It is left out of
//! the compiled pattern, and the last blank is given back by hand; the rest runs in linear time.

use fancy_regex::Regex;

use super::TokenizerError;

/// GPT-2's words, which most older models share.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const DIGIT: &str = r"\p{N}";
const THREE_ASCII_DIGITS: &str = "[0-9][0-9][0-9]";
const LINES: &str = r"[^\n]+|[\n]+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_IDEOGRAPHS: &str = "[一-龥ࠀ-一가-퟿]+";
const KANA_AND_IDEOGRAPHS: &str = "[一-龥぀-ゟ゠-ヿ]+";
const FALCON_MARKS: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const WORDS_WITHOUT_MARKS: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// Rules by the names that GGUF gives them: patterns in the order in which they cut.
const FAMILIES: [(&[&str], &[&str]); 18] = [
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
        ],
        &[GPT2],
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "dbrx",
            "smaug-bpe",
            "glm4",
            "chatglm-bpe",
        ],
        &[LLAMA3],
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    (&["qwen35"], &[QWEN35]),
    (&["tekken"], &[TEKKEN]),
    (&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT4O]),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", KANA_AND_IDEOGRAPHS, DEEPSEEK3],
    ),
    (&["deepseek-llm"], &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_IDEOGRAPHS, DIGIT]),
    (&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_IDEOGRAPHS, DIGIT]),
    (&["falcon"], &[FALCON_MARKS, GPT2, THREE_ASCII_DIGITS]),
    (&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_ASCII_DIGITS]),
    (&["seed-coder"], &[SEED_CODER]),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    (&["exaone-moe"], &[EXAONE_MOE]),
    (&["laguna"], &[LINES, QWEN2]),
    (&["bloom", "poro-chat", "gpt3-finnish"], &[WORDS_WITHOUT_MARKS]),
    (&["viking"], &[WORDS_WITHOUT_MARKS, DIGIT]),
];

/// The patterns of rules, in the order in which they cut.
pub(super) fn patterns(name: &str) -> Option<&'static [&'static str]> {
    family(name).map(|(_, patterns)| *patterns)
}

/// Every name of the same rules.
pub(super) fn names(name: &str) -> &'static [&'static str] {
    family(name).map_or(&[], |(names, _)| *names)
}

fn family(name: &str) -> Option<&'static (&'static [&'static str], &'static [&'static str])> {
    FAMILIES.iter().find(|(names, _)| names.contains(&name))
}

/// Whether a vocabulary may name these rules.
pub(super) fn is_known(name: &str) -> bool {
    patterns(name).is_some()
}

/// The name of the rules that a file spells out, if they are listed.
pub(super) fn name_of(patterns: &[String]) -> Option<&'static str> {
    // Files write line breaks either way, and forbid backtracking where regular patterns know none.
    let plain = |pattern: &String| {
        pattern.replace('\r', r"\r").replace('\n', r"\n").replace("?+", "?").replace("++", "+")
    };
    let patterns: Vec<String> = patterns.iter().map(plain).collect();
    let family = FAMILIES.iter().find(|(_, listed)| *listed == patterns.as_slice());
    family.and_then(|(names, _)| names.first().copied())
}

/// Rules ready for use.
pub(super) struct PreTokenizer(Vec<Rule>);

struct Rule {
    regex: Regex,
    /// The last of several blanks before a word belongs to the word: `\s+(?!\S)` stood in the pattern.
    gives_back: bool,
    /// Blanks that end in a new line are a word of their own before that rule comes to bear.
    keeps_lines: bool,
}

impl PreTokenizer {
    pub(super) fn new(name: &str) -> Result<Self, TokenizerError> {
        let unknown = || TokenizerError::UnknownPreTokenizer(name.to_owned());
        let rules: Result<Vec<Rule>, TokenizerError> =
            patterns(name).ok_or_else(unknown)?.iter().map(|pattern| Rule::new(pattern)).collect();
        rules.map(Self)
    }

    /// The words of a text; together they are the text.
    pub(super) fn split<'text>(&self, text: &'text str) -> Vec<&'text str> {
        self.0.iter().fold(vec![text], |words, rule| {
            let mut cut = Vec::with_capacity(words.len());
            for word in words {
                rule.split(word, &mut cut);
            }
            cut
        })
    }
}

impl Rule {
    fn new(pattern: &str) -> Result<Self, TokenizerError> {
        let regular = pattern.replace(r"|\s+(?!\S)", "");
        let regex = Regex::new(&regular).map_err(|error| TokenizerError::BadPattern {
            pattern: regular.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            regex,
            gives_back: regular.len() < pattern.len(),
            keeps_lines: pattern.contains(r"\s*[\r\n]"),
        })
    }

    /// What matches is a word, and so is what lies between two matches.
    fn split<'text>(&self, text: &'text str, words: &mut Vec<&'text str>) {
        let mut at = 0;
        // The patterns are regular, so matching neither fails nor backtracks.
        while let Ok(Some(found)) = self.regex.find_from_pos(text, at) {
            let end = found.start() + self.kept(found.as_str(), &text[found.end()..]);
            if end == at {
                break;
            }
            for word in [&text[at..found.start()], &text[found.start()..end]] {
                if !word.is_empty() {
                    words.push(word);
                }
            }
            at = end;
        }
        if at < text.len() {
            words.push(&text[at..]);
        }
    }

    /// How many bytes of a match stay in it.
    fn kept(&self, found: &str, after: &str) -> usize {
        let last = found.chars().next_back().filter(|last| last.is_whitespace());
        let Some(last) = last else { return found.len() };
        let before_word = after.chars().next().is_some_and(|next| !next.is_whitespace());
        let keeps = !self.gives_back || !before_word || (self.keeps_lines && matches!(last, '\r' | '\n'));
        let several = found.len() > last.len_utf8();
        if keeps || !several || !found.chars().all(char::is_whitespace) {
            return found.len();
        }
        found.len() - last.len_utf8()
    }
}
