//! Every rule by one table: on and off at its threshold, both sides of its hysteresis, and without its sensor.

use skein_policy::readings::{Power, Reading, Readings, WallTime};
use skein_policy::{Allowance, Event, LOOK_EVERY_MS, Rule, SILENCE_MS};

use crate::desk::{Desk, GIGABYTE, MINUTE, SECOND, calm, first, gpu, only, program, rivals, unread};

struct Case {
    rule: Rule,
    settings: &'static [(&'static str, &'static str)],
    /// The last reading with which work begins.
    just_allowed: fn(&mut Readings),
    /// The first reading with which it stops.
    just_blocked: fn(&mut Readings),
    /// The last reading with which it stays stopped.
    just_held: fn(&mut Readings),
    /// The first reading with which it may go on.
    just_over: fn(&mut Readings),
    unread: fn(&mut Readings),
    value: &'static str,
    threshold: &'static str,
}

fn wall(weekday: u8, hour: u16, minute: u16) -> Reading<WallTime> {
    Reading::Known(WallTime { weekday, minute: hour * 60 + minute })
}

fn battery(percent: u8) -> Reading<Power> {
    Reading::Known(Power::Battery { percent })
}

fn somebody() -> Reading<Option<String>> {
    Reading::Known(Some("eldenring.exe".to_owned()))
}

fn table() -> Vec<Case> {
    vec![
        Case {
            rule: Rule::Game,
            settings: &[("game", "on")],
            just_allowed: |r| r.game = Reading::Known(None),
            just_blocked: |r| r.game = somebody(),
            just_held: |r| r.game = somebody(),
            just_over: |r| r.game = Reading::Known(None),
            unread: |r| r.game = unread(),
            value: "eldenring.exe",
            threshold: "no game",
        },
        Case {
            rule: Rule::FullScreen,
            settings: &[("full_screen", "on")],
            just_allowed: |r| r.full_screen = Reading::Known(None),
            just_blocked: |r| r.full_screen = somebody(),
            just_held: |r| r.full_screen = somebody(),
            just_over: |r| r.full_screen = Reading::Known(None),
            unread: |r| r.full_screen = unread(),
            value: "eldenring.exe",
            threshold: "no such program",
        },
        Case {
            rule: Rule::RemoteDesktop,
            settings: &[("remote_desktop", "on")],
            just_allowed: |r| r.remote_desktop = Reading::Known(None),
            just_blocked: |r| r.remote_desktop = somebody(),
            just_held: |r| r.remote_desktop = somebody(),
            just_over: |r| r.remote_desktop = Reading::Known(None),
            unread: |r| r.remote_desktop = unread(),
            value: "eldenring.exe",
            threshold: "no session",
        },
        Case {
            rule: Rule::Hours,
            settings: &[("hours", "mon-fri 22:00-08:00, sat-sun 00:00-24:00")],
            just_allowed: |r| r.wall = wall(4, 7, 59),
            just_blocked: |r| r.wall = wall(4, 8, 0),
            just_held: |r| r.wall = wall(4, 21, 30),
            just_over: |r| r.wall = wall(4, 22, 0),
            unread: |r| r.wall = unread(),
            value: "08:00",
            threshold: "mon-fri 22:00-08:00, sat-sun 00:00-24:00",
        },
        Case {
            rule: Rule::Battery,
            settings: &[("battery", "on")],
            just_allowed: |r| r.power = Reading::Known(Power::Mains),
            just_blocked: |r| r.power = battery(100),
            just_held: |r| r.power = battery(100),
            just_over: |r| r.power = Reading::Known(Power::Mains),
            unread: |r| r.power = unread(),
            value: "on battery, 100 %",
            threshold: "mains",
        },
        Case {
            rule: Rule::Battery,
            settings: &[("battery_min", "40")],
            just_allowed: |r| r.power = battery(40),
            just_blocked: |r| r.power = battery(39),
            just_held: |r| r.power = battery(44),
            just_over: |r| r.power = battery(45),
            unread: |r| r.power = unread(),
            value: "on battery, 39 %",
            threshold: "40 %",
        },
        Case {
            rule: Rule::GpuOthers,
            settings: &[("gpu_others_memory", "10 %")],
            just_allowed: |r| first(r).others = program(Some(GIGABYTE)),
            just_blocked: |r| first(r).others = program(Some(GIGABYTE + 1)),
            just_held: |r| first(r).others = program(Some(GIGABYTE * 8 / 10 + 1)),
            just_over: |r| first(r).others = program(Some(GIGABYTE * 8 / 10)),
            unread: |r| first(r).others = unread(),
            value: "blender: 1.0 GB, 11 %",
            threshold: "10 %",
        },
        Case {
            rule: Rule::GpuBusy,
            settings: &[("gpu_others_busy", "30 %")],
            just_allowed: |r| first(r).busy_percent = Reading::Known(30),
            just_blocked: |r| first(r).busy_percent = Reading::Known(31),
            just_held: |r| first(r).busy_percent = Reading::Known(25),
            just_over: |r| first(r).busy_percent = Reading::Known(24),
            unread: |r| first(r).busy_percent = unread(),
            value: "31 %",
            threshold: "30 %",
        },
        Case {
            rule: Rule::GpuMemory,
            settings: &[("gpu_memory_taken", "50 %")],
            just_allowed: |r| first(r).memory_used_bytes = Reading::Known(5 * GIGABYTE),
            just_blocked: |r| first(r).memory_used_bytes = Reading::Known(5 * GIGABYTE + 1),
            just_held: |r| first(r).memory_used_bytes = Reading::Known(4 * GIGABYTE + 1),
            just_over: |r| first(r).memory_used_bytes = Reading::Known(4 * GIGABYTE),
            unread: |r| first(r).memory_used_bytes = unread(),
            value: "51 %",
            threshold: "50 %",
        },
        Case {
            rule: Rule::GpuTemperature,
            settings: &[("gpu_temperature_max", "80 °C"), ("gpu_temperature_band", "8")],
            just_allowed: |r| first(r).temperature_c = Reading::Known(80),
            just_blocked: |r| first(r).temperature_c = Reading::Known(81),
            just_held: |r| first(r).temperature_c = Reading::Known(73),
            just_over: |r| first(r).temperature_c = Reading::Known(72),
            unread: |r| first(r).temperature_c = unread(),
            value: "81 °C",
            threshold: "80 °C",
        },
        Case {
            rule: Rule::GpuPower,
            settings: &[("gpu_power_max", "100 W")],
            just_allowed: |r| first(r).power_mw = Reading::Known(100_000),
            just_blocked: |r| first(r).power_mw = Reading::Known(100_001),
            just_held: |r| first(r).power_mw = Reading::Known(90_001),
            just_over: |r| first(r).power_mw = Reading::Known(90_000),
            unread: |r| first(r).power_mw = unread(),
            value: "100 W",
            threshold: "100 W",
        },
        Case {
            rule: Rule::ProcessorOthers,
            settings: &[("processor_others", "50 %")],
            just_allowed: |r| r.processor_others_permille = Reading::Known(500),
            just_blocked: |r| r.processor_others_permille = Reading::Known(501),
            just_held: |r| r.processor_others_permille = Reading::Known(401),
            just_over: |r| r.processor_others_permille = Reading::Known(400),
            unread: |r| r.processor_others_permille = unread(),
            value: "50 %",
            threshold: "50 %",
        },
        Case {
            rule: Rule::Metered,
            settings: &[("metered", "on")],
            just_allowed: |r| r.metered = Reading::Known(false),
            just_blocked: |r| r.metered = Reading::Known(true),
            just_held: |r| r.metered = Reading::Known(true),
            just_over: |r| r.metered = Reading::Known(false),
            unread: |r| r.metered = unread(),
            value: "metered",
            threshold: "not metered",
        },
        Case {
            rule: Rule::TrafficMonth,
            settings: &[("traffic_month_max", "50 GB")],
            just_allowed: |r| r.traffic_month_bytes = Reading::Known(50 * GIGABYTE - 1),
            just_blocked: |r| r.traffic_month_bytes = Reading::Known(50 * GIGABYTE),
            just_held: |r| r.traffic_month_bytes = Reading::Known(50 * GIGABYTE),
            just_over: |r| r.traffic_month_bytes = Reading::Known(0),
            unread: |r| r.traffic_month_bytes = unread(),
            value: "50.0 GB",
            threshold: "50 GB",
        },
        Case {
            rule: Rule::DiskFree,
            settings: &[("disk_free_min", "20 GB")],
            just_allowed: |r| r.disk_free_bytes = Reading::Known(20 * GIGABYTE),
            just_blocked: |r| r.disk_free_bytes = Reading::Known(20 * GIGABYTE - 1),
            just_held: |r| r.disk_free_bytes = Reading::Known(21 * GIGABYTE - 1),
            just_over: |r| r.disk_free_bytes = Reading::Known(21 * GIGABYTE),
            unread: |r| r.disk_free_bytes = unread(),
            value: "19.9 GB",
            threshold: "20 GB",
        },
    ]
}

/// What is left when the rule holds.
fn blocked(rule: Rule) -> Allowance {
    if format!("{rule:?}").starts_with("Gpu") { Allowance::CpuOnly } else { Allowance::Nothing }
}

#[test]
fn each_rule_stops_at_once_and_lets_go_on_when_it_has_been_over_for_its_time() {
    for case in table() {
        let rule = case.rule;
        let mut desk = Desk::new(only(case.settings));
        desk.sense(case.just_allowed);
        assert_eq!(desk.allowed, Allowance::All, "{rule:?} before its threshold");
        desk.now += SECOND;
        desk.sense(case.just_blocked);
        assert_eq!(desk.allowed, blocked(rule), "{rule:?} at its threshold");
        let reason = desk.reason(rule);
        assert_eq!((reason.value.as_str(), reason.threshold.as_str()), (case.value, case.threshold));
        assert_eq!(reason.since_ms, desk.now);
        desk.sense(case.just_held);
        desk.pass(10 * MINUTE);
        assert_eq!(desk.allowed, blocked(rule), "{rule:?} in its band");

        desk.sense(case.just_over);
        let over = desk.now;
        desk.now += rule.stay_ms() - 1;
        desk.event(Event::Tick);
        assert_eq!(desk.allowed, blocked(rule), "{rule:?} is over, but not for long");
        assert_eq!(desk.reason(rule).look_again_ms, over + rule.stay_ms());
        desk.now += 1;
        desk.event(Event::Tick);
        assert_eq!(desk.allowed, Allowance::All, "{rule:?} is over");
        assert!(desk.rules().is_empty());
    }
}

#[test]
fn each_rule_can_be_switched_off() {
    for case in table() {
        let mut desk = Desk::new(only(&[]));
        desk.sense(case.just_blocked);
        assert_eq!(desk.allowed, Allowance::All, "{:?} is off", case.rule);
    }
}

#[test]
fn each_rule_without_its_sensor_blocks_only_where_that_is_demanded() {
    for case in table() {
        let rule = case.rule;
        let mut desk = Desk::new(only(case.settings));
        desk.sense(case.unread);
        desk.pass(20 * MINUTE);
        assert_eq!(desk.allowed, Allowance::All, "{rule:?} without its sensor");
        let sensors = desk.view().sensors;
        let silent: Vec<_> = sensors.iter().filter(|sensor| sensor.missing.is_some()).collect();
        assert_eq!(silent.len(), 1, "{rule:?}: {silent:?}");
        assert_eq!((silent[0].missing.as_deref(), &silent[0].value), (Some("it does not answer"), &None));

        let demanded: Vec<_> = case.settings.iter().copied().chain([("missing", "block")]).collect();
        desk.event(Event::Settings(Box::new(only(&demanded))));
        assert_eq!(desk.allowed, blocked(rule), "{rule:?} without its sensor");
        assert_eq!(desk.reason(rule).value, "missing");
        assert!(desk.reason(rule).text.contains("it does not answer"));
        desk.event(Event::Settings(Box::new(only(case.settings))));
        assert_eq!(desk.allowed, Allowance::All, "{rule:?}: no longer demanded");
    }
}

#[test]
fn a_rule_outlives_its_sensor_for_a_while() {
    for case in table() {
        let rule = case.rule;
        let mut desk = Desk::new(only(case.settings));
        desk.sense(case.just_blocked);
        desk.sense(case.unread);
        desk.pass(SILENCE_MS - SECOND);
        assert_eq!(desk.allowed, blocked(rule), "{rule:?}: what held does not end unseen");
        desk.pass(LOOK_EVERY_MS + rule.stay_ms());
        assert_eq!(desk.allowed, Allowance::All, "{rule:?}: a dead sensor does not block for ever");
    }
}

#[test]
fn a_rule_that_comes_back_soon_has_to_stay_away_for_longer() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    for seconds in [10, 20, 40, 80, 160, 160, 160] {
        desk.sense(|readings| readings.game = somebody());
        desk.sense(|readings| readings.game = Reading::Known(None));
        assert_eq!(desk.pass(seconds * SECOND), Some(seconds * SECOND));
    }
    desk.pass(5 * MINUTE);
    desk.sense(|readings| readings.game = somebody());
    desk.sense(|readings| readings.game = Reading::Known(None));
    assert_eq!(desk.pass(MINUTE), Some(10 * SECOND), "that was long ago");
}

#[test]
fn the_owner_who_comes_back_is_a_timer_of_its_own() {
    let mut desk = Desk::new(only(&[("user_idle", "3 min")]));
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(3 * MINUTE));
    assert_eq!(desk.allowed, Allowance::All, "just long enough");
    desk.now += SECOND;
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(3 * MINUTE - 1));
    assert_eq!(desk.allowed, Allowance::Nothing);

    let input = desk.now;
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(0));
    desk.now += 40 * SECOND;
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(40 * SECOND));
    let reason = desk.reason(Rule::UserActive);
    assert_eq!(reason.text, "you used this machine 40 s ago; work goes on after 3 min without input");
    assert_eq!((reason.value.as_str(), reason.threshold.as_str()), ("40 s", "3 min"));
    assert_eq!(reason.look_again_ms, input + 3 * MINUTE);

    // Silence of the sensor is no input, and no proof that there was none.
    desk.sense(|readings| readings.owner_idle_ms = unread());
    assert_eq!(desk.allowed, Allowance::Nothing);
    assert_eq!(desk.pass(10 * MINUTE), Some(140 * SECOND));
}

#[test]
fn time_alone_does_not_prove_that_the_owner_stayed_away() {
    let mut desk = Desk::new(only(&[("user_idle", "1 min")]));
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(35 * SECOND));
    desk.now += 25 * SECOND;
    desk.event(Event::Tick);
    assert_eq!(desk.allowed, Allowance::Nothing, "nobody looked since");
    desk.sense(|readings| readings.owner_idle_ms = Reading::Known(60 * SECOND));
    assert_eq!(desk.allowed, Allowance::All);
}

#[test]
fn hours_say_when_they_begin() {
    let mut desk = Desk::new(only(&[("hours", "wed 00:00-23:01, sat 20:00-02:00")]));
    desk.now += MINUTE;
    desk.sense(|readings| readings.wall = wall(2, 23, 1));
    let wait = (2 * 24 * 60 + 20 * 60 + 59) * MINUTE;
    assert_eq!(desk.reason(Rule::Hours).look_again_ms, desk.now + wait);
    desk.sense(|readings| readings.wall = wall(6, 1, 59));
    assert_eq!(desk.pass(20 * SECOND), Some(10 * SECOND), "Sunday still belongs to Saturday's stretch");
    desk.sense(|readings| readings.wall = wall(0, 1, 0));
    assert_eq!(desk.allowed, Allowance::Nothing);
    desk.event(Event::Settings(Box::new(only(&[("hours", "sun 20:00-02:00")]))));
    assert_eq!(desk.allowed, Allowance::All, "Monday's first hours belong to Sunday's stretch");
    desk.sense(|readings| readings.wall = wall(9, 1, 0));
    assert_eq!(desk.allowed, Allowance::All, "no such time: as good as none");
}

#[test]
fn rules_look_at_the_agents_gpu_or_at_all() {
    let mut desk = Desk::new(only(&[("gpu_temperature_max", "80")]));
    let two = || {
        let (cool, mut hot) = (gpu("0000:01:00.0"), gpu("0000:02:00.0"));
        hot.temperature_c = Reading::Known(95);
        Reading::Known(vec![cool, hot])
    };
    desk.sense(|readings| readings.gpus = two());
    assert_eq!(desk.allowed, Allowance::CpuOnly, "unknown: any of them");
    desk.event(Event::Device(Some("0000:01:00.0".to_owned())));
    assert_eq!(desk.allowed, Allowance::All, "it is the cool one");
    assert!(desk.view().sensors.iter().all(|sensor| sensor.gpu.as_deref() != Some("0000:02:00.0")));
    desk.event(Event::Device(Some("0000:02:00.0".to_owned())));
    assert_eq!(desk.allowed, Allowance::CpuOnly, "it is the hot one");
    desk.event(Event::Device(Some("0000:03:00.0".to_owned())));
    assert_eq!(desk.allowed, Allowance::CpuOnly, "it is none of them");
    let sensors = desk.view().sensors;
    assert!(sensors.iter().any(|s| s.gpu.as_deref() == Some("0000:03:00.0") && s.missing.is_some()));

    // A GPU that vanishes while it is hot did not cool down.
    desk.event(Event::Device(None));
    desk.sense(|readings| readings.gpus = Reading::Known(vec![gpu("0000:01:00.0")]));
    desk.pass(MINUTE);
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    assert!(desk.pass(SILENCE_MS).is_some());
}

#[test]
fn the_agents_own_use_of_the_gpu_is_not_that_of_others() {
    let mut desk = Desk::new(only(&[("gpu_others_busy", "30"), ("gpu_memory_taken", "50")]));
    desk.event(Event::Working(true));
    desk.sense(|readings| {
        first(readings).busy_percent = Reading::Known(100);
        first(readings).memory_used_bytes = Reading::Known(9 * GIGABYTE);
    });
    desk.pass(10 * MINUTE);
    assert_eq!(desk.allowed, Allowance::All);
    desk.event(Event::Working(false));
    desk.pass(9 * SECOND);
    assert_eq!(desk.allowed, Allowance::All, "it may be what is left of its own");
    desk.pass(SECOND);
    assert_eq!(desk.allowed, Allowance::CpuOnly, "by now it is not");
    assert_eq!(desk.rules(), [Rule::GpuBusy, Rule::GpuMemory]);

    // A worker that has nothing to do keeps its memory for a while.
    let mut desk = Desk::new(only(&[("gpu_others_busy", "30"), ("gpu_memory_taken", "50")]));
    desk.event(Event::Occupied(true));
    desk.sense(|readings| first(readings).memory_used_bytes = Reading::Known(9 * GIGABYTE));
    desk.pass(MINUTE);
    assert_eq!(desk.allowed, Allowance::All, "the worker lives");
    desk.event(Event::Occupied(false));
    desk.pass(10 * SECOND);
    assert_eq!(desk.rules(), [Rule::GpuMemory], "it is gone, and the memory is not free");

    // While it works, others are known by what they say.
    let mut desk = Desk::new(only(&[("gpu_memory_taken", "50")]));
    desk.event(Event::Working(true));
    desk.sense(|readings| first(readings).others = program(Some(5 * GIGABYTE + 1)));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
}

#[test]
fn while_the_agent_works_others_are_known_by_their_shares_of_the_gpus_time() {
    let working = |settings: &[(&str, &str)]| {
        let mut desk = Desk::new(only(settings));
        desk.event(Event::Working(true));
        desk.sense(|readings| first(readings).busy_percent = Reading::Known(100));
        assert_eq!(desk.allowed, Allowance::All, "all of it is the agent's own");
        desk
    };
    let mut desk = working(&[("gpu_others_busy", "30"), ("gpu_others_memory", "10")]);
    desk.sense(|readings| first(readings).others = rivals(&[Some(5)]));
    assert_eq!(desk.allowed, Allowance::All, "a little");
    desk.sense(|readings| first(readings).others = rivals(&[Some(30)]));
    assert_eq!(desk.allowed, Allowance::All, "just as much as may be");
    desk.sense(|readings| first(readings).others = rivals(&[Some(90)]));
    assert_eq!((desk.allowed, desk.rules()), (Allowance::CpuOnly, vec![Rule::GpuBusy]));
    assert_eq!(desk.reason(Rule::GpuBusy).value, "90 %");

    let mut desk = working(&[("gpu_others_busy", "30")]);
    desk.sense(|readings| first(readings).others = rivals(&[Some(16), None, Some(15)]));
    assert_eq!(desk.reason(Rule::GpuBusy).value, "31 %", "together, and whatever the silent one does");
    let mut desk = working(&[("gpu_others_busy", "30")]);
    desk.sense(|readings| first(readings).others = rivals(&[Some(90), Some(90)]));
    assert_eq!(desk.reason(Rule::GpuBusy).value, "100 %");

    // What is not told is not nothing.
    let mut desk = working(&[("gpu_others_busy", "30")]);
    desk.sense(|readings| first(readings).others = rivals(&[Some(5), None]));
    assert_eq!(desk.allowed, Allowance::All);
    let block = [("gpu_others_busy", "30"), ("missing", "block")];
    desk.event(Event::Settings(Box::new(only(&block))));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    let text = desk.reason(Rule::GpuBusy).text;
    assert!(text.contains("the driver does not tell how busy rival 9 keeps it"), "{text}");
    let mut desk = working(&block);
    desk.sense(|readings| first(readings).others = unread());
    assert_eq!(desk.allowed, Allowance::CpuOnly, "nobody knows whether there are others");
}

#[test]
fn a_program_of_unknown_size_is_a_missing_sensor() {
    let mut desk = Desk::new(only(&[("gpu_others_memory", "10")]));
    desk.sense(|readings| first(readings).others = program(None));
    assert_eq!(desk.allowed, Allowance::All);
    desk.event(Event::Settings(Box::new(only(&[("gpu_others_memory", "10"), ("missing", "block")]))));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    assert!(desk.reason(Rule::GpuOthers).text.contains("blender"));

    // While the agent works, all that others take together is known by what they say alone.
    let mut desk = Desk::new(only(&[("gpu_memory_taken", "50"), ("missing", "block")]));
    desk.event(Event::Working(true));
    desk.sense(|readings| first(readings).others = program(None));
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    assert!(desk.reason(Rule::GpuMemory).text.contains("blender"));
}

#[test]
fn no_gpu_sensors_block_where_that_is_demanded_until_they_speak() {
    let mut desk = Desk::new(only(&[("gpu_temperature_max", "80"), ("missing", "block")]));
    desk.sense(|readings| readings.gpus = unread());
    assert_eq!(desk.allowed, Allowance::CpuOnly);
    desk.sense(|readings| readings.gpus = calm().gpus);
    assert_eq!(desk.pass(MINUTE), Some(30 * SECOND));
    desk.sense(|readings| readings.gpus = Reading::Known(Vec::new()));
    assert_eq!(desk.allowed, Allowance::All, "no GPU is not the same as not to see it");
}

#[test]
fn names_of_programs_are_shown_short_and_plain() {
    let mut desk = Desk::new(only(&[("game", "on")]));
    desk.sense(|readings| readings.game = Reading::Known(Some(format!("\u{1b}[2J{}\n", "x".repeat(500)))));
    assert_eq!(desk.reason(Rule::Game).value, format!("[2J{}", "x".repeat(57)));
    desk.sense(|readings| readings.game = Reading::Known(Some(" \n".to_owned())));
    assert_eq!(desk.view().headline, "Paused: a game is running (unnamed)");
}
