//! macOS' power supply, as `pmset -g batt` tells it.
//!
//! The command is asked now and then, on a thread of its own. Must never take words that it does not know for mains.

use skein_policy::readings::Power;

/// What it says: the supply in its first line, and how full batteries are in the others.
pub(crate) fn power(said: &str) -> Result<Power, String> {
    let first = said.lines().next().unwrap_or_default();
    let drawing = first.split('\'').nth(1).ok_or_else(|| format!("pmset says `{first}`"))?;
    match drawing {
        "AC Power" => Ok(Power::Mains),
        "Battery Power" | "UPS Power" => {
            let percents = said.lines().skip(1).filter_map(|line| {
                let before = line.split_once('%')?.0;
                before.rsplit(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u8>().ok()
            });
            // The emptiest of several.
            let percent = percents.min().ok_or("pmset does not say how full the battery is")?;
            Ok(Power::Battery { percent: percent.min(100) })
        }
        other => Err(format!("pmset says that it draws from {other}")),
    }
}

/// Asks it.
#[cfg(target_os = "macos")]
pub(crate) fn ask() -> Result<Power, String> {
    let mut command = std::process::Command::new("/usr/bin/pmset");
    let said = command.args(["-g", "batt"]).stdin(std::process::Stdio::null()).output();
    let said = said.map_err(|error| format!("pmset: {error}"))?;
    power(&String::from_utf8_lossy(&said.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_supply_is_told_apart() {
        let told = |first: &str, more: &str| power(&format!("Now drawing from '{first}'\n{more}"));
        let laptop = " -InternalBattery-0 (id=4653155)\t85%; discharging; 4:40 remaining present: true\n";
        assert_eq!(told("AC Power", laptop), Ok(Power::Mains));
        assert_eq!(told("AC Power", ""), Ok(Power::Mains), "a desktop");
        assert_eq!(told("Battery Power", laptop), Ok(Power::Battery { percent: 85 }));
        let both = format!("{laptop} -UPS (id=1)\t100%; charged; present: true\n");
        assert_eq!(told("Battery Power", &both), Ok(Power::Battery { percent: 85 }));
        assert!(told("Battery Power", "").is_err() && told("Fusion", laptop).is_err() && power("").is_err());
    }
}
