//! Owns what templates take from Python: methods of strings, `json.dumps`, `strftime`.
//! Must never allocate or search before it has paid: minijinja charges for what a method returns, which is too late.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::limits::CHAT_PROMPT_BYTES_MAX;

/// Bytes that one unit of fuel pays for, as minijinja reckons.
const BYTES_PER_FUEL: usize = 64;
/// How much dearer than a byte is one that becomes an item of a list.
const ITEM_COST: usize = 16;
/// How much dearer than a byte is one of JSON.
const SERIALIZED_COST: usize = 16;

/// Methods of strings, maps and lists.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let read = args.iter().fold(size(value), |total, arg| total.saturating_add(size(arg)));
    let is_text = value.kind() == ValueKind::String;
    let cost = match name {
        "split" | "splitlines" => read.saturating_mul(ITEM_COST),
        "format" if is_text => read.saturating_add(formatted(value, args)?),
        _ => read,
    };
    state.consume_fuel(fuel(cost))?;
    // What these two write can be much longer than what they read; the filters of these names reckon with that.
    match (name, args) {
        ("replace", _) if is_text => {
            state.apply_filter("replace", &[std::slice::from_ref(value), args].concat())
        }
        ("join", [items]) if is_text => state.apply_filter("join", &[items.clone(), value.clone()]),
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Whether a loop can run over it: over a text, but not over none.
pub(super) fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

fn fuel(bytes: usize) -> u64 {
    u64::try_from(bytes / BYTES_PER_FUEL).unwrap_or(u64::MAX)
}

/// The bytes that a method may read of a value.
fn size(value: &Value) -> usize {
    let flat = |value: &Value| value.as_str().map_or(BYTES_PER_FUEL, str::len);
    if value.kind() == ValueKind::Seq {
        return value.try_iter().map_or(0, |items| items.map(|item| flat(&item)).sum());
    }
    flat(value)
}

/// The most bytes that `format` may write: every place as wide as the largest number in the text, and as all arguments.
fn formatted(value: &Value, args: &[Value]) -> Result<usize, Error> {
    let text = value.as_str().unwrap_or_default();
    let numbers =
        text.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widest = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
    let mut place = widest;
    for arg in args {
        // Anything else may hold itself many times over, and would be written out before it is paid for.
        if !matches!(arg.kind(), ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None) {
            let reason = format!("`format` takes texts and numbers here, not {}", arg.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        place = place.saturating_add(size(arg));
    }
    Ok(text.matches('{').count().saturating_mul(place))
}

/// Python's `json.dumps` without escapes of what is no ASCII; minijinja's own filter writes for HTML.
pub(super) fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Keys are sorted here anyway, and characters are never escaped.
    let _: (Option<Value>, Option<Value>, Option<Value>) =
        (options.get("ensure_ascii")?, options.get("sort_keys")?, options.get("separators")?);
    options.assert_all_used()?;
    let mut json = Bounded(Vec::new());
    let written = match indent {
        Some(blanks) if blanks > 16 => return Err(Error::new(ErrorKind::InvalidOperation, "indent over 16")),
        Some(blanks) => {
            let blanks = vec![b' '; blanks];
            value.serialize(&mut Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(&blanks)))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut json, PythonFormatter)),
    };
    let invalid = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| invalid(error.to_string()))?;
    state.consume_fuel(fuel(json.0.len().saturating_mul(SERIALIZED_COST)))?;
    String::from_utf8(json.0).map_err(|error| invalid(error.to_string()))
}

/// Grows no longer than a prompt: a small value may hold itself many times over.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > CHAT_PROMPT_BYTES_MAX {
            return Err(io::Error::other("the JSON is longer than a prompt may be"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python separates with a blank.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives of `strftime` that templates use, in UTC: the prompt says nothing of where the machine stands.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let named = |names: &[&'static str], index: u64| {
        usize::try_from(index).ok().and_then(|index| names.get(index).copied()).unwrap_or_default()
    };
    let (month_name, day_name) = (named(&MONTHS, month - 1), named(&DAYS, days % 7));
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{:02}", seconds / 3600),
            Some('M') => text += &format!("{:02}", seconds / 60 % 60),
            Some('S') => text += &format!("{:02}", seconds % 60),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now does not know `%{directive}`");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
    }
    Ok(text)
}

/// Year, month and day of a day since 1970, counted in years that begin in March, whose leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let since_march_of_year_0 = days + 719_468;
    let era = since_march_of_year_0 / 146_097;
    let day_of_era = since_march_of_year_0 % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, later) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (era * 400 + year_of_era + later, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let text = |seconds| {
            strftime("%Y-%m-%d %A %d %b %y %B %H:%M:%S %%", UNIX_EPOCH + Duration::from_secs(seconds))
                .expect("all directives are known")
        };
        assert_eq!(text(0), "1970-01-01 Thursday 01 Jan 70 January 00:00:00 %");
        assert_eq!(text(951_827_696), "2000-02-29 Tuesday 29 Feb 00 February 12:34:56 %");
        assert_eq!(text(1_735_689_599), "2024-12-31 Tuesday 31 Dec 24 December 23:59:59 %");
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
    }
}
