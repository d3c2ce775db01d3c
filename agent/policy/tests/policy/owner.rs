//! What the owner says, what the shell says, and how it is told.

use serde_json::json;
use skein_policy::readings::Reading;
use skein_policy::{Action, Allowance, Blocks, Event, Pause, Rule, STALE_MS, Settings, State, View};

use crate::desk::{Desk, MINUTE, SECOND, START, first, only};

#[test]
fn a_pause_ends_by_its_timer() {
    let mut desk = Desk::new(only(&[]));
    desk.event(Event::Working(true));
    let end = desk.now + 30 * MINUTE;
    desk.pause(Blocks::All, Some(end));
    assert_eq!((desk.allowed, desk.new_work), (Allowance::Nothing, false));
    desk.event(Event::Working(false));
    let view = desk.view();
    assert_eq!(view.state, State::Paused);
    assert_eq!(view.headline, "Paused: you paused all work");
    assert_eq!(view.pause, Some(Pause { blocks: Blocks::All, until_ms: Some(end) }));
    assert_eq!(desk.reason(Rule::Manual).text, "you paused all work; it goes on in 30 min");
    assert_eq!(desk.reason(Rule::Manual).look_again_ms, end);
    assert_eq!(desk.pass(60 * MINUTE), Some(30 * MINUTE));
    assert_eq!(desk.view().pause, None);
}

#[test]
fn a_pause_until_tomorrow_ends_at_the_midnight_that_the_caller_names() {
    let mut desk = Desk::new(only(&[]));
    let midnight = START + 11 * 60 * MINUTE + 17_123;
    desk.pause(Blocks::All, Some(midnight));
    desk.now = midnight - 1;
    desk.sense(|_| {});
    assert_eq!(desk.allowed, Allowance::Nothing);
    assert_eq!(desk.look_again, midnight);
    desk.now = midnight;
    desk.sense(|_| {});
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn a_pause_that_is_over_already_is_none() {
    let mut desk = Desk::new(only(&[]));
    desk.pause(Blocks::All, Some(desk.now));
    assert_eq!((desk.allowed, desk.view().pause), (Allowance::All, None));
}

#[test]
fn a_pause_without_a_timer_lasts_until_resumed() {
    let mut desk = Desk::new(only(&[]));
    desk.pause(Blocks::All, None);
    desk.pass(100 * MINUTE);
    assert_eq!(desk.allowed, Allowance::Nothing);
    desk.event(Event::Resume);
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn a_pause_of_the_gpu_leaves_the_processor() {
    let mut desk = Desk::new(only(&[]));
    desk.event(Event::Working(true));
    desk.pause(Blocks::Gpu, Some(desk.now + MINUTE));
    assert_eq!((desk.allowed, desk.new_work), (Allowance::CpuOnly, true));
    assert_eq!(desk.reason(Rule::Manual).blocks, Blocks::Gpu);
    assert_eq!(desk.view().state, State::Working);
    assert_eq!(desk.view().headline, "Working on the processor alone: you paused the GPU");
    desk.event(Event::Working(false));
    assert_eq!(desk.view().headline, "GPU paused: you paused the GPU");
    desk.pause(Blocks::All, None);
    assert_eq!(desk.allowed, Allowance::Nothing, "the later word counts");
    desk.pause(Blocks::Gpu, None);
    assert_eq!(desk.allowed, Allowance::CpuOnly);
}

#[test]
fn finish_lets_work_end_and_takes_no_more() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.event(Event::Working(true));
    let actions = desk.event(Event::Finish);
    assert!(actions.contains(&Action::Allow { allowed: Allowance::All, new_work: false }), "{actions:?}");
    let view = desk.view();
    assert_eq!((view.state, view.finishing), (State::Working, true));
    assert_eq!(view.headline, "Finishing current work; then waiting until you resume");
    desk.event(Event::Working(false));
    assert_eq!((desk.allowed, desk.new_work), (Allowance::Nothing, false));
    assert_eq!((desk.view().state, desk.view().finishing), (State::Waiting, true));
    assert_eq!(desk.rules(), [Rule::Finish]);
    desk.pass(100 * MINUTE);
    assert_eq!(desk.allowed, Allowance::Nothing);
    desk.event(Event::Resume);
    assert_eq!((desk.allowed, desk.new_work, desk.view().finishing), (Allowance::All, true, false));
}

#[test]
fn finishing_work_stops_at_once_when_a_game_starts() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.event(Event::Working(true));
    desk.event(Event::Finish);
    desk.sense(|readings| readings.game = Reading::Known(Some("quake".to_owned())));
    assert_eq!(desk.allowed, Allowance::Nothing);
    assert_eq!(desk.view().headline, "Paused: a game is running (quake)");
}

#[test]
fn finish_with_nothing_at_work_waits_at_once() {
    let mut desk = Desk::new(only(&[]));
    desk.event(Event::Finish);
    assert_eq!((desk.allowed, desk.view().state), (Allowance::Nothing, State::Waiting));
}

#[test]
fn resume_does_not_override_the_rules() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.sense(|readings| readings.game = Reading::Known(Some("quake".to_owned())));
    desk.event(Event::Resume);
    assert_eq!(desk.allowed, Allowance::Nothing);
}

#[test]
fn nothing_begins_before_the_first_readings_but_it_does_without_any() {
    let mut desk = Desk::unsensed(Settings::default());
    assert_eq!((desk.allowed, desk.view().state), (Allowance::Nothing, State::Waiting));
    assert!(desk.view().sensors.iter().all(|sensor| sensor.missing.as_deref() == Some("not read yet")));
    desk.now += STALE_MS - 1;
    desk.event(Event::Tick);
    assert_eq!(desk.allowed, Allowance::Nothing);
    assert_eq!(desk.look_again, START + STALE_MS);
    desk.now += 1;
    desk.event(Event::Tick);
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn stale_readings_count_as_missing() {
    let mut settings = only(&[("disk_free_min", "20 GB"), ("missing", "block")]);
    let mut desk = Desk::new(settings.clone());
    desk.now += STALE_MS;
    desk.event(Event::Tick);
    assert_eq!(desk.allowed, Allowance::All, "not older than that");
    desk.now += 1;
    desk.event(Event::Tick);
    assert_eq!(desk.allowed, Allowance::Nothing);
    assert!(desk.view().sensors.iter().all(|sensor| sensor.missing.as_deref() == Some("last read 30 s ago")));
    settings.set("missing", "ignore").unwrap();
    desk.event(Event::Settings(Box::new(settings)));
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn after_sleep_the_machine_is_looked_at_first() {
    let mut desk = Desk::new(Settings::default());
    desk.event(Event::Working(true));
    desk.now += 8 * 60 * MINUTE;
    desk.event(Event::Woke);
    assert_eq!(desk.allowed, Allowance::Nothing, "what was read before says nothing");
    assert_eq!(desk.rules(), [Rule::Sensing]);
    desk.now += SECOND;
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(0));
    assert_eq!(desk.rules(), [Rule::UserActive], "the owner woke it");
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(60 * MINUTE));
    assert_eq!(desk.allowed, Allowance::Nothing, "input that was seen stays seen");
}

#[test]
fn a_pause_may_end_during_sleep() {
    let mut desk = Desk::new(only(&[]));
    desk.pause(Blocks::All, Some(desk.now + 30 * MINUTE));
    desk.now += 60 * MINUTE;
    desk.event(Event::Woke);
    desk.sense(|_| {});
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_last_longer() {
    let mut desk = Desk::new(only(&[("game", "on"), ("user_idle", "1 min")]));
    desk.now += 24 * 60 * MINUTE;
    desk.sense(|readings| {
        readings.game = Reading::Known(Some("quake".to_owned()));
        readings.owner_idle_ms = Reading::Known(0);
    });
    desk.sense(|readings| readings.game = Reading::Known(None));
    desk.now -= 24 * 60 * MINUTE;
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(2 * MINUTE));
    assert!(desk.view().reasons.iter().all(|reason| reason.since_ms <= desk.now));
    assert_eq!(desk.pass(2 * MINUTE), Some(MINUTE));
}

#[test]
fn settings_take_effect_at_once() {
    let mut desk = Desk::new(only(&[("gpu_temperature_max", "80")]));
    desk.sense(|readings| first(readings).temperature_c = Reading::Known(84));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    desk.event(Event::Settings(Box::new(only(&[("gpu_temperature_max", "85")]))));
    assert_eq!(desk.allowed, Allowance::All, "the band of before does not count");
    desk.event(Event::Settings(Box::new(only(&[("gpu_temperature_max", "70")]))));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    desk.event(Event::Settings(Box::new(only(&[]))));
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn the_same_settings_again_shorten_nothing() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.sense(|readings| readings.game = Reading::Known(Some("quake".to_owned())));
    desk.sense(|readings| readings.game = Reading::Known(None));
    desk.event(Event::Settings(Box::new(only(&[("game", "on")]))));
    desk.event(Event::Device(Some("0000:01:00.0".to_owned())));
    assert_eq!(desk.allowed, Allowance::Nothing);
}

#[test]
fn the_rate_is_told_at_first_and_when_it_changes() {
    let mut desk = Desk::unsensed(only(&[("rate_max", "40 Mbit/s")]));
    assert_eq!(desk.rate, Some(5_000_000));
    let again = desk.event(Event::Tick);
    assert!(matches!(again[..], [Action::LookAgain(_)]), "{again:?}");
    let changed = desk.event(Event::Settings(Box::new(only(&[]))));
    assert!(changed.contains(&Action::LimitRate(None)), "{changed:?}");
}

#[test]
fn trouble_is_shown_and_changes_no_allowance() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.event(Event::Trouble(Some("the worker died 5 times in a minute".to_owned())));
    let view = desk.view();
    assert_eq!((view.state, view.allowed), (State::Trouble, Allowance::All));
    assert_eq!(view.headline, "Trouble: the worker died 5 times in a minute");
    assert_eq!(view.reasons[0].rule, Rule::Trouble);
    desk.sense(|readings| readings.game = Reading::Known(Some("quake".to_owned())));
    assert_eq!(desk.view().state, State::Paused, "what the owner wants comes first");
    assert_eq!(desk.rules(), [Rule::Game, Rule::Trouble]);
    desk.event(Event::Trouble(None));
    assert_eq!(desk.rules(), [Rule::Game]);
}

#[test]
fn the_reason_that_tells_most_comes_first() {
    let mut desk = Desk::new(Settings::default());
    desk.sense(|readings| {
        readings.owner_idle_ms = Reading::Known(0);
        readings.full_screen = Reading::Known(Some("eldenring.exe".to_owned()));
        readings.game = Reading::Known(Some("eldenring.exe".to_owned()));
        first(readings).temperature_c = Reading::Known(90);
    });
    let told = [Rule::Game, Rule::FullScreen, Rule::UserActive, Rule::GpuTemperature];
    assert_eq!(desk.rules(), told);
    desk.pause(Blocks::Gpu, None);
    assert_eq!(desk.rules()[..2], [Rule::Game, Rule::Manual], "what stops all leads");
    assert_eq!(desk.view().headline, "Paused: a game is running (eldenring.exe)");
}

#[test]
fn the_view_is_the_policy_object_of_the_api() {
    let mut desk = Desk::new(Settings::default());
    desk.sense(|readings| {
        readings.owner_idle_ms = Reading::Known(40 * SECOND);
        readings.metered = Reading::Missing("NetworkManager does not answer on D-Bus".to_owned());
        first(readings).temperature_c = Reading::Known(61);
    });
    desk.pause(Blocks::Gpu, None);
    let view = serde_json::to_value(desk.view()).unwrap();
    assert_eq!(view["state"], "paused");
    assert_eq!(view["headline"], "Paused: you used this machine 40 s ago");
    assert_eq!(view["allowed"], "nothing");
    assert_eq!(
        view["reasons"][0],
        json!({
            "rule": "user_active", "blocks": "all", "value": "40 s", "threshold": "3 min",
            "text": "you used this machine 40 s ago; work goes on after 3 min without input",
            "since_ms": START, "look_again_ms": START + 140 * SECOND,
            "line": "you used this machine 40 s ago; work goes on after 3 min without input \
                     (limit 3 min, next look in 2 min 20 s)",
        })
    );
    let sensors = view["sensors"].as_array().unwrap();
    let metered = json!({"sensor": "metered", "missing": "NetworkManager does not answer on D-Bus"});
    assert!(sensors.contains(&metered), "{sensors:?}");
    let heat = json!({"sensor": "gpu_temperature", "gpu": "0000:01:00.0", "value": "61 °C"});
    assert!(sensors.contains(&heat), "{sensors:?}");
    assert_eq!(view["pause"], json!({"blocks": "gpu", "until_ms": null}));
    assert_eq!(view["finishing"], false);
    assert_eq!(view.as_object().unwrap().len(), 7);
    assert_eq!(serde_json::from_value::<View>(view).unwrap(), desk.view());
}

#[test]
fn the_next_look_comes_nearer_while_one_waits_for_it() {
    let mut desk = Desk::new(Settings::default());
    desk.sense(|readings| first(readings).temperature_c = Reading::Known(100));
    let next = desk.now + skein_policy::SENSED_EVERY_MS;
    assert_eq!(desk.reason(Rule::GpuTemperature).look_again_ms, next);
    desk.now += 3 * SECOND;
    let reason = desk.reason(Rule::GpuTemperature);
    assert_eq!(reason.look_again_ms, next, "it is not put off by being asked for");
    assert!(reason.line.ends_with("(limit 85 °C, next look in 2 s)"), "{}", reason.line);
}
