//! An owner's rigs: seen and commanded from his own machine by whoever has his key, and by nobody else.
//!
//! Real agents over real QUIC. What travels is written down here once more: a rig of another version must understand it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use skein_mesh::{BulkStream, StreamError, StreamKind};
use skein_proto::ids::{Digest, NetworkId, NodeId};
use skein_proto::signed::{Signed, Statement, encode};
use skein_tests::agents::{Agent, Network, SOON, wait_for};
use skein_tests::command::{Said, run};
use skein_tests::http;
use skein_tests::rogue::Rogue;

const LONG_EPOCH_MS: u64 = 3_600_000;

/// Makes the owner's key of this agent.
fn key(agent: &Agent) -> Result<String> {
    let said = run(&["fleet", "key", "--data-dir", &agent.dir()])?;
    let key = said.out.trim().to_owned();
    ensure!(
        said.code == 0 && key.len() == 64 && said.err.contains(&format!("owner = \"{key}\"")),
        "{said:?}"
    );
    Ok(key)
}

fn fleet(agent: &Agent, arguments: &[&str]) -> Result<Said> {
    run(&[&["fleet"], arguments, &["--data-dir", &agent.dir()]].concat())
}

/// The rigs that `agent` knows, once they are as wanted.
fn rigs(agent: &Agent, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let mut last = Value::Null;
    let seen = wait_for(what, SOON, || {
        last = fleet(agent, &["--json"])?.json()?;
        Ok(last["rigs"].as_array().filter(|rigs| wanted(rigs)).cloned())
    });
    seen.with_context(|| format!("the fleet is {last}"))
}

fn rig<'a>(rigs: &'a [Value], name: &str) -> Result<&'a Value> {
    rigs.iter().find(|rig| rig["name"] == name).with_context(|| format!("no {name} in {rigs:?}"))
}

fn answering(rigs: &[Value], count: usize) -> bool {
    rigs.len() == count && rigs.iter().all(|rig| rig["answers"] == true)
}

fn state(agent: &Agent) -> Result<Value> {
    Ok(agent.status()?["policy"]["state"].clone())
}

#[test]
fn an_owner_sees_and_commands_his_rigs_and_nobody_elses() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--name", "desk"])?;
    // Before there is a key, it is said how to make one.
    fleet(&network.agents[0], &[])?.refuses(&["owner's key", "skein fleet key"])?;
    let owner = key(&network.agents[0])?;
    ensure!(key(&network.agents[0])? == owner, "the key is made once");
    for name in ["attic", "cellar"] {
        network.join(&["--owner", &owner, "--name", name])?;
    }
    // One without an owner, and one of another.
    network.join(&[])?;
    network.join(&["--name", "foreign"])?;
    network.met(5)?;
    let other = key(&network.agents[4])?;
    ensure!(other != owner);

    let seen = rigs(&network.agents[0], "two rigs and the owner's own agent", |rigs| answering(rigs, 3))?;
    for (place, name) in [(0, "desk"), (1, "attic"), (2, "cellar")] {
        let (one, agent) = (rig(&seen, name)?, &network.agents[place]);
        let (report, status) = (&one["report"], agent.status()?);
        ensure!(one["node"] == agent.node.as_str() && report["node"] == agent.node.as_str(), "{one}");
        ensure!(one["own"] == (place == 0) && report["version"] == status["version"], "{one}");
        ensure!(report["state"] == "waiting" && report["headline"].is_string(), "{one}");
        ensure!(report["coordinator"] == status["coordinator"], "{one}");
        ensure!(report["workers"][0]["backend"] == "cpu", "{one}");
        // No sensor knows the heat of this processor, and nothing was asked of it yet.
        ensure!(
            report["workers"][0]["temperature_c"].is_null() && report["last_challenge"].is_null(),
            "{one}"
        );
    }
    let table = fleet(&network.agents[0], &[])?;
    for word in ["attic", "cellar", "desk", "waiting", "none yet", "3 rigs: 3 waiting", "no lease"] {
        ensure!(table.out.contains(word), "`{word}` is missing in {}", table.out);
    }

    let paused = fleet(&network.agents[0], &["pause", "2h", "attic", "cellar"])?;
    ensure!(paused.code == 0 && paused.out.matches("Paused: ").count() == 2, "{paused:?}");
    ensure!(state(&network.agents[1])? == "paused" && state(&network.agents[2])? == "paused");
    ensure!(state(&network.agents[0])? == "waiting" && state(&network.agents[3])? == "waiting");
    ensure!(network.agents[1].status()?["policy"]["pause"]["until_ms"].is_u64(), "for two hours");
    let resumed = fleet(&network.agents[0], &["resume", "cellar"])?;
    ensure!(resumed.code == 0 && resumed.out.starts_with("cellar"), "{resumed:?}");
    ensure!(state(&network.agents[1])? == "paused" && state(&network.agents[2])? == "waiting");
    let all = fleet(&network.agents[0], &["pause", "--gpu"])?;
    ensure!(all.code == 0 && all.out.lines().count() == 3, "{all:?}");
    for place in [0, 1, 2] {
        let view = network.agents[place].status()?["policy"].clone();
        ensure!(view["pause"]["blocks"] == "gpu" && view["pause"]["until_ms"].is_null(), "{view}");
    }
    ensure!(network.agents[3].status()?["policy"]["pause"].is_null(), "a stranger obeys nobody");
    ensure!(network.agents[4].status()?["policy"]["pause"].is_null());
    fleet(&network.agents[0], &["resume"])?;
    let finish = fleet(&network.agents[0], &["finish", &network.agents[1].node[..12]])?;
    ensure!(finish.code == 0 && network.agents[1].status()?["policy"]["finishing"] == true, "{finish:?}");
    ensure!(network.agents[2].status()?["policy"]["finishing"] == false);

    // Another owner's key opens nothing here.
    let theirs = rigs(&network.agents[4], "the other owner's own agent", |rigs| answering(rigs, 1))?;
    rig(&theirs, "foreign")?;
    fleet(&network.agents[4], &["pause", "attic"])?.refuses(&["no rig is called `attic`", "foreign ("])?;
    let everything = fleet(&network.agents[4], &["pause"])?;
    ensure!(everything.code == 0 && everything.out.starts_with("foreign"), "{everything:?}");
    ensure!(state(&network.agents[2])? == "waiting" && state(&network.agents[4])? == "paused");
    network.finish()
}

#[test]
fn a_rig_that_is_gone_is_shown_as_it_was() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--name", "desk"])?;
    let owner = key(&network.agents[0])?;
    network.join(&["--owner", &owner, "--name", "attic"])?;
    network.met(2)?;
    rigs(&network.agents[0], "the rig", |rigs| answering(rigs, 2))?;
    fleet(&network.agents[0], &["pause", "attic"])?;
    let paused = |rigs: &[Value]| rig(rigs, "attic").is_ok_and(|attic| attic["report"]["state"] == "paused");
    let before = rigs(&network.agents[0], "its pause", paused)?;
    network.agents[1].kill()?;
    let asked = Instant::now();
    let gone = rigs(&network.agents[0], "its silence", |rigs| {
        rig(rigs, "attic").is_ok_and(|attic| attic["answers"] == false)
    })?;
    ensure!(asked.elapsed() < Duration::from_secs(10), "it took {:?} to miss it", asked.elapsed());
    let (attic, before) = (rig(&gone, "attic")?, rig(&before, "attic")?);
    ensure!(attic["report"]["state"] == "paused" && attic["trouble"].is_string(), "{attic}");
    ensure!(attic["seen_ms"].as_u64() >= before["seen_ms"].as_u64(), "{attic}");
    ensure!(rig(&gone, "desk")?["answers"] == true);
    let table = fleet(&network.agents[0], &[])?;
    ensure!(table.out.contains("gone") && table.out.contains("last seen: Paused: "), "{}", table.out);
    let order = fleet(&network.agents[0], &["resume"])?;
    ensure!(order.code == 1 && order.out.starts_with("desk") && order.err.contains("attic"), "{order:?}");
    ensure!(order.err.contains("1 of 2 rigs") && order.err.contains("hint:"), "{order:?}");

    // The owner's agent remembers it over its own end, too.
    network.agents[0].kill()?;
    network.agents[0].restart()?;
    rigs(&network.agents[0], "the rig that is gone", |rigs| rig(rigs, "attic").is_ok())?;
    // Back again, it answers again, and is still paused.
    network.agents[1].restart()?;
    rigs(&network.agents[0], "its return", |rigs| answering(rigs, 2) && paused(rigs))?;
    // Forgotten, it is not shown, not asked, and still its owner's.
    let forgotten = fleet(&network.agents[0], &["forget", "attic"])?;
    ensure!(forgotten.code == 0 && forgotten.out.contains("--undo"), "{forgotten:?}");
    rigs(&network.agents[0], "the rest", |rigs| answering(rigs, 1))?;
    fleet(&network.agents[0], &["resume", "attic"])?.refuses(&["no rig is called `attic`"])?;
    let undo = fleet(&network.agents[0], &["forget", "--undo", &network.agents[1].node[..8]])?;
    ensure!(undo.code == 0, "{undo:?}");
    rigs(&network.agents[0], "it again", |rigs| answering(rigs, 2))?;
    network.finish()
}

#[test]
fn orders_that_cannot_be_obeyed_say_why_for_each_rig() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--name", "twin"])?;
    let owner = key(&network.agents[0])?;
    network.join(&["--owner", &owner, "--name", "twin"])?;
    network.met(2)?;
    rigs(&network.agents[0], "the rigs", |rigs| answering(rigs, 2))?;
    // The order reaches both, and neither was told where releases are.
    for version in [&[][..], &["--version", "9.9.9"]] {
        let update = fleet(&network.agents[0], &[&["update"], version].concat())?;
        ensure!(update.code == 1 && update.out.is_empty(), "{update:?}");
        ensure!(update.err.matches("no place to fetch releases").count() == 2, "{update:?}");
        ensure!(update.err.contains("update_url") && update.err.contains("2 of 2 rigs"), "{update:?}");
    }
    fleet(&network.agents[0], &["resume", "twin"])?.refuses(&["`twin` may mean", "more digits"])?;
    fleet(&network.agents[0], &["resume", "triplet"])?.refuses(&["no rig is called `triplet`", "twin ("])?;
    let agent = &network.agents[0];
    for (path, body, word) in [
        ("pause", json!({ "for_s": 0 }), "for_s"),
        ("pause", json!({ "for_s": 60, "until": "tomorrow" }), "both"),
        ("pause", json!({ "rigs": "twin" }), "hint:"),
        ("resume", json!({ "rigs": [] }), "no rig is named"),
        ("update", json!({ "version": "new" }), "hint:"),
        ("forget", json!({}), "rig"),
    ] {
        let answer = agent.post(&format!("/api/fleet/{path}"), body.to_string().as_bytes())?;
        ensure!(answer.status == 400 && answer.message()?.contains(word), "{path} {body}: {answer:?}");
    }
    // It tells of other machines: not to everybody.
    for (method, path) in [("GET", "/api/fleet"), ("POST", "/api/fleet/pause"), ("POST", "/api/fleet/forget")]
    {
        let answer = http::send(agent.api, &http::request(method, path, agent.api, &[], b"{}"))?;
        ensure!(answer.status == 401, "{method} {path}: {answer:?}");
    }
    network.finish()
}

#[derive(Clone, BorshSerialize, BorshDeserialize)]
struct Order {
    nonce: [u8; 32],
    rig: NodeId,
    agent: NodeId,
    ask: Ask,
}

impl Statement for Order {
    const KIND: &'static str = "fleet order";
}

#[derive(Clone, BorshSerialize, BorshDeserialize)]
enum Ask {
    Report,
    Pause { gpu: bool, length: Length },
    Resume,
    Finish,
    Update { version: Option<String> },
}

#[derive(Clone, BorshSerialize, BorshDeserialize)]
enum Length {
    UntilResumed,
    For { seconds: u64 },
    UntilTomorrow,
}

/// Another kind of statement with the same fields.
#[derive(Clone, BorshSerialize, BorshDeserialize)]
struct Disguised(Order);

impl Statement for Disguised {
    const KIND: &'static str = "receipt";
}

/// That a rig was told the owner's key.
fn proof(owner: &[u8; 32], nonce: &[u8; 32], rig: NodeId, agent: NodeId) -> [u8; 32] {
    Digest::of(&[b"skein fleet\0".as_slice(), owner, nonce, &rig.0, &agent.0].concat()).0
}

/// A stream to the rig, and what it drew for it.
fn begin(rogue: &Rogue) -> Result<(BulkStream, [u8; 32])> {
    let mut stream = rogue.open(StreamKind::Fleet)?;
    let hello = heard(&mut stream)?.context("the rig says nothing")?;
    let (nonce, said) = hello.split_first_chunk::<32>().context("a nonce has 32 bytes")?;
    let owner = owner().verifying_key().to_bytes();
    ensure!(said == proof(&owner, nonce, rogue.victim, rogue.node()), "it was told another key");
    Ok((stream, *nonce))
}

/// Of the rig that hears what it should not.
fn owner() -> SigningKey {
    SigningKey::from_bytes(&[41; 32])
}

fn heard(stream: &mut BulkStream) -> Result<Option<Vec<u8>>> {
    let heard =
        smol::future::block_on(smol::future::or(async { Some(stream.recv_frame(64 << 10).await) }, async {
            smol::Timer::after(SOON).await;
            None
        }));
    Ok(heard.context("the rig keeps the stream open")??)
}

/// What the rig answers to these bytes.
fn answer(mut stream: BulkStream, bytes: &[u8]) -> Result<Value> {
    smol::future::block_on(stream.send_frame(bytes))?;
    let reply = serde_json::from_slice(&heard(&mut stream)?.context("no answer")?)?;
    ensure!(heard(&mut stream)?.is_none(), "more than one answer");
    Ok(reply)
}

#[test]
fn a_rig_obeys_its_owner_once_for_each_word_and_nobody_else() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    let owner = owner();
    let public = hex::encode(owner.verifying_key().to_bytes());
    network.start(&["--owner", &public, "--name", "rig"])?;
    network.met(1)?;
    let agent = &network.agents[0];
    let rogue = Rogue::join(agent, 42)?;
    let here: NetworkId = rogue.network;
    let order = |nonce, ask| Order { nonce, rig: rogue.victim, agent: rogue.node(), ask };
    let signed = |order: Order, key: &SigningKey| encode(Signed::new(order, &here, key).envelope());
    let pause = || Ask::Pause { gpu: false, length: Length::UntilResumed };

    // The owner's key is good through any agent: here is a word, and here it is once more.
    let (stream, nonce) = begin(&rogue)?;
    let word = signed(order(nonce, pause()), &owner);
    let obeyed = answer(stream, &word)?;
    ensure!(obeyed["report"]["state"] == "paused" && obeyed["report"]["name"] == "rig", "{obeyed}");
    let resume = |rogue: &Rogue| -> Result<()> {
        let (stream, nonce) = begin(rogue)?;
        let resumed = answer(stream, &signed(order(nonce, Ask::Resume), &owner))?;
        ensure!(resumed["report"]["state"] == "waiting", "{resumed}");
        Ok(())
    };
    resume(&rogue)?;

    let stranger = SigningKey::from_bytes(&[43; 32]);
    let mut refused = 0;
    let mut refuses = |make: &dyn Fn([u8; 32]) -> Vec<u8>, why: &str| -> Result<()> {
        let (stream, nonce) = begin(&rogue)?;
        let said = answer(stream, &make(nonce))?;
        ensure!(said["refused"].as_str().is_some_and(|said| said.contains(why)), "{why}: {said}");
        ensure!(state(agent)? == "waiting", "{why}: it obeyed");
        refused += 1;
        Ok(())
    };
    refuses(&|_| word.clone(), "just asked")?;
    refuses(&|nonce| signed(order(nonce, pause()), &stranger), "another owner")?;
    refuses(&|nonce| signed(Order { rig: rogue.node(), ..order(nonce, pause()) }, &owner), "another rig")?;
    refuses(
        &|nonce| signed(Order { agent: rogue.victim, ..order(nonce, pause()) }, &owner),
        "another agent",
    )?;
    let elsewhere = |nonce| Signed::new(order(nonce, pause()), &NetworkId([9; 32]), &owner);
    refuses(&|nonce| encode(elsewhere(nonce).envelope()), "does not verify")?;
    let disguised = |nonce| Signed::new(Disguised(order(nonce, pause())), &here, &owner);
    refuses(&|nonce| encode(disguised(nonce).envelope()), "does not verify")?;
    refuses(&|nonce| [signed(order(nonce, pause()), &owner), vec![0]].concat(), "malformed")?;
    refuses(&|_| b"please".to_vec(), "malformed")?;
    refuses(&|_| Vec::new(), "malformed")?;

    // Too much at once is not even looked at.
    let (mut stream, _) = begin(&rogue)?;
    smol::future::block_on(stream.send_frame(&[0; 4_096]))?;
    ensure!(heard(&mut stream).is_err(), "it answers 4,096 bytes");
    // One order at a time; and who says nothing loses his turn.
    let (mut silent, _) = begin(&rogue)?;
    let began = Instant::now();
    let mut second = rogue.open(StreamKind::Fleet)?;
    let abandoned = smol::future::block_on(second.recv_frame(64));
    ensure!(matches!(abandoned, Err(StreamError::Abandoned { .. })), "{abandoned:?}");
    ensure!(
        heard(&mut silent).is_err() && began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    // Who breaks off keeps nobody waiting.
    drop(begin(&rogue)?);
    wait_for("the next turn", SOON, || Ok(begin(&rogue).ok().map(drop)))?;

    // What cannot be done is said.
    let (stream, nonce) = wait_for("the next turn", SOON, || Ok(begin(&rogue).ok()))?;
    let far = Ask::Pause { gpu: false, length: Length::For { seconds: u64::MAX } };
    let failed = answer(stream, &signed(order(nonce, far), &owner))?;
    ensure!(failed["failed"].as_str().is_some_and(|why| why.contains("hint:")), "{failed}");
    let (stream, nonce) = begin(&rogue)?;
    let odd =
        answer(stream, &signed(order(nonce, Ask::Update { version: Some("\u{1b}[2J".into()) }), &owner))?;
    ensure!(odd["failed"].as_str().is_some_and(|why| !why.contains('\u{1b}')), "{odd}");
    let (stream, nonce) = begin(&rogue)?;
    let length = Length::UntilTomorrow;
    let paused = answer(stream, &signed(order(nonce, Ask::Pause { gpu: true, length }), &owner))?;
    ensure!(paused["report"]["state"] == "paused" && agent.status()?["policy"]["pause"]["until_ms"].is_u64());
    let (stream, nonce) = begin(&rogue)?;
    answer(stream, &signed(order(nonce, Ask::Finish), &owner))?;
    ensure!(agent.status()?["policy"]["finishing"] == true);
    resume(&rogue)?;
    let (stream, nonce) = begin(&rogue)?;
    let report = answer(stream, &signed(order(nonce, Ask::Report), &owner))?["report"].clone();
    ensure!(report["orders_refused"] == refused && refused == 9, "{report}");
    network.finish()
}

#[test]
fn a_rig_that_broke_off_once_is_asked_again() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--name", "desk"])?;
    network.met(1)?;
    let agent = &network.agents[0];
    let mut public = [0; 32];
    hex::decode_to_slice(key(agent)?, &mut public)?;
    let own = rigs(agent, "the owner's own agent", |rigs| answering(rigs, 1))?;
    let mut report = rig(&own, "desk")?["report"].clone();
    report["name"] = json!("attic");
    let reply = serde_json::to_vec(&json!({ "report": report }))?;
    let rogue = Rogue::join(agent, 60)?;
    let proof = proof(&public, &[7; 32], rogue.node(), rogue.victim);
    let (done, breaks) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            rogue.answer(StreamKind::Fleet, &done, |mut stream| {
                // What is dropped is abandoned, which is also what nobody's rig does.
                if breaks.swap(false, Ordering::Relaxed) {
                    return;
                }
                smol::future::block_on(async {
                    let _ = stream.send_frame(&[[7; 32], proof].concat()).await;
                    let _ = stream.recv_frame(1 << 10).await;
                    let _ = stream.send_frame(&reply).await;
                    let _ = stream.finish();
                });
            });
        });
        let checked = (|| {
            rigs(agent, "the rig", |rigs| answering(rigs, 2))?;
            breaks.store(true, Ordering::Relaxed);
            let silent = |rigs: &[Value]| rig(rigs, "attic").is_ok_and(|attic| attic["answers"] == false);
            rigs(agent, "its silence", silent)?;
            rigs(agent, "its next answer", |rigs| answering(rigs, 2))?;
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        checked
    })?;
    network.finish()
}

#[test]
fn who_pretends_to_be_a_rig_is_read_with_care_and_forgotten() -> Result<()> {
    let mut network = Network::empty(LONG_EPOCH_MS)?;
    network.start(&["--name", "desk"])?;
    network.met(1)?;
    let agent = &network.agents[0];
    let mut public = [0; 32];
    hex::decode_to_slice(key(agent)?, &mut public)?;
    rigs(agent, "the owner's own agent", |rigs| answering(rigs, 1))?;
    let own = rig(&rigs(agent, "its report", |rigs| answering(rigs, 1))?, "desk")?["report"].clone();
    let mut wild = own.clone();
    wild["name"] = json!("\u{1b}[2Jdesk\n");
    wild["headline"] = json!("x".repeat(20_000));
    wild["balance"] = json!("lots");
    let good = serde_json::to_vec(&json!({ "report": wild }))?;
    // Whether it was told the key, what it answers, and whether it is shown.
    let replies = [
        (false, good.clone(), false),
        (true, vec![b' '; 70 << 10], false),
        (true, b"[[[[".to_vec(), false),
        (true, br#"{"report":{"name":"half"}}"#.to_vec(), false),
        (true, good, true),
    ];
    for (secret, (told, reply, shown)) in (50..).zip(replies) {
        let rogue = Rogue::join(agent, secret)?;
        let (node, done, ordered) =
            (rogue.node().to_string(), AtomicBool::new(false), AtomicBool::new(false));
        // Who was not told the key may have seen the proof of who was: to another agent.
        let proof = proof(&public, &[7; 32], rogue.node(), if told { rogue.victim } else { rogue.node() });
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                rogue.answer(StreamKind::Fleet, &done, |mut stream| {
                    smol::future::block_on(async {
                        let _ = stream.send_frame(&[[7; 32], proof].concat()).await;
                        if matches!(stream.recv_frame(1 << 10).await, Ok(Some(_))) {
                            ordered.store(true, Ordering::Relaxed);
                        }
                        let _ = stream.send_frame(&reply).await;
                        let _ = stream.finish();
                    });
                });
            });
            let checked = (|| {
                if !shown {
                    // It is asked once, for all that it answers.
                    let seen = rigs(agent, "the fleet", |rigs| rig(rigs, "desk").is_ok())?;
                    ensure!(seen.iter().all(|rig| rig["node"] != node.as_str()), "{seen:?}");
                    ensure!(ordered.load(Ordering::Relaxed) == told, "told: {told}, ordered: {ordered:?}");
                    return Ok(());
                }
                let seen = rigs(agent, "the pretender", |rigs| rigs.iter().any(|rig| rig["node"] == node))?;
                let one = seen.iter().find(|rig| rig["node"] == node).context("it was there")?;
                ensure!(one["name"] == "[2Jdesk" && one["report"]["balance"] == "0.00000000", "{one}");
                ensure!(one["report"]["node"] == node, "its id is the connection's: {one}");
                ensure!(one["report"]["headline"].as_str().map_or(0, str::len) == 500, "{one}");
                let forgotten = fleet(agent, &["forget", &node])?;
                ensure!(forgotten.code == 0, "{forgotten:?}");
                rigs(agent, "the rest", |rigs| answering(rigs, 1))?;
                Ok(())
            })();
            done.store(true, Ordering::Relaxed);
            checked
        })?;
    }
    network.finish()
}
