//! What must hold whatever sensors and owners say, in whatever order.

use proptest::prelude::*;
use skein_policy::readings::{Power, Reading, Readings, WallTime};
use skein_policy::{
    Action, Allowance, Blocks, Event, Missing, Pause, Policy, Rule, STALE_MS, Settings, State, View,
};

use crate::desk::{Desk, GIGABYTE, MINUTE, SECOND, START, calm, first, gpu, program, rank, rivals, unread};

/// One thing that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Upset {
    Nothing,
    Game,
    FullScreen,
    Remote,
    Used,
    Hours,
    Battery,
    Others,
    Busy,
    Rival,
    Memory,
    Hot,
    Warm,
    Power,
    Processor,
    Metered,
    Traffic,
    Disk,
    Silent,
    NoGpus,
}

const UPSETS: [Upset; 20] = [
    Upset::Nothing,
    Upset::Game,
    Upset::FullScreen,
    Upset::Remote,
    Upset::Used,
    Upset::Hours,
    Upset::Battery,
    Upset::Others,
    Upset::Busy,
    Upset::Rival,
    Upset::Memory,
    Upset::Hot,
    Upset::Warm,
    Upset::Power,
    Upset::Processor,
    Upset::Metered,
    Upset::Traffic,
    Upset::Disk,
    Upset::Silent,
    Upset::NoGpus,
];

/// Every rule is on.
fn strict() -> Settings {
    let mut settings = Settings::default();
    for (key, value) in
        [("hours", "20:00-08:00"), ("gpu_power_max", "150 W"), ("traffic_month_max", "100 GB")]
    {
        settings.set(key, value).unwrap();
    }
    settings
}

fn upset(readings: &mut Readings, upset: Upset) {
    let somebody = || Reading::Known(Some("somebody".to_owned()));
    if upset != Upset::NoGpus && readings.gpus.known().is_none() {
        return;
    }
    match upset {
        Upset::Nothing => {}
        Upset::Game => readings.game = somebody(),
        Upset::FullScreen => readings.full_screen = somebody(),
        Upset::Remote => readings.remote_desktop = somebody(),
        Upset::Used => readings.owner_idle_ms = Reading::Known(0),
        Upset::Hours => readings.wall = Reading::Known(WallTime { weekday: 1, minute: 12 * 60 }),
        Upset::Battery => readings.power = Reading::Known(Power::Battery { percent: 30 }),
        Upset::Others => first(readings).others = program(Some(4 * GIGABYTE)),
        Upset::Busy => first(readings).busy_percent = Reading::Known(99),
        // Whoever else uses it.
        Upset::Rival => {
            first(readings).busy_percent = Reading::Known(99);
            first(readings).others = rivals(&[Some(90)]);
        }
        Upset::Memory => first(readings).memory_used_bytes = Reading::Known(9 * GIGABYTE),
        Upset::Hot => first(readings).temperature_c = Reading::Known(95),
        Upset::Warm => first(readings).temperature_c = Reading::Known(80),
        Upset::Power => first(readings).power_mw = Reading::Known(300_000),
        Upset::Processor => readings.processor_others_permille = Reading::Known(900),
        Upset::Metered => readings.metered = Reading::Known(true),
        Upset::Traffic => readings.traffic_month_bytes = Reading::Known(200 * GIGABYTE),
        Upset::Disk => readings.disk_free_bytes = Reading::Known(GIGABYTE),
        Upset::Silent => readings.game = unread(),
        Upset::NoGpus => readings.gpus = unread(),
    }
}

/// The most that may be allowed when this is read, whatever was before. Not so of what may be the agent's own doing.
fn most(upsets: &[Upset]) -> Allowance {
    let most = |upset: &Upset| match upset {
        Upset::Nothing | Upset::Warm | Upset::Silent | Upset::NoGpus | Upset::Busy | Upset::Memory => {
            Allowance::All
        }
        Upset::Others | Upset::Rival | Upset::Hot | Upset::Power => Allowance::CpuOnly,
        Upset::Game
        | Upset::FullScreen
        | Upset::Remote
        | Upset::Used
        | Upset::Hours
        | Upset::Battery
        | Upset::Processor
        | Upset::Metered
        | Upset::Traffic
        | Upset::Disk => Allowance::Nothing,
    };
    upsets.iter().map(most).min_by_key(|allowed| rank(*allowed)).unwrap_or(Allowance::All)
}

/// All of it at once. The worse of two things about the same sensor is what it says.
fn read(upsets: &[Upset]) -> Readings {
    let mut readings = calm();
    let mild = |upset: &&Upset| matches!(upset, Upset::Warm | Upset::Silent);
    let grave = |upset: &&Upset| !mild(upset) && **upset != Upset::NoGpus;
    for one in upsets.iter().filter(mild).chain(upsets.iter().filter(grave)) {
        upset(&mut readings, *one);
    }
    readings
}

fn any_upset() -> impl Strategy<Value = Upset> {
    (0..UPSETS.len()).prop_map(|at| UPSETS[at])
}

fn any_event() -> impl Strategy<Value = Event> {
    let blocks = any::<bool>().prop_map(|all| if all { Blocks::All } else { Blocks::Gpu });
    let until = proptest::option::of((0..20 * MINUTE).prop_map(|ms| START + ms));
    let readings = proptest::collection::vec(any_upset(), 0..3).prop_map(|upsets| {
        let mut readings = read(&upsets);
        if upsets.contains(&Upset::NoGpus) {
            upset(&mut readings, Upset::NoGpus);
        }
        Event::Readings(Box::new(readings))
    });
    let device = proptest::option::of((1..4_u8).prop_map(|n| format!("0000:0{n}:00.0")));
    prop_oneof![
        12 => readings,
        2 => (blocks, until).prop_map(|(blocks, until_ms)| Event::Pause(Pause { blocks, until_ms })),
        2 => Just(Event::Resume),
        1 => Just(Event::Finish),
        4 => any::<bool>().prop_map(Event::Working),
        2 => any::<bool>().prop_map(Event::Occupied),
        1 => any::<bool>().prop_map(|strictly| {
            let missing = if strictly { Missing::Block } else { Missing::Ignore };
            Event::Settings(Box::new(Settings { missing, ..strict() }))
        }),
        1 => device.prop_map(Event::Device),
        1 => proptest::option::of(Just("the driver failed".to_owned())).prop_map(Event::Trouble),
        1 => Just(Event::Woke),
        4 => Just(Event::Tick),
    ]
}

/// Steps of time, some of them back, each with what happens then.
fn any_story() -> impl Strategy<Value = Vec<(i64, Event)>> {
    let step = prop_oneof![8 => 0..15_000_i64, 1 => 0..3_600_000_i64, 1 => -60_000..0_i64];
    proptest::collection::vec((step, any_event()), 1..120)
}

fn check_view(view: &View, now: u64, working: bool) -> Result<(), TestCaseError> {
    for reason in &view.reasons {
        let told = [&reason.text, &reason.value, &reason.threshold];
        prop_assert!(told.iter().all(|text| !text.is_empty()), "{reason:?}");
        prop_assert!(reason.look_again_ms > now && reason.since_ms <= now, "{now}: {reason:?}");
    }
    let blocked = |blocks| view.reasons.iter().any(|r| r.rule != Rule::Trouble && r.blocks == blocks);
    let most = match (blocked(Blocks::All), blocked(Blocks::Gpu)) {
        (true, _) => Allowance::Nothing,
        (false, true) => Allowance::CpuOnly,
        (false, false) => Allowance::All,
    };
    prop_assert_eq!(view.allowed, most, "what is allowed follows from what is told: {:?}", view);
    prop_assert!(!view.headline.is_empty() && !view.headline.ends_with(": "), "{}", view.headline);
    match view.state {
        State::Working => prop_assert!(working && view.allowed != Allowance::Nothing),
        State::Paused => prop_assert!(view.allowed != Allowance::All),
        State::Waiting | State::Trouble => {}
    }
    for sensor in &view.sensors {
        prop_assert!(sensor.value.is_some() != sensor.missing.is_some(), "{sensor:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 32 } else { 256 }))]

    #[test]
    fn what_is_told_is_whole_and_true(story in any_story()) {
        let mut policy = Policy::new(strict(), START);
        let (mut now, mut allowed, mut working) = (START, None, false);
        for (step, event) in story {
            now = now.saturating_add_signed(step);
            if let Event::Working(yes) = event {
                working = yes;
            }
            let actions = policy.handle(now, event);
            let looks = actions.iter().filter(|action| matches!(action, Action::LookAgain(at) if *at > now)).count();
            prop_assert_eq!(looks, 1);
            for action in actions {
                if let Action::Allow { allowed: told, new_work } = action {
                    prop_assert_ne!(allowed, Some((told, new_work)), "told again");
                    prop_assert!(!new_work || told != Allowance::Nothing);
                    allowed = Some((told, new_work));
                }
            }
            prop_assert_eq!(allowed.map(|(told, _)| told), Some(policy.view(now).allowed));
            for later in [0, 1, 5_000, 100_000] {
                check_view(&policy.view(now + later), now + later, working)?;
            }
        }
    }

    #[test]
    fn the_same_story_ends_the_same(story in any_story()) {
        let (mut one, mut other) = (Policy::new(strict(), START), Policy::new(strict(), START));
        let mut now = START;
        for (step, event) in story {
            now = now.saturating_add_signed(step);
            prop_assert_eq!(one.handle(now, event.clone()), other.handle(now, event));
            prop_assert_eq!(one.view(now), other.view(now));
        }
    }

    #[test]
    fn nothing_is_allowed_while_it_is_forbidden(
        before in any_story(),
        upsets in proptest::collection::vec(any_upset(), 0..4),
        device in any::<bool>(),
    ) {
        let mut policy = Policy::new(strict(), START);
        let mut now = START;
        for (step, event) in before {
            now = now.saturating_add_signed(step);
            policy.handle(now, event);
        }
        policy.handle(now, Event::Device(device.then(|| "0000:01:00.0".to_owned())));
        policy.handle(now, Event::Readings(Box::new(read(&upsets))));
        let allowed = policy.view(now).allowed;
        prop_assert!(rank(allowed) <= rank(most(&upsets)), "{:?} with {:?}", allowed, upsets);
        // It stays so as long as it is read.
        now += STALE_MS;
        policy.handle(now, Event::Tick);
        let forbidden_still: Vec<_> = upsets.iter().copied().filter(|upset| *upset != Upset::Used).collect();
        prop_assert!(rank(policy.view(now).allowed) <= rank(most(&forbidden_still)));
    }

    #[test]
    fn whatever_was_work_goes_on_when_all_is_well(before in any_story()) {
        let mut policy = Policy::new(strict(), START);
        let mut now = START;
        for (step, event) in before {
            now = now.saturating_add_signed(step);
            policy.handle(now, event);
        }
        for event in [Event::Resume, Event::Working(false), Event::Occupied(false), Event::Device(None)] {
            policy.handle(now, event);
        }
        // The longest that anything lasts: silence, then the longest stay.
        for _ in 0..140 {
            now += 10 * SECOND;
            policy.handle(now, Event::Readings(Box::new(calm())));
        }
        prop_assert_eq!(policy.view(now).allowed, Allowance::All, "{:?}", policy.view(now));
    }

    #[test]
    fn what_stops_stays_stopped_for_a_while(
        steps in proptest::collection::vec((500..20_000_u64, proptest::collection::vec(any_upset(), 0..2)), 200),
    ) {
        let mut desk = Desk::new(strict());
        let mut stopped = (0, desk.allowed);
        for (step, upsets) in steps {
            desk.now += step;
            let before = desk.allowed;
            desk.readings = read(&upsets);
            desk.sense(|_| {});
            if rank(desk.allowed) < rank(before) {
                stopped = (desk.now, desk.allowed);
            } else if rank(desk.allowed) > rank(stopped.1) {
                let lasted = desk.now - stopped.0;
                prop_assert!(lasted >= 10 * SECOND, "stopped for {lasted} ms only");
            }
        }
    }
}

/// Sensors that do their worst: as soon as work goes on, something is wrong, and as soon as it stops, nothing is.
fn resumes_in_an_hour(mut choose: impl FnMut() -> Upset) -> u32 {
    let mut desk = Desk::new(strict());
    let end = desk.now + 60 * MINUTE;
    while desk.now < end {
        desk.now += SECOND;
        let worst = if desk.allowed == Allowance::All { choose() } else { Upset::Nothing };
        desk.readings = read(&[worst]);
        desk.sense(|_| {});
    }
    desk.resumes
}

#[test]
fn the_worst_sensor_makes_work_resume_a_few_times_an_hour() {
    for upset in UPSETS {
        let resumes = resumes_in_an_hour(|| upset);
        assert!(resumes <= 26, "{upset:?}: {resumes}");
        let harmless = [Upset::Nothing, Upset::Warm, Upset::Silent, Upset::NoGpus];
        assert_eq!(resumes == 0, harmless.contains(&upset), "{upset:?}: {resumes}");
    }
}

#[test]
fn all_sensors_at_their_worst_are_bounded_too() {
    let mut turn = 0;
    let resumes = resumes_in_an_hour(|| {
        turn += 1;
        UPSETS[turn % UPSETS.len()]
    });
    assert!(resumes <= 120, "{resumes}");
}

#[test]
fn two_gpus_of_which_one_is_hot_by_turns_do_not_flap() {
    let mut desk = Desk::new(strict());
    for second in 0..3_600_u32 {
        desk.now += SECOND;
        desk.sense(|readings| {
            let mut two = [gpu("0000:01:00.0"), gpu("0000:02:00.0")];
            two[usize::from(second % 2 == 1)].temperature_c = Reading::Known(90);
            readings.gpus = Reading::Known(two.to_vec());
        });
    }
    assert_eq!((desk.allowed, desk.resumes), (Allowance::CpuOnly, 0));
}
