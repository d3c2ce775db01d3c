//! The fleet as a table: a line for each rig, a sum, and why those that do not work do not.

use std::fmt::Write;

use skein_ledger::emission::Amount;
use skein_policy::State;

use crate::fleet::report::{Report, base_units};
use crate::fleet::{Overview, Sight};

/// Columns of numbers are aligned to the right.
const COLUMNS: [(&str, bool); 10] = [
    ("rig", false),
    ("state", false),
    ("GPUs", true),
    ("hottest", true),
    ("watts", true),
    ("version", false),
    ("last challenge", false),
    ("earned today", true),
    ("balance", true),
    ("seen", false),
];

/// What is not known.
const UNKNOWN: &str = "–";

/// All of it.
pub(super) fn of(overview: &Overview) -> String {
    if overview.rigs.is_empty() {
        return format!(
            "no rig has answered yet\nTell each rig once, by `skein up --owner {0}` or this line in its config.toml:\n  \
             owner = \"{0}\"\n",
            overview.key
        );
    }
    let rows: Vec<[String; 10]> = overview.rigs.iter().map(|rig| row(rig, overview.at_ms)).collect();
    let mut text = String::new();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|at| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain(COLUMNS.get(at).map(|(name, _)| name.len())).max().unwrap_or(0)
        })
        .collect();
    let mut line = |cells: [&str; 10]| {
        let padded = cells.iter().zip(&widths).zip(COLUMNS).map(|((cell, width), (_, right))| {
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(COLUMNS.map(|(name, _)| name));
    for row in &rows {
        line(row.each_ref().map(String::as_str));
    }
    let _ = writeln!(text, "\n{}", sum(&overview.rigs));
    for rig in &overview.rigs {
        for why in reasons(rig) {
            let _ = writeln!(text, "{}: {why}", rig.name);
        }
    }
    match overview.forgotten.as_slice() {
        [] => {}
        [one] => {
            let _ = writeln!(text, "1 machine is forgotten: {}", one.short());
        }
        several => {
            let ids: Vec<String> = several.iter().map(|node| node.short()).collect();
            let _ = writeln!(text, "{} machines are forgotten: {}", several.len(), ids.join(", "));
        }
    }
    text
}

fn row(rig: &Sight, now_ms: u64) -> [String; 10] {
    let Report { workers, version, last_challenge, earned_today, balance, on_trial, .. } = &rig.report;
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let trial = if *on_trial { " (on trial)" } else { "" };
    [
        rig.name.clone(),
        if rig.answers { state(rig.report.state) } else { "gone" }.to_owned(),
        gpus(&rig.report),
        // Of who is gone, only what lasts.
        or_unknown(hottest(rig).map(|celsius| format!("{celsius} °C"))),
        or_unknown(milliwatts(rig).map(watts)),
        format!("{version}{trial}"),
        match last_challenge {
            None => "none yet".to_owned(),
            Some(challenge) => {
                let how = if challenge.passed { "passed" } else { "failed" };
                format!("{how} {} ago", span(now_ms.saturating_sub(challenge.at_ms)))
            }
        },
        if workers.is_empty() && !rig.answers { UNKNOWN.to_owned() } else { coins(earned_today) },
        coins(balance),
        if rig.answers {
            "now".to_owned()
        } else {
            format!("{} ago", span(now_ms.saturating_sub(rig.seen_ms)))
        },
    ]
}

/// All rigs in one line.
fn sum(rigs: &[Sight]) -> String {
    let count = |wanted: State| rigs.iter().filter(|rig| rig.answers && rig.report.state == wanted).count();
    let gone = rigs.iter().filter(|rig| !rig.answers).count();
    let states = [State::Working, State::Waiting, State::Paused, State::Trouble];
    let states = states.into_iter().map(|wanted| (count(wanted), state(wanted))).chain([(gone, "gone")]);
    let states: Vec<String> =
        states.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    let total = |read: fn(&Report) -> &str| {
        let known = rigs.iter().filter_map(|rig| base_units(read(&rig.report)));
        coins(&Amount(known.fold(0, u64::saturating_add)).to_string())
    };
    let mut parts = vec![format!("{}: {}", plural(rigs.len(), "rig"), states.join(", "))];
    let gpus =
        rigs.iter().flat_map(|rig| &rig.report.workers).filter(|worker| worker.backend != "cpu").count();
    if gpus > 0 {
        parts.push(plural(gpus, "GPU"));
    }
    if let Some(power) = rigs.iter().filter_map(milliwatts).reduce(u64::saturating_add) {
        parts.push(format!("{} W", watts(power)));
    }
    parts.push(format!("{} earned today", total(|report| &report.earned_today)));
    parts.push(format!("{} in all", total(|report| &report.balance)));
    parts.join("; ")
}

/// Why a rig does not work, or not as it should.
fn reasons(rig: &Sight) -> Vec<String> {
    let report = &rig.report;
    if !rig.answers {
        let trouble = rig.trouble.as_deref().unwrap_or("was not asked");
        return vec![format!("{}; last seen: {}", trouble.replace('\n', " "), report.headline)];
    }
    let mut reasons = Vec::new();
    if report.state != State::Working {
        reasons.push(report.headline.clone());
        // A headline mostly says the first of them.
        let more = report.reasons.iter().map(|why| why.text.replace('\n', " "));
        reasons.extend(more.filter(|text| !report.headline.contains(text.as_str())));
    }
    if let Some(trouble) = &report.update_trouble {
        reasons.push(format!("no update: {}", trouble.replace('\n', " ")));
    }
    if report.orders_refused > 0 {
        reasons.push(format!("refused {} of somebody else", plural_u64(report.orders_refused, "order")));
    }
    reasons
}

fn state(state: State) -> &'static str {
    match state {
        State::Working => "working",
        State::Waiting => "waiting",
        State::Paused => "paused",
        State::Trouble => "trouble",
    }
}

fn gpus(report: &Report) -> String {
    let gpus = report.workers.iter().filter(|worker| worker.backend != "cpu").count();
    match (report.workers.len(), gpus) {
        (0, _) => UNKNOWN.to_owned(),
        (_, 0) => "cpu".to_owned(),
        (_, gpus) => gpus.to_string(),
    }
}

fn hottest(rig: &Sight) -> Option<u16> {
    rig.report.workers.iter().filter(|_| rig.answers).filter_map(|worker| worker.temperature_c).max()
}

fn milliwatts(rig: &Sight) -> Option<u64> {
    let known = rig.report.workers.iter().filter(|_| rig.answers).filter_map(|worker| worker.power_mw);
    known.reduce(u64::saturating_add)
}

fn watts(milliwatts: u64) -> String {
    (milliwatts.saturating_add(500) / 1_000).to_string()
}

/// Four decimals, never rounded up.
fn coins(exact: &str) -> String {
    match exact.split_once('.') {
        Some((whole, decimals)) => format!("{whole}.{}", decimals.get(..4).unwrap_or(decimals)),
        None => exact.to_owned(),
    }
}

fn plural(count: usize, of: &str) -> String {
    plural_u64(count as u64, of)
}

fn plural_u64(count: u64, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
