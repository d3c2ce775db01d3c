//! What feeds the machine, by `/sys/class/power_supply`.
//!
//! Batteries of mice, headsets and controllers are not the machine's; a UPS that the kernel knows is not either.

use std::fs;
use std::path::Path;

use skein_policy::readings::Power;

use crate::gpu::sysfs::{number, text};

/// Mains, or the batteries' charge together.
pub(crate) fn read(root: &Path) -> Result<Power, String> {
    let entries = fs::read_dir(root.join("sys/class/power_supply"))
        .map_err(|_| "the system shows no power supplies (/sys/class/power_supply)".to_owned())?;
    let mut batteries = Vec::new();
    let (mut chargers, mut plugged) = (0, 0);
    for supply in entries.flatten().take(64).map(|entry| entry.path()) {
        if text(&supply.join("scope")).as_deref() == Some("Device") {
            continue;
        }
        match text(&supply.join("type")).as_deref() {
            Some("Battery") if text(&supply.join("present")).as_deref() != Some("0") => {
                batteries.push(battery(&supply));
            }
            Some("Mains" | "USB" | "USB_PD" | "USB_C" | "Wireless") => {
                chargers += 1;
                plugged += u32::from(number(&supply.join("online")).is_some_and(|online| online > 0));
            }
            // UPS, an empty bay, and what a later kernel may add.
            Some(_) | None => {}
        }
    }
    if batteries.is_empty() || plugged > 0 {
        return Ok(Power::Mains);
    }
    let has = |status: &str| batteries.iter().any(|battery| battery.status == status);
    // Some machines do not show their charger: then the batteries' own word counts.
    let discharging = has("Discharging") || (chargers > 0 && !has("Charging"));
    if !discharging {
        return Ok(Power::Mains);
    }
    match charge(&batteries) {
        Some(percent) => Ok(Power::Battery { percent }),
        None => Err("the machine runs on a battery that does not tell its charge".to_owned()),
    }
}

struct Battery {
    status: String,
    /// Now and when full, in the battery's unit.
    store: Option<(u64, u64)>,
    percent: Option<u64>,
}

fn battery(supply: &Path) -> Battery {
    let pair = |now: &str, full: &str| number(&supply.join(now)).zip(number(&supply.join(full)));
    Battery {
        status: text(&supply.join("status")).unwrap_or_default(),
        store: pair("energy_now", "energy_full").or_else(|| pair("charge_now", "charge_full")),
        percent: number(&supply.join("capacity")),
    }
}

/// All batteries as one: weighed by what they hold where they tell it, else the mean.
fn charge(batteries: &[Battery]) -> Option<u8> {
    let stores: Vec<(u64, u64)> =
        batteries.iter().filter_map(|battery| battery.store).filter(|(_, full)| *full > 0).collect();
    let percent = if batteries.len() > 1 && stores.len() == batteries.len() {
        let now: u128 = stores.iter().map(|(now, _)| u128::from(*now)).sum();
        let full: u128 = stores.iter().map(|(_, full)| u128::from(*full)).sum();
        now * 100 / full
    } else {
        let told: Vec<u128> =
            batteries.iter().filter_map(|battery| battery.percent.map(u128::from)).collect();
        if told.is_empty() {
            let (now, full) = stores.first()?;
            u128::from(*now) * 100 / u128::from(*full)
        } else {
            told.iter().sum::<u128>() / u128::try_from(told.len()).ok()?
        }
    };
    Some(u8::try_from(percent.min(100)).unwrap_or(100))
}
