//! NVIDIA's GPUs by a double of their library (`nvml.c`), built with the C compiler.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use machine::{Machine, installed, read, until};
use skein_sensors::{GpuProgram, Reading, Readings, Sensors};

/// A machine whose library is the double; the path is the file that makes it hang. While there is a file `empty`, nobody
/// uses the GPU.
fn machine() -> Option<(Machine, std::path::PathBuf)> {
    if !installed("cc") {
        return None;
    }
    let mut machine = Machine::bare();
    let library = machine.path("libnvidia-ml.so.1");
    let hang = machine.path("hang");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvml.c");
    let define = |name: &str, path: &std::path::Path| format!("-D{name}=\"{}\"", path.display());
    let (hangs, empty) = (define("HANG", &hang), define("EMPTY", &machine.path("empty")));
    let arguments = ["-shared", "-fPIC", hangs.as_str(), empty.as_str(), source, "-o"];
    let built = Command::new("cc").args(arguments).arg(&library).status().unwrap();
    assert!(built.success());
    machine.places.nvml = Some(library);
    for (pid, name) in
        [(10, "skein"), (11, "python3"), (20, "gnome-shell"), (21, "eldenring.exe"), (22, "firefox")]
    {
        machine.write(&format!("proc/{pid}/cmdline"), &format!("/usr/bin/{name}\0"));
        machine.write(&format!("proc/{pid}/comm"), name);
    }
    machine.write("proc/stat", "cpu  1 2 3 4 5 6 7 8 9 10\n");
    Some((machine, hang))
}

#[test]
fn a_gpu_and_those_who_use_it() {
    let Some((machine, _)) = machine() else { return };
    machine.files(
        "sys/bus/pci/devices/0000:01:00.0",
        "class 0x030000\nvendor 0x10de\ndevice 0x2504\nrevision 0xa1",
    );
    let mut sensors = Sensors::new(machine.config(&[10]));
    let readings = until(&mut sensors, "the library is open", |readings| readings.gpus.known().is_some());
    let gpus = readings.gpus.known().unwrap();
    assert_eq!(gpus.len(), 1, "one GPU, known by its place and by the library: {gpus:?}");
    let gpu = &gpus[0];
    assert_eq!((gpu.id.as_str(), gpu.name.as_str()), ("0000:01:00.0", "NVIDIA GeForce RTX 3060"));
    assert_eq!(gpu.busy_percent, Reading::Known(87));
    assert_eq!(gpu.temperature_c, Reading::Known(66));
    assert_eq!(gpu.power_mw, Reading::Known(151_000));
    assert_eq!(gpu.power_limit_mw, Reading::Known(170_000));
    assert_eq!(gpu.memory_used_bytes, Reading::Known(9 << 30));
    assert_eq!(gpu.memory_total_bytes, Reading::Known(12 << 30));
    assert_eq!(gpu.fan_percent, Reading::Missing("this GPU does not tell".to_owned()));
    let program = |pid, name: &str, memory, share| GpuProgram {
        pid,
        name: name.to_owned(),
        memory_bytes: Some(memory),
        busy_percent: Some(share),
    };
    let wanted = vec![program(11, "python3", 2 << 30, 0), program(21, "eldenring.exe", 300 << 20, 30)];
    assert_eq!(
        gpu.others,
        Reading::Known(wanted),
        "the desktop, the browser and our own worker do not count"
    );
    // No samples for as long as there should have been some: nobody drew, and who computes still does.
    let readings = until(&mut sensors, "the game rests", |readings| others(readings) == Some(1));
    let others = readings.gpus.known().unwrap()[0].others.known().unwrap();
    assert_eq!((others[0].name.as_str(), others[0].busy_percent), ("python3", Some(0)));
}

/// How many programs of others count on the first GPU.
fn others(readings: &Readings) -> Option<usize> {
    readings.gpus.known()?.first()?.others.known().map(Vec::len)
}

#[test]
fn a_driver_that_hangs_keeps_its_last_answer_for_a_while_and_then_says_so() {
    let Some((machine, hang)) = machine() else { return };
    let mut sensors = machine.sensors();
    until(&mut sensors, "the library is open", |readings| readings.gpus.known().is_some());
    fs::write(&hang, "").unwrap();
    assert!(read(&mut sensors).gpus.known().is_some(), "the last answer is fresh");
    let readings = until(&mut sensors, "the hang shows", |readings| readings.gpus.known().is_none());
    assert!(
        matches!(&readings.gpus, Reading::Missing(why) if why.contains("NVIDIA's driver has not answered for 1"))
    );
    assert!(readings.disk_free_bytes.known().is_some(), "the others go on");
    fs::remove_file(&hang).unwrap();
    until(&mut sensors, "the driver is back", |readings| readings.gpus.known().is_some());
}

#[test]
fn a_laptops_gpu_is_not_kept_awake() {
    let Some((machine, _)) = machine() else { return };
    let device = "sys/bus/pci/devices/0000:01:00.0";
    machine.files(device, "class 0x030000\nvendor 0x10de\ndevice 0x2504\nrevision 0xa1");
    machine.link(&format!("{device}/driver"), "../../../bus/pci/drivers/nvidia");
    machine.files(&format!("{device}/power"), "control auto\nruntime_status suspended");
    // Asked while it sleeps, the library would hang: it is not asked.
    fs::write(machine.path("hang"), "").unwrap();
    let mut sensors = machine.sensors();
    let readings = read(&mut sensors);
    let gpu = &readings.gpus.known().unwrap()[0];
    assert_eq!(gpu.temperature_c, Reading::Missing("it sleeps to save power".to_owned()));
    assert_eq!(gpu.others, Reading::Known(Vec::new()));
    fs::remove_file(machine.path("hang")).unwrap();
    machine.files(&format!("{device}/power"), "runtime_status active");
    let readings = until(&mut sensors, "awake", |readings| {
        readings.gpus.known().is_some_and(|gpus| gpus[0].temperature_c == Reading::Known(66))
    });
    assert_eq!(readings.gpus.known().map(Vec::len), Some(1));
}

#[test]
fn a_gpu_that_may_sleep_is_watched_while_a_worker_lives() {
    let Some((machine, _)) = machine() else { return };
    let device = "sys/bus/pci/devices/0000:01:00.0";
    machine.files(device, "class 0x030000\nvendor 0x10de\ndevice 0x2504\nrevision 0xa1");
    machine.link(&format!("{device}/driver"), "../../../bus/pci/drivers/nvidia");
    machine.files(&format!("{device}/power"), "control auto\nruntime_status active");
    fs::write(machine.path("empty"), "").unwrap();
    let own = Arc::new(Mutex::new(BTreeSet::from([1_u32])));
    let told = Arc::clone(&own);
    let mut config = machine.config(&[]);
    config.own_pids = Arc::new(move || told.lock().unwrap().clone());
    let mut sensors = Sensors::new(config);
    until(&mut sensors, "the library was open", |readings| others(readings) == Some(0));
    fs::remove_file(machine.path("empty")).unwrap();
    assert_eq!(others(&read(&mut sensors)), Some(0), "it is left alone, so that it can fall asleep");
    own.lock().unwrap().insert(10);
    let began = Instant::now();
    until(&mut sensors, "programs are seen", |readings| others(readings) > Some(0));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "the library rests for 20 s, not while a worker lives: {took:?}");
    // Nor does it begin to.
    fs::write(machine.path("empty"), "").unwrap();
    until(&mut sensors, "programs are gone", |readings| others(readings) == Some(0));
    fs::remove_file(machine.path("empty")).unwrap();
    let began = Instant::now();
    until(&mut sensors, "programs are seen again", |readings| others(readings) > Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
