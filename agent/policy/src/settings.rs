//! What the owner allows: every threshold, how it is written, its limits and what it means.
//!
//! In files and over the API a setting is text that people write; numbers and truth values are taken where they are plain.
//! Must never take a value outside its limits, wherever it comes from.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::hours::Hours;
use crate::units::{Bytes, Celsius, Milliwatts, Names, Percent, Rate, Span, Value, name};

/// Why a setting was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such setting.
    #[error("there is no setting `{key}`\nhint: did you mean `{nearest}`? `skein get` shows all")]
    Unknown {
        /// What was asked for.
        key: String,
        /// The setting whose name is most like it.
        nearest: &'static str,
    },
    /// What was given is not of this setting's kind.
    #[error("`{value}` is no value for `{key}`\nhint: give {expected}{or_off}")]
    Unreadable {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it should be.
        expected: &'static str,
        /// Says so if `off` is possible too.
        or_off: &'static str,
    },
    /// It is outside the limits of this setting.
    #[error("{value} is out of range for `{key}`\nhint: give a value from {low} to {high}{or_off}")]
    OutOfRange {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// The least that is possible.
        low: String,
        /// The most that is possible.
        high: String,
        /// Says so if `off` is possible too.
        or_off: &'static str,
    },
}

/// What is thought of a sensor that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Missing {
    /// The rule that needs it rests.
    Ignore,
    /// Work waits, because the owner wants it to be done only when all is known to be well.
    Block,
}

/// One line for each setting: what it means, its type, its default, its limits.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $key:ident: $kind:ty = $default:expr $(, $low:expr => $high:expr)?;)+) => {
        /// What the owner allows.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $($(#[doc = $doc])+ pub $key: $kind,)+
        }

        impl Default for Settings {
            /// For a PC that its owner plays and works on.
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl Settings {
            /// The names of all settings.
            pub const KEYS: &[&str] = &[$(stringify!($key),)+];

            /// Changes one setting. Nothing is changed on an error.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
                match key {
                    $(stringify!($key) => {
                        let limits = [$(($low, $high))?].into_iter().next();
                        self.$key = checked(stringify!($key), value, limits)?;
                        Ok(())
                    })+
                    _ => Err(unknown(key)),
                }
            }

            /// One setting as the owner would write it.
            pub fn get(&self, key: &str) -> Result<String, SettingError> {
                match key {
                    $(stringify!($key) => Ok(self.$key.show()),)+
                    _ => Err(unknown(key)),
                }
            }

            /// Every setting: its name, its value, and what it means.
            pub fn all(&self) -> Vec<(&'static str, String, &'static str)> {
                vec![$((stringify!($key), self.$key.show(), concat!($($doc,)+).trim()),)+]
            }
        }
    };
}

settings! {
    /// Work waits until mouse and keyboard have not been touched for so long.
    user_idle: Option<Span> = Some(Span::minutes(3)), Span::seconds(10) => Span::minutes(24 * 60);
    /// Work waits while a program fills a screen.
    full_screen: bool = true;
    /// Work waits while a game runs.
    game: bool = true;
    /// Programs that are games too, by their names, as `factorio, eldenring.exe`.
    games: Option<Names> = None;
    /// Programs that look like games and are none to you: all that Steam installed and started looks like one.
    not_games: Option<Names> = None;
    /// Work waits while somebody uses this desktop from afar.
    remote_desktop: bool = true;
    /// The GPU rests while another program holds more than this share of its memory.
    gpu_others_memory: Option<Percent> = Some(Percent(10)), Percent(1) => Percent(100);
    /// The GPU rests while others keep it busier than this.
    gpu_others_busy: Option<Percent> = Some(Percent(30)), Percent(1) => Percent(100);
    /// The GPU rests while others together take more than this share of its memory.
    gpu_memory_taken: Option<Percent> = Some(Percent(50)), Percent(1) => Percent(100);
    /// The GPU rests when it is hotter than this.
    gpu_temperature_max: Option<Celsius> = Some(Celsius(85)), Celsius(40) => Celsius(110);
    /// How far a GPU that was too hot must cool below gpu_temperature_max before it works again.
    gpu_temperature_band: Celsius = Celsius(10), Celsius(1) => Celsius(30);
    /// The GPU rests when it draws more than this.
    gpu_power_max: Option<Milliwatts> = None, Milliwatts(10_000) => Milliwatts(2_000_000);
    /// Work waits while this machine runs on its battery, however full.
    battery: bool = true;
    /// Where battery is off: work waits when the battery is emptier than this.
    battery_min: Option<Percent> = Some(Percent(50)), Percent(1) => Percent(95);
    /// Work is done only in these hours of the week; off is always.
    hours: Option<Hours> = None;
    /// Work waits when programs of others keep the processor busier than this.
    processor_others: Option<Percent> = Some(Percent(50)), Percent(1) => Percent(100);
    /// Work waits when less than this is free where the agent keeps its data.
    disk_free_min: Option<Bytes> = Some(Bytes::gigabytes(5)), Bytes(100_000_000) => Bytes::gigabytes(100_000);
    /// Work waits when the agent has sent and received this much in a calendar month.
    traffic_month_max: Option<Bytes> = None, Bytes(100_000_000) => Bytes::gigabytes(1_000_000);
    /// The agent sends and receives no faster than this.
    rate_max: Option<Rate> = None, Rate(10_000) => Rate(100_000_000_000);
    /// Work waits while the network is paid by the byte.
    metered: bool = true;
    /// Whether a sensor that cannot be read stops what depends on it (block) or not (ignore).
    missing: Missing = Missing::Ignore;
}

impl Settings {
    /// For machines that nobody sits at: no rule about an owner's use, those about heat, battery, disk and network stay.
    pub fn headless() -> Self {
        Self {
            user_idle: None,
            full_screen: false,
            game: false,
            remote_desktop: false,
            gpu_others_memory: None,
            gpu_others_busy: None,
            gpu_memory_taken: None,
            processor_others: None,
            ..Self::default()
        }
    }
}

impl Value for Missing {
    type Bound = Self;
    const EXPECTED: &'static str = "`ignore` or `block`";

    fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "ignore" => Some(Self::Ignore),
            "block" => Some(Self::Block),
            _ => None,
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Ignore => "ignore",
            Self::Block => "block",
        }
        .to_owned()
    }

    fn bound(&self) -> Option<&Self> {
        None
    }
}

fn checked<T: Value>(
    key: &'static str,
    text: &str,
    limits: Option<(T::Bound, T::Bound)>,
) -> Result<T, SettingError> {
    // A setting that can be anything else besides `off` takes `off`; a plain switch says so by itself.
    let or_off = if T::parse("off").is_some() && T::parse("on").is_none() { ", or `off`" } else { "" };
    let Some(value) = T::parse(text) else {
        return Err(SettingError::Unreadable { key, value: name(text), expected: T::EXPECTED, or_off });
    };
    match (value.bound(), limits) {
        (Some(bound), Some((low, high))) if *bound < low || *bound > high => Err(SettingError::OutOfRange {
            key,
            value: bound.show(),
            low: low.show(),
            high: high.show(),
            or_off,
        }),
        (_, _) => Ok(value),
    }
}

fn unknown(key: &str) -> SettingError {
    let key = name(key);
    let nearest =
        Settings::KEYS.iter().min_by_key(|known| distance(known, &key)).copied().unwrap_or_default();
    SettingError::Unknown { key, nearest }
}

/// Levenshtein's: how many letters have to be put in, taken out or changed.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut next = vec![line + 1];
        for ((diagonal, above), right) in row.iter().zip(row.iter().skip(1)).zip(&other) {
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(letter != *right)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.all().into_iter().map(|(key, value, _)| (key, value)))
    }
}

/// What is not named keeps its default; what is not known is an error, as it is in [`Settings::set`].
impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named;
        impl<'de> Visitor<'de> for Named {
            type Value = Settings;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
                let mut settings = Settings::default();
                let mut seen = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Plain>()? {
                    settings.set(&key, &value.text()).map_err(serde::de::Error::custom)?;
                    if seen.insert(key, ()).is_some() {
                        return Err(serde::de::Error::custom(
                            "a setting is there twice\nhint: leave one of the two",
                        ));
                    }
                }
                Ok(settings)
            }
        }
        deserializer.deserialize_map(Named)
    }
}

/// How files may write a value.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Plain {
    /// `true`
    Switch(bool),
    /// `75`
    Whole(u64),
    /// `"75 °C"`
    Text(String),
}

impl Plain {
    /// The same as an owner would write it.
    pub fn text(self) -> String {
        match self {
            Self::Switch(on) => on.show(),
            Self::Whole(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}
