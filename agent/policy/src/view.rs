//! What is told to people and programs: state, headline, every reason, every sensor.
//!
//! This is the `policy` object of the local API; its field names are stable. Must never leave out a reason that blocks.

use serde::{Deserialize, Serialize};

use crate::gpu_rules::looked_at;
use crate::readings::{Gpu, Power, Reading};
use crate::rules::{Facts, Rule, Told};
use crate::units::{Celsius, Value, about_bytes, about_ms, about_mw, left_ms, name};

/// How the agent stands towards the owner's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The state in one word.
    pub state: State,
    /// The state in a sentence, for owners.
    pub headline: String,
    /// What may be done.
    pub allowed: Allowance,
    /// Why not all may be done; the one that tells most comes first.
    pub reasons: Vec<Reason>,
    /// What each sensor says, or why it says nothing.
    pub sensors: Vec<Sensor>,
    /// The owner's pause.
    pub pause: Option<Pause>,
    /// No new work is taken until the owner resumes.
    pub finishing: bool,
}

/// The state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Something is at work.
    Working,
    /// It may work, and nothing is there to do; or it finished as it was told; or it looks around first.
    Waiting,
    /// A rule, or the owner, keeps it from working.
    Paused,
    /// It may work and cannot.
    Trouble,
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowance {
    /// Everything.
    #[serde(rename = "all")]
    All,
    /// What needs no GPU.
    #[serde(rename = "cpu")]
    CpuOnly,
    /// Nothing.
    #[serde(rename = "nothing")]
    Nothing,
}

/// What a reason stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// All work.
    All,
    /// Work on the GPU.
    Gpu,
}

/// The owner's pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// What is paused.
    pub blocks: Blocks,
    /// When it ends by itself, in Unix milliseconds; never, if there is none.
    pub until_ms: Option<u64>,
}

/// One reason not to work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// What it stops.
    pub blocks: Blocks,
    /// What is the matter, and when work goes on.
    pub text: String,
    /// What was read.
    pub value: String,
    /// What it is held against.
    pub threshold: String,
    /// Since when, in Unix milliseconds.
    pub since_ms: u64,
    /// When it is looked at again, in Unix milliseconds.
    pub look_again_ms: u64,
    /// All of it in a line, as terminals and icons show it.
    #[serde(default)]
    pub line: String,
}

impl Reason {
    /// What the owner ordered and what broke is told by its text alone; a rule's text tells the value already.
    pub(crate) fn told_in_a_line(&self, now_ms: u64) -> String {
        match self.rule {
            Rule::Manual | Rule::Finish | Rule::Sensing | Rule::Trouble => self.text.clone(),
            Rule::Game
            | Rule::FullScreen
            | Rule::RemoteDesktop
            | Rule::UserActive
            | Rule::Hours
            | Rule::Battery
            | Rule::GpuOthers
            | Rule::GpuBusy
            | Rule::GpuMemory
            | Rule::GpuTemperature
            | Rule::GpuPower
            | Rule::ProcessorOthers
            | Rule::Metered
            | Rule::TrafficMonth
            | Rule::DiskFree => format!(
                "{} (limit {}, next look in {})",
                self.text,
                self.threshold,
                left_ms(self.look_again_ms.saturating_sub(now_ms))
            ),
        }
    }
}

/// What one sensor says: `value` or `missing`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sensor {
    /// Its name.
    pub sensor: String,
    /// The GPU it belongs to, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// What it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What decides state and headline.
pub(crate) struct Standing<'a> {
    pub allowed: Allowance,
    /// The reason that tells most, if there is any: its rule and what it says.
    pub lead: Option<(Rule, &'a Told)>,
    pub trouble: Option<&'a str>,
    pub working: bool,
    pub finishing: bool,
}

impl Standing<'_> {
    /// State and headline.
    pub(crate) fn told(&self) -> (State, String) {
        let what = self.lead.map_or("", |(_, told)| told.what.as_str());
        let waits_by_itself = self.lead.is_some_and(|(rule, _)| matches!(rule, Rule::Finish | Rule::Sensing));
        match (self.allowed, self.trouble, self.working) {
            (Allowance::Nothing, _, _) if waits_by_itself => {
                let then = self.lead.map_or("", |(_, told)| told.then.as_str());
                (State::Waiting, format!("Waiting: {what}; {then}"))
            }
            (Allowance::Nothing, _, _) => (State::Paused, format!("Paused: {what}")),
            (Allowance::All | Allowance::CpuOnly, Some(trouble), _) => {
                (State::Trouble, format!("Trouble: {trouble}"))
            }
            (Allowance::All | Allowance::CpuOnly, None, true) if self.finishing => {
                (State::Working, "Finishing current work; then waiting until you resume".to_owned())
            }
            (Allowance::All, None, true) => (State::Working, "Working".to_owned()),
            (Allowance::CpuOnly, None, true) => {
                (State::Working, format!("Working on the processor alone: {what}"))
            }
            (Allowance::All, None, false) => (State::Waiting, "Waiting for work".to_owned()),
            (Allowance::CpuOnly, None, false) => (State::Paused, format!("GPU paused: {what}")),
        }
    }
}

/// What every sensor says.
pub(crate) fn sensors(facts: &Facts) -> Vec<Sensor> {
    let sensed = facts.fresh();
    let mut list = Vec::new();
    let mut add = |sensor: &str, said: Result<Reading<String>, &String>| {
        list.push(one(sensor, None, said.unwrap_or_else(|why| Reading::Missing(why.clone()))));
    };
    let readings = sensed.as_ref().map(|sensed| &sensed.readings);
    let nobody = |who: &Option<String>| who.as_deref().map_or("none".to_owned(), name);
    add("user_idle", readings.map(|r| said(&r.owner_idle_ms, |ms| about_ms(*ms))));
    add("full_screen", readings.map(|r| said(&r.full_screen, nobody)));
    add("game", readings.map(|r| said(&r.game, nobody)));
    add("remote_desktop", readings.map(|r| said(&r.remote_desktop, nobody)));
    add("power", readings.map(|r| said(&r.power, power)));
    add("metered", readings.map(|r| said(&r.metered, |yes| if *yes { "yes" } else { "no" }.to_owned())));
    add("disk_free", readings.map(|r| said(&r.disk_free_bytes, |bytes| about_bytes(*bytes))));
    add("hours", readings.map(|r| said(&r.wall, |wall| clock(wall.weekday, wall.minute))));
    add(
        "processor_others",
        readings.map(|r| said(&r.processor_others_permille, |permille| format!("{} %", permille / 10))),
    );
    add("traffic_month", readings.map(|r| said(&r.traffic_month_bytes, |bytes| about_bytes(*bytes))));
    match readings.map(|readings| &readings.gpus) {
        Err(why) => add("gpus", Err(why)),
        Ok(Reading::Missing(why)) => add("gpus", Err(why)),
        Ok(Reading::Known(gpus)) => {
            let device = facts.device.as_deref();
            if let Some(id) = device.filter(|id| gpus.iter().all(|gpu| gpu.id != **id)) {
                let why = "no sensor knows the GPU that the agent works with; rules look at all".to_owned();
                list.push(one("gpu", Some(id), Reading::Missing(why)));
            }
            for gpu in looked_at(device, gpus) {
                list.extend(of_gpu(gpu));
            }
        }
    }
    list
}

fn of_gpu(gpu: &Gpu) -> Vec<Sensor> {
    let percent = |percent: &u8| format!("{percent} %");
    let programs = |programs: &Vec<crate::readings::GpuProgram>| match programs.as_slice() {
        [] => "none".to_owned(),
        [only] => name(&only.name),
        [first, rest @ ..] => format!("{} and {} more", name(&first.name), rest.len()),
    };
    [
        ("gpu_busy", said(&gpu.busy_percent, percent)),
        ("gpu_temperature", said(&gpu.temperature_c, |celsius| Celsius(u64::from(*celsius)).show())),
        ("gpu_power", said(&gpu.power_mw, |milliwatts| about_mw(*milliwatts))),
        ("gpu_power_limit", said(&gpu.power_limit_mw, |milliwatts| about_mw(*milliwatts))),
        ("gpu_memory", said(&gpu.memory_used_bytes, |bytes| about_bytes(*bytes))),
        ("gpu_memory_total", said(&gpu.memory_total_bytes, |bytes| about_bytes(*bytes))),
        ("gpu_fan", said(&gpu.fan_percent, percent)),
        ("gpu_others", said(&gpu.others, programs)),
    ]
    .into_iter()
    .map(|(sensor, said)| one(sensor, Some(&gpu.id), said))
    .collect()
}

fn one(sensor: &str, gpu: Option<&str>, said: Reading<String>) -> Sensor {
    let (value, missing) = match said {
        Reading::Known(value) => (Some(value), None),
        Reading::Missing(why) => (None, Some(why)),
    };
    Sensor { sensor: sensor.to_owned(), gpu: gpu.map(str::to_owned), value, missing }
}

fn said<T>(reading: &Reading<T>, words: impl Fn(&T) -> String) -> Reading<String> {
    match reading {
        Reading::Known(value) => Reading::Known(words(value)),
        Reading::Missing(why) => Reading::Missing(why.clone()),
    }
}

fn power(power: &Power) -> String {
    match power {
        Power::Mains => "mains".to_owned(),
        Power::Battery { percent } => format!("battery, {percent} %"),
    }
}

fn clock(weekday: u8, minute: u16) -> String {
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let day = days.get(usize::from(weekday)).unwrap_or(&"?");
    format!("{day} {:02}:{:02}", minute / 60, minute % 60)
}
