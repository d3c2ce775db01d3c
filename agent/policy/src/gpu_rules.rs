//! The rules about a GPU: other programs on it, its heat, its power, its memory.
//!
//! They look at the GPU that the agent works with; at each, if it is not known which that is. Must never take the
//! agent's own use for that of others.

use crate::readings::{Gpu, GpuProgram, Reading};
use crate::rules::{Facts, Finding, Key, Rule, Unseen, holds};
use crate::settings::Settings;
use crate::units::{Celsius, Milliwatts, Percent, Value, about_bytes, about_mw, name};

/// A rule that is switched on.
struct Watch {
    rule: Rule,
    sensor: &'static str,
    limit: u64,
    threshold: String,
    look: fn(&Look<'_>) -> Seen,
}

/// One rule's look at one GPU.
struct Look<'a> {
    gpu: &'a Gpu,
    /// The agent used it when it was read.
    ours: bool,
    /// The rule held until now.
    held: bool,
    limit: u64,
    threshold: &'a str,
    settings: &'a Settings,
}

/// What was found, or why that cannot be told.
type Seen = Result<Finding, String>;

/// Adds what the rules find.
pub(crate) fn look(facts: &Facts, held: &dyn Fn(&Key) -> bool, found: &mut Vec<(Key, Finding)>) {
    let watches = watches(&facts.settings);
    let gpus = facts.fresh().and_then(|sensed| match &sensed.readings.gpus {
        Reading::Known(gpus) => Ok((sensed.gpu_ours, looked_at(facts.device.as_deref(), gpus))),
        Reading::Missing(why) => Err(why.clone()),
    });
    let (ours, gpus) = match gpus {
        Ok(gpus) => gpus,
        Err(why) => {
            found.extend(watches.into_iter().map(|Watch { rule, sensor, threshold, .. }| {
                let sensor = format!("{sensor} of the GPUs");
                ((rule, None), Finding::Missing(Unseen { sensor, why: why.clone(), threshold }))
            }));
            return;
        }
    };
    // Nothing is left of not having seen any.
    found.extend(watches.iter().map(|watch| ((watch.rule, None), Finding::Clear)));
    for gpu in gpus {
        for Watch { rule, sensor, limit, threshold, look } in &watches {
            let key = (*rule, Some(gpu.id.clone()));
            let seen = look(&Look {
                gpu,
                ours,
                held: held(&key),
                limit: *limit,
                threshold,
                settings: &facts.settings,
            });
            let finding = seen.unwrap_or_else(|why| {
                let sensor = format!("{sensor} of {}", name(&gpu.name));
                Finding::Missing(Unseen { sensor, why, threshold: threshold.clone() })
            });
            found.push((key, finding));
        }
    }
}

/// The agent's GPU, or all if it is unknown or not among them.
pub(crate) fn looked_at<'a>(device: Option<&str>, gpus: &'a [Gpu]) -> Vec<&'a Gpu> {
    let own: Vec<&Gpu> = gpus.iter().filter(|gpu| Some(gpu.id.as_str()) == device).collect();
    if own.is_empty() { gpus.iter().collect() } else { own }
}

fn watches(settings: &Settings) -> Vec<Watch> {
    let percent = |limit: Option<Percent>| limit.map(|limit| (limit.0, limit.show()));
    let heat = settings.gpu_temperature_max.map(|limit| (limit.0, limit.show()));
    let draw = settings.gpu_power_max.map(|limit| (limit.0, limit.show()));
    type Rules = [(Rule, &'static str, Option<(u64, String)>, fn(&Look<'_>) -> Seen); 5];
    let all: Rules = [
        (Rule::GpuOthers, "other programs' memory", percent(settings.gpu_others_memory), others),
        (Rule::GpuBusy, "use", percent(settings.gpu_others_busy), busy),
        (Rule::GpuMemory, "memory", percent(settings.gpu_memory_taken), memory),
        (Rule::GpuTemperature, "temperature", heat, temperature),
        (Rule::GpuPower, "power", draw, power),
    ];
    all.into_iter()
        .filter_map(|(rule, sensor, limit, look)| {
            limit.map(|(limit, threshold)| Watch { rule, sensor, limit, threshold, look })
        })
        .collect()
}

impl Look<'_> {
    /// Over the limit; over four fifths of it, if it held until now.
    fn over(&self, percent: u64) -> bool {
        percent > if self.held { self.eased() } else { self.limit }
    }

    fn eased(&self) -> u64 {
        self.limit * 4 / 5
    }

    /// How much of this GPU's memory `bytes` are, in per cent, rounded up so that a little more than the limit is more.
    fn share(&self, bytes: u64) -> Result<u64, String> {
        match *known(&self.gpu.memory_total_bytes)? {
            0 => Err("it tells no size of its memory".to_owned()),
            total => {
                Ok(u64::try_from((u128::from(bytes) * 100).div_ceil(u128::from(total))).unwrap_or(u64::MAX))
            }
        }
    }

    fn told(&self, yes: bool, what: String, then: String, value: String) -> Finding {
        holds(yes, what, then, value, self.threshold.to_owned())
    }
}

fn known<T>(reading: &Reading<T>) -> Result<&T, String> {
    match reading {
        Reading::Known(value) => Ok(value),
        Reading::Missing(why) => Err(why.clone()),
    }
}

/// One other program that holds much of the memory.
fn others(look: &Look<'_>) -> Seen {
    let programs = known(&look.gpu.others)?;
    let largest =
        programs.iter().filter_map(|program| Some((program.memory_bytes?, program))).max_by_key(|p| p.0);
    if let Some((bytes, program)) = largest {
        let share = look.share(bytes)?;
        if look.over(share) {
            let (who, size) = (name(&program.name), about_bytes(bytes));
            let what = format!("{who} holds {size} of {}'s memory", name(&look.gpu.name));
            let then = format!("work goes on when no program holds more than {} % of it", look.eased());
            return Ok(look.told(true, what, then, format!("{who}: {size}, {share} %")));
        }
    }
    all_tell(programs)?;
    Ok(Finding::Clear)
}

/// What a program holds that does not tell is not nothing.
fn all_tell(programs: &[GpuProgram]) -> Result<(), String> {
    match programs.iter().find(|program| program.memory_bytes.is_none()) {
        Some(program) => {
            Err(format!("the driver does not tell how much memory {} holds", name(&program.name)))
        }
        None => Ok(()),
    }
}

/// Nor is a share of the GPU's time that is not told.
fn all_tell_shares(programs: &[GpuProgram]) -> Result<(), String> {
    match programs.iter().find(|program| program.busy_percent.is_none()) {
        Some(program) => Err(format!("the driver does not tell how busy {} keeps it", name(&program.name))),
        None => Ok(()),
    }
}

/// Use by all others together. While the agent works, how busy the GPU is tells nothing of them: then their own shares.
fn busy(look: &Look<'_>) -> Seen {
    let (percent, programs) = if look.ours {
        let programs = known(&look.gpu.others)?.as_slice();
        let told = programs.iter().filter_map(|program| program.busy_percent);
        // Engines that work side by side may add up to more than all of its time.
        (told.map(u64::from).fold(0, u64::saturating_add).min(100), programs)
    } else {
        (u64::from(*known(&look.gpu.busy_percent)?), &[][..])
    };
    if !look.over(percent) {
        all_tell_shares(programs)?;
    }
    let value = format!("{percent} %");
    let what = format!("{} is {value} busy with others' work", name(&look.gpu.name));
    let then = format!("work goes on at {} %", look.eased());
    Ok(look.told(look.over(percent), what, then, value))
}

/// All that others take together. While the agent works, what is in use is also its own: then what others say they hold.
fn memory(look: &Look<'_>) -> Seen {
    let (bytes, programs) = if look.ours {
        let programs = known(&look.gpu.others)?.as_slice();
        let told = programs.iter().filter_map(|program| program.memory_bytes);
        (told.fold(0, u64::saturating_add), programs)
    } else {
        (*known(&look.gpu.memory_used_bytes)?, &[][..])
    };
    let share = look.share(bytes)?;
    if !look.over(share) {
        all_tell(programs)?;
    }
    let value = format!("{share} %");
    let what = format!("others take {} ({value}) of {}'s memory", about_bytes(bytes), name(&look.gpu.name));
    let then = format!("work goes on at {} %", look.eased());
    Ok(look.told(look.over(share), what, then, value))
}

fn temperature(look: &Look<'_>) -> Seen {
    let celsius = u64::from(*known(&look.gpu.temperature_c)?);
    let cooled = look.limit.saturating_sub(look.settings.gpu_temperature_band.0);
    let value = Celsius(celsius).show();
    let what = format!("{} is at {value}", name(&look.gpu.name));
    let then = format!("work goes on at {}", Celsius(cooled).show());
    Ok(look.told(celsius > if look.held { cooled } else { look.limit }, what, then, value))
}

fn power(look: &Look<'_>) -> Seen {
    let milliwatts = *known(&look.gpu.power_mw)?;
    let eased = look.limit / 10 * 9;
    let value = about_mw(milliwatts);
    let what = format!("{} draws {value}", name(&look.gpu.name));
    let then = format!("work goes on a while after it draws {} or less", Milliwatts(eased).show());
    Ok(look.told(milliwatts > if look.held { eased } else { look.limit }, what, then, value))
}
