//! A loss curve for people: beside the result of a training job, as JSON Lines and drawn.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::nats;
use crate::daemon::curve::Point;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 44.0;
const MARGIN: f64 = 28.0;

/// Writes the curve into `folder`: `curve.jsonl` and `curve.svg`; the latter's path.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn write(folder: &Path, title: &str, points: &[Point]) -> Result<PathBuf> {
    let lines: Vec<String> = points.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    let place = |name: &str| folder.join(name);
    for (path, text) in
        [(place("curve.jsonl"), lines.join("\n") + "\n"), (place("curve.svg"), draw(title, points))]
    {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(place("curve.svg"))
}

/// Training and held-out loss over tokens.
#[expect(clippy::cast_precision_loss, reason = "for display")]
fn draw(title: &str, points: &[Point]) -> String {
    let series = |loss: fn(&Point) -> Option<i64>| -> Vec<(f64, f64)> {
        points.iter().filter_map(|point| Some((point.tokens as f64, nats(loss(point)?)))).collect()
    };
    let (train, held_out) = (series(|point| point.loss_micronats), series(|point| point.held_out_micronats));
    let all = || train.iter().chain(&held_out);
    let most_tokens = all().map(|(tokens, _)| *tokens).fold(1.0, f64::max);
    let highest = all().map(|(_, loss)| *loss).fold(0.1, f64::max).ceil();
    let x = |tokens: f64| LEFT + tokens / most_tokens * (WIDTH - LEFT - MARGIN);
    let y = |loss: f64| HEIGHT - BOTTOM - loss / highest * (HEIGHT - BOTTOM - 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>svg{{background:#fff;color:#222}} .train{{stroke:#8aa7c4}} .held{{stroke:#1f5fa8}} text{{fill:currentColor}}\n\
         @media (prefers-color-scheme:dark){{svg{{background:#16181c;color:#ddd}} .train{{stroke:#5f7790}} .held{{stroke:#7fb2ee}}}}</style>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for tick in 0..=4 {
        let part = f64::from(tick) / 4.0;
        let (loss, tokens) = (part * highest, part * most_tokens);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            WIDTH - MARGIN,
            y(loss),
            y(loss),
            LEFT - 6.0,
            y(loss) + 4.0,
            x(tokens),
            HEIGHT - BOTTOM + 18.0,
            super::count_text(tokens as u64)
        );
    }
    for (class, name, series, at) in
        [("train", "training", &train, 0.0), ("held", "held out", &held_out, 90.0)]
    {
        let line: Vec<String> =
            series.iter().map(|(tokens, loss)| format!("{:.1},{:.1}", x(*tokens), y(*loss))).collect();
        let _ = writeln!(
            svg,
            "<polyline class=\"{class}\" fill=\"none\" stroke-width=\"2\" points=\"{}\"/>\
             <line class=\"{class}\" stroke-width=\"2\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"16\" y2=\"16\"/>\
             <text x=\"{:.1}\" y=\"20\">{name}</text>",
            line.join(" "),
            WIDTH - 210.0 + at,
            WIDTH - 194.0 + at,
            WIDTH - 190.0 + at
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\">nats per token</text>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">tokens</text>\n</svg>",
        MARGIN + 12.0,
        WIDTH - MARGIN,
        HEIGHT - 8.0
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_proto::ids::Millis;

    #[test]
    fn a_curve_is_drawn_within_its_frame() {
        let point = |round: u32, loss: i64| Point {
            round,
            tokens: u64::from(round) * 76_800,
            sent_bytes: 0,
            at_ms: Millis(1),
            agents: 3,
            loss_micronats: (round > 0).then_some(loss),
            held_out_micronats: Some(loss + 100_000),
        };
        let folder = tempfile::tempdir().unwrap();
        let points = [point(0, 5_700_000), point(1, 2_900_000), point(2, 2_400_000)];
        let path = write(folder.path(), "a < b", &points).unwrap();
        assert!(path.ends_with("curve.svg"));
        let svg = fs::read_to_string(path).unwrap();
        assert!(svg.contains("a &lt; b") && svg.matches("<polyline").count() == 2, "{svg}");
        for points in svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            for (x, y) in points.split(' ').filter_map(|point| point.split_once(',')) {
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - MARGIN).contains(&x) && (MARGIN..=HEIGHT - BOTTOM).contains(&y));
            }
        }
        let lines = fs::read_to_string(folder.path().join("curve.jsonl")).unwrap();
        let read: Vec<Point> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, points);
        // No points are a frame, not a crash.
        assert!(draw("empty", &[]).ends_with("</svg>\n"));
    }
}
