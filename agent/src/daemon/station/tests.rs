//! The tests of the stations that need no daemon.

use skein_policy::Pause;
use skein_policy::readings::Reading;

use super::*;
use crate::daemon::device::tests::readings;

#[test]
fn a_line_that_is_paid_for_is_spared_and_a_game_is_not_disturbed() {
    let told = |change: fn(&mut Readings)| {
        let mut stations = Stations::new(Settings::default());
        let mut readings = readings(Vec::new());
        change(&mut readings);
        stations.all[0].policy.handle(unix_ms(), Told::Readings(Box::new(readings)));
        (stations.spare_the_line(), stations.fetch_later())
    };
    assert_eq!(told(|_| {}), (false, false));
    assert_eq!(told(|readings| readings.metered = Reading::Known(true)), (true, true));
    let game = |readings: &mut Readings| readings.game = Reading::Known(Some("a game".to_owned()));
    assert_eq!(told(game), (false, true));
    let film = |readings: &mut Readings| readings.full_screen = Reading::Known(Some("a film".to_owned()));
    assert_eq!(told(film), (false, true));
}

#[test]
fn a_look_for_devices_ends_with_the_last_that_is_allowed_and_with_the_agent() {
    let ended = |happens: fn(&mut Stations)| {
        let mut stations = Stations::new(Settings::default());
        stations.all.push(Station::new(Policy::new(Settings::default(), unix_ms())));
        stations.all[0].allowed = Allowance::All;
        stations.end_vain_look();
        assert!(!stations.looking.is_barred(), "it is allowed");
        happens(&mut stations);
        stations.end_vain_look();
        stations.looking.is_barred()
    };
    assert!(
        !ended(|stations| stations.all[0].allowed = Allowance::CpuOnly),
        "it costs a GPU next to nothing"
    );
    assert!(ended(|stations| stations.all[0].allowed = Allowance::Nothing));
    let another = |stations: &mut Stations| {
        (stations.all[0].allowed, stations.all[1].allowed) = (Allowance::Nothing, Allowance::All);
    };
    assert!(!ended(another), "it is for all devices");
    let pause = |stations: &mut Stations| {
        let pause = Pause { blocks: Blocks::Gpu, until_ms: None };
        stations.all[0].policy.handle(unix_ms(), Told::Pause(pause));
    };
    assert!(ended(pause), "the owner wants his GPU");
    assert!(ended(|stations| stations.end("the agent is leaving")));
}

#[test]
fn while_the_owner_is_there_others_get_little_of_his_line() {
    let told = |event: Told| {
        let mut stations = Stations::new(Settings::default());
        stations.all[0].policy.handle(unix_ms(), Told::Readings(Box::new(readings(Vec::new()))));
        stations.all[0].policy.handle(unix_ms(), event);
        stations
    };
    assert_eq!(told(Told::Tick).rate(false), None);
    let pause = |blocks| Told::Pause(Pause { blocks, until_ms: None });
    assert_eq!(told(pause(Blocks::Gpu)).rate(false), None, "work goes on");
    let mut paused = told(pause(Blocks::All));
    assert_eq!((paused.rate(false), paused.rate(true)), (Some(QUIET_RATE), None), "but for his own job");
    paused.rate = Some(10_000);
    assert_eq!(paused.rate(false), Some(10_000), "his own limit is lower");
    let mut game = readings(Vec::new());
    game.game = Reading::Known(Some("a game".to_owned()));
    assert_eq!(told(Told::Readings(Box::new(game))).rate(false), Some(QUIET_RATE));
}

#[test]
fn a_broken_card_is_told_whatever_the_others_do() {
    let mut stations = Stations::new(Settings::default());
    stations.broken = vec!["Radeon RX 6800: its driver crashed".to_owned()];
    let view = stations.view();
    let broken = view.reasons.iter().find(|reason| reason.rule == Rule::Trouble).unwrap();
    assert_eq!(broken.line, stations.broken[0]);
}
