//! Quantities as owners write them: `3 min`, `80 °C`, `20 GB`, `50 %`, `5 MB/s`, `off`.
//!
//! What is shown can be read again and gives the same quantity. Must never guess a unit that matters: a bare number is
//! read only where one unit is usual.

/// Something a setting can be.
pub trait Value: Sized {
    /// What limits of this setting are made of.
    type Bound: Value + PartialOrd;
    /// What is expected, with an example, for errors.
    const EXPECTED: &'static str;
    /// Reads what an owner wrote; nothing if it is not one.
    fn parse(text: &str) -> Option<Self>;
    /// As an owner would write it.
    fn show(&self) -> String;
    /// What has to lie within limits, if anything.
    fn bound(&self) -> Option<&Self::Bound>;
}

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

/// A temperature in degrees Celsius.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Celsius(pub u64);

/// Electrical power in milliwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milliwatts(pub u64);

/// An amount of memory, disk or traffic in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A network rate in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// Hundredths of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u64);

/// Names of programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub struct Names(pub Vec<String>);

/// Most names that one setting takes.
const NAMES_MAX: usize = 256;

impl Value for Names {
    type Bound = Self;
    const EXPECTED: &'static str = "names of programs, as `factorio, eldenring.exe`";

    fn parse(text: &str) -> Option<Self> {
        let names: Vec<String> =
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let plain =
            names.iter().all(|name| !name.contains(|letter: char| letter.is_control() || letter == '/'));
        (plain && (1..=NAMES_MAX).contains(&names.len())).then_some(Self(names))
    }

    fn show(&self) -> String {
        self.0.join(", ")
    }

    fn bound(&self) -> Option<&Self> {
        None
    }
}

/// Names of units and how much each is, the one to show first.
type Units = &'static [(&'static str, u64)];

const SPANS: Units = &[
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1_000),
    ("ms", 1),
    ("d", 86_400_000),
    ("day", 86_400_000),
    ("days", 86_400_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
    ("m", 60_000),
    ("mins", 60_000),
    ("minute", 60_000),
    ("minutes", 60_000),
    ("sec", 1_000),
    ("second", 1_000),
    ("seconds", 1_000),
];
const BYTES: Units = &[
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("B", 1),
];
const RATES: Units = &[
    ("GB/s", 1_000_000_000),
    ("MB/s", 1_000_000),
    ("MiB/s", 1 << 20),
    ("kB/s", 1_000),
    ("KiB/s", 1 << 10),
    ("B/s", 1),
    ("Gbit/s", 125_000_000),
    ("Mbit/s", 125_000),
    ("kbit/s", 125),
    ("Mbps", 125_000),
];
const WATTS: Units = &[("W", 1_000), ("mW", 1), ("kW", 1_000_000), ("", 1_000)];
const DEGREES: Units = &[("°C", 1), ("C", 1), ("", 1)];
const PERCENTS: Units = &[("%", 1), ("percent", 1), ("", 1)];

impl Span {
    /// So many seconds.
    pub const fn seconds(count: u64) -> Self {
        Self(count * 1_000)
    }

    /// So many minutes.
    pub const fn minutes(count: u64) -> Self {
        Self(count * 60_000)
    }
}

impl Bytes {
    /// So many times a thousand million bytes.
    pub const fn gigabytes(count: u64) -> Self {
        Self(count * 1_000_000_000)
    }
}

/// A newtype that is a whole number of some unit.
macro_rules! quantity {
    ($name:ident, $units:expr, $expected:literal) => {
        impl Value for $name {
            type Bound = Self;
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                read(text, $units).map(Self)
            }

            fn show(&self) -> String {
                write(self.0, $units)
            }

            fn bound(&self) -> Option<&Self> {
                Some(self)
            }
        }
    };
}

quantity!(Span, SPANS, "a time with its unit, as `3 min` or `90 s`");
quantity!(Celsius, DEGREES, "degrees Celsius, as `80 °C` or `80`");
quantity!(Milliwatts, WATTS, "watts, as `200 W` or `200`");
quantity!(Bytes, BYTES, "an amount with its unit, as `20 GB` or `500 MiB`");
quantity!(Rate, RATES, "a rate with its unit, as `5 MB/s` or `40 Mbit/s`");
quantity!(Percent, PERCENTS, "per cent, as `50 %` or `50`");

impl Value for bool {
    type Bound = Self;
    const EXPECTED: &'static str = "`on` or `off`";

    fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "on" | "yes" | "true" => Some(true),
            "off" | "no" | "false" => Some(false),
            _ => None,
        }
    }

    fn show(&self) -> String {
        if *self { "on" } else { "off" }.to_owned()
    }

    fn bound(&self) -> Option<&Self> {
        None
    }
}

/// `off`, or a value.
impl<T: Value<Bound = T> + PartialOrd> Value for Option<T> {
    type Bound = T;
    const EXPECTED: &'static str = T::EXPECTED;

    fn parse(text: &str) -> Option<Self> {
        if bool::parse(text) == Some(false) { Some(None) } else { T::parse(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| false.show(), T::show)
    }

    fn bound(&self) -> Option<&T> {
        self.as_ref().and_then(T::bound)
    }
}

/// Adds up amounts whose units become smaller: `1 h 30 min`. Fractions below the smallest unit are dropped.
fn read(text: &str, units: Units) -> Option<u64> {
    // Case tells bits from bytes in a rate, and nothing elsewhere.
    let named = |name: &str, unit: &str| {
        name == unit || !name.contains('/') && !name.ends_with("ps") && name.eq_ignore_ascii_case(unit)
    };
    let mut rest = text.trim();
    let mut sum: Option<u64> = None;
    let mut size_before = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = unit.trim_end();
        let size = units.iter().find(|(name, _)| named(name, unit))?.1;
        if size >= size_before {
            return None;
        }
        size_before = size;
        sum = Some(sum.unwrap_or(0).checked_add(scaled(number, size)?)?);
        rest = tail;
    }
    sum
}

/// A decimal number times a unit, rounded down.
fn scaled(number: &str, size: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() + fraction.len() > 18 {
        return None;
    }
    let mantissa: u64 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(u128::from(mantissa) * u128::from(size) / scale).ok()
}

/// In the first unit that leaves no fraction.
fn write(amount: u64, units: Units) -> String {
    let exact = units.iter().find(|(_, size)| amount >= *size && amount.is_multiple_of(*size));
    match exact.or_else(|| units.iter().find(|(_, size)| *size == 1)) {
        Some((name, size)) => format!("{} {name}", amount / size),
        None => amount.to_string(),
    }
}

/// A length of time as one says it: `40 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. Rounded down.
pub(crate) fn about_ms(ms: u64) -> String {
    let s = ms / 1_000;
    let (large, unit, small, small_unit) = match s {
        0..60 => return format!("{s} s"),
        60..3_600 => (s / 60, "min", s % 60, "s"),
        3_600..86_400 => (s / 3_600, "h", s / 60 % 60, "min"),
        _ => (s / 86_400, "d", s / 3_600 % 24, "h"),
    };
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {small_unit}") }
}

/// What is still to wait, rounded up to whole seconds, so that it never says `0 s` before it is over.
pub(crate) fn left_ms(ms: u64) -> String {
    about_ms(ms.saturating_add(999))
}

/// Bytes as one says them: `12.3 GB`. Rounded down.
pub(crate) fn about_bytes(bytes: u64) -> String {
    let units = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((name, size)) => format!("{}.{} {name}", bytes / size, bytes % size / (size / 10)),
        None => format!("{bytes} B"),
    }
}

/// Milliwatts as watts: `182 W`. Rounded down.
pub(crate) fn about_mw(milliwatts: u64) -> String {
    format!("{} W", milliwatts / 1_000)
}

/// What another program calls itself, fit to be shown: short, and without control characters.
pub(crate) fn name(text: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    let shown: String = text.trim().chars().filter(|c| !c.is_control()).take(CHARACTERS_MAX).collect();
    if shown.is_empty() { "unnamed".to_owned() } else { shown }
}
