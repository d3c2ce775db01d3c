//! The fleet as a table: a line for each rig, a sum, and why those that do not work do not.

use std::fmt::Write;

use skein_ledger::emission::Amount;
use skein_policy::State;
use skein_proto::ids::NodeId;

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
pub(super) fn of(overview: &Overview, key: NodeId) -> String {
    if overview.rigs.is_empty() {
        return format!(
            "no rig has answered yet\nTell each rig once, by `skein up --owner {0}` or this line in its config.toml:\n  \
             owner = \"{0}\"\n",
            key
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
    // Rigs of one room often have one reason.
    let mut told: Vec<(String, Vec<&str>)> = Vec::new();
    for rig in &overview.rigs {
        let why = reasons(rig);
        match told.iter_mut().find(|(known, _)| *known == why) {
            _ if why.is_empty() => {}
            Some((_, names)) => names.push(&rig.name),
            None => told.push((why, vec![&rig.name])),
        }
    }
    for (why, names) in told {
        let _ = writeln!(text, "{}: {why}", names.join(", "));
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
    let Report { version, last_challenge, earned_today, balance, on_trial, .. } = &rig.report;
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
        // What was today's when it was last seen need not be of this day.
        or_unknown(rig.answers.then(|| coins(earned_today))),
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
    let total = |read: fn(&Sight) -> Option<&str>| {
        let known = rigs.iter().filter_map(|rig| base_units(read(rig)?));
        coins(&Amount(known.fold(0, u64::saturating_add)).to_string())
    };
    let mut parts = vec![format!("{}: {}", plural(rigs.len(), "rig"), states.join(", "))];
    let gpus: usize = rigs.iter().map(|rig| count_gpus(&rig.report)).sum();
    if gpus > 0 {
        parts.push(plural(gpus, "GPU"));
    }
    if let Some(power) = rigs.iter().filter_map(milliwatts).reduce(u64::saturating_add) {
        parts.push(format!("{} W", watts(power)));
    }
    parts.push(format!("{} earned today", total(|rig| rig.answers.then_some(&rig.report.earned_today))));
    parts.push(format!("{} in all", total(|rig| Some(&rig.report.balance))));
    parts.join("; ")
}

/// Why a rig does not work, or not as it should; nothing if it does.
fn reasons(rig: &Sight) -> String {
    let report = &rig.report;
    if !rig.answers {
        let trouble = rig.trouble.as_deref().unwrap_or("was not asked");
        return format!("{}; last seen: {}", trouble.replace('\n', " "), report.headline);
    }
    let mut reasons = Vec::new();
    if report.state != State::Working {
        let mut headline = report.headline.clone();
        for why in &report.reasons {
            let text = why.text.replace('\n', " ");
            // A headline mostly is the beginning of one of them.
            match report.headline.split_once(": ") {
                Some((state, what)) if text.starts_with(what) => headline = format!("{state}: {text}"),
                Some(_) | None => reasons.push(text),
            }
        }
        reasons.insert(0, headline);
    }
    if report.state == State::Working {
        let broken = report.reasons.iter().filter(|why| why.trouble);
        reasons.extend(broken.map(|why| why.text.replace('\n', " ")));
    }
    if let Some(trouble) = &report.update_trouble {
        reasons.push(format!("no update: {}", trouble.replace('\n', " ")));
    }
    if report.orders_refused > 0 {
        reasons.push(format!("refused {} of somebody else", plural_u64(report.orders_refused, "order")));
    }
    reasons.join("; ")
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
    // A device that is not measured yet may be either.
    let all_known = report.workers.iter().all(|worker| !worker.backend.is_empty());
    match count_gpus(report) {
        0 if all_known && !report.workers.is_empty() => "cpu".to_owned(),
        0 => UNKNOWN.to_owned(),
        gpus => gpus.to_string(),
    }
}

fn count_gpus(report: &Report) -> usize {
    report.workers.iter().filter(|worker| !matches!(worker.backend.as_str(), "" | "cpu")).count()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::report::Why;
    use crate::fleet::report::tests::report;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn sight(name: &str, report: Report) -> Sight {
        Sight {
            node: report.node,
            name: name.to_owned(),
            own: false,
            connected: true,
            answers: true,
            trouble: None,
            seen_ms: NOW_MS,
            address: None,
            report,
        }
    }

    fn shown(rigs: Vec<Sight>) -> String {
        of(&Overview { key: None, at_ms: NOW_MS, rigs, forgotten: Vec::new() }, NodeId([7; 32]))
    }

    #[test]
    fn a_fleet_is_a_table_a_sum_and_the_reasons() {
        let why = |text: &str| Why { text: text.to_owned(), value: None, threshold: None, trouble: false };
        let paused = Report {
            state: State::Paused,
            headline: "Paused: a game is running (quake)".to_owned(),
            reasons: vec![
                why("a game is running (quake); work goes on when it has ended"),
                why("the disk is nearly full"),
            ],
            workers: Vec::new(),
            update_trouble: Some("it did not answer\nwithin 60 s".to_owned()),
            orders_refused: 1,
            on_trial: true,
            ..report()
        };
        let mut two = report();
        two.workers.push(two.workers[0].clone());
        two.workers[1].temperature_c = Some(73);
        two.workers[0].power_mw = None;
        let mut gone = sight("shed", report());
        (gone.answers, gone.seen_ms) = (false, NOW_MS - 3 * 3_600_000 - 60_000);
        gone.trouble = Some("not connected".to_owned());
        let text =
            shown(vec![sight("attic", two), sight("cellar", paused.clone()), sight("loft", paused), gone]);
        let expected = "\
rig     state    GPUs  hottest  watts  version           last challenge  earned today  balance  seen
attic   working     2    73 °C    142  0.1.0             none yet              0.2500  12.5000  now
cellar  paused      –        –      –  0.1.0 (on trial)  none yet              0.2500  12.5000  now
loft    paused      –        –      –  0.1.0 (on trial)  none yet              0.2500  12.5000  now
shed    gone        1        –      –  0.1.0             none yet                   –  12.5000  3 h ago

4 rigs: 1 working, 2 paused, 1 gone; 3 GPUs; 142 W; 0.7500 earned today; 50.0000 in all
cellar, loft: Paused: a game is running (quake); work goes on when it has ended; the disk is nearly full; \
no update: it did not answer within 60 s; refused 1 order of somebody else
shed: not connected; last seen: Working
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn what_was_measured_nowhere_is_not_summed_up_to_nothing() {
        let mut blind = report();
        blind.workers[0].power_mw = None;
        blind.workers[0].backend = "cpu".to_owned();
        let text = shown(vec![sight("blind", blind)]);
        assert!(text.contains("1 rig: 1 working; 0.2500 earned today; 12.5000 in all\n"), "{text}");
        assert!(text.contains(" cpu "), "{text}");
        let mut new = report();
        new.workers[0].backend = String::new();
        let text = shown(vec![sight("new", new)]);
        assert!(
            !text.contains("cpu") && !text.contains("1 GPU") && text.contains("new  working     –"),
            "{text}"
        );
    }

    #[test]
    fn without_rigs_it_says_how_to_have_some() {
        let text = shown(Vec::new());
        assert!(text.contains(&format!("owner = \"{}\"", NodeId([7; 32]))), "{text}");
    }

    #[test]
    fn times_are_told_in_one_unit() {
        let told = [0, 59, 60, 3_599, 3_600, 172_799, 172_800].map(|seconds| span(seconds * 1_000));
        assert_eq!(told, ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 days"]);
    }
}
