//! Prints all readings of this machine once a second, or as often as the first argument says (seconds).
//!
//! For owners' reports: `cargo run --release -p skein-sensors --example look`.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_sensors::{Config, Gpu, Reading, Sensors};

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1.0_f64).clamp(0.1, 3600.0);
    let times = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    let own = Arc::new(|| BTreeSet::from([std::process::id()]));
    let mut sensors = Sensors::new(Config::new(std::env::current_dir()?, own));
    let mut out = std::io::stdout().lock();
    for _ in 0..times {
        let began = Instant::now();
        let read = sensors.read();
        writeln!(out, "read in {:?}", began.elapsed())?;
        line(&mut out, "owner idle, ms", &read.owner_idle_ms)?;
        line(&mut out, "full screen", &read.full_screen)?;
        line(&mut out, "game", &read.game)?;
        line(&mut out, "remote desktop", &read.remote_desktop)?;
        line(&mut out, "power", &read.power)?;
        line(&mut out, "metered", &read.metered)?;
        line(&mut out, "disk free, bytes", &read.disk_free_bytes)?;
        line(&mut out, "wall", &read.wall)?;
        line(&mut out, "processor, others, permille", &read.processor_others_permille)?;
        match &read.gpus {
            Reading::Missing(_) => line(&mut out, "GPUs", &read.gpus)?,
            Reading::Known(gpus) if gpus.is_empty() => writeln!(out, "  {:<28} none", "GPUs")?,
            Reading::Known(gpus) => {
                for gpu in gpus {
                    show(&mut out, gpu)?;
                }
            }
        }
        out.flush()?;
        std::thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn show(out: &mut impl Write, gpu: &Gpu) -> std::io::Result<()> {
    writeln!(out, "  GPU {} {}", gpu.id, gpu.name)?;
    line(out, "  busy, %", &gpu.busy_percent)?;
    line(out, "  temperature, C", &gpu.temperature_c)?;
    line(out, "  power, mW", &gpu.power_mw)?;
    line(out, "  power limit, mW", &gpu.power_limit_mw)?;
    line(out, "  memory used, bytes", &gpu.memory_used_bytes)?;
    line(out, "  memory, bytes", &gpu.memory_total_bytes)?;
    line(out, "  fan, %", &gpu.fan_percent)?;
    line(out, "  others", &gpu.others)
}

fn line(out: &mut impl Write, name: &str, value: &Reading<impl std::fmt::Debug>) -> std::io::Result<()> {
    match value {
        Reading::Known(value) => writeln!(out, "  {name:<28} {value:?}"),
        Reading::Missing(why) => writeln!(out, "  {name:<28} missing: {why}"),
    }
}
