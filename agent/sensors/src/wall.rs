//! The time on the owner's wall: the system's time zone, summer time included.

use jiff::Zoned;
use skein_policy::readings::{Reading, WallTime};

/// Now, in the system's time zone. The zone is looked at again every few minutes, so a move is noticed.
pub(crate) fn now() -> Reading<WallTime> {
    if jiff::tz::TimeZone::try_system().is_err() {
        return Reading::Missing(
            "the system's time zone is unknown (neither TZ nor /etc/localtime tells it)".to_owned(),
        );
    }
    Reading::Known(at(&Zoned::now()))
}

fn at(moment: &Zoned) -> WallTime {
    let weekday = u8::try_from(moment.weekday().to_monday_zero_offset()).unwrap_or(0);
    let minute = u16::try_from(moment.hour()).unwrap_or(0) * 60 + u16::try_from(moment.minute()).unwrap_or(0);
    WallTime { weekday, minute }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use skein_policy::readings::WallTime;

    #[test]
    fn summer_time_is_followed() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let at = |utc: &str| super::at(&utc.parse::<jiff::Timestamp>().unwrap().to_zoned(berlin.clone()));
        // 2026-03-29 is the Sunday on which 02:00 becomes 03:00; 2026-10-25 the one on which 03:00 becomes 02:00.
        assert_eq!(at("2026-03-29T00:59:00Z"), WallTime { weekday: 6, minute: 119 });
        assert_eq!(at("2026-03-29T01:00:00Z"), WallTime { weekday: 6, minute: 180 });
        assert_eq!(at("2026-10-25T00:30:00Z"), WallTime { weekday: 6, minute: 150 });
        assert_eq!(at("2026-10-25T01:30:00Z"), WallTime { weekday: 6, minute: 150 });
        assert_eq!(at("2026-11-22T23:00:00Z"), WallTime { weekday: 0, minute: 0 });
    }
}
