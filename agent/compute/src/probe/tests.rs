//! Owns the tests of choosing and of running children. Must never need a driver.

use std::sync::mpsc::{TryRecvError, channel};

use super::*;

fn report(index: u32, name: &str, kind: AdapterKind, backend: &str, verdict: Verdict) -> AdapterReport {
    let adapter = Adapter {
        index,
        name: name.to_owned(),
        vendor: 0x10de,
        device: 1,
        pci: String::new(),
        backend: backend.to_owned(),
        driver: "driver 1".to_owned(),
        kind,
        binding_bytes_max: 1 << 27,
        buffer_bytes_max: 1 << 28,
        memory_bytes: None,
    };
    AdapterReport { adapter, verdict }
}

fn works() -> Verdict {
    Verdict::Works { took_ms: 5 }
}

fn farm() -> Survey {
    let adapters = vec![
        report(0, "Radeon iGPU", AdapterKind::Integrated, "vulkan", works()),
        report(1, "GeForce 3060", AdapterKind::Discrete, "gl", works()),
        report(2, "GeForce 3060", AdapterKind::Discrete, "vulkan", works()),
        report(3, "GeForce 4090", AdapterKind::Discrete, "vulkan", Verdict::Crashed { signal: 11 }),
        report(4, "llvmpipe", AdapterKind::Cpu, "vulkan", Verdict::Software),
    ];
    Survey { trouble: None, adapters }
}

#[test]
fn the_best_working_adapter_is_chosen() {
    let chosen = choose(&farm(), None).unwrap();
    assert_eq!(chosen.device.to_string(), "wgpu:2:GeForce 3060");
    assert!(chosen.reason.contains("works over vulkan"), "{}", chosen.reason);
}

fn names(chosen: &[Chosen]) -> Vec<String> {
    chosen.iter().map(|chosen| chosen.device.to_string()).collect()
}

#[test]
fn every_card_that_works_has_a_worker_and_the_others_are_told() {
    let mut farm = farm();
    assert_eq!(names(&choose_all(&farm, &[]).unwrap()), ["wgpu:2:GeForce 3060"]);
    assert_eq!(broken_cards(&farm), ["GeForce 4090 (vulkan) its driver crashed (signal 11)"]);
    farm.adapters.push(report(5, "GeForce 3060", AdapterKind::Discrete, "vulkan", works()));
    let hung = Verdict::Hung { after_ms: 9 };
    farm.adapters.push(report(6, "GeForce 3070", AdapterKind::Discrete, "gl", hung));
    farm.adapters.push(report(7, "GeForce 3070", AdapterKind::Discrete, "vulkan", works()));
    let cards = ["wgpu:2:GeForce 3060", "wgpu:5:GeForce 3060", "wgpu:7:GeForce 3070"];
    assert_eq!(names(&choose_all(&farm, &[]).unwrap()), cards);
    assert_eq!(broken_cards(&farm).len(), 1, "a card that works behind one of its APIs works");
    // Cards of one make and behind two APIs are told apart where the addresses are known.
    for (at, pci) in [(6, "0000:01:00.0"), (7, "0000:02:00.0")] {
        farm.adapters[at].adapter.pci = pci.to_owned();
    }
    assert_eq!(broken_cards(&farm).len(), 2);
    // Without any card, the best of what there is, once.
    farm.adapters.truncate(1);
    assert_eq!(names(&choose_all(&farm, &[]).unwrap()), ["wgpu:0:Radeon iGPU"]);
    assert_eq!(names(&choose_all(&Survey::default(), &[]).unwrap()), ["cpu"]);
}

#[test]
fn names_give_a_worker_for_each_match_and_each_mention() {
    let mut farm = farm();
    farm.adapters.push(report(5, "GeForce 3060", AdapterKind::Discrete, "vulkan", works()));
    let all = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        choose_all(&farm, &wanted).map(|chosen| names(&chosen))
    };
    assert_eq!(all(&["3060"]).unwrap(), ["wgpu:2:GeForce 3060", "wgpu:5:GeForce 3060"]);
    assert_eq!(all(&["geforce"]).unwrap(), ["wgpu:2:GeForce 3060", "wgpu:5:GeForce 3060"]);
    assert_eq!(
        all(&["wgpu:5:GeForce 3060", "cpu", "igpu"]).unwrap(),
        ["wgpu:5:GeForce 3060", "cpu", "wgpu:0:Radeon iGPU"]
    );
    assert_eq!(all(&["cpu", "cpu"]).unwrap(), ["cpu", "cpu"]);
    assert!(matches!(all(&["cpu", "4090"]), Err(ChooseError::Broken { .. })));
    assert!(matches!(all(&["cpu", "arc"]), Err(ChooseError::NoMatch { .. })));
}

#[test]
fn software_is_used_only_when_named_and_then_as_the_cpu() {
    let software = Survey { adapters: farm().adapters.split_off(4), ..Survey::default() };
    let chosen = choose(&software, None).unwrap();
    assert_eq!(chosen.device, DeviceChoice::Cpu);
    assert!(chosen.reason.contains("no GPU"), "{}", chosen.reason);
    let chosen = choose(&farm(), Some("LLVM")).unwrap();
    assert_eq!(chosen.device, DeviceChoice::Cpu);
    assert!(chosen.reason.contains("the CPU backend is used"), "{}", chosen.reason);
}

#[test]
fn a_name_that_matches_nothing_lists_what_exists() {
    let error = choose(&farm(), Some("arc")).unwrap_err().to_string();
    assert!(error.contains("cpu; Radeon iGPU (vulkan) works") && error.contains("signal 11"), "{error}");
    let error = choose(&farm(), Some("4090")).unwrap_err().to_string();
    assert!(error.contains("GeForce 4090 matches, but its driver crashed"), "{error}");
    assert_eq!(
        choose(&farm(), Some("wgpu:1:GeForce 3060")).unwrap().device.to_string(),
        "wgpu:1:GeForce 3060"
    );
    assert_eq!(choose(&Survey::default(), Some("cpu")).unwrap().device, DeviceChoice::Cpu);
}

#[test]
fn trouble_with_every_driver_means_the_cpu_and_says_so() {
    let survey = Survey { trouble: Some(Verdict::Hung { after_ms: 9 }), adapters: Vec::new() };
    let chosen = choose(&survey, None).unwrap();
    assert_eq!(chosen.device, DeviceChoice::Cpu);
    assert!(chosen.reason.contains("hung for 9 ms"), "{}", chosen.reason);
}

#[test]
fn a_probe_hears_that_its_parent_is_gone() {
    let (input, parent) = std::io::pipe().unwrap();
    let (sender, receiver) = channel();
    watch(input, move || sender.send(()).unwrap()).unwrap();
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty), "it is there");
    drop(parent);
    receiver.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[cfg(unix)]
mod children {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    /// A probe whose `--list` prints `adapters` and whose `--adapter N` runs the N-th script.
    fn probe_of(directory: &Path, scripts: &[&str]) -> PathBuf {
        let exe = directory.join("probe.sh");
        let adapters: Vec<Adapter> = (0..scripts.len() as u32)
            .map(|index| report(index, "card", AdapterKind::Discrete, "vulkan", works()).adapter)
            .collect();
        let list = serde_json::to_string(&adapters).unwrap();
        let mut text =
            format!("#!/bin/sh\nif [ \"$2\" = --list ]; then echo '{list}'; exit; fi\ncase $3 in\n");
        for (index, script) in scripts.iter().enumerate() {
            text += &format!("{index}) {script};;\n");
        }
        text += "esac\n";
        std::fs::write(&exe, text).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
        exe
    }

    fn survey_of(scripts: &[&str], timeout_ms: u64) -> Survey {
        let directory = tempfile::tempdir().unwrap();
        survey(&probe_of(directory.path(), scripts), Duration::from_millis(timeout_ms))
    }

    fn lives(pid: u32) -> bool {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("kill -0 {pid}")).stderr(Stdio::null()).status().unwrap().success()
    }

    #[test]
    fn every_way_to_end_is_told_apart() {
        let scripts = ["echo null", "kill -SEGV $$", "echo '\"too old\"'", "echo rubbish", "exit 3"];
        let survey = survey_of(&scripts, 20_000);
        assert_eq!(survey.trouble, None);
        let verdicts: Vec<&Verdict> = survey.adapters.iter().map(|report| &report.verdict).collect();
        assert!(matches!(verdicts[0], Verdict::Works { .. }), "{verdicts:?}");
        assert_eq!(verdicts[1], &Verdict::Crashed { signal: 11 });
        assert_eq!(verdicts[2], &Verdict::Refused { why: "too old".to_owned() });
        assert!(
            matches!(verdicts[3], Verdict::Refused { why } if why.contains("unreadable")),
            "{verdicts:?}"
        );
        assert!(matches!(verdicts[4], Verdict::Refused { why } if why.contains('3')), "{verdicts:?}");
    }

    #[test]
    fn software_is_not_tried() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("probe.sh");
        let list =
            serde_json::to_string(&[report(0, "llvmpipe", AdapterKind::Cpu, "vulkan", works()).adapter])
                .unwrap();
        let script = format!("#!/bin/sh\nif [ $2 = --list ]; then echo '{list}'; else kill -SEGV $$; fi\n");
        std::fs::write(&exe, script).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
        let survey = survey(&exe, Duration::from_secs(20));
        assert_eq!(survey.adapters[0].verdict, Verdict::Software);
    }

    #[test]
    fn a_hanging_driver_is_ended() {
        let survey = survey_of(&["exec sleep 600"], 400);
        assert_eq!(survey.adapters[0].verdict, Verdict::Hung { after_ms: 400 });
    }

    #[test]
    fn a_probe_is_told_of_its_parents_end_and_of_nothing_before() {
        let survey = survey_of(&["read nothing; echo null"], 1_000);
        assert_eq!(survey.adapters[0].verdict, Verdict::Hung { after_ms: 1_000 }, "its input had ended");
    }

    #[test]
    fn a_survey_that_is_barred_ends_its_probe_at_once_and_starts_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let sleeps = ": > $0.$3; exec sleep 600";
        let exe = probe_of(directory.path(), &[sleeps, sleeps]);
        let began = |index: u32| directory.path().join(format!("probe.sh.{index}")).exists();
        let surveying = Surveying::default();
        let survey = {
            let (exe, surveying) = (exe.clone(), surveying.clone());
            std::thread::spawn(move || survey_unless_barred(&exe, Duration::from_secs(600), &surveying))
        };
        let patience = Instant::now() + Duration::from_secs(20);
        let pid = loop {
            if began(0)
                && let Some(pid) = surveying.pid()
            {
                break pid;
            }
            assert!(Instant::now() < patience && !survey.is_finished(), "no probe began");
            std::thread::yield_now();
        };
        assert!(lives(pid) && !surveying.is_barred());
        let asked = Instant::now();
        surveying.bar("the owner plays");
        let ended = survey.join().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "it went on for {:?}", asked.elapsed());
        assert_eq!(ended.unwrap_err().to_string(), "the survey was ended: the owner plays");
        assert_eq!(surveying.pid(), None);
        assert!(!lives(pid) && !began(1) && surveying.is_barred());
        // Nor does a later one by the same handle start anything.
        std::fs::remove_file(directory.path().join("probe.sh.0")).unwrap();
        survey_unless_barred(&exe, Duration::from_secs(20), &surveying).unwrap_err();
        assert!(!began(0));
    }

    #[test]
    fn a_missing_program_is_trouble() {
        let survey = survey(Path::new("/nonexistent/skein"), Duration::from_secs(1));
        assert!(matches!(survey.trouble, Some(Verdict::Refused { .. })), "{survey:?}");
    }
}
