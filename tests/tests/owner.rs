//! The owner comes first: what he says and what he does ends work at once, and the work goes on elsewhere or later.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_mesh::BlobStore;
use skein_tests::agents::{Agent, Network, PATIENCE, SOON, TEXT, Training, train, wait_for};
use skein_tests::command::run;
use skein_tests::http;
use skein_tests::rogue::Rogue;

fn working(agent: &Agent) -> Result<()> {
    wait_for("work", PATIENCE, || Ok((agent.status()?["policy"]["state"] == "working").then_some(())))
}

fn worker(agent: &Agent) -> Result<Option<u64>> {
    Ok(agent.status()?["worker"]["pid"].as_u64())
}

fn lives(pid: u64) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_pause_ends_the_worker_at_once_and_the_job_goes_on_afterwards() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let job = train(agent, &TEXT[..40_000], &Training::of(3, 60))?;
    working(agent)?;
    let pid = wait_for("a worker", SOON, || worker(agent))?;
    let asked = Instant::now();
    let paused = run(&["pause", "--data-dir", &agent.dir()])?;
    ensure!(paused.code == 0 && paused.out.starts_with("Paused: "), "{paused:?}");
    wait_for("the worker's end", Duration::from_secs(5), || Ok((!lives(pid)).then_some(())))?;
    // The bar is a second at the 99th percentile, measured by `--example pause`; here it must not be a matter of luck.
    ensure!(asked.elapsed() < Duration::from_secs(4), "the worker lived on for {:?}", asked.elapsed());
    let status = agent.status()?;
    ensure!(status["policy"]["state"] == "paused" && status["policy"]["allowed"] == "nothing", "{status}");
    ensure!(status["offer"]["open"] == false && status["working"] == false, "{status}");
    let told = run(&["status", "--data-dir", &agent.dir()])?;
    ensure!(told.out.contains("resume"), "it does not say how to go on: {}", told.out);
    ensure!(agent.job(&job)?["phase"] == "running", "the job waits: {}", agent.job(&job)?);
    let resumed = run(&["resume", "--data-dir", &agent.dir()])?;
    ensure!(resumed.code == 0, "{resumed:?}");
    agent.job_done(&job)?;
    network.finish()
}

#[test]
fn a_pause_ends_by_itself_and_finish_lets_work_end() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let view = agent.order("/api/pause", &json!({ "for_s": 1 }))?;
    ensure!(view["state"] == "paused" && view["pause"]["until_ms"].is_u64(), "{view}");
    wait_for("the end of the pause", SOON, || {
        Ok((agent.status()?["policy"]["state"] == "waiting").then_some(()))
    })?;
    let job = train(agent, &TEXT[..40_000], &Training::of(1, 40))?;
    working(agent)?;
    let told = run(&["finish", "--data-dir", &agent.dir()])?;
    ensure!(told.code == 0, "{told:?}");
    wait_for("the end of the work", PATIENCE, || {
        let status = agent.status()?;
        let view = &status["policy"];
        Ok((status["working"] == false && view["state"] == "waiting" && view["finishing"] == true)
            .then_some(()))
    })?;
    ensure!(agent.job(&job)?["phase"] != "failed");
    agent.order("/api/resume", &json!({}))?;
    agent.job_done(&job)?;
    network.finish()
}

#[test]
fn who_pauses_costs_the_others_nothing_but_his_help() -> Result<()> {
    let network = Network::of(3, 3_600_000)?;
    let coordinator = network.coordinator()?;
    let owner = (coordinator + 1) % 3;
    let job = train(&network.agents[owner], &TEXT[..40_000], &Training::of(4, 40))?;
    // The coordinator's own owner, and another.
    for place in [coordinator, (coordinator + 2) % 3] {
        working(&network.agents[place])?;
        network.agents[place].order("/api/pause", &json!({}))?;
    }
    let done = network.agents[owner].job_done(&job)?;
    ensure!(done["phase"] == "done", "{done}");
    for place in [coordinator, (coordinator + 2) % 3] {
        let status = network.agents[place].status()?;
        ensure!(status["working"] == false && status["visible"] == true, "{status}");
    }
    network.finish()
}

#[test]
fn settings_are_kept_explained_and_checked() -> Result<()> {
    let mut network = Network::of(1, 3_600_000)?;
    let dir = network.agents[0].dir();
    let set = run(&["set", "gpu_temperature_max", "70 °C", "--data-dir", &dir])?;
    ensure!(set.code == 0 && set.out.trim() == "gpu_temperature_max = 70 °C", "{set:?}");
    let wrong = run(&["set", "gpu_temprature_max", "70", "--data-dir", &dir])?;
    ensure!(
        wrong.code == 1 && wrong.err.contains("gpu_temperature_max") && wrong.err.contains("hint:"),
        "{wrong:?}"
    );
    let wrong = run(&["set", "gpu_temperature_max", "700", "--data-dir", &dir])?;
    ensure!(wrong.code == 1 && wrong.err.contains("110"), "{wrong:?}");
    network.agents[0].order("/api/finish", &json!({}))?;
    network.agents[0].order("/api/pause", &json!({}))?;
    network.agents[0].kill()?;
    // As an owner writes it by hand.
    let file = network.agents[0].data_dir.join("policy.toml");
    std::fs::write(
        &file,
        format!("{}gpu_temperature_band = 5\nbattery = false\n", std::fs::read_to_string(&file)?),
    )?;
    let got = run(&["get", "gpu_temperature_max", "--data-dir", &dir])?;
    ensure!(got.out.trim() == "70 °C", "without a running agent: {got:?}");
    let set = run(&["set", "hours", "mon-fri 00:00-00:01", "--data-dir", &dir])?;
    ensure!(set.code == 0, "{set:?}");
    network.agents[0].restart()?;
    let settings = network.agents[0].get("/api/settings")?;
    ensure!(settings["gpu_temperature_max"] == "70 °C", "{settings}");
    ensure!(settings["gpu_temperature_band"] == "5 °C" && settings["battery"] == "off", "{settings}");
    ensure!(settings["user_idle"] == "off", "headless: nobody sits there: {settings}");
    let view = network.agents[0].status()?["policy"].clone();
    ensure!(view["pause"]["blocks"] == "all", "a pause outlives the process: {view}");
    ensure!(view["finishing"] == true, "and so does `finish`: {view}");
    network.agents[0].order("/api/resume", &json!({}))?;
    network.agents[0].kill()?;
    network.agents[0].restart()?;
    let view = network.agents[0].status()?["policy"].clone();
    ensure!(view["pause"].is_null() && view["finishing"] == false, "{view}");
    wait_for("the hours to be kept", SOON, || {
        let view = network.agents[0].status()?["policy"].clone();
        let reason = view["reasons"].as_array().and_then(|reasons| reasons.first().cloned());
        Ok(reason.filter(|reason| reason["rule"] == "hours"))
    })?;
    let wrong = network.agents[0].post("/api/settings", br#"{"key":"hours"}"#)?;
    ensure!(wrong.status == 400 && wrong.message()?.contains("hint:"), "{wrong:?}");
    network.finish()
}

#[test]
fn what_an_agent_did_not_hear_is_not_called_set() -> Result<()> {
    let mut network = Network::of(1, 3_600_000)?;
    let dir = network.agents[0].dir();
    let (running, policy) =
        (network.agents[0].data_dir.join("agent.json"), network.agents[0].data_dir.join("policy.toml"));
    let (told, kept) = (std::fs::read(&running)?, std::fs::read(&policy)?);
    // Where its API is said to be, somebody takes connections and never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut silent: Value = serde_json::from_slice(&told)?;
    silent["api"] = json!(mute.local_addr()?.to_string());
    std::fs::write(&running, silent.to_string())?;
    let asked = Instant::now();
    run(&["set", "hours", "mon-fri 00:00-00:01", "--data-dir", &dir])?
        .refuses(&["does not answer", "hint:"])?;
    ensure!(asked.elapsed() < Duration::from_secs(30), "it waited for {:?}", asked.elapsed());
    drop(mute);
    run(&["get", "hours", "--data-dir", &dir])?.refuses(&["does not answer", "hint:"])?;
    run(&["pause", "--data-dir", &dir])?.refuses(&["does not answer", "hint:"])?;
    ensure!(std::fs::read(&policy)? == kept, "it was written where the agent does not look");
    // Without the agent, the file is what counts.
    network.agents[0].kill()?;
    let set = run(&["set", "hours", "mon-fri 00:00-00:01", "--data-dir", &dir])?;
    ensure!(set.code == 0 && std::fs::read(&policy)? != kept, "{set:?}");
    network.agents[0].restart()?;
    ensure!(network.agents[0].get("/api/settings")?["hours"] == "mon-fri 00:00-00:01");
    network.finish()
}

#[test]
#[cfg(unix)]
fn the_owner_says_what_is_a_game() -> Result<()> {
    const GAME: &str = "skein-test-game";
    let mut network = Network::of(1, 3_600_000)?;
    let set = |agent: &Agent, key: &str, value: &str| {
        let set = run(&["set", key, value, "--data-dir", &agent.dir()])?;
        ensure!(set.code == 0, "{set:?}");
        Ok(())
    };
    let plays = |agent: &Agent| {
        let view = agent.status()?["policy"].clone();
        let reasons = view["reasons"].as_array().context("no reasons")?;
        Ok::<_, anyhow::Error>(
            reasons.iter().any(|reason| reason["rule"] == "game" && reason["value"] == GAME),
        )
    };
    let program = network.agents[0].data_dir.join(GAME);
    std::fs::copy("/bin/sleep", &program)?;
    let mut game = std::process::Command::new(&program).arg("600").spawn()?;
    let told = (|| {
        set(&network.agents[0], "game", "on")?;
        set(&network.agents[0], "games", &format!("another.exe, {GAME}"))?;
        wait_for("the game", SOON, || Ok(plays(&network.agents[0])?.then_some(())))?;
        network.agents[0].kill()?;
        network.agents[0].restart()?;
        wait_for("the game after a restart", SOON, || Ok(plays(&network.agents[0])?.then_some(())))?;
        set(&network.agents[0], "not_games", GAME)?;
        wait_for("it to be none", SOON, || Ok((!plays(&network.agents[0])?).then_some(())))
    })();
    game.kill()?;
    game.wait()?;
    told?;
    network.finish()
}

#[test]
fn on_a_line_that_is_used_up_nothing_is_handed_to_others_but_for_the_owners_own_job() -> Result<()> {
    let mut network = Network::of(1, 3_600_000)?;
    let digest = network.agents[0].put(&TEXT[..10_000])?.parse()?;
    let folder = tempfile::tempdir()?;
    let fetches = |rogue: &Rogue, name: &str| {
        let store = BlobStore::open(folder.path().join(name))?;
        Ok::<_, anyhow::Error>(rogue.fetch(&store, digest).is_ok())
    };
    ensure!(fetches(&Rogue::join(&network.agents[0], 1)?, "before")?, "it hands over what it holds");
    let counted = network.agents[0].data_dir.join("traffic.json");
    let mut traffic = wait_for("the count of the traffic", SOON, || {
        Ok(std::fs::read(&counted).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()))
    })?;
    network.agents[0].kill()?;
    traffic["bytes"] = json!(200_000_000);
    std::fs::write(&counted, traffic.to_string())?;
    network.agents[0].restart()?;
    let agent = &network.agents[0];
    let set = run(&["set", "traffic_month_max", "100 MB", "--data-dir", &agent.dir()])?;
    ensure!(set.code == 0, "{set:?}");
    wait_for("the limit to hold", SOON, || {
        let reasons = agent.status()?["policy"]["reasons"].clone();
        Ok((reasons[0]["rule"] == "traffic_month").then_some(()))
    })?;
    let rogue = Rogue::join(agent, 2)?;
    ensure!(!fetches(&rogue, "after")?, "it sends though the month's traffic is used up");
    train(agent, &TEXT[..20_000], &Training::of(1, 4))?;
    ensure!(fetches(&rogue, "own")?, "nobody can work on its owner's job");
    network.finish()
}

#[test]
fn the_owners_page_and_socket_may_command_and_foreign_pages_may_not() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let bearer = format!("Bearer {}", agent.token);
    let own = format!("http://{}", agent.api);
    let port = agent.api.port();
    let send = |headers: &[(&str, &str)]| {
        http::send(agent.api, &http::request("POST", "/api/pause", agent.api, headers, b"{}"))
    };
    ensure!(send(&[("origin", &own), ("authorization", &bearer)])?.status == 200);
    ensure!(send(&[("origin", &own)])?.status == 401, "a page without the token");
    let rebound = format!("http://evil.example:{port}");
    let host = format!("evil.example:{port}");
    for headers in [
        &[("origin", "http://evil.example"), ("authorization", bearer.as_str())][..],
        &[("origin", "null"), ("authorization", bearer.as_str())],
        &[("origin", rebound.as_str()), ("host", host.as_str()), ("authorization", bearer.as_str())],
        &[("host", host.as_str()), ("authorization", bearer.as_str())],
    ] {
        let answer = send(headers)?;
        ensure!(answer.status == 403, "{headers:?}: {answer:?}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let path = agent.data_dir.join("run/api.sock");
        let mode = std::fs::metadata(path.parent().context("a folder")?)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "others may open the owner's socket: {mode:o}");
        let mut socket = std::os::unix::net::UnixStream::connect(path)?;
        socket.write_all(&http::request("POST", "/api/resume", agent.api, &[], b"{}"))?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the socket needs no token: {answer}");
    }
    network.finish()
}

#[test]
fn a_ticket_gives_the_token_once_and_to_no_foreign_page() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let issued = agent.post("/api/ticket", b"{}")?;
    ensure!(issued.head.contains("cache-control: no-store"), "{issued:?}");
    let issued = issued.json()?;
    let ticket = issued["ticket"].as_str().context("no ticket")?;
    ensure!(ticket.len() == 64 && issued["lives_s"] == 30, "{issued}");
    let redeem = |ticket: &str, headers: &[(&str, &str)]| {
        let body = json!({ "ticket": ticket }).to_string();
        http::send(agent.api, &http::request("POST", "/api/token", agent.api, headers, body.as_bytes()))
    };
    for headers in [
        &[("origin", "http://evil.example")][..],
        &[("host", "evil.example")],
        &[("sec-fetch-site", "same-site")],
    ] {
        let answer = redeem(ticket, headers)?;
        ensure!(answer.status == 403, "{headers:?}: {answer:?}");
    }
    let own = format!("http://{}", agent.api);
    let given = redeem(ticket, &[("origin", &own)])?;
    ensure!(given.status == 200 && given.head.contains("cache-control: no-store"), "{given:?}");
    ensure!(given.json()? == json!({ "token": agent.token }), "{given:?}");
    for bad in [ticket, &"00".repeat(32), "", &agent.token] {
        let answer = redeem(bad, &[])?;
        ensure!(answer.status == 401 && answer.message()?.contains("skein dashboard"), "{bad}: {answer:?}");
    }
    let odd = http::request("POST", "/api/token", agent.api, &[], br#"{"ticket":"","more":1}"#);
    ensure!(http::send(agent.api, &odd)?.status == 400);
    network.finish()
}

#[test]
fn a_thousand_slow_connections_are_shed() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let mut held = Vec::new();
    for number in 0..1_000 {
        let mut stream = TcpStream::connect(agent.api)?;
        // Some say nothing, some half a head.
        if number % 2 == 0 {
            stream.write_all(b"GET /api/status HTTP/1.1\r\nhost: 127.0")?;
        }
        held.push(stream);
        if number % 100 == 99 {
            let asked = Instant::now();
            agent.status()?;
            ensure!(asked.elapsed() < Duration::from_secs(2), "answered after {:?}", asked.elapsed());
        }
    }
    // The oldest were shed to make room.
    let mut byte = [0];
    held[0].set_read_timeout(Some(SOON))?;
    ensure!(matches!(held[0].read(&mut byte), Ok(0) | Err(_)), "the first is still served");
    drop(held);
    ensure!(agent.status()?["pid"].as_u64() == Some(u64::from(agent.pid()?)));
    network.finish()
}

#[test]
fn metrics_are_as_prometheus_reads_them() -> Result<()> {
    let network = Network::of(1, 3_600_000)?;
    let agent = &network.agents[0];
    let answer = http::send(agent.api, &http::request("GET", "/metrics", agent.api, &[], &[]))?;
    ensure!(answer.status == 200 && answer.head.contains("text/plain; version=0.0.4"), "{answer:?}");
    let text = String::from_utf8(answer.body)?;
    let mut named = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("a type")?;
            ensure!(named.insert(name.to_owned()), "{name} is there twice");
            ensure!((kind == "counter") == name.ends_with("_total"), "{line}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let name = series.split('{').next().unwrap_or_default();
            ensure!(named.contains(name), "{name} has no type before it");
            value.parse::<f64>()?;
        }
    }
    for name in
        ["skein_build_info", "skein_working", "skein_state", "skein_peers", "skein_mesh_sent_bytes_total"]
    {
        ensure!(named.contains(name), "{name} is missing in {text}");
    }
    network.finish()
}

#[test]
fn the_dashboards_data_is_there() -> Result<()> {
    let network = Network::of(1, 2_000)?;
    let agent = &network.agents[0];
    let history = wait_for("a point", SOON, || {
        let history = agent.get("/api/history")?;
        Ok(history["points"].as_array().is_some_and(|points| !points.is_empty()).then_some(history))
    })?;
    let last = history["points"][0]["at_ms"].as_u64().context("a time")?;
    let later = agent.get(&format!("/api/history?since_ms={last}"))?;
    ensure!(later["points"].as_array().is_some_and(Vec::is_empty), "{later}");
    let job = train(agent, &TEXT[..20_000], &Training::of(1, 4))?;
    agent.job_done(&job)?;
    let earnings = wait_for("earnings", SOON, || {
        let earnings = agent.get("/api/earnings")?;
        let paid = |earned: &Value| earned["amount_base_units"].as_u64().is_some_and(|amount| amount > 0);
        Ok(earnings.as_array().is_some_and(|all| all.iter().any(paid)).then_some(earnings))
    })?;
    ensure!(earnings[0]["started_at_ms"].is_u64(), "{earnings}");
    ensure!(agent.status()?["earned_today"] != "0.00000000");
    let log = wait_for("the log to be verified", SOON, || {
        let log = agent.get("/api/log")?;
        Ok((!log["verified"].is_null()).then_some(log))
    })?;
    ensure!(log["verified"] == true && log["entries"].as_u64() > Some(0), "{log}");
    network.finish()
}
