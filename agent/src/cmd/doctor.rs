//! `skein doctor`: looks at all that an agent needs, and says for each thing that is wrong what to do about it.

mod absent;
mod clock;
#[cfg(target_os = "linux")]
mod permissions;
mod reach;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use skein_compute::probe::{self, AdapterKind, AdapterReport, Survey};
use skein_policy::{Rule, Settings, State};
use skein_update::Outcome;

use super::{bytes_text, print_json, say};
use crate::cli::{DataDir, UpArgs};
use crate::client::Client;
use crate::config::{Config, data_dir};
use crate::daemon::owner::{load, settings_file};
use crate::daemon::status::Status;
use crate::host::Host;
use crate::limits::PROBE_TIMEOUT;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    what: &'static str,
    state: Health,
    told: String,
    /// What to do about it.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Good,
    /// Nothing here tells.
    Unknown,
    /// The agent works, but not as well as it could.
    Poor,
    /// The agent cannot work.
    Bad,
}

impl Finding {
    fn good(what: &'static str, told: impl Into<String>) -> Self {
        Self { what, state: Health::Good, told: told.into(), remedy: None }
    }

    fn unknown(what: &'static str, told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: Health::Unknown, told: told.into(), remedy: Some(remedy.into()) }
    }

    /// A fault in words that may end in a `hint:` of their own.
    fn fault(what: &'static str, text: &str, otherwise: &str) -> Self {
        let (told, remedy) = text.split_once("\nhint: ").unwrap_or((text, otherwise));
        Self::poor(what, told.replace('\n', "; "), remedy.replace('\n', "; "))
    }

    fn poor(what: &'static str, told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: Health::Poor, told: told.into(), remedy: Some(remedy.into()) }
    }

    fn bad(what: &'static str, told: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, state: Health::Bad, told: told.into(), remedy: Some(remedy.into()) }
    }
}

/// Fails when something hinders the agent.
///
/// # Errors
/// When there is no home directory, or stdout is closed.
pub(crate) fn run(directory: DataDir, json: bool) -> Result<ExitCode> {
    let findings = look(&data_dir(directory.data_dir)?);
    if json {
        print_json(&findings)?;
    } else {
        for Finding { what, state, told, remedy } in &findings {
            let mark = match state {
                Health::Good => "good",
                Health::Unknown => "?   ",
                Health::Poor => "poor",
                Health::Bad => "BAD ",
            };
            say(&format!("{mark}  {what:<14} {told}"))?;
            if let Some(remedy) = remedy {
                say(&format!("{:20} what to do: {remedy}", ""))?;
            }
        }
    }
    let bad = findings.iter().any(|finding| finding.state == Health::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at everything; nothing is changed.
pub(crate) fn look(data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![directory(data_dir), disk(data_dir), clock::look()];
    findings.extend(settings(data_dir));
    let survey =
        std::env::current_exe().map(|binary| probe::survey(&binary, PROBE_TIMEOUT)).unwrap_or_default();
    findings.extend(gpu(&survey));
    #[cfg(target_os = "linux")]
    findings.extend(permissions::look());
    match Client::of(data_dir).and_then(|client| client.get::<Status>("/api/status")) {
        Ok(status) => findings.extend(running(&status)),
        Err(_) => findings.extend(absent::look(data_dir)),
    }
    findings.extend(update(&skein_update::State::load(data_dir)));
    findings
}

fn directory(data_dir: &Path) -> Finding {
    let what = "data directory";
    let nearest = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(data_dir);
    match tempfile_in(nearest) {
        Ok(()) => Finding::good(what, data_dir.display().to_string()),
        Err(error) => Finding::bad(
            what,
            format!("nothing can be written in {}: {error}", nearest.display()),
            "give the agent's user the right to write there, or choose another by --data-dir",
        ),
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".skein-doctor-{}", std::process::id()));
    std::fs::write(&path, b"x")?;
    std::fs::remove_file(&path)
}

fn disk(data_dir: &Path) -> Finding {
    let nearest = data_dir.ancestors().find(|folder| folder.exists()).unwrap_or(data_dir);
    let free = Host::look(nearest).disk_free_bytes;
    match free {
        Some(free) if free < 1 << 30 => Finding::bad(
            "disk",
            format!("{} free", bytes_text(free)),
            "free some space: models and checkpoints take gigabytes",
        ),
        Some(free) if free < 20 << 30 => Finding::poor(
            "disk",
            format!("{} free", bytes_text(free)),
            "free some space, or set `disk_free_min` lower: large models will not fit",
        ),
        Some(free) => Finding::good("disk", format!("{} free", bytes_text(free))),
        None => Finding::poor("disk", "the system does not tell how much is free", "look yourself"),
    }
}

fn settings(data_dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let args = UpArgs { data_dir: Some(data_dir.to_owned()), ..UpArgs::default() };
    match Config::load(args) {
        Ok(_) => findings.push(Finding::good("config.toml", "can be read, or is not there")),
        Err(error) => findings.push(Finding::bad(
            "config.toml",
            format!("{error:#}").replace('\n', "; "),
            "mend it as said",
        )),
    }
    match load(&settings_file(data_dir), Settings::default()) {
        Ok(_) => findings.push(Finding::good("policy.toml", "can be read, or is not there")),
        Err(error) => findings.push(Finding::bad(
            "policy.toml",
            format!("{error:#}").replace('\n', "; "),
            "mend it as said",
        )),
    }
    findings
}

fn gpu(survey: &Survey) -> Vec<Finding> {
    let install = if cfg!(target_os = "linux") {
        "install the card's driver with Vulkan: NVIDIA's own (`nvidia-driver`), or `mesa-vulkan-drivers` for AMD and Intel"
    } else {
        "install the newest driver of the card's maker"
    };
    if let Some(trouble) = &survey.trouble {
        return vec![Finding::bad("GPU", format!("adapters cannot be listed: {trouble}"), install)];
    }
    let cards: Vec<&AdapterReport> =
        survey.adapters.iter().filter(|report| report.adapter.kind != AdapterKind::Cpu).collect();
    if cards.is_empty() {
        let told = "none that wgpu finds; the agent works on the processor";
        return vec![Finding::poor("GPU", told, install)];
    }
    let told = |report: &AdapterReport| {
        let adapter = &report.adapter;
        format!("{} over {} ({}): {}", adapter.name, adapter.backend, adapter.driver, report.verdict)
    };
    let all =
        |reports: &[&AdapterReport]| reports.iter().map(|report| told(report)).collect::<Vec<_>>().join("; ");
    // Of a card behind two graphics APIs one has to work; GL, which does not tell the bus, is never the first.
    let works = |report: &AdapterReport| {
        let (pci, backend) = (&report.adapter.pci, &report.adapter.backend);
        let same = |other: &AdapterReport| backend == "gl" || (!pci.is_empty() && *pci == other.adapter.pci);
        report.works() || cards.iter().any(|other| other.works() && same(other))
    };
    let (fine, broken): (Vec<&AdapterReport>, Vec<&AdapterReport>) =
        cards.iter().copied().partition(|&report| works(report));
    if fine.is_empty() {
        return vec![Finding::bad("GPU", all(&cards), install)];
    }
    let remedy = format!("the agent works without it; look at its power and its seat, and {install}");
    let broken = broken.into_iter().map(|report| Finding::poor("GPU", told(report), remedy.clone()));
    std::iter::once(Finding::good("GPU", all(&fine))).chain(broken).collect()
}

fn running(status: &Status) -> Vec<Finding> {
    let told = format!("runs, version {}: {}", status.version, status.policy.headline);
    let mut findings = vec![match status.policy.state {
        State::Trouble => trouble(&told),
        State::Working | State::Waiting | State::Paused => Finding::good("agent", told),
    }];
    findings.extend(faults(status).into_iter().map(trouble));
    if status.version != crate::version() {
        let told = format!("this command is version {}", crate::version());
        findings.push(Finding::poor("version", told, "restart the agent, so that both are the same"));
    }
    findings.push(if status.peers.is_empty() {
        Finding::poor(
            "reachability",
            format!("no other agent is connected; this one listens on {}", status.listen),
            "name one by --bootstrap, and let UDP out of this machine; to be reached from outside, forward the port \
             in your router and name it by --advertise",
        )
    } else {
        let told = "whether this one is reached from outside cannot be seen";
        Finding::good("reachability", format!("other agents connected: {}; {told}", status.peers.len()))
    });
    findings.push(if status.visible {
        Finding::good("scheduler", "sees this agent")
    } else {
        Finding::poor(
            "scheduler",
            "does not see this agent yet",
            "wait a minute; `skein status` says what is missing",
        )
    });
    for sensor in &status.policy.sensors {
        if let Some(why) = &sensor.missing {
            findings.push(Finding::good("sensor", format!("{} cannot be seen: {why}", sensor.sensor)));
        }
    }
    findings
}

/// What is wrong by the agent's own words, but for its headline. That it has nothing to do, or that a rule of its owner
/// holds, is no fault.
fn faults(status: &Status) -> Vec<&str> {
    let (troubles, rules): (Vec<_>, Vec<_>) =
        status.policy.reasons.iter().partition(|reason| reason.rule == Rule::Trouble);
    let is_fault = |text: &&str| {
        // A rule's reason may say more here, such as when it is looked at again.
        let of_a_rule = rules.iter().any(|reason| text.starts_with(&reason.text));
        !of_a_rule && !text.starts_with("no lease: ") && !text.starts_with("still measuring ")
    };
    let others = status.reasons.iter().map(String::as_str).filter(is_fault);
    let mut faults: Vec<&str> = Vec::new();
    for text in troubles.iter().map(|reason| reason.text.as_str()).chain(others) {
        if !status.policy.headline.contains(text) && !faults.iter().any(|known| text.ends_with(known)) {
            faults.push(text);
        }
    }
    faults
}

fn trouble(text: &str) -> Finding {
    let otherwise = match text {
        text if text.starts_with("no coordinator") => {
            "wait a minute; if it stays so, most agents of this network are out of reach: see `reachability`"
        }
        text if text.starts_with("none of the bootstrap agents") => {
            "see whether their addresses are still right and they run, and let UDP out of this machine"
        }
        _ => "`skein bench` tries every device; story.log in the data directory tells more",
    };
    Finding::fault("agent", text, otherwise)
}

/// How the last update failed, if it did.
fn update(state: &skein_update::State) -> Option<Finding> {
    let last = state.last_result.as_ref()?;
    let (how, otherwise) = match last.outcome {
        Outcome::UpToDate | Outcome::Available | Outcome::Updated | Outcome::Restored => return None,
        Outcome::Failed => {
            ("did not work here", "the version before goes on; a later one is tried by itself")
        }
        Outcome::Interrupted => ("was interrupted", "`skein update` tries it again"),
        Outcome::Refused => ("could not be had, or was refused", "`skein update` looks for it again"),
    };
    let version =
        last.version.as_ref().map_or("the last one".to_owned(), |version| format!("version {version}"));
    let reason = last.reason.as_deref().unwrap_or("it is not known why");
    Some(Finding::fault("update", &format!("{version} {how}: {reason}"), otherwise))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use skein_compute::probe::{Adapter, Verdict};
    use skein_proto::ids::{Digest, NetworkId, NodeId};

    use super::*;

    fn states(findings: &[Finding]) -> Vec<Health> {
        findings.iter().map(|finding| finding.state).collect()
    }

    fn card(index: u32, backend: &str, pci: &str, verdict: Verdict) -> AdapterReport {
        let adapter = Adapter {
            index,
            name: "GeForce RTX 3060".to_owned(),
            vendor: 0x10de,
            device: 0x2504,
            pci: pci.to_owned(),
            backend: backend.to_owned(),
            driver: "NVIDIA 570".to_owned(),
            kind: AdapterKind::Discrete,
            binding_bytes_max: 1 << 31,
            buffer_bytes_max: 1 << 31,
            memory_bytes: None,
        };
        AdapterReport { adapter, verdict }
    }

    #[test]
    fn each_card_that_does_not_work_is_told_beside_one_that_does() {
        let (works, crashed) = (Verdict::Works { took_ms: 900 }, Verdict::Crashed { signal: 11 });
        let rig = |first: Verdict| Survey {
            trouble: None,
            adapters: vec![
                card(0, "vulkan", "0000:01:00.0", first),
                card(1, "vulkan", "0000:02:00.0", crashed.clone()),
                card(2, "vulkan", "0000:03:00.0", Verdict::Hung { after_ms: 60_000 }),
                // The first once more, behind another API.
                card(3, "gl", "", crashed.clone()),
            ],
        };
        let told = gpu(&rig(works));
        assert_eq!(states(&told), [Health::Good, Health::Poor, Health::Poor], "{told:?}");
        assert!(told[1].told.contains("crashed") && told[2].told.contains("hung"), "{told:?}");
        assert!(told[1].remedy.is_some());
        assert_eq!(states(&gpu(&rig(crashed.clone()))), [Health::Bad]);
        assert_eq!(states(&gpu(&Survey::default())), [Health::Poor]);
    }

    /// An agent that says so of itself.
    fn status(state: &str, headline: &str, policy: Value, reasons: Value) -> Status {
        let policy = json!({
            "state": state, "headline": headline, "allowed": "all", "reasons": policy,
            "sensors": [{ "sensor": "game", "missing": "no list of processes" }],
            "pause": null, "finishing": false,
        });
        serde_json::from_value(json!({
            "node": NodeId([1; 32]), "pid": 1, "version": crate::version(), "network": "test",
            "network_id": NetworkId([2; 32]), "listen": "0.0.0.0:7310", "api": "127.0.0.1:7311", "peers": [],
            "coordinator": null, "term": null, "visible": true, "working": false, "reasons": reasons,
            "policy": policy, "on_trial": false, "earned_today": "0.00000000", "offer": null,
            "device_reason": "", "leases": [], "leases_taken": 0, "log": { "path": "/a/log", "entries": 0 },
            "ledger": {
                "epoch": 0, "height": 0, "state": Digest([3; 32]), "balance": "0.00000000",
                "balance_base_units": 0, "accepted_units": 0, "settlements": [],
            },
            "worker": { "pid": null, "deaths": 0 }, "workers": [], "bytes_sent": 0, "bytes_received": 0,
            "host": Host::look(Path::new(".")),
        }))
        .unwrap()
    }

    fn reason(rule: &str, text: &str) -> Value {
        json!({
            "rule": rule, "blocks": "all", "text": text, "value": "", "threshold": "", "since_ms": 0,
            "look_again_ms": 0,
        })
    }

    fn of_the_agent(status: &Status) -> Vec<Finding> {
        running(status).into_iter().filter(|finding| finding.what == "agent").collect()
    }

    #[test]
    fn an_agent_in_trouble_is_not_good() {
        let died = "the worker died 3 times in a row: signal 9";
        let policy = json!([reason("trouble", died)]);
        let told = of_the_agent(&status("trouble", &format!("Trouble: {died}"), policy, json!([died])));
        assert_eq!(states(&told), [Health::Poor], "once: {told:?}");
        assert!(told[0].told.ends_with(died) && told[0].remedy.is_some());
    }

    #[test]
    fn faults_are_told_whatever_the_headline_says_and_rules_are_none() {
        let broken = "cannot measure GeForce: it hung\nhint: `skein bench` tries every device";
        let policy = json!([reason("game", "a game is running"), reason("trouble", broken)]);
        let reasons = json!([
            "a game is running (limit none, next look in 2 s)",
            broken,
            "still measuring the device",
            "no coordinator yet",
            "none of the bootstrap agents answers",
            "no lease: no job needs this agent at the moment",
        ]);
        let told = of_the_agent(&status("paused", "Paused: a game is running", policy, reasons));
        let health = [Health::Good, Health::Poor, Health::Poor, Health::Poor];
        assert_eq!(states(&told), health, "{told:?}");
        assert_eq!(told[1].told, "cannot measure GeForce: it hung");
        assert_eq!(told[1].remedy.as_deref(), Some("`skein bench` tries every device"));
        assert!(told[2].told.contains("coordinator") && told[3].told.contains("bootstrap"));
    }

    #[test]
    fn a_missing_sensor_is_told_and_no_fault() {
        let told = running(&status("waiting", "Waiting for work", json!([]), json!([])));
        let sensor = told.iter().find(|finding| finding.what == "sensor").unwrap();
        assert_eq!(sensor.state, Health::Good);
        assert_eq!(sensor.told, "game cannot be seen: no list of processes");
    }

    #[test]
    fn the_last_update_that_failed_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |outcome: Outcome| {
            let reason = Some("its API does not answer\nhint: see story.log".to_owned());
            let last_result = Some(skein_update::LastResult { outcome, version: None, reason, at_ms: 0 });
            let state = skein_update::State { last_result, ..skein_update::State::default() };
            state.save(folder.path()).unwrap();
            update(&skein_update::State::load(folder.path()))
        };
        for outcome in [Outcome::Failed, Outcome::Interrupted, Outcome::Refused] {
            let finding = told(outcome).unwrap();
            assert_eq!(finding.state, Health::Poor);
            assert!(finding.told.ends_with("its API does not answer"), "{finding:?}");
            assert_eq!(finding.remedy.as_deref(), Some("see story.log"));
        }
        for outcome in [Outcome::UpToDate, Outcome::Available, Outcome::Updated, Outcome::Restored] {
            assert!(told(outcome).is_none());
        }
    }
}
