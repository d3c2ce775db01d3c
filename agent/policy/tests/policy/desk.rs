//! A machine on somebody's desk: a policy, a clock, and what sensors say.

use skein_policy::readings::{Gpu, GpuProgram, Power, Reading, Readings, WallTime};
use skein_policy::{Action, Allowance, Blocks, Event, Pause, Policy, Reason, Rule, Settings, View};

pub(crate) const SECOND: u64 = 1_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const GIGABYTE: u64 = 1_000_000_000;
/// When all tests begin, in Unix milliseconds.
pub(crate) const START: u64 = 1_767_225_600_000;

pub(crate) struct Desk {
    pub policy: Policy,
    pub now: u64,
    pub readings: Readings,
    pub allowed: Allowance,
    pub new_work: bool,
    pub rate: Option<u64>,
    pub look_again: u64,
    /// How often more was allowed than before.
    pub resumes: u32,
}

impl Desk {
    /// With everything read once, and nothing that keeps from working.
    pub(crate) fn new(settings: Settings) -> Self {
        let mut desk = Self::unsensed(settings);
        desk.sense(|_| {});
        assert_eq!(desk.allowed, Allowance::All, "{:?}", desk.view());
        desk.resumes = 0;
        desk
    }

    /// Just started.
    pub(crate) fn unsensed(settings: Settings) -> Self {
        let mut desk = Self {
            policy: Policy::new(settings, START),
            now: START,
            readings: calm(),
            allowed: Allowance::Nothing,
            new_work: false,
            rate: None,
            look_again: 0,
            resumes: 0,
        };
        desk.event(Event::Tick);
        desk
    }

    pub(crate) fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.policy.handle(self.now, event);
        for action in &actions {
            match *action {
                Action::Allow { allowed, new_work } => {
                    self.resumes += u32::from(rank(allowed) > rank(self.allowed));
                    (self.allowed, self.new_work) = (allowed, new_work);
                }
                Action::LimitRate(rate) => self.rate = rate,
                Action::LookAgain(at) => self.look_again = at,
            }
        }
        assert!(self.look_again > self.now, "a look in the past: {actions:?}");
        assert_eq!(self.view().allowed, self.allowed);
        actions
    }

    /// Sensors say something else from now on.
    pub(crate) fn sense(&mut self, change: impl FnOnce(&mut Readings)) {
        change(&mut self.readings);
        self.event(Event::Readings(Box::new(self.readings.clone())));
    }

    /// Time passes, sensors are read whenever the policy wants to look. Returns how long it took until all was allowed.
    pub(crate) fn pass(&mut self, ms: u64) -> Option<u64> {
        let (begin, end) = (self.now, self.now + ms);
        let mut allowed_at = (self.allowed == Allowance::All).then_some(0);
        while self.now < end {
            self.now = self.look_again.min(end);
            self.sense(|_| {});
            if self.allowed == Allowance::All && allowed_at.is_none() {
                allowed_at = Some(self.now - begin);
            }
        }
        allowed_at
    }

    pub(crate) fn pause(&mut self, blocks: Blocks, until_ms: Option<u64>) {
        self.event(Event::Pause(Pause { blocks, until_ms }));
    }

    pub(crate) fn view(&self) -> View {
        self.policy.view(self.now)
    }

    pub(crate) fn reason(&self, rule: Rule) -> Reason {
        let view = self.view();
        let found = view.reasons.iter().find(|reason| reason.rule == rule).cloned();
        found.unwrap_or_else(|| panic!("no reason {rule:?} in {view:#?}"))
    }

    pub(crate) fn rules(&self) -> Vec<Rule> {
        self.view().reasons.iter().map(|reason| reason.rule).collect()
    }
}

pub(crate) fn rank(allowed: Allowance) -> u8 {
    match allowed {
        Allowance::Nothing => 0,
        Allowance::CpuOnly => 1,
        Allowance::All => 2,
    }
}

/// Settings by their names, on top of none at all.
pub(crate) fn only(settings: &[(&str, &str)]) -> Settings {
    let mut only = Settings::headless();
    for key in ["gpu_temperature_max", "battery", "battery_min", "disk_free_min", "metered"] {
        only.set(key, "off").unwrap();
    }
    for (key, value) in settings {
        only.set(key, value).unwrap();
    }
    only
}

/// Nothing keeps from working: late on Wednesday, nobody there.
pub(crate) fn calm() -> Readings {
    Readings {
        owner_idle_ms: Reading::Known(60 * MINUTE),
        full_screen: Reading::Known(None),
        game: Reading::Known(None),
        remote_desktop: Reading::Known(None),
        power: Reading::Known(Power::Mains),
        metered: Reading::Known(false),
        disk_free_bytes: Reading::Known(500 * GIGABYTE),
        wall: Reading::Known(WallTime { weekday: 2, minute: 23 * 60 }),
        gpus: Reading::Known(vec![gpu("0000:01:00.0")]),
        processor_others_permille: Reading::Known(20),
        traffic_month_bytes: Reading::Known(0),
    }
}

pub(crate) fn gpu(id: &str) -> Gpu {
    Gpu {
        id: id.to_owned(),
        name: "NVIDIA GeForce RTX 3060".to_owned(),
        busy_percent: Reading::Known(0),
        temperature_c: Reading::Known(40),
        power_mw: Reading::Known(20_000),
        power_limit_mw: Reading::Known(170_000),
        memory_used_bytes: Reading::Known(GIGABYTE / 2),
        memory_total_bytes: Reading::Known(10 * GIGABYTE),
        fan_percent: Reading::Known(30),
        others: Reading::Known(Vec::new()),
    }
}

/// The first GPU, to be changed.
pub(crate) fn first(readings: &mut Readings) -> &mut Gpu {
    match &mut readings.gpus {
        Reading::Known(gpus) => &mut gpus[0],
        Reading::Missing(why) => panic!("no GPUs: {why}"),
    }
}

pub(crate) fn program(memory_bytes: Option<u64>) -> Reading<Vec<GpuProgram>> {
    let name = "blender".to_owned();
    Reading::Known(vec![GpuProgram { pid: 7, name, memory_bytes, busy_percent: Some(0) }])
}

/// Programs that hold little of the memory, by their shares of the GPU's time.
pub(crate) fn rivals(shares: &[Option<u8>]) -> Reading<Vec<GpuProgram>> {
    let rival = |(pid, share): (u32, &Option<u8>)| GpuProgram {
        pid,
        name: format!("rival {pid}"),
        memory_bytes: Some(GIGABYTE / 2),
        busy_percent: *share,
    };
    Reading::Known((8_u32..).zip(shares).map(rival).collect())
}

pub(crate) fn unread<T>() -> Reading<T> {
    Reading::Missing("it does not answer".to_owned())
}
