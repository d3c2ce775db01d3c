//! Settings as owners write them, in files and by `skein set`.

use proptest::prelude::*;
use skein_policy::{Bytes, Milliwatts, Missing, Percent, Rate, SettingError, Settings, Span};

fn set(key: &str, value: &str) -> Result<String, SettingError> {
    let mut settings = Settings::default();
    settings.set(key, value)?;
    settings.get(key)
}

#[test]
fn units_are_read_as_people_write_them() {
    let table = [
        ("user_idle", "3 min", "3 min"),
        ("user_idle", "3m", "3 min"),
        ("user_idle", "90 s", "90 s"),
        ("user_idle", "1 h 30 min", "90 min"),
        ("user_idle", "1.5 hours", "90 min"),
        ("user_idle", "120 Minutes", "2 h"),
        ("user_idle", " OFF ", "off"),
        ("gpu_temperature_max", "80", "80 °C"),
        ("gpu_temperature_max", "80 °C", "80 °C"),
        ("gpu_temperature_max", "80°c", "80 °C"),
        ("gpu_power_max", "200", "200 W"),
        ("gpu_power_max", "0.2 kW", "200 W"),
        ("gpu_power_max", "120.5 W", "120500 mW"),
        ("gpu_others_memory", "50", "50 %"),
        ("gpu_others_memory", "50%", "50 %"),
        ("disk_free_min", "20 GB", "20 GB"),
        ("disk_free_min", "20gb", "20 GB"),
        ("disk_free_min", "1.5 TB", "1500 GB"),
        ("disk_free_min", "2 GiB", "2 GiB"),
        ("rate_max", "40 Mbit/s", "5 MB/s"),
        ("rate_max", "1 MiB/s", "1 MiB/s"),
        ("game", "yes", "on"),
        ("game", "false", "off"),
        ("missing", "Block", "block"),
        ("hours", "22:00-08:00", "22:00-08:00"),
        ("hours", "22-8", "22:00-08:00"),
        ("hours", "Mon-Fri 22:00-08:00,sat-sun 00:00-24:00", "mon-fri 22:00-08:00, sat-sun 00:00-24:00"),
        ("hours", "saturday, sun 8-20", "sat 00:00-24:00, sun 08:00-20:00"),
        ("hours", "off", "off"),
    ];
    for (key, written, shown) in table {
        assert_eq!(set(key, written).as_deref(), Ok(shown), "{key} = {written}");
    }
}

#[test]
fn what_is_not_a_value_is_refused_with_a_hint() {
    let table = [
        (
            "user_idle",
            ["3", "", "min", "3 parsecs", "-3 min", "3 min 4 h", "1e3 s", "99999999999999999999 s"]
                .as_slice(),
        ),
        ("gpu_temperature_max", &["hot", "80 °F", "80 90", "on"]),
        ("gpu_others_memory", &["half", "5 GB"]),
        ("disk_free_min", &["20", "20 G", "9999999999999999 TB"]),
        ("rate_max", &["5", "5 MB", "5 Mb/s"]),
        ("game", &["2", "maybe"]),
        ("missing", &["off"]),
        (
            "hours",
            &["", "mon", "25-26", "8:60-9", "8-8", "fun 8-9", "8-9,", "24-8", "8", "mon-fri-sun 8-9"][..1],
        ),
        ("hours", &["25-26", "8:60-9", "8-8", "fun 8-9", "8-9,", "24-8", "8", "mon-fri-sun 8-9", "+8-9"]),
    ];
    for (key, values) in table {
        for value in values {
            let error = set(key, value).unwrap_err();
            assert!(matches!(error, SettingError::Unreadable { .. }), "{key} = {value}: {error}");
            assert!(error.to_string().contains("\nhint: give "), "{error}");
        }
    }
    let error = set("user_idle", "3").unwrap_err().to_string();
    let told =
        "`3` is no value for `user_idle`\nhint: give a time with its unit, as `3 min` or `90 s`, or `off`";
    assert_eq!(error, told);
    let many = vec!["mon 8-9"; 33].join(",");
    assert!(set("hours", &many).is_err(), "more stretches than a person writes");
}

#[test]
fn what_is_out_of_range_is_refused_with_the_range() {
    let error = set("gpu_temperature_max", "200").unwrap_err().to_string();
    let told =
        "200 °C is out of range for `gpu_temperature_max`\nhint: give a value from 40 °C to 110 °C, or `off`";
    assert_eq!(error, told);
    for (key, low, high, outside) in [
        ("user_idle", "10 s", "24 h", ["9 s", "25 h"]),
        ("gpu_others_memory", "1 %", "100 %", ["0", "101"]),
        ("gpu_temperature_band", "1 °C", "30 °C", ["0", "31"]),
        ("gpu_power_max", "10 W", "2 kW", ["9 W", "2001 W"]),
        ("disk_free_min", "100 MB", "100 TB", ["1 MB", "101 TB"]),
        ("rate_max", "10 kB/s", "100 GB/s", ["9 kB/s", "101 GB/s"]),
    ] {
        assert!(set(key, low).is_ok() && set(key, high).is_ok(), "{key}");
        for value in outside {
            assert!(matches!(set(key, value), Err(SettingError::OutOfRange { .. })), "{key} = {value}");
        }
    }
}

#[test]
fn an_unknown_setting_names_the_nearest() {
    for (typed, nearest) in [
        ("user-idle", "user_idle"),
        ("gpu_temperatur_max", "gpu_temperature_max"),
        ("gamed", "game"),
        ("fullscreen", "full_screen"),
        ("hour", "hours"),
    ] {
        let error = set(typed, "on").unwrap_err().to_string();
        let told =
            format!("there is no setting `{typed}`\nhint: did you mean `{nearest}`? `skein get` shows all");
        assert_eq!(error, told);
        assert_eq!(Settings::default().get(typed).unwrap_err().to_string(), told);
    }
}

#[test]
fn names_of_programs_are_a_list() {
    assert_eq!(set("games", " foo.exe,bar baz , ,").unwrap(), "foo.exe, bar baz");
    assert_eq!(set("not_games", "off").unwrap(), "off");
    for wrong in ["", " , ", "/usr/bin/foo", "a\u{1b}b"] {
        assert!(matches!(set("games", wrong), Err(SettingError::Unreadable { .. })), "{wrong:?}");
    }
}

#[test]
fn an_error_changes_nothing() {
    let mut settings = Settings::default();
    assert!(settings.set("user_idle", "1 s").is_err() && settings.set("game", "?").is_err());
    assert_eq!(settings, Settings::default());
}

#[test]
fn every_setting_is_explained_and_its_value_can_be_set_again() {
    for settings in [Settings::default(), Settings::headless()] {
        let all = settings.all();
        assert_eq!(all.iter().map(|(key, ..)| *key).collect::<Vec<_>>(), Settings::KEYS);
        let mut copy = Settings::default();
        for (key, value, explanation) in all {
            assert!(explanation.len() > 20 && explanation.ends_with('.'), "{key}: {explanation}");
            assert_eq!(settings.get(key).as_ref(), Ok(&value));
            copy.set(key, &value).unwrap();
        }
        assert_eq!(copy, settings);
    }
}

#[test]
fn headless_has_no_rule_about_an_owner() {
    let headless = Settings::headless();
    let off = |key: &str| headless.get(key).unwrap() == "off";
    for key in ["user_idle", "full_screen", "game", "remote_desktop", "gpu_others_memory", "gpu_others_busy"]
    {
        assert!(off(key), "{key}");
    }
    assert!(!off("gpu_temperature_max") && !off("disk_free_min"));
}

#[test]
fn files_name_what_differs() {
    let text = "user_idle = \"5 min\"\ngame = false\ngpu_temperature_max = 75\nhours = \"22:00-08:00\"\n";
    let settings: Settings = toml::from_str(text).unwrap();
    let mut expected = Settings { user_idle: Some(Span::minutes(5)), game: false, ..Settings::default() };
    expected.set("gpu_temperature_max", "75").unwrap();
    expected.set("hours", "22-8").unwrap();
    assert_eq!(settings, expected);
    assert_eq!(toml::from_str::<Settings>("").unwrap(), Settings::default());
    for wrong in
        ["user_idel = \"5 min\"", "gpu_temperature_max = 400", "user_idle = 5", "game = [1]", "game = -1"]
    {
        assert!(toml::from_str::<Settings>(wrong).is_err(), "{wrong}");
    }
    let error = toml::from_str::<Settings>("user_idel = \"5 min\"").unwrap_err().to_string();
    assert!(error.contains("hint: did you mean `user_idle`?"), "{error}");
    assert!(serde_json::from_str::<Settings>("{\"game\":\"on\",\"game\":\"off\"}").is_err(), "twice");
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let percent = || proptest::option::of((1_u64..=100).prop_map(Percent));
    let clock = || (0_u16..24, 0_u16..60);
    let stretch =
        (0_usize..7, 0_usize..7, clock(), clock()).prop_filter_map("not empty", |(a, b, from, to)| {
            let day = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let text = format!("{}-{} {}:{:02}-{}:{:02}", day[a], day[b], from.0, from.1, to.0, to.1);
            (from != to).then_some(text)
        });
    let hours = proptest::collection::vec(stretch, 0..5);
    let amounts = (
        proptest::option::of((10_000_u64..=86_400_000).prop_map(Span)),
        proptest::option::of((10_000_u64..=2_000_000).prop_map(Milliwatts)),
        proptest::option::of((100_000_000_u64..=100_000_000_000_000).prop_map(Bytes)),
        proptest::option::of((10_000_u64..=100_000_000_000).prop_map(Rate)),
    );
    (percent(), amounts, hours, any::<bool>(), any::<bool>()).prop_map(
        |(percent, amounts, hours, on, block)| {
            let mut settings = Settings {
                gpu_others_memory: percent,
                user_idle: amounts.0,
                gpu_power_max: amounts.1,
                disk_free_min: amounts.2,
                rate_max: amounts.3,
                metered: on,
                missing: if block { Missing::Block } else { Missing::Ignore },
                ..Settings::default()
            };
            if !hours.is_empty() {
                settings.set("hours", &hours.join(", ")).unwrap();
            }
            settings
        },
    )
}

proptest! {
    #[test]
    fn what_is_shown_can_be_set(settings in any_settings()) {
        let mut copy = Settings::headless();
        for (key, value, _) in settings.all() {
            copy.set(key, &value).unwrap();
        }
        prop_assert_eq!(&copy, &settings);
    }

    #[test]
    fn files_keep_everything(settings in any_settings()) {
        let text = toml::to_string(&settings).unwrap();
        prop_assert_eq!(&toml::from_str::<Settings>(&text).unwrap(), &settings);
        let text = serde_json::to_string(&settings).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Settings>(&text).unwrap(), &settings);
    }

    #[test]
    fn nonsense_is_refused_and_never_panics(key in 0..Settings::KEYS.len(), value in "[-0-9a-z%°.:, /]{0,20}") {
        let mut settings = Settings::default();
        let key = Settings::KEYS[key];
        match settings.set(key, &value) {
            Ok(()) => {
                let shown = settings.get(key).unwrap();
                let before = settings.clone();
                settings.set(key, &shown).unwrap();
                prop_assert_eq!(settings, before);
            }
            Err(error) => prop_assert!(error.to_string().contains("\nhint: ")),
        }
    }
}
