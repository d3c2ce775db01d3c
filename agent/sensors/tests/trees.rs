//! Power, GPUs, games and processors of machines that are laid out as files.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod machine;

use machine::{Machine, read};
use skein_sensors::{Power, Reading};

const SUPPLY: &str = "sys/class/power_supply";

fn power(machine: &Machine) -> Reading<Power> {
    read(&mut machine.sensors()).power
}

#[test]
fn a_desktop_is_on_mains_and_a_machine_that_shows_nothing_is_not_known() {
    let machine = Machine::bare();
    assert!(matches!(power(&machine), Reading::Missing(why) if why.contains("/sys/class/power_supply")));
    machine.files(
        &format!("{SUPPLY}/hidpp_battery_0"),
        "type Battery\nscope Device\nstatus Discharging\ncapacity 5",
    );
    assert_eq!(power(&machine), Reading::Known(Power::Mains), "a mouse's battery");
    machine.files(&format!("{SUPPLY}/ups"), "type UPS\nstatus Discharging\ncapacity 50");
    assert_eq!(power(&machine), Reading::Known(Power::Mains), "a UPS");
}

#[test]
fn a_laptop_by_its_plug_and_its_batteries() {
    let machine = Machine::bare();
    let bat0 = format!("{SUPPLY}/BAT0");
    machine.files(&format!("{SUPPLY}/AC"), "type Mains\nonline 1");
    machine.files(
        &bat0,
        "type Battery\npresent 1\nstatus Charging\ncapacity 40\nenergy_now 20000000\nenergy_full 50000000",
    );
    machine
        .files(&format!("{SUPPLY}/hid-mouse"), "type Battery\nscope Device\nstatus Discharging\ncapacity 1");
    assert_eq!(power(&machine), Reading::Known(Power::Mains));
    machine.files(&format!("{SUPPLY}/AC"), "online 0");
    machine.files(&bat0, "status Discharging");
    assert_eq!(power(&machine), Reading::Known(Power::Battery { percent: 40 }));
    // A second, smaller one that is full: 30 of 60 Wh.
    let bat1 = format!("{SUPPLY}/BAT1");
    machine.files(
        &bat1,
        "type Battery\npresent 1\nstatus Unknown\ncapacity 100\nenergy_now 10000000\nenergy_full 10000000",
    );
    assert_eq!(power(&machine), Reading::Known(Power::Battery { percent: 50 }));
    machine.files(&bat1, "present 0");
    // By a charger on a USB port.
    let usb = format!("{SUPPLY}/ucsi-source-psy-1");
    machine.files(&usb, "type USB\nscope System\nonline 1");
    assert_eq!(power(&machine), Reading::Known(Power::Mains));
    machine.files(&usb, "online 0");
    assert_eq!(power(&machine), Reading::Known(Power::Battery { percent: 40 }));
    machine.files(&bat0, "status Not_charging");
    assert_eq!(power(&machine), Reading::Known(Power::Battery { percent: 40 }), "no charger is plugged in");
}

#[test]
fn a_laptop_that_hides_its_charger_is_believed_by_its_battery() {
    let machine = Machine::bare();
    machine.files(&format!("{SUPPLY}/BAT0"), "type Battery\nstatus Full\ncapacity 100");
    assert_eq!(power(&machine), Reading::Known(Power::Mains));
    machine.files(&format!("{SUPPLY}/BAT0"), "status Discharging\ncapacity 77");
    assert_eq!(power(&machine), Reading::Known(Power::Battery { percent: 77 }));
}

fn card(machine: &Machine, address: &str, driver: &str, files: &str) {
    let device = format!("sys/devices/pci0000:00/{address}");
    machine.files(&device, files);
    machine
        .link(&format!("sys/bus/pci/devices/{address}"), &format!("../../../devices/pci0000:00/{address}"));
    machine.link(&format!("{device}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
    let place =
        (128..).find(|number| !machine.path(&format!("sys/class/drm/renderD{number}")).exists()).unwrap();
    machine.link(
        &format!("sys/class/drm/renderD{place}/device"),
        &format!("../../../devices/pci0000:00/{address}"),
    );
}

fn amd(machine: &Machine) {
    let files = "class 0x030000\nvendor 0x1002\ndevice 0x744c\nrevision 0xc8\ngpu_busy_percent 37
        mem_info_vram_used 3221225472\nmem_info_vram_total 25753026560\npower/runtime_status active";
    card(machine, "0000:0b:00.0", "amdgpu", files);
    let hwmon = "sys/devices/pci0000:00/0000:0b:00.0/hwmon/hwmon3";
    machine.files(
        hwmon,
        "name amdgpu\ntemp1_input 61000\ntemp2_input 75000\npower1_average 120500000
        power1_cap 303000000\npwm1 51\npwm1_max 255",
    );
    machine.write(
        "usr/share/libdrm/amdgpu.ids",
        "# comment\n1.0.0\n744C,\tC4,\tAnother\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n",
    );
}

#[test]
fn amd_and_intel_and_nvidia_without_its_library() {
    let machine = Machine::bare();
    amd(&machine);
    card(&machine, "0000:00:02.0", "i915", "class 0x030000\nvendor 0x8086\ndevice 0x9a49\nrevision 0x01");
    card(&machine, "0000:01:00.0", "nvidia", "class 0x030200\nvendor 0x10de\ndevice 0x2504\nrevision 0xa1");
    machine
        .files("sys/bus/pci/devices/0000:00:1f.3", "class 0x040300\nvendor 0x8086\ndevice 0x1\nrevision 0x1");
    machine.write(
        "usr/share/misc/pci.ids",
        "1002  AMD\n\t9a49  Wrong\n8086  Intel\n\t9a49  TigerLake [Iris Xe]\n\t\t1 2  x\n",
    );
    machine.write("proc/stat", "cpu  1 2 3 4 5 6 7 8 9 10\n");
    let readings = read(&mut machine.sensors());
    let gpus = readings.gpus.known().unwrap();
    let ids: Vec<&str> = gpus.iter().map(|gpu| gpu.id.as_str()).collect();
    assert_eq!(ids, ["0000:00:02.0", "0000:01:00.0", "0000:0b:00.0"]);

    let amd = &gpus[2];
    assert_eq!(amd.name, "AMD Radeon RX 7900 XTX");
    assert_eq!(amd.busy_percent, Reading::Known(37));
    assert_eq!(amd.temperature_c, Reading::Known(61));
    assert_eq!(amd.power_mw, Reading::Known(120_500));
    assert_eq!(amd.power_limit_mw, Reading::Known(303_000));
    assert_eq!(amd.memory_used_bytes, Reading::Known(3 << 30));
    assert_eq!(amd.memory_total_bytes, Reading::Known(25_753_026_560));
    assert_eq!(amd.fan_percent, Reading::Known(20));
    assert_eq!(amd.others, Reading::Known(Vec::new()));

    let intel = &gpus[0];
    assert_eq!(intel.name, "Intel TigerLake [Iris Xe]");
    assert!(matches!(&intel.temperature_c, Reading::Missing(why) if why.contains("i915")), "{intel:?}");

    let nvidia = &gpus[1];
    let why = Reading::Missing("no NVIDIA management library (/nonexistent/libnvidia-ml.so.1)".to_owned());
    assert_eq!(nvidia.temperature_c, why);
    assert_eq!(nvidia.name, "NVIDIA GPU 2504");
}

#[test]
fn a_sleeping_gpu_is_left_asleep() {
    let machine = Machine::bare();
    amd(&machine);
    machine.files("sys/bus/pci/devices/0000:0b:00.0/power", "runtime_status suspended");
    let readings = read(&mut machine.sensors());
    let gpu = &readings.gpus.known().unwrap()[0];
    assert_eq!(gpu.temperature_c, Reading::Missing("it sleeps to save power".to_owned()));
    assert_eq!(gpu.others, Reading::Known(Vec::new()), "nobody uses a GPU that sleeps");
}

fn process(machine: &Machine, pid: u32, command: &str, environment: &str) {
    machine.write(&format!("proc/{pid}/cmdline"), &format!("{}\0", command.replace('|', "\0")));
    let name = command.split('|').next().unwrap().rsplit(['/', '\\']).next().unwrap();
    machine.write(&format!("proc/{pid}/comm"), &format!("{}\n", name.chars().take(15).collect::<String>()));
    machine.write(&format!("proc/{pid}/environ"), &environment.replace('|', "\0"));
}

#[test]
fn programs_on_an_amd_gpu_are_told_and_our_own_are_not() {
    let machine = Machine::bare();
    amd(&machine);
    let uses = |pid: u32, name: &str, ns: u64, vram_mib: u64| {
        process(&machine, pid, name, "");
        let fd = format!("proc/{pid}/fd/5");
        if machine.path(&fd).symlink_metadata().is_err() {
            machine.link(&fd, "/dev/dri/renderD128");
            machine.link(&format!("proc/{pid}/fd/6"), "/dev/null");
        }
        let text = format!(
            "pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t{pid}\ndrm-pdev:\t0000:0b:00.0\n\
             drm-memory-vram:\t{} KiB\ndrm-engine-gfx:\t{ns} ns\n",
            vram_mib << 10
        );
        machine.write(&format!("proc/{pid}/fdinfo/5"), &text);
    };
    uses(100, "/usr/bin/gnome-shell", 1_000, 1500);
    uses(101, "/opt/ollama", 1_000, 6000);
    uses(102, "/usr/bin/skein", 1_000, 6000);
    uses(103, "/usr/bin/vkcube", 1_000, 20);
    let mut sensors = skein_sensors::Sensors::new(machine.config(&[102]));
    let names = |readings: &skein_sensors::Readings| -> Vec<String> {
        let others = readings.gpus.known().unwrap()[0].others.known().cloned().unwrap();
        others.into_iter().map(|program| program.name).collect()
    };
    assert_eq!(names(&read(&mut sensors)), ["ollama"], "it holds 6 GB");
    // Sixty seconds of work at once: busy, however long the test takes between two readings.
    uses(103, "/usr/bin/vkcube", 60_000_000_000, 20);
    let readings = read(&mut sensors);
    assert_eq!(names(&readings), ["ollama", "vkcube"]);
    let ollama = &readings.gpus.known().unwrap()[0].others.known().unwrap()[0];
    assert_eq!((ollama.pid, ollama.memory_bytes), (101, Some(6000 << 20)));
    let others = readings.gpus.known().unwrap()[0].others.known().unwrap();
    let shares: Vec<Option<u8>> = others.iter().map(|program| program.busy_percent).collect();
    assert_eq!(shares, [Some(0), Some(100)]);
}

#[test]
fn a_game_is_seen_while_it_runs() {
    let machine = Machine::bare();
    process(&machine, 1, "/sbin/init", "");
    let mut sensors = machine.sensors();
    assert_eq!(read(&mut sensors).game, Reading::Known(None));
    process(&machine, 50, "/home/ada/steamapps/common/Hades/Hades", "SteamAppId=1145360");
    process(&machine, 51, "/home/ada/.steam/reaper|SteamLaunch", "SteamAppId=1145360");
    assert_eq!(read(&mut sensors).game, Reading::Known(Some("Hades".to_owned())));
    std::fs::remove_dir_all(machine.path("proc/50")).unwrap();
    assert_eq!(read(&mut sensors).game, Reading::Known(None), "the reaper alone is none");
    process(&machine, 60, "/usr/games/supertuxkart", "");
    assert_eq!(read(&mut sensors).game, Reading::Known(None));
    sensors.set_games(vec!["SuperTuxKart".to_owned()], Vec::new());
    assert_eq!(read(&mut sensors).game, Reading::Known(Some("supertuxkart".to_owned())));
    sensors.set_games(vec!["supertuxkart".to_owned()], vec!["supertuxkart".to_owned()]);
    assert_eq!(read(&mut sensors).game, Reading::Known(None), "the owner's no is stronger");
    // A shell that becomes the game a moment later.
    process(&machine, 70, "/bin/sh|-c|game", "");
    assert_eq!(read(&mut sensors).game, Reading::Known(None));
    process(&machine, 70, "Z:\\steamapps\\common\\Portal\\portal.exe", "SteamAppId=400");
    assert_eq!(read(&mut sensors).game, Reading::Known(Some("portal.exe".to_owned())));
}

#[test]
fn processors_and_consoles() {
    let machine = Machine::bare();
    machine.write("proc/stat", "cpu  1000 0 0 1000 0 0 0 0 0 0\n");
    machine.write("dev/tty1", "");
    let mut sensors = machine.sensors();
    let first = read(&mut sensors);
    assert!(matches!(first.processor_others_permille, Reading::Missing(why) if why.contains("first")));
    assert!(first.owner_idle_ms.known().is_some_and(|ms| *ms < 60_000), "somebody typed at a console");
    machine.write("proc/stat", "cpu  1250 0 0 1750 0 0 0 0 0 0\n");
    assert_eq!(read(&mut sensors).processor_others_permille, Reading::Known(250));
}

#[test]
fn what_is_not_there_says_so_in_words() {
    let machine = Machine::bare();
    let readings = read(&mut machine.sensors());
    let why = |text: Option<&String>| text.cloned().unwrap_or_default();
    let missing = |reading: &Reading<_>| match reading {
        Reading::Missing(text) => why(Some(text)),
        Reading::Known(_) => String::new(),
    };
    assert_eq!(
        missing(&readings.owner_idle_ms),
        "no desktop runs on this machine, or none that the agent can see"
    );
    assert!(matches!(&readings.metered, Reading::Missing(why) if why.contains("D-Bus cannot be reached")));
    assert!(matches!(&readings.gpus, Reading::Missing(why)
        if why.contains("PCI") && why.contains("no NVIDIA management library")));
    assert_eq!(readings.traffic_month_bytes, Reading::Missing("not counted yet".to_owned()));
    assert!(readings.disk_free_bytes.known().is_some() && readings.wall.known().is_some());
}
