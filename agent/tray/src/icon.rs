//! The icon, drawn in code: geese in a skein, and below them a sign for the state.
//!
//! Every state has a colour and a shape of its own, so that nobody needs to tell colours apart. Colours are neither
//! light nor dark: an icon cannot know the panel that it lies on. Pure; the same state and size always give the same
//! pixels.

use crate::menu::State;

/// Sizes that hosts ask for, in pixels.
pub const SIZES: [usize; 5] = [16, 22, 24, 32, 48];

/// Samples per pixel and axis; coverage becomes the pixel's opacity.
const SAMPLES: usize = 8;

/// A square picture: red, green, blue, opacity (not multiplied into the colours), rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width and height in pixels.
    pub size: usize,
    /// Four bytes per pixel.
    pub rgba: Vec<u8>,
}

type Point = (f32, f32);
type Polygon = Vec<Point>;

/// Draws the icon of `state`, `size` pixels wide and high.
#[must_use]
pub fn draw(state: State, size: usize) -> Picture {
    let mut shapes = flock(state, size);
    shapes.extend(sign(state, size));
    let [red, green, blue] = colour(state);
    let mut rgba = Vec::with_capacity(size * size * 4);
    for covered in coverage(&shapes, size) {
        rgba.extend([red, green, blue, covered]);
    }
    Picture { size, rgba }
}

/// Between light and dark: at least 3:1 against white and against a dark panel.
#[must_use]
pub fn colour(state: State) -> [u8; 3] {
    match state {
        State::Working => [0x00, 0x92, 0x6a],
        State::Waiting => [0x2f, 0x7d, 0xc4],
        State::Paused => [0xb0, 0x78, 0x12],
        State::Trouble => [0xdb, 0x3a, 0x2e],
        State::Away => [0x80, 0x80, 0x80],
    }
}

/// Three geese seen from above, flying up: large, or small where a sign needs room. More would be a blur where a
/// host scales its favourite size down.
fn flock(state: State, size: usize) -> Vec<Polygon> {
    let scale = size as f32;
    let (span, places): (f32, [Point; 2]) = match state {
        State::Working => (0.48, [(0.0, 0.28), (0.26, 0.64)]),
        State::Waiting | State::Paused | State::Trouble | State::Away => (0.38, [(0.0, 0.16), (0.31, 0.32)]),
    };
    let goose = goose(size);
    let mut geese = Vec::new();
    for (aside, y) in places {
        // Whole pixels, so that all geese look the same.
        let (aside, y) = ((aside * scale).round(), (y * scale).round());
        let sides: &[f32] = if aside == 0.0 { &[0.0] } else { &[-aside, aside] };
        for side in sides {
            let x = scale / 2.0 + side;
            geese.push(goose.iter().map(|(dx, dy)| (x + dx * span * scale, y + dy * span * scale)).collect());
        }
    }
    geese
}

/// One goose of wing span 1 around the origin: the right half, and its mirror image.
fn goose(size: usize) -> Polygon {
    // Small pictures have no room for necks and tails: wings say it all.
    let half: &[Point] = if size < 28 {
        &[(0.0, -0.36), (0.12, -0.26), (0.5, 0.12), (0.46, 0.27), (0.0, 0.10)]
    } else {
        &[
            (0.0, -0.50),
            (0.075, -0.44),
            (0.085, -0.25),
            (0.23, -0.21),
            (0.37, -0.10),
            (0.5, 0.18),
            (0.44, 0.22),
            (0.31, 0.10),
            (0.20, 0.06),
            (0.12, 0.12),
            (0.08, 0.24),
            (0.13, 0.35),
        ]
    };
    let mirrored = half.iter().rev().map(|(x, y)| (-x, *y));
    half.iter().copied().chain(mirrored).collect()
}

/// What tells the states apart without colours, below the flock.
fn sign(state: State, size: usize) -> Vec<Polygon> {
    let scale = size as f32;
    // Whole pixels on both sides of the middle, so that upright edges stay sharp.
    let pixels = |share: f32| (scale * share).round().max(1.0);
    let (middle, bottom) = (scale / 2.0, scale - (scale * 0.03).round());
    let top = bottom - pixels(0.47);
    match state {
        State::Working => Vec::new(),
        State::Waiting => {
            let (radius, apart, height) = (scale * 0.105, scale * 0.29, bottom - scale * 0.17);
            [-1.0, 0.0, 1.0].map(|n| disc((middle + n * apart, height), radius)).to_vec()
        }
        State::Paused => {
            let (gap, bar) = (pixels(0.075), pixels(0.15));
            vec![
                rectangle((middle - gap - bar, top), (middle - gap, bottom)),
                rectangle((middle + gap, top), (middle + gap + bar, bottom)),
            ]
        }
        State::Trouble => {
            let (half, gap) = (pixels(0.085), pixels(0.06));
            let (top, foot) = (top - pixels(0.05), bottom - pixels(0.14));
            vec![
                rectangle((middle - half, top), (middle + half, foot - gap)),
                rectangle((middle - half, foot), (middle + half, bottom)),
            ]
        }
        State::Away => {
            let (arm, thick) = (scale * 0.225, scale * 0.085);
            let centre = (middle, bottom - arm);
            [1.0, -1.0].map(|slope| stroke(centre, arm, thick, slope)).to_vec()
        }
    }
}

fn rectangle(from: Point, to: Point) -> Polygon {
    vec![from, (to.0, from.1), to, (from.0, to.1)]
}

fn disc(centre: Point, radius: f32) -> Polygon {
    let corner = |n: u8| {
        let (sine, cosine) = (f32::from(n) * std::f32::consts::TAU / 24.0).sin_cos();
        (centre.0 + radius * cosine, centre.1 + radius * sine)
    };
    (0..24).map(corner).collect()
}

/// A diagonal stroke through `centre`, `arm` to each side; `slope` is 1 for falling, -1 for rising.
fn stroke(centre: Point, arm: f32, thick: f32, slope: f32) -> Polygon {
    let (x, y) = centre;
    vec![
        (x - arm + thick, y - slope * arm),
        (x + arm, y + slope * (arm - thick)),
        (x + arm - thick, y + slope * arm),
        (x - arm, y - slope * (arm - thick)),
    ]
}

/// How much of each pixel the shapes cover together, 0 to 255.
fn coverage(shapes: &[Polygon], size: usize) -> Vec<u8> {
    let side = size * SAMPLES;
    let mut inside = vec![false; side * side];
    let sample = |n: usize| (n as f32 + 0.5) / SAMPLES as f32;
    for shape in shapes {
        let rows = bounds(shape.iter().map(|point| point.1), side);
        let columns = bounds(shape.iter().map(|point| point.0), side);
        for row in rows {
            for column in columns.clone() {
                inside[row * side + column] |= contains(shape, (sample(column), sample(row)));
            }
        }
    }
    let pixel = |n: usize| {
        let (top, left) = (n / size * SAMPLES, n % size * SAMPLES);
        let hits = (top..top + SAMPLES)
            .map(|row| {
                inside[row * side + left..row * side + left + SAMPLES].iter().filter(|hit| **hit).count()
            })
            .sum::<usize>();
        u8::try_from(hits * 255 / (SAMPLES * SAMPLES)).unwrap_or(u8::MAX)
    };
    (0..size * size).map(pixel).collect()
}

/// The samples of one axis that a shape may touch.
fn bounds(values: impl Iterator<Item = f32> + Clone, side: usize) -> std::ops::Range<usize> {
    let samples = |value: f32| (value.max(0.0) * SAMPLES as f32) as usize;
    let least = samples(values.clone().fold(f32::INFINITY, f32::min));
    let most = samples(values.fold(0.0, f32::max)) + 1;
    least.min(side)..most.min(side)
}

/// Whether a point lies in a polygon: a ray to the right crosses its border an odd number of times.
fn contains(shape: &[Point], (x, y): Point) -> bool {
    let next = shape.iter().skip(1).chain(shape.first());
    let crossings = shape.iter().zip(next).filter(|(from, to)| {
        (from.1 > y) != (to.1 > y) && x < (to.0 - from.0) * (y - from.1) / (to.1 - from.1) + from.0
    });
    crossings.count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opacity(picture: &Picture) -> Vec<u8> {
        picture.rgba.chunks(4).map(|pixel| pixel[3]).collect()
    }

    /// Relative luminance of WCAG 2.
    fn luminance(colour: [u8; 3]) -> f64 {
        let linear = |part: u8| {
            let part = f64::from(part) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2])
    }

    #[test]
    fn every_state_is_drawn_at_every_size() {
        for state in State::ALL {
            for size in SIZES {
                let picture = draw(state, size);
                assert_eq!(picture.rgba.len(), size * size * 4);
                let opacity = opacity(&picture);
                let ink = opacity.iter().map(|part| usize::from(*part)).sum::<usize>() / 255;
                let share = ink * 100 / (size * size);
                assert!((12..60).contains(&share), "{state:?} at {size}: {share} % is covered");
                let full = opacity.iter().filter(|part| **part == 255).count();
                let partly = opacity.iter().filter(|part| (1..255).contains(*part)).count();
                assert!(full > 0 && partly > 0, "{state:?} at {size}: {full} full, {partly} smooth");
            }
        }
    }

    #[test]
    fn states_differ_in_shape_and_not_only_in_colour() {
        for size in SIZES {
            for (n, one) in State::ALL.iter().enumerate() {
                for other in &State::ALL[n + 1..] {
                    let (a, b) = (opacity(&draw(*one, size)), opacity(&draw(*other, size)));
                    let differ = a.iter().zip(&b).filter(|(a, b)| a.abs_diff(**b) > 100).count();
                    let share = differ * 1000 / (size * size);
                    assert!(share >= 30, "{one:?} and {other:?} at {size}: only {share} ‰ of the pixels");
                }
            }
        }
    }

    #[test]
    fn colours_stand_out_from_light_and_dark_panels_and_from_each_other() {
        let contrast = |a: f64, b: f64| (a.max(b) + 0.05) / (a.min(b) + 0.05);
        for state in State::ALL {
            let own = luminance(colour(state));
            for panel in [[0xff; 3], [0x24; 3]] {
                let contrast = contrast(own, luminance(panel));
                assert!(contrast >= 3.0, "{state:?} on {panel:?}: {contrast:.2}");
            }
            for other in State::ALL {
                let apart: u32 =
                    colour(state).iter().zip(colour(other)).map(|(a, b)| u32::from(a.abs_diff(b))).sum();
                assert!(state == other || apart > 90, "{state:?} and {other:?} look alike");
            }
        }
    }

    #[test]
    fn pictures_are_symmetric() {
        for state in State::ALL {
            for size in SIZES {
                let opacity = opacity(&draw(state, size));
                for row in opacity.chunks(size) {
                    let apart = row.iter().zip(row.iter().rev()).map(|(a, b)| a.abs_diff(*b)).max();
                    assert!(apart.is_some_and(|apart| apart < 40), "{state:?} at {size}: {apart:?}");
                }
            }
        }
    }
}
