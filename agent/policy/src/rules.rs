//! The owner's rules: what each looks at, when it holds, and how that is told.
//!
//! Each rule is a function of [`Facts`] and of whether it held before (hysteresis). Rules about one GPU are in
//! `gpu_rules.rs`. Must never take a missing sensor for a value.

use serde::{Deserialize, Serialize};

use crate::gpu_rules;
use crate::readings::{Power, Reading, Readings};
use crate::settings::Settings;
use crate::units::{Bytes, Percent, Span, Value, about_bytes, about_ms, left_ms, name};
use crate::view::{Blocks, Pause};

/// Readings older than this count as missing, in milliseconds.
pub const STALE_MS: u64 = 30_000;

/// Why work may have to wait. In the order in which reasons are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The owner said so.
    Manual,
    /// A game runs.
    Game,
    /// A program fills a screen.
    FullScreen,
    /// Somebody uses the desktop from afar.
    RemoteDesktop,
    /// The owner uses mouse or keyboard.
    UserActive,
    /// Not in these hours.
    Hours,
    /// The machine runs on its battery.
    Battery,
    /// Other programs hold the GPU's memory.
    GpuOthers,
    /// Others keep the GPU busy.
    GpuBusy,
    /// Others together take too much of the GPU's memory.
    GpuMemory,
    /// The GPU is too hot.
    GpuTemperature,
    /// The GPU draws too much.
    GpuPower,
    /// Other programs keep the processor busy.
    ProcessorOthers,
    /// The network is paid by the byte.
    Metered,
    /// This month's traffic is used up.
    TrafficMonth,
    /// The disk is nearly full.
    DiskFree,
    /// What was at work when the owner said `finish` has ended.
    Finish,
    /// Nothing was sensed yet, at the start or after sleep.
    Sensing,
    /// The shell cannot work: told by [`crate::Event::Trouble`]. Shown, blocks nothing by itself.
    Trouble,
}

impl Rule {
    /// What has to stop.
    pub fn blocks(self) -> Blocks {
        match self {
            Self::GpuOthers | Self::GpuBusy | Self::GpuMemory | Self::GpuTemperature | Self::GpuPower => {
                Blocks::Gpu
            }
            Self::Manual
            | Self::Game
            | Self::FullScreen
            | Self::RemoteDesktop
            | Self::UserActive
            | Self::Hours
            | Self::Battery
            | Self::ProcessorOthers
            | Self::Metered
            | Self::TrafficMonth
            | Self::DiskFree
            | Self::Finish
            | Self::Sensing
            | Self::Trouble => Blocks::All,
        }
    }

    /// How long it must be over before work goes on, in milliseconds. None for what has a timer of its own.
    pub fn stay_ms(self) -> u64 {
        match self {
            Self::Manual | Self::UserActive | Self::Finish | Self::Sensing | Self::Trouble => 0,
            Self::Game
            | Self::FullScreen
            | Self::RemoteDesktop
            | Self::Hours
            | Self::Battery
            | Self::Metered
            | Self::TrafficMonth
            | Self::DiskFree => 10_000,
            Self::GpuOthers
            | Self::GpuBusy
            | Self::GpuMemory
            | Self::GpuTemperature
            | Self::ProcessorOthers => 30_000,
            // What a GPU draws falls as soon as it rests, so only time tells.
            Self::GpuPower => 60_000,
        }
    }

    /// What it is about, as the words before "ended".
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Manual => "the pause",
            Self::Game => "the game",
            Self::FullScreen => "the full-screen program",
            Self::RemoteDesktop => "the remote-desktop session",
            Self::UserActive => "your use of this machine",
            Self::Hours => "the time for other things",
            Self::Battery => "the time on battery",
            Self::GpuOthers => "another program's use of the GPU's memory",
            Self::GpuBusy => "the use of the GPU by others",
            Self::GpuMemory => "the shortage of GPU memory",
            Self::GpuTemperature => "the heat of the GPU",
            Self::GpuPower => "the high power draw of the GPU",
            Self::ProcessorOthers => "the use of the processor by others",
            Self::Metered => "the metered connection",
            Self::TrafficMonth => "the traffic limit",
            Self::DiskFree => "the shortage of disk space",
            Self::Finish => "finishing",
            Self::Sensing => "sensing",
            Self::Trouble => "the trouble",
        }
    }
}

/// A rule, and the GPU it looks at if it looks at one.
pub(crate) type Key = (Rule, Option<String>);

/// Everything rules may look at.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub settings: Settings,
    pub now_ms: u64,
    /// What was sensed last, fresh or not.
    pub sensed: Option<Sensed>,
    /// Since when the first readings are awaited.
    pub asked_ms: u64,
    /// When the owner last touched something, as far as known.
    pub last_input_ms: Option<u64>,
    /// The GPU that the agent works with, if known.
    pub device: Option<String>,
    pub pause: Option<Pause>,
    /// The owner said `finish` and it is done.
    pub finished: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Sensed {
    pub readings: Readings,
    pub at_ms: u64,
    /// The agent used the GPU then, so that not all use is by others.
    pub gpu_ours: bool,
}

/// What a rule finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Clear,
    Holds(Told),
    /// It cannot look.
    Missing(Unseen),
}

/// How a reason is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// What is the matter: a sentence's first half, as in headlines.
    pub what: String,
    /// When work goes on: the second half.
    pub then: String,
    pub value: String,
    pub threshold: String,
    /// When it ends by itself, if that is known; Unix milliseconds.
    pub ends_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// The sensor, in words.
    pub sensor: String,
    pub why: String,
    pub threshold: String,
}

impl Facts {
    /// The readings, unless there are none or they are stale; then says why.
    pub(crate) fn fresh(&self) -> Result<&Sensed, String> {
        let Some(sensed) = &self.sensed else { return Err("not read yet".to_owned()) };
        let age_ms = self.now_ms.saturating_sub(sensed.at_ms);
        if age_ms > STALE_MS { Err(format!("last read {} ago", about_ms(age_ms))) } else { Ok(sensed) }
    }

    /// One of the readings, fresh.
    fn read<T>(&self, pick: impl Fn(&Readings) -> &Reading<T>) -> Result<&T, String> {
        match pick(&self.fresh()?.readings) {
            Reading::Known(value) => Ok(value),
            Reading::Missing(why) => Err(why.clone()),
        }
    }
}

/// What every rule finds that is switched on. `held` says which held until now.
pub(crate) fn look(facts: &Facts, held: &dyn Fn(&Key) -> bool) -> Vec<(Key, Finding)> {
    let before = |rule: Rule| held(&(rule, None));
    let settings = &facts.settings;
    let program = "no such program";
    let mut found = vec![
        (Rule::Manual, Some(manual(facts))),
        (Rule::Finish, Some(finish(facts))),
        (Rule::Sensing, Some(sensing(facts))),
        (
            Rule::Game,
            settings.game.then(|| {
                let seen = facts.read(|readings| &readings.game);
                somebody(seen, "games", "no game", |who| (format!("a game is running ({who})"), "it ends"))
            }),
        ),
        (
            Rule::FullScreen,
            settings.full_screen.then(|| {
                let seen = facts.read(|readings| &readings.full_screen);
                somebody(seen, "full-screen programs", program, |who| {
                    (format!("a program fills the screen ({who})"), "it no longer does")
                })
            }),
        ),
        (
            Rule::RemoteDesktop,
            settings.remote_desktop.then(|| {
                let seen = facts.read(|readings| &readings.remote_desktop);
                somebody(seen, "remote desktops", "no session", |who| {
                    (format!("this desktop is used from afar ({who})"), "that ends")
                })
            }),
        ),
        (Rule::UserActive, settings.user_idle.map(|limit| user_active(facts, limit))),
        (Rule::Hours, settings.hours.as_ref().map(|_| hours(facts))),
        (Rule::Battery, battery(facts, before(Rule::Battery))),
        (
            Rule::ProcessorOthers,
            settings.processor_others.map(|limit| processor(facts, limit, before(Rule::ProcessorOthers))),
        ),
        (Rule::Metered, settings.metered.then(|| metered(facts))),
        (Rule::TrafficMonth, settings.traffic_month_max.map(|limit| traffic(facts, limit))),
        (Rule::DiskFree, settings.disk_free_min.map(|limit| disk(facts, limit, before(Rule::DiskFree)))),
    ]
    .into_iter()
    .filter_map(|(rule, finding)| Some(((rule, None), finding?)))
    .collect::<Vec<(Key, Finding)>>();
    gpu_rules::look(facts, held, &mut found);
    found
}

/// Holds if `true`, told by the rest.
pub(crate) fn holds(yes: bool, what: String, then: String, value: String, threshold: String) -> Finding {
    if yes { Finding::Holds(Told { what, then, value, threshold, ends_ms: None }) } else { Finding::Clear }
}

fn missing(sensor: &str, why: String, threshold: impl Into<String>) -> Finding {
    Finding::Missing(Unseen { sensor: sensor.to_owned(), why, threshold: threshold.into() })
}

fn manual(facts: &Facts) -> Finding {
    let Some(pause) = facts.pause else { return Finding::Clear };
    let what = match pause.blocks {
        Blocks::All => "you paused all work",
        Blocks::Gpu => "you paused the GPU",
    };
    let (then, value, threshold) = match pause.until_ms.map(|until| until.saturating_sub(facts.now_ms)) {
        Some(0) => return Finding::Clear,
        Some(left) => {
            let left = left_ms(left);
            (format!("it goes on in {left}"), format!("{left} left"), "the end of the timer")
        }
        None => ("it goes on when you resume it".to_owned(), "until you resume".to_owned(), "skein resume"),
    };
    let threshold = threshold.to_owned();
    Finding::Holds(Told { what: what.to_owned(), then, value, threshold, ends_ms: pause.until_ms })
}

fn finish(facts: &Facts) -> Finding {
    let what = "the work you wanted finished is done".to_owned();
    let then = "nothing new is taken until you resume".to_owned();
    holds(facts.finished, what, then, "finished".to_owned(), "skein resume".to_owned())
}

/// The first readings are awaited, and not for too long.
pub(crate) fn is_asking(facts: &Facts) -> bool {
    facts.sensed.is_none() && facts.now_ms < facts.asked_ms.saturating_add(STALE_MS)
}

fn sensing(facts: &Facts) -> Finding {
    if !is_asking(facts) {
        return Finding::Clear;
    }
    Finding::Holds(Told {
        what: "looking at this machine".to_owned(),
        then: format!("work begins when its sensors were read, or after {}", Span(STALE_MS).show()),
        value: "nothing read yet".to_owned(),
        threshold: "first readings".to_owned(),
        ends_ms: Some(facts.asked_ms.saturating_add(STALE_MS)),
    })
}

/// A rule that holds while there is some program or person.
fn somebody(
    seen: Result<&Option<String>, String>,
    sensor: &str,
    threshold: &str,
    words: impl Fn(&str) -> (String, &'static str),
) -> Finding {
    match seen {
        Err(why) => missing(sensor, why, threshold),
        Ok(None) => Finding::Clear,
        Ok(Some(who)) => {
            let who = name(who);
            let (what, end) = words(&who);
            holds(true, what, format!("work goes on when {end}"), who, threshold.to_owned())
        }
    }
}

/// Known input counts until its time is over, even if the sensor falls silent: then by the clock, else by what was read.
fn user_active(facts: &Facts, limit: Span) -> Finding {
    let seen = facts.fresh().and_then(|sensed| match &sensed.readings.owner_idle_ms {
        Reading::Known(_) => Ok(sensed.at_ms),
        Reading::Missing(why) => Err(why.clone()),
    });
    let looked_ms = seen.as_ref().copied().unwrap_or(facts.now_ms);
    let threshold = limit.show();
    match (facts.last_input_ms, seen) {
        (Some(last_ms), _) if looked_ms.saturating_sub(last_ms) < limit.0 => {
            let idle = about_ms(facts.now_ms.saturating_sub(last_ms));
            Finding::Holds(Told {
                what: format!("you used this machine {idle} ago"),
                then: format!("work goes on after {threshold} without input"),
                value: idle,
                threshold,
                ends_ms: Some(last_ms.saturating_add(limit.0)),
            })
        }
        (_, Ok(_)) => Finding::Clear,
        (_, Err(why)) => missing("mouse and keyboard", why, threshold),
    }
}

fn hours(facts: &Facts) -> Finding {
    const DAY: u64 = 24 * 60;
    let Some(hours) = &facts.settings.hours else { return Finding::Clear };
    let threshold = hours.show();
    let sensor = "the time of the week";
    let wall = match facts.read(|readings| &readings.wall) {
        Err(why) => return missing(sensor, why, threshold),
        Ok(wall) if wall.weekday > 6 || u64::from(wall.minute) >= DAY => {
            return missing(sensor, "it says a time that no week has".to_owned(), threshold);
        }
        Ok(wall) => wall,
    };
    // The wall goes on since it was read.
    let read_ms = facts.sensed.as_ref().map_or(facts.now_ms, |sensed| sensed.at_ms);
    let passed = facts.now_ms.saturating_sub(read_ms) / 60_000;
    let minute = (u64::from(wall.weekday) * DAY + u64::from(wall.minute) + passed) % (7 * DAY);
    let minute = u16::try_from(minute).unwrap_or(0);
    if hours.contain(minute) {
        return Finding::Clear;
    }
    let wait_ms = u64::from(hours.until_next(minute)) * 60_000;
    let value = format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    Finding::Holds(Told {
        what: format!("it is {value}"),
        then: format!("work is done {threshold}"),
        value,
        threshold,
        ends_ms: Some(facts.now_ms.saturating_add(wait_ms)),
    })
}

/// Nothing if both of its settings are off.
fn battery(facts: &Facts, held: bool) -> Option<Finding> {
    /// How much fuller a battery must become before work goes on.
    const BAND: u64 = 5;
    let (limit, threshold) = match (facts.settings.battery, facts.settings.battery_min) {
        (true, _) => (None, "mains".to_owned()),
        (false, Some(least)) => (Some(least.0), least.show()),
        (false, None) => return None,
    };
    let percent = match facts.read(|readings| &readings.power) {
        Err(why) => return Some(missing("power supply", why, threshold)),
        Ok(Power::Mains) => return Some(Finding::Clear),
        Ok(Power::Battery { percent }) => u64::from(*percent).min(100),
    };
    let value = format!("on battery, {}", Percent(percent).show());
    let Some(least) = limit else {
        let what = format!("this machine runs on its battery ({percent} %)");
        return Some(holds(true, what, "work goes on when it is plugged in".to_owned(), value, threshold));
    };
    let enough = (least + BAND).min(100);
    let what = format!("the battery has {percent} %");
    let then = format!("work goes on at {enough} %, or when it is plugged in");
    Some(holds(percent < if held { enough } else { least }, what, then, value, threshold))
}

fn processor(facts: &Facts, limit: Percent, held: bool) -> Finding {
    let threshold = limit.show();
    match facts.read(|readings| &readings.processor_others_permille) {
        Err(why) => missing("use of the processor", why, threshold),
        Ok(permille) => {
            let eased = limit.0 * 4 / 5;
            let value = Percent(u64::from(*permille) / 10).show();
            let what = format!("other programs take {value} of the processor");
            let then = format!("work goes on at {eased} %");
            holds(
                u64::from(*permille) > 10 * if held { eased } else { limit.0 },
                what,
                then,
                value,
                threshold,
            )
        }
    }
}

fn metered(facts: &Facts) -> Finding {
    let threshold = "not metered".to_owned();
    match facts.read(|readings| &readings.metered) {
        Err(why) => missing("metered network", why, threshold),
        Ok(metered) => {
            let what = "the network is paid by the byte".to_owned();
            let then = "work goes on over one that is not".to_owned();
            holds(*metered, what, then, "metered".to_owned(), threshold)
        }
    }
}

fn traffic(facts: &Facts, limit: Bytes) -> Finding {
    let threshold = limit.show();
    match facts.read(|readings| &readings.traffic_month_bytes) {
        Err(why) => missing("this month's traffic", why, threshold),
        Ok(bytes) => {
            let value = about_bytes(*bytes);
            let what = format!("{value} of {threshold} were sent and received this month");
            let then = "work goes on next month".to_owned();
            holds(*bytes >= limit.0, what, then, value, threshold)
        }
    }
}

fn disk(facts: &Facts, limit: Bytes, held: bool) -> Finding {
    let threshold = limit.show();
    match facts.read(|readings| &readings.disk_free_bytes) {
        Err(why) => missing("disk space", why, threshold),
        Ok(free) => {
            let eased = limit.0.saturating_add(limit.0 / 20);
            let value = about_bytes(*free);
            let what = format!("only {value} are free on the disk");
            let then = format!("work goes on at {}", about_bytes(eased));
            holds(*free < if held { eased } else { limit.0 }, what, then, value, threshold)
        }
    }
}
