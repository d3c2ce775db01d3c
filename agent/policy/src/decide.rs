//! The machine that decides: one event in, actions out.
//!
//! A rule that begins to hold stops work at once. One that ends must stay ended for a while, and for longer each time it
//! comes back soon, so that work never flaps. Must never allow work while a rule that blocks it holds.

use std::collections::BTreeMap;

use crate::readings::{Reading, Readings};
use crate::rules::{self, Facts, Finding, Key, Rule, Sensed, Told};
use crate::settings::{Missing, Settings};
use crate::units::{about_ms, left_ms};
use crate::view::{self, Allowance, Blocks, Pause, Reason, Standing, State, View};

/// The longest time between two looks, in milliseconds. To notice a game at once, a shell reads its sensors more often.
pub const LOOK_EVERY_MS: u64 = 10_000;
/// How often sensors are read at least, in milliseconds: what people are told of the next look.
pub const SENSED_EVERY_MS: u64 = 5_000;
/// A rule that held stays in force for so long when its sensor falls silent, in milliseconds.
pub const SILENCE_MS: u64 = 300_000;
/// A rule that comes back within this time has to stay away twice as long, in milliseconds.
pub const RELAPSE_MS: u64 = 300_000;
/// How often that time is doubled at most.
pub const DOUBLINGS_MAX: u32 = 4;
/// For so long after the agent's own processes, what a GPU says may be about that work, in milliseconds.
pub const AFTERGLOW_MS: u64 = 10_000;

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Sensors were read, just now.
    Readings(Box<Readings>),
    /// The owner pauses. Replaces an earlier pause.
    Pause(Pause),
    /// The owner ends a pause, or `finish`.
    Resume,
    /// The owner wants nothing new begun.
    Finish,
    /// The owner's settings changed. Takes effect at once.
    Settings(Box<Settings>),
    /// Whether something is at work now.
    Working(bool),
    /// Whether a process of ours has the device, at work or idle: what a GPU says may then be about that.
    Occupied(bool),
    /// The GPU that the agent works with, by the id that sensors give it; nothing if unknown.
    Device(Option<String>),
    /// Why nothing can be done although it may: the worker dies again and again, a driver fails. Nothing if all is well
    /// again. It changes no allowance: whoever has the trouble knows when to try again.
    Trouble(Option<String>),
    /// The machine woke from sleep: what was read before says nothing now.
    Woke,
    /// Time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// What is at work beyond `allowed` has to stop at once. Nothing is begun beyond it, and nothing new at all unless
    /// `new_work`.
    Allow {
        /// What may be at work.
        allowed: Allowance,
        /// Whether new work may be taken.
        new_work: bool,
    },
    /// Send and receive no more than so many bytes a second; nothing is no limit.
    LimitRate(Option<u64>),
    /// Read sensors and hand them over at this time at the latest, in Unix milliseconds. In every answer.
    LookAgain(u64),
}

/// The owner's policy at one moment.
#[derive(Clone, Debug)]
pub struct Policy {
    facts: Facts,
    /// Rules that hold, and those that are over but not for long enough.
    held: BTreeMap<Key, Held>,
    /// Rules that were let go lately.
    released: BTreeMap<Key, Released>,
    finish: Finish,
    /// Why nothing can be done, and since when.
    trouble: Option<(String, u64)>,
    working: bool,
    occupied: bool,
    /// When the agent last used the GPU.
    gpu_ours_ms: Option<u64>,
    told_allowance: Option<(Allowance, bool)>,
    told_rate: Option<Option<u64>>,
}

#[derive(Clone, Debug)]
struct Held {
    since_ms: u64,
    /// When it was last seen to hold.
    seen_ms: u64,
    /// Since when it is over.
    over_ms: Option<u64>,
    doublings: u32,
    /// It holds only because its sensor says nothing, and the owner wants that to block.
    unseen: bool,
    told: Told,
}

#[derive(Clone, Copy, Debug)]
struct Released {
    at_ms: u64,
    doublings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Not,
    /// What is at work may end.
    Ending,
    Done,
}

impl Policy {
    /// Nothing is allowed until the first readings come, or thirty seconds have passed. `now_ms` is in Unix milliseconds,
    /// here and everywhere.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let facts = Facts {
            settings,
            now_ms,
            sensed: None,
            asked_ms: now_ms,
            last_input_ms: None,
            device: None,
            pause: None,
            finished: false,
        };
        Self {
            facts,
            held: BTreeMap::new(),
            released: BTreeMap::new(),
            finish: Finish::Not,
            trouble: None,
            working: false,
            occupied: false,
            gpu_ours_ms: None,
            told_allowance: None,
            told_rate: None,
        }
    }

    /// What the owner allows.
    pub fn settings(&self) -> &Settings {
        &self.facts.settings
    }

    /// Takes note of an event. The first call tells everything, later ones what changed, and when to look again.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        self.pass_time(now_ms);
        self.note(event);
        self.judge();
        self.actions()
    }

    /// How things stand, in words, for owners. `now_ms` is not before the last event.
    pub fn view(&self, now_ms: u64) -> View {
        let facts = Facts { now_ms: now_ms.max(self.facts.now_ms), ..self.facts.clone() };
        let findings: BTreeMap<Key, Finding> = self.look(&facts).into_iter().collect();
        let told: Vec<(&Key, &Held, Told)> = self
            .held
            .iter()
            .map(|(key, held)| (key, held, held.told_now(key.0, findings.get(key), facts.now_ms)))
            .collect();
        let leads = |blocks| told.iter().find(|(key, ..)| self.blocks(key.0) == blocks);
        let lead = leads(Blocks::All).or_else(|| leads(Blocks::Gpu));
        let allowed = self.allowance();
        let standing = Standing {
            allowed,
            lead: lead.map(|(key, _, told)| (key.0, told)),
            trouble: self.trouble.as_ref().map(|(text, _)| text.as_str()),
            working: self.working,
            finishing: self.finish != Finish::Not,
        };
        let (state, headline) = standing.told();
        let next_ms = next_reading_ms(&facts);
        let mut reasons: Vec<Reason> = told
            .iter()
            .map(|(key, held, told)| Reason {
                rule: key.0,
                blocks: self.blocks(key.0),
                text: format!("{}; {}", told.what, told.then),
                value: told.value.clone(),
                threshold: told.threshold.clone(),
                since_ms: held.since_ms,
                look_again_ms: told.ends_ms.filter(|ends_ms| *ends_ms > facts.now_ms).unwrap_or(next_ms),
                line: String::new(),
            })
            .collect();
        reasons.extend(self.trouble.iter().map(|(text, since_ms)| Reason {
            rule: Rule::Trouble,
            blocks: Rule::Trouble.blocks(),
            text: text.clone(),
            value: text.clone(),
            threshold: "a worker that runs".to_owned(),
            since_ms: *since_ms,
            look_again_ms: next_ms,
            line: String::new(),
        }));
        for reason in &mut reasons {
            reason.line = reason.told_in_a_line(facts.now_ms);
        }
        // The reason of the headline comes first; the others keep their order.
        let lead = lead.map(|(key, ..)| key.0);
        let leads = |reason: &Reason| state == State::Trouble && reason.rule == Rule::Trouble;
        reasons.sort_by_key(|reason| (!leads(reason), Some(reason.rule) != lead));
        View {
            state,
            headline,
            allowed,
            reasons,
            sensors: view::sensors(&facts),
            pause: self.facts.pause,
            finishing: self.finish != Finish::Not,
        }
    }

    /// Clocks are sometimes set back: then nothing that was noted may lie in the future, or it would last too long.
    fn pass_time(&mut self, now_ms: u64) {
        if now_ms < self.facts.now_ms {
            let back = |noted_ms: &mut u64| *noted_ms = now_ms.min(*noted_ms);
            back(&mut self.facts.asked_ms);
            self.facts.last_input_ms.iter_mut().for_each(back);
            self.facts.sensed.iter_mut().for_each(|sensed| back(&mut sensed.at_ms));
            self.gpu_ours_ms.iter_mut().for_each(back);
            self.trouble.iter_mut().for_each(|(_, since_ms)| back(since_ms));
            self.released.values_mut().for_each(|released| back(&mut released.at_ms));
            for held in self.held.values_mut() {
                back(&mut held.since_ms);
                back(&mut held.seen_ms);
                held.over_ms.iter_mut().for_each(back);
            }
        }
        self.facts.now_ms = now_ms;
        if self.uses_gpu() {
            self.gpu_ours_ms = Some(now_ms);
        }
        self.facts.pause = self.facts.pause.filter(|pause| pause.until_ms.is_none_or(|until| until > now_ms));
    }

    fn note(&mut self, event: Event) {
        let now_ms = self.facts.now_ms;
        match event {
            Event::Readings(readings) => self.sense(*readings),
            Event::Pause(pause) => {
                self.facts.pause =
                    Some(pause).filter(|pause| pause.until_ms.is_none_or(|until| until > now_ms));
            }
            Event::Resume => {
                self.facts.pause = None;
                self.finish = Finish::Not;
            }
            Event::Finish if self.finish == Finish::Not => {
                self.finish = if self.working { Finish::Ending } else { Finish::Done };
            }
            Event::Finish => {}
            Event::Settings(settings) => {
                if *settings != self.facts.settings {
                    self.facts.settings = *settings;
                    self.forget_what_is_over();
                }
            }
            Event::Working(working) => {
                self.working = working;
                if !working && self.finish == Finish::Ending {
                    self.finish = Finish::Done;
                }
            }
            Event::Occupied(occupied) => self.occupied = occupied,
            Event::Device(device) => {
                let is_looked_at = |gpu: &Option<String>| gpu.is_none() || device.is_none() || *gpu == device;
                self.held.retain(|(_, gpu), _| is_looked_at(gpu));
                self.facts.device = device;
            }
            Event::Trouble(trouble) => {
                let since_ms = self.trouble.as_ref().map_or(now_ms, |(_, since_ms)| *since_ms);
                self.trouble = trouble.map(|text| (text, since_ms));
            }
            Event::Woke => {
                self.facts.sensed = None;
                self.facts.asked_ms = now_ms;
            }
            Event::Tick => {}
        }
        self.facts.finished = self.finish == Finish::Done;
    }

    fn sense(&mut self, readings: Readings) {
        let now_ms = self.facts.now_ms;
        if let Reading::Known(idle_ms) = readings.owner_idle_ms {
            // Input that was seen stays seen, whatever a sensor says later.
            let input_ms = now_ms.saturating_sub(idle_ms);
            self.facts.last_input_ms =
                Some(self.facts.last_input_ms.map_or(input_ms, |last| last.max(input_ms)));
        }
        let gpu_ours = self.gpu_ours_ms.is_some_and(|ours_ms| now_ms.saturating_sub(ours_ms) < AFTERGLOW_MS);
        self.facts.sensed = Some(Sensed { readings, at_ms: now_ms, gpu_ours });
    }

    /// The owner changed what counts: neither bands nor waiting times of before do.
    fn forget_what_is_over(&mut self) {
        let fresh: BTreeMap<Key, Finding> = rules::look(&self.facts, &|_| false).into_iter().collect();
        self.held.retain(|key, held| match fresh.get(key) {
            Some(Finding::Holds(_)) => true,
            Some(Finding::Missing(_)) => !held.unseen,
            Some(Finding::Clear) | None => false,
        });
    }

    fn look(&self, facts: &Facts) -> Vec<(Key, Finding)> {
        rules::look(facts, &|key| self.held.contains_key(key))
    }

    /// Brings `held` up to date.
    fn judge(&mut self) {
        let now_ms = self.facts.now_ms;
        // Before sensors were asked at all, none has failed.
        let asking = rules::is_asking(&self.facts);
        let silence_blocks = self.facts.settings.missing == Missing::Block && !asking;
        let mut silent: Vec<Key> = self.held.keys().cloned().collect();
        for (key, finding) in self.look(&self.facts) {
            silent.retain(|held| *held != key);
            match finding {
                Finding::Holds(told) => self.hold(key, told, false),
                Finding::Clear => self.let_go(&key),
                Finding::Missing(unseen) if silence_blocks => {
                    let told = Told {
                        what: format!("the sensor for {} says nothing ({})", unseen.sensor, unseen.why),
                        then: "work goes on when it does, or with `skein set missing ignore`".to_owned(),
                        value: "missing".to_owned(),
                        threshold: unseen.threshold,
                        ends_ms: None,
                    };
                    self.hold(key, told, true);
                }
                Finding::Missing(_) => silent.push(key),
            }
        }
        // A game does not end because nobody can see it any more. But a sensor that never speaks again does not block.
        for key in silent {
            let has_own_timer = key.0.stay_ms() == 0;
            let is_silent = |held: &Held| {
                let silent_ms = now_ms.saturating_sub(held.seen_ms);
                has_own_timer || held.over_ms.is_some() || silent_ms >= SILENCE_MS
            };
            if self.held.get(&key).is_some_and(is_silent) {
                self.let_go(&key);
            }
        }
        self.released.retain(|_, released| now_ms.saturating_sub(released.at_ms) < RELAPSE_MS);
    }

    fn hold(&mut self, key: Key, told: Told, unseen: bool) {
        let now_ms = self.facts.now_ms;
        let (since_ms, doublings) = match (self.held.get(&key), self.released.get(&key)) {
            (Some(held), _) => (held.since_ms, held.doublings),
            (None, Some(released)) => (now_ms, (released.doublings + 1).min(DOUBLINGS_MAX)),
            (None, None) => (now_ms, 0),
        };
        self.held.insert(key, Held { since_ms, seen_ms: now_ms, over_ms: None, doublings, unseen, told });
    }

    /// The rule no longer holds; it is let go when that has lasted long enough.
    fn let_go(&mut self, key: &Key) {
        let now_ms = self.facts.now_ms;
        let Some(held) = self.held.get_mut(key) else { return };
        let over_ms = *held.over_ms.get_or_insert(now_ms);
        if now_ms >= over_ms.saturating_add(held.stay_ms(key.0)) {
            self.released.insert(key.clone(), Released { at_ms: now_ms, doublings: held.doublings });
            self.held.remove(key);
        }
    }

    fn actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let allowed = self.allowance();
        let allowance = (allowed, allowed != Allowance::Nothing && self.finish == Finish::Not);
        if self.told_allowance.replace(allowance) != Some(allowance) {
            actions.push(Action::Allow { allowed, new_work: allowance.1 });
        }
        if self.uses_gpu() {
            self.gpu_ours_ms = Some(self.facts.now_ms);
        }
        let rate = self.facts.settings.rate_max.map(|rate| rate.0);
        if self.told_rate.replace(rate) != Some(rate) {
            actions.push(Action::LimitRate(rate));
        }
        actions.push(Action::LookAgain(self.next_look_ms(self.facts.now_ms)));
        actions
    }

    fn allowance(&self) -> Allowance {
        let blocked = |blocks| self.held.keys().any(|(rule, _)| self.blocks(*rule) == blocks);
        match (blocked(Blocks::All), blocked(Blocks::Gpu)) {
            (true, _) => Allowance::Nothing,
            (false, true) => Allowance::CpuOnly,
            (false, false) => Allowance::All,
        }
    }

    /// What a rule stops; a pause stops what its owner said.
    fn blocks(&self, rule: Rule) -> Blocks {
        match self.facts.pause {
            Some(pause) if rule == Rule::Manual => pause.blocks,
            Some(_) | None => rule.blocks(),
        }
    }

    fn uses_gpu(&self) -> bool {
        (self.working || self.occupied)
            && self.told_allowance.is_some_and(|(allowed, _)| allowed == Allowance::All)
    }

    /// The first time after `now_ms` at which something can change by itself.
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        let ends = self.held.iter().filter_map(|((rule, _), held)| match held.over_ms {
            Some(over_ms) => Some(over_ms.saturating_add(held.stay_ms(*rule))),
            None => held.told.ends_ms,
        });
        ends.filter(|at_ms| *at_ms > now_ms).fold(now_ms.saturating_add(LOOK_EVERY_MS), u64::min)
    }
}

/// When the sensors are read again, as far as that is known.
fn next_reading_ms(facts: &Facts) -> u64 {
    let read_ms = facts.sensed.as_ref().map_or(facts.asked_ms, |sensed| sensed.at_ms);
    read_ms.saturating_add(SENSED_EVERY_MS).max(facts.now_ms.saturating_add(1_000))
}

impl Held {
    fn stay_ms(&self, rule: Rule) -> u64 {
        rule.stay_ms() << self.doublings
    }

    /// As told now: as found now, as it was when it was seen last, or how long it is over.
    fn told_now(&self, rule: Rule, finding: Option<&Finding>, now_ms: u64) -> Told {
        match (self.over_ms, finding) {
            (None, Some(Finding::Holds(told))) => told.clone(),
            (None, Some(Finding::Clear | Finding::Missing(_)) | None) => self.told.clone(),
            (Some(over_ms), _) => {
                let (over, stay_ms) = (about_ms(now_ms.saturating_sub(over_ms)), self.stay_ms(rule));
                let ends_ms = over_ms.saturating_add(stay_ms);
                Told {
                    what: format!("{} ended {over} ago", rule.title()),
                    then: format!(
                        "work goes on in {} if it stays so",
                        left_ms(ends_ms.saturating_sub(now_ms))
                    ),
                    value: format!("over for {over}"),
                    threshold: format!("{} over", about_ms(stay_ms)),
                    ends_ms: Some(ends_ms),
                }
            }
        }
    }
}
