//! Programs and peers that mean harm, at the doors of running agents: each is refused in its own terms, the
//! others notice nothing, and nobody is paid for a lie.
//!
//! Frames that break the transport's own rules are tested beside it, in the mesh crate. Must never send
//! anything beyond loopback.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skein_mesh::BlobStore;
use skein_proto::election::Reign;
use skein_proto::ids::{Digest, JobId, LeaseId, Millis, Term, Units};
use skein_proto::job::{JobSpec, Method, Requires, Shard, TrainSize, TrainSpec, Work};
use skein_proto::lease::{Acceptance, End, Fence, Lease, Receipt};
use skein_proto::message::{JobStatus, Message, Phase};
use skein_proto::signed::{Envelope, Signed};
use skein_tests::agents::{self, Agent, Network, PATIENCE, SOON, TEXT, Training, wait_for};
use skein_tests::command::explains;
use skein_tests::http::{Answer, request, send};
use skein_tests::prng::Prng;
use skein_tests::rogue::{CORE, LEDGER, Rogue};

const LONG_EPOCH_MS: u64 = 600_000;
/// The answer is this refusal, and says why.
fn refuses(answer: &Answer, status: u16, words: &[&str]) -> Result<()> {
    ensure!(answer.status == status, "{status} expected: {answer:?}");
    explains(&answer.message()?, words)
}

#[test]
fn the_local_api_obeys_nobody_but_its_owner() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let port = agent.api.port();
    let get =
        |headers: &[(&str, &str)]| send(agent.api, &request("GET", "/api/status", agent.api, headers, &[]));
    // What a page in the owner's browser could make it send, DNS rebinding included.
    for host in ["evil.example", "127.0.0.1.evil.example", "192.0.2.1:80", "", "localhost.evil:80"] {
        refuses(&get(&[("host", host)])?, 403, &["web pages", "127.0.0.1"])?;
    }
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", &format!("https://127.0.0.1:{port}")]
    {
        refuses(&get(&[("origin", origin)])?, 403, &["web pages", "Origin"])?;
    }
    // An image or a link on a page sends no Origin.
    for site in ["cross-site", "same-site", "new-in-2030"] {
        refuses(&get(&[("sec-fetch-site", site)])?, 403, &["web pages"])?;
        for page in ["/", "/fleet"] {
            let led = request("GET", page, agent.api, &[("sec-fetch-site", site)], &[]);
            ensure!(send(agent.api, &led)?.status == 200, "a link may lead to {page}");
        }
    }
    for site in ["none", "same-origin"] {
        ensure!(get(&[("sec-fetch-site", site)])?.status == 200, "`{site}` is no other page");
    }
    for host in ["localhost", &format!("localhost:{port}"), "127.0.0.1", &format!("[::1]:{port}")] {
        ensure!(get(&[("host", host)])?.status == 200, "`{host}` is this machine");
    }
    // Orders need the token.
    for path in ["/api/jobs", "/api/down", "/api/claim", "/api/blobs", "/api/jobs/00/cancel", "/api/ticket"] {
        for given in ["", "Bearer ", "Bearer 00", &agent.token, &format!("Basic {}", agent.token)] {
            let headers: &[(&str, &str)] = if given.is_empty() { &[] } else { &[("authorization", given)] };
            let answer = send(agent.api, &request("POST", path, agent.api, headers, b"{}"))?;
            refuses(&answer, 401, &["token", "agent.json"])?;
        }
    }
    // To ask others for a blob and keep it is an order, too.
    let fetch = |headers: &[(&str, &str)]| {
        let path = format!("/api/blobs/{}?fetch=true", "00".repeat(32));
        send(agent.api, &request("GET", &path, agent.api, headers, &[]))
    };
    refuses(&fetch(&[])?, 401, &["token", "agent.json"])?;
    refuses(&fetch(&[("authorization", &format!("Bearer {}", agent.token))])?, 404, &["not held"])?;
    let mode = std::fs::metadata(agent.data_dir.join("agent.json"))?;
    #[cfg(unix)]
    ensure!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o077 == 0,
        "the token is for all to read"
    );
    network.finish()
}

#[test]
fn an_api_for_other_machines_tells_nothing_to_a_name_that_leads_to_it() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--api", "0.0.0.0:0"])?;
    let agent = &network.agents[0];
    let port = agent.api.port();
    let here = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let bearer = format!("Bearer {}", agent.token);
    let get = |path: &str, headers: &[(&str, &str)]| send(here, &request("GET", path, here, headers, &[]));
    for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1.evil.example", ""] {
        for path in ["/", "/api/status", "/api/jobs", "/api/log", "/v1/models"] {
            refuses(&get(path, &[("host", host)])?, 401, &["by a name", "token", "IP address"])?;
        }
        ensure!(get("/metrics", &[("host", host)])?.status == 200, "collectors know `{host}`");
        let mine = get("/api/status", &[("host", host), ("authorization", &bearer)])?;
        ensure!(mine.status == 200, "{mine:?}");
    }
    for host in ["192.0.2.1", &format!("127.0.0.1:{port}"), "[2001:db8::1]", "[::1]:80", "localhost"] {
        let answer = get("/api/status", &[("host", host)])?;
        ensure!(answer.status == 200, "`{host}` is nobody's name: {answer:?}");
    }
    network.finish()
}

#[test]
fn what_a_stranger_wrote_is_no_page_of_the_agents() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let blob = agent.put(b"<script>fetch('/api/down', { method: 'POST' })</script>")?;
    let get = |path: &str| send(agent.api, &request("GET", path, agent.api, &[], &[]));
    let blob = get(&format!("/api/blobs/{blob}"))?;
    for header in [
        "content-type: application/octet-stream",
        "content-disposition: attachment",
        "content-security-policy: default-src 'none'; sandbox",
    ] {
        ensure!(blob.status == 200 && blob.head.contains(header), "no `{header}`: {}", blob.head);
    }
    for answer in [blob, get("/")?, get("/api/status")?, get("/api/nothing")?, get("/v1/models")?] {
        for header in ["x-content-type-options: nosniff", "cross-origin-resource-policy: same-origin"] {
            ensure!(answer.head.matches(header).count() == 1, "`{header}` once: {}", answer.head);
        }
    }
    network.finish()
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_next_is_answered() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let none = "00".repeat(32);
    for (path, status, words) in
        [("/api/nothing", 404, &["/api/status"][..]), ("/v1/chat", 404, &["/v1/completions"])]
    {
        let answer = send(agent.api, &request("GET", path, agent.api, &[], &[]))?;
        ensure!(answer.status == status && answer.message()?.contains(words[0]), "{answer:?}");
    }
    for (path, status, words) in [
        (format!("/api/jobs/{none}"), 404, &["no job"][..]),
        ("/api/jobs/xyz".to_owned(), 400, &["`xyz`", "job id"]),
        (format!("/api/blobs/{none}"), 404, &["blob", "not held"]),
        ("/api/blobs/..%2f..%2fidentity.key".to_owned(), 400, &["digest"]),
    ] {
        let answer = send(agent.api, &request("GET", &path, agent.api, &[], &[]))?;
        refuses(&answer, status, words).with_context(|| path.clone())?;
    }
    let good = json!({ "name": "train", "nonce": 1, "work": work(&none) });
    let with = |key: &str, value: Value| {
        let mut work = good["work"].clone();
        work[key] = value;
        json!({ "name": "train", "nonce": 1, "work": work }).to_string()
    };
    let jobs: [(&str, &[&str]); 7] = [
        ("", &["not a job"]),
        ("{", &["not a job"]),
        ("[1, 2", &["not a job"]),
        (&with("kind", json!("mine")), &["not a job", "mine"]),
        (&with("rounds", json!(0)), &["rounds = 0"]),
        (&with("rounds", json!(-1)), &["not a job", "-1"]),
        (&with("data", json!("xyz")), &["not a job", "xyz"]),
    ];
    for (body, words) in jobs {
        refuses(&agent.post("/api/jobs", body.as_bytes())?, 400, words).with_context(|| body.to_owned())?;
    }
    let long = vec![b' '; (1 << 20) + 1];
    refuses(&agent.post("/api/jobs", &long)?, 413, &["1048576", "blobs"])?;
    refuses(&agent.post("/v1/completions", &long)?, 413, &["1048576"])?;
    let unknown = agent.post(&format!("/api/jobs/{none}/cancel"), b"{}")?;
    ensure!(unknown.status == 400 && unknown.message()?.contains("no such job"), "{unknown:?}");
    // No HTTP at all.
    for noise in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\0\0\0\0\r\n\r\n", &[b'A'; 600_000]]
    {
        let mut stream = TcpStream::connect(agent.api)?;
        // It may be cut off in the middle: then writing fails, as it should.
        let _ = stream.write_all(noise);
        agent.status()?;
    }
    network.finish()
}

#[test]
fn a_completion_that_cannot_be_is_refused_with_its_reason() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let model = agents::model(agent, 2, 64)?;
    agents::serve(agent, &model, 1)?;
    let ask = |changes: Value| -> Result<Answer> {
        let mut body = json!({ "model": "tiny", "prompt": "To be", "max_tokens": 8, "temperature": 0 });
        for (key, value) in changes.as_object().context("no object")? {
            body[key] = value.clone();
        }
        agent.post("/v1/completions", body.to_string().as_bytes())
    };
    for (changes, status, words) in [
        (json!({ "model": "nobody" }), 404, &["`nobody`", "/v1/models"][..]),
        (json!({ "prompt": "" }), 400, &["prompt has no tokens"]),
        (json!({ "prompt": "x".repeat(64) }), 400, &["64 tokens", "context"]),
        (json!({ "max_tokens": 60 }), 400, &["60 more", "64"]),
        (json!({ "max_tokens": 0 }), 400, &["max_tokens", "0"]),
        (json!({ "max_tokens": -1 }), 400, &["max_tokens", "-1"]),
        (json!({ "max_tokens": 4_294_967_295_u32 }), 400, &["4294967295"]),
        (json!({ "temperature": 2.1 }), 400, &["temperature", "2.1", "0 to 2"]),
        (json!({ "temperature": -0.1 }), 400, &["temperature", "-0.1"]),
        (json!({ "temperature": "hot" }), 400, &["hot"]),
        (json!({ "top_p": -1 }), 400, &["top_p", "-1"]),
        (json!({ "top_p": 1.5 }), 400, &["top_p", "1.5"]),
        (json!({ "prompt": 5 }), 400, &["prompt"]),
        (json!({ "prompt": [300] }), 400, &["300", "255"]),
        (json!({ "n": 300 }), 400, &["n", "300"]),
        (json!({ "stop": "" }), 400, &["stop"]),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), 400, &["stop", "4"]),
        (json!({ "stop": 7 }), 400, &["stop"]),
    ] {
        // A stream is refused like a plain answer: before it begins.
        for stream in [false, true] {
            let mut changes = changes.clone();
            changes["stream"] = json!(stream);
            refuses(&ask(changes.clone())?, status, words).with_context(|| changes.to_string())?;
        }
    }
    let text = |answer: Answer| -> Result<String> {
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.json()?["choices"][0]["text"].as_str().context("no text")?.to_owned())
    };
    let plain = text(ask(json!({}))?)?;
    for same in [
        json!({ "n": 1 }),
        json!({ "n": null, "stop": null, "seed": null }),
        json!({ "stop": [] }),
        json!({ "stop": "\u{1}not there" }),
        json!({ "prompt": ["To be"] }),
        json!({ "prompt": [84, 111, 32, 98, 101] }),
        json!({ "user": "whoever", "logit_bias": {} }),
    ] {
        ensure!(text(ask(same.clone())?)? == plain, "{same} changes the text");
    }
    // The longest that fits.
    let most = ask(json!({ "max_tokens": 59 }))?;
    ensure!(most.json()?["usage"]["total_tokens"] == 64, "{most:?}");
    network.finish()
}

#[test]
fn half_open_connections_do_not_keep_others_out() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let mut held = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(agent.api)?;
        let part: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /api/sta",
            _ => b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        };
        stream.write_all(part)?;
        held.push(stream);
    }
    let status = agent.status()?;
    ensure!(status["visible"] == true, "{status}");
    // More than it serves at once: those that ask for nothing make room.
    for _ in 0..60 {
        held.push(TcpStream::connect(agent.api)?);
    }
    agent.status()?;
    // Who stopped in the middle of a body is told.
    let mut answer = String::new();
    held[2].set_read_timeout(Some(SOON))?;
    held[2].read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    explains(&answer, &["did not come", "content-length"])?;
    drop(held);
    wait_for("a place at the API", SOON, || Ok(agent.status().ok()))?;
    network.finish()
}

#[test]
fn customers_who_stall_do_not_keep_the_owner_out() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let pauses = |what: &str| -> Result<()> {
        let asked = std::time::Instant::now();
        let paused = agent.post("/api/pause", b"{}")?;
        let took = asked.elapsed();
        ensure!(
            paused.status == 200 && took < std::time::Duration::from_secs(5),
            "{what}: {took:?}, {paused:?}"
        );
        Ok(())
    };
    let blob = agent.put(&vec![7; 8 << 20])?;
    let mut held = Vec::new();
    let mut stall = |count: usize, head: &[u8]| -> Result<()> {
        for _ in 0..count {
            let mut stream = TcpStream::connect(agent.api)?;
            stream.write_all(head)?;
            held.push(stream);
        }
        Ok(())
    };
    stall(128, format!("GET /api/blobs/{blob} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    pauses("blobs that nobody reads")?;
    stall(200, b"POST /api/token HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")?;
    pauses("tickets that do not come")?;
    stall(200, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")?;
    pauses("bodies that do not come")?;
    // The next customer is told to come back.
    let body = json!({ "model": "tiny", "prompt": "To be" }).to_string();
    let answer = agent.post("/v1/completions", body.as_bytes())?;
    refuses(&answer, 429, &["busy", "hint:"])?;
    ensure!(answer.head.to_ascii_lowercase().contains("retry-after: "), "{answer:?}");
    drop(held);
    wait_for("a place for customers", SOON, || {
        let answer = agent.post("/v1/completions", body.as_bytes())?;
        Ok((answer.status != 429).then_some(()))
    })?;
    network.finish()
}

/// Training, as the API takes it.
fn work(blob: &str) -> Value {
    json!({
        "kind": "train", "model": blob, "data": blob, "method": "full", "context": 32, "rounds": 1, "inner_steps": 1,
        "batch": 4, "learning_rate_millionths": 3000, "outer_rate_millionths": 700_000,
        "outer_momentum_millionths": 900_000, "seed": 1, "delta_bits": 4, "check_millionths": 0,
        "size": {
            "layers": 2, "width": 32, "feed_width": 88, "heads": 2, "vocabulary": 256, "weights": 30_000,
            "resident": 40_000, "trained": 40_000,
        },
    })
}

/// What a job's owner might count of a model.
const SIZE: TrainSize = TrainSize {
    layers: 2,
    width: 32,
    feed_width: 88,
    heads: 2,
    vocabulary: 256,
    weights: 30_000,
    resident: 40_000,
    trained: 40_000,
};

/// A job that makes sense, but for what it trains on.
fn sensible() -> TrainSpec {
    TrainSpec {
        model: Digest::of(TEXT),
        size: SIZE,
        method: Method::Full,
        data: Digest::of(TEXT),
        context: 32,
        rounds: 1,
        inner_steps: 1,
        batch: 1,
        learning_rate_millionths: 1,
        outer_rate_millionths: 1,
        outer_momentum_millionths: 0,
        delta_bits: 4,
        check_millionths: 0,
        seed: 0,
    }
}

/// A lease of a shard that nobody asked for, signed by whoever.
fn invented(rogue: &Rogue, agent: skein_proto::ids::NodeId, term: u64) -> Envelope<Lease> {
    let shard = Shard::Init { spec: sensible(), judge: true };
    let lease = Lease {
        job: JobId([1; 32]),
        agent,
        worker: 0,
        fence: Fence { term: Term(term), sequence: 1 << 50 },
        granted_at: Millis(1_000),
        ttl_ms: 15_000,
        units: shard.units(),
        shard,
    };
    Signed::new(lease, &rogue.network, &rogue.key).into_envelope()
}

fn receipt(rogue: &Rogue, lease: Envelope<Lease>) -> Envelope<Receipt> {
    let units = lease.unverified().units;
    let receipt = Receipt {
        lease,
        end: End::Completed,
        started_at: Millis(1_000),
        finished_at: Millis(2_000),
        inputs: vec![Digest::of(TEXT)],
        outputs: vec![Digest([7; 32])],
        tokens: 1_000_000_000,
        units,
        loss_micronats: None,
        received_bytes: 0,
    };
    Signed::new(receipt, &rogue.network, &rogue.key).into_envelope()
}

/// Everything that a stranger can say without having been given anything.
fn lies(rogue: &Rogue, victim: &Agent, reign: Reign) -> Result<()> {
    let victim_id = victim.node.parse()?;
    let lease = invented(rogue, victim_id, reign.term.0);
    let id = lease.unverified().id();
    rogue.say(&Message::Grant { lease, holders: vec![] });
    rogue.say(&Message::Grant { lease: invented(rogue, rogue.node(), reign.term.0), holders: vec![] });
    let own = receipt(rogue, invented(rogue, rogue.node(), reign.term.0));
    let acceptance = Acceptance {
        receipt: own.digest(),
        lease: id,
        agent: victim_id,
        units: Units(u64::MAX),
        accepted_at: Millis(1),
    };
    rogue.say(&Message::Accepted(Signed::new(acceptance, &rogue.network, &rogue.key).into_envelope()));
    rogue.say(&Message::Refused { lease: id, reason: "x".repeat(100_000) });
    rogue.say(&Message::Failed { lease: LeaseId([3; 32]), reason: "y".repeat(100_000), missing: None });
    rogue.say(&Message::Release(LeaseId([3; 32])));
    rogue.say(&Message::Renew(LeaseId([3; 32])));
    rogue.say(&Message::Cancel(JobId([4; 32])));
    // A job in the name of a key that is not its own, and a word about it that only a coordinator may say.
    let spec = TrainSpec { rounds: u32::MAX, inner_steps: 0, batch: 0, ..sensible() };
    let spec = JobSpec {
        name: "\u{1b}[2J".repeat(1_000),
        nonce: 0,
        work: Work::Train(spec),
        requires: Requires::default(),
    };
    let job = Signed::new(spec, &rogue.network, &rogue.key);
    let mut status = JobStatus::new(&job);
    status.phase = Phase::Done;
    rogue.say(&Message::Job(status));
    rogue.say(&Message::Submit { job: job.into_envelope(), resume: None });
    Ok(())
}

#[test]
fn a_peer_that_lies_is_not_believed_and_harms_nobody() -> Result<()> {
    let network = Network::of(2, 3_000)?;
    let owner = &network.agents[0];
    let status = owner.status()?;
    let coordinator = network.coordinator()?;
    let reign = Reign {
        term: Term(status["term"].as_u64().context("no term")?),
        coordinator: network.agents[coordinator].node.parse()?,
    };
    let job = agents::train(owner, &TEXT[..40_000], &Training::of(8, 20))?;
    let rogues = [Rogue::join(&network.agents[0], 0x66)?, Rogue::join(&network.agents[1], 0x67)?];
    let mut prng = Prng::new(0x5eed);
    for (rogue, victim) in rogues.iter().zip(&network.agents) {
        rogue.obey(Some(reign));
        rogue.offer(Millis(1));
        lies(rogue, victim, reign)?;
        // A receipt for a lease that was never granted is answered, not paid.
        let made_up = receipt(rogue, invented(rogue, rogue.node(), reign.term.0));
        rogue.say(&Message::Receipt(made_up));
        let reason = rogue.hears("the refusal", |message| {
            if let Message::Refused { reason, .. } = message { Some(reason) } else { None }
        })?;
        ensure!(reason.contains("not in force") || reason.contains("not the coordinator"), "{reason}");
    }
    // Noise on every channel; each time it may cost the liar its connection, and nobody else anything.
    for round in 0..60 {
        for rogue in &rogues {
            let mut noise = vec![[CORE, LEDGER, 2, 255][round % 4]];
            for _ in 0..round * 3 {
                noise.extend_from_slice(&prng.bits().to_le_bytes());
            }
            rogue.frame(noise);
        }
    }
    for rogue in &rogues {
        rogue.frame(vec![CORE; 1 << 20]);
        rogue.frame(vec![LEDGER; 1 << 20]);
    }
    // They leave: what they were granted goes to others.
    drop(rogues);
    let done = network.agents[0].job_done(&job)?;
    ensure!(done["digests_equal"] == true && done["round"] == 8, "{done}");
    let ledger = wait_for("a settlement", PATIENCE, || {
        let ledger = network.agents[0].status()?["ledger"].clone();
        Ok((ledger["balance_base_units"].as_u64() > Some(0)).then_some(ledger))
    })?;
    let honest = [&network.agents[0].node, &network.agents[1].node];
    for settled in ledger["settlements"].as_array().context("no settlements")? {
        for claim in settled["claims"].as_array().context("no claims")? {
            let node = claim["node"].as_str().context("no node")?;
            ensure!(honest.iter().any(|&known| known == node), "a liar was paid: {settled}");
        }
    }
    for agent in &network.agents {
        agent.log()?;
        let story = agent.story();
        ensure!(story.len() < 200_000, "a liar fills the owner's log: {} bytes", story.len());
        ensure!(!story.contains('\u{1b}'), "a liar writes to the owner's terminal");
    }
    network.finish()
}

#[test]
fn a_lease_that_expired_is_not_paid_however_late_its_receipt_comes() -> Result<()> {
    let network = Network::of(1, LONG_EPOCH_MS)?;
    let agent = &network.agents[0];
    let term = Term(agent.status()?["term"].as_u64().context("no term")?);
    let reign = Reign { term, coordinator: agent.node.parse()? };
    let rogue = Rogue::join(agent, 0x68)?;
    rogue.obey(Some(reign));
    rogue.offer(Millis(1));
    wait_for("the offer to be known", SOON, || {
        Ok((agent.status()?["peers"][0]["device"] == "rogue").then_some(()))
    })?;
    let job = agents::train(agent, &TEXT[..20_000], &Training::of(1, 2))?;
    // A real grant to a member like others, which then does nothing with it.
    let lease = rogue.hears("a grant", |message| {
        if let Message::Grant { lease, .. } = message { Some(lease) } else { None }
    })?;
    agent.job_until(&job, "the lease to expire", PATIENCE, |job| job["regrants"].as_u64() > Some(0))?;
    let id = lease.unverified().id();
    rogue.say(&Message::Receipt(receipt(&rogue, lease)));
    let reason = rogue.hears("the refusal", |message| {
        if let Message::Refused { lease, reason } = message { (lease == id).then_some(reason) } else { None }
    })?;
    ensure!(reason.contains("expired"), "{reason}");
    drop(rogue);
    let done = agent.job_done(&job)?;
    ensure!(done["tokens"].as_u64() < Some(1_000_000), "the liar's tokens were counted: {done}");
    network.finish()
}

#[test]
fn a_pseudo_gradient_of_nonsense_is_left_out_and_its_maker_gets_no_more_work() -> Result<()> {
    maker_is_found_out(|network, store| {
        let nonsense = network.folder.path().join("nonsense");
        std::fs::write(&nonsense, b"weights, believe me")?;
        Ok(smol::future::block_on(store.adopt(nonsense))?)
    })
}

#[test]
fn a_pseudo_gradient_that_is_withheld_costs_a_round_and_its_maker_gets_no_more_work() -> Result<()> {
    maker_is_found_out(|_, _| Ok(Digest::of(b"it is mine alone")))
}

/// A stranger among three agents gives this for its work.
fn maker_is_found_out(gives: impl FnOnce(&Network, &BlobStore) -> Result<Digest>) -> Result<()> {
    let network = Network::of(3, LONG_EPOCH_MS)?;
    let coordinator = &network.agents[network.coordinator()?];
    let term = Term(coordinator.status()?["term"].as_u64().context("no term")?);
    let rogue = Rogue::join(coordinator, 0x69)?;
    rogue.obey(Some(Reign { term, coordinator: coordinator.node.parse()? }));
    for agent in &network.agents {
        rogue.meet(agent)?;
    }
    rogue.offer(Millis(1));
    for agent in &network.agents {
        wait_for("the offer to be known", SOON, || {
            let status = agent.status()?;
            let mut peers = status["peers"].as_array().into_iter().flatten();
            Ok(peers.any(|peer| peer["device"] == "rogue").then_some(()))
        })?;
    }
    let store = BlobStore::open(network.folder.path().join("rogue"))?;
    let given_away = gives(&network, &store)?;
    let (done, given) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (job, last) = thread::scope(|scope| -> Result<(Value, usize)> {
        scope.spawn(|| {
            rogue.work(&store, &done, |message| {
                let Message::Grant { lease, .. } = message else { return };
                let id = lease.unverified().id();
                if let Shard::Train { .. } = lease.unverified().shard {
                    given.fetch_add(1, Ordering::Relaxed);
                    let mut receipt = receipt(&rogue, lease).unverified().clone();
                    receipt.outputs = vec![given_away];
                    let receipt = Signed::new(receipt, &rogue.network, &rogue.key);
                    rogue.say(&Message::Receipt(receipt.into_envelope()));
                } else {
                    rogue.say(&Message::Failed { lease: id, reason: "no".into(), missing: None });
                }
            });
        });
        let worked = || -> Result<(Value, usize)> {
            let job = agents::train(coordinator, &TEXT[..40_000], &Training::of(5, 5))?;
            let told = coordinator.job_until(&job, "the rogue to be found out", PATIENCE, |job| {
                job["refused"][0].as_str().is_some()
            })?;
            ensure!(told["refused"][0] == rogue.node().to_string(), "{told}");
            let until_then = given.load(Ordering::Relaxed);
            Ok((coordinator.job_done(&job)?, until_then))
        };
        let worked = worked();
        done.store(true, Ordering::Relaxed);
        worked
    })?;
    ensure!(last > 0 && given.load(Ordering::Relaxed) == last, "it got more work after it was found out");
    ensure!(job["digests_equal"] == true && job["round"] == 5, "{job}");
    network.finish()
}

#[test]
fn datagrams_of_noise_keep_nobody_from_working() -> Result<()> {
    let mut network = Network::of(2, LONG_EPOCH_MS)?;
    let targets = [network.agents[0].listen, network.agents[1].listen];
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let noise = thread::spawn(move || -> Result<u32> {
        let mut prng = Prng::new(7);
        let mut sent = 0;
        for round in 0..4_000_usize {
            let mut packet: Vec<u8> = (0..1 + round % 175).flat_map(|_| prng.bits().to_le_bytes()).collect();
            // A third look like the beginning of a QUIC connection, a third like one under way.
            match round % 3 {
                0 => {
                    packet[0] |= 0xc0;
                    packet.splice(1..5.min(packet.len()), [0, 0, 0, 1]);
                }
                1 => packet[0] = 0x40 | (packet[0] & 0x3f),
                _ => {}
            }
            sent += u32::from(socket.send_to(&packet, targets[round % 2]).is_ok());
        }
        Ok(sent)
    });
    let job = agents::train(&network.agents[0], &TEXT[..40_000], &Training::of(4, 10))?;
    let done = network.agents[0].job_done(&job)?;
    ensure!(done["digests_equal"] == true, "{done}");
    let sent = noise.join().ok().context("the noise broke off")??;
    ensure!(sent > 3_000, "only {sent} datagrams left");
    // A newcomer still gets in.
    network.join(&[])?;
    network.met(3)?;
    network.finish()
}
