//! Hours of the week in which work may be done: `22:00-08:00`, `mon-fri 22:00-08:00, sat-sun 00:00-24:00`.
//!
//! Hours are of the owner's wall. A stretch that ends before it begins goes on into the next day.

use crate::units::Value;

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const DAY: u16 = 24 * 60;
const WEEK: u16 = 7 * DAY;
/// More stretches than a person writes by hand.
const STRETCHES_MAX: usize = 32;

/// When in the week work may be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub struct Hours(Vec<Stretch>);

/// The same hours on some days that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
struct Stretch {
    /// 0 is Monday. The last day may lie before the first: `sat-mon`.
    first_day: u16,
    last_day: u16,
    /// Minutes since midnight; not equal.
    from: u16,
    to: u16,
}

impl Hours {
    /// Whether work may be done in this minute of the week; 0 is Monday's first.
    pub fn contain(&self, minute: u16) -> bool {
        self.begins().any(|(begin, length)| (minute + WEEK - begin) % WEEK < length)
    }

    /// Minutes from this one to the next in which a stretch begins: 1 to a whole week.
    pub fn until_next(&self, minute: u16) -> u16 {
        self.begins().map(|(begin, _)| (begin + WEEK - minute - 1) % WEEK + 1).min().unwrap_or(WEEK)
    }

    /// Each day's stretch: the minute of the week in which it begins, and how many minutes it has.
    fn begins(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().flat_map(|stretch| {
            let days = (stretch.last_day + 7 - stretch.first_day) % 7 + 1;
            let length = (stretch.to + DAY - stretch.from - 1) % DAY + 1;
            (0..days).map(move |day| ((stretch.first_day + day) % 7 * DAY + stretch.from, length))
        })
    }
}

impl Value for Hours {
    type Bound = Self;
    const EXPECTED: &'static str =
        "hours in which work may be done, as `22:00-08:00` or `mon-fri 22:00-08:00, sat-sun 00:00-24:00`";

    fn parse(text: &str) -> Option<Self> {
        let stretches: Option<Vec<Stretch>> =
            text.split(',').take(STRETCHES_MAX + 1).map(|part| stretch(part.trim())).collect();
        stretches.filter(|stretches| stretches.len() <= STRETCHES_MAX).map(Self)
    }

    fn show(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(Stretch::show).collect();
        parts.join(", ")
    }

    fn bound(&self) -> Option<&Self> {
        None
    }
}

impl Stretch {
    fn show(&self) -> String {
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let hours = format!("{}-{}", clock(self.from), clock(self.to));
        let day = |day: u16| DAYS.get(usize::from(day)).map_or("", |name| &name[..3]);
        match (self.first_day, self.last_day) {
            (0, 6) => hours,
            (first, last) if first == last => format!("{} {hours}", day(first)),
            (first, last) => format!("{}-{} {hours}", day(first), day(last)),
        }
    }
}

/// `mon-fri 22:00-08:00`; every day if none is named, the whole day if no hours are.
fn stretch(text: &str) -> Option<Stretch> {
    let hours_at = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let (days, hours) = text.split_at(hours_at);
    let (days, hours) = (days.trim(), hours.trim());
    let (first_day, last_day) = match days.split_once('-') {
        Some((first, last)) => (day(first)?, day(last)?),
        None if days.is_empty() => (0, 6),
        None => (day(days)?, day(days)?),
    };
    let (from, to) = match hours.split_once('-') {
        Some((from, to)) => (clock(from)?, clock(to)?),
        None if hours.is_empty() && !days.is_empty() => (0, DAY),
        None => return None,
    };
    (from < DAY && from != to).then_some(Stretch { first_day, last_day, from, to })
}

fn day(text: &str) -> Option<u16> {
    let text = text.trim().to_ascii_lowercase();
    let found = DAYS.iter().position(|name| *name == text || name[..3] == text)?;
    u16::try_from(found).ok()
}

/// Minutes since midnight of `8`, `08:30` or `24:00`.
fn clock(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':').unwrap_or((text.trim(), "00"));
    let number = |text: &str| -> Option<u16> {
        let digits = text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
}
