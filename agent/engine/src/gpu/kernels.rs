//! Owns the text of the kernels: WGSL files, the constants before them, and the unrolling of their loops.
//! Must never know a device or a buffer.
//!
//! WGSL has no way to say that a loop is to be unrolled, and arrays in a loop that is not may cost a trip to memory
//! for every sum. So lines between `//:for NAME COUNT` and `//:end` are repeated here, with `$NAME` for the number.

/// Weights of 4 to 6 bits.
pub(crate) const NIBBLES: &str = include_str!("kernels/nibbles.wgsl");
/// Weights of 8 bits.
pub(crate) const BYTES: &str = include_str!("kernels/bytes.wgsl");
/// Weights that are floats.
pub(crate) const FLOATS: &str = include_str!("kernels/floats.wgsl");
/// Where blocks of weights lie.
pub(crate) const PLACE: &str = include_str!("kernels/place.wgsl");
/// Where the elements of a row lie that products read.
pub(crate) const TURN: &str = include_str!("kernels/turn.wgsl");
/// Products for few rows.
pub(crate) const MATVEC: &str = include_str!("kernels/matvec.wgsl");
/// Products for many rows.
pub(crate) const MATMUL: &str = include_str!("kernels/matmul.wgsl");
/// Rows of a matrix by number.
pub(crate) const EMBED: &str = include_str!("kernels/embed.wgsl");
/// Rounding to f16.
pub(crate) const HALVES: &str = include_str!("kernels/halves.wgsl");
/// Residual stream and norms.
pub(crate) const RESIDUAL: &str = include_str!("kernels/residual.wgsl");
/// Biases, norms and rotation of heads, and the cache.
pub(crate) const PREPARE: &str = include_str!("kernels/prepare.wgsl");
/// Attention.
pub(crate) const ATTEND: &str = include_str!("kernels/attend.wgsl");
/// Activations and caps.
pub(crate) const ELEMENTWISE: &str = include_str!("kernels/elementwise.wgsl");

/// A constant of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Constant {
    /// u32
    Whole(u32),
    /// f32, finite
    Real(f32),
    /// bool
    Truth(bool),
}

/// A kernel: its constants, its parts one after the other, its loops unrolled.
pub(crate) fn source(constants: &[(&str, Constant)], parts: &[&str]) -> String {
    let mut text = String::new();
    for (name, value) in constants {
        text += &match value {
            Constant::Whole(value) => format!("const {name}: u32 = {value}u;\n"),
            Constant::Real(value) => format!("const {name}: f32 = {value:?}f;\n"),
            Constant::Truth(value) => format!("const {name}: bool = {value};\n"),
        };
    }
    let lookup = |name: &str| {
        name.parse().ok().or_else(|| {
            constants.iter().find_map(|(known, value)| match value {
                Constant::Whole(value) if *known == name => Some(*value),
                Constant::Whole(_) | Constant::Real(_) | Constant::Truth(_) => None,
            })
        })
    };
    for part in parts {
        let lines: Vec<&str> = part.lines().collect();
        unroll(&lines, &lookup, &mut text);
    }
    text
}

/// Copies lines, repeating those between marks.
fn unroll(lines: &[&str], lookup: &impl Fn(&str) -> Option<u32>, text: &mut String) {
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let Some((name, count)) = line.trim().strip_prefix("//:for ").and_then(|mark| mark.split_once(' '))
        else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let (begin, mut depth) = (at, 1);
        while depth > 0 && at < lines.len() {
            let line = lines[at].trim();
            depth += usize::from(line.starts_with("//:for "));
            depth -= usize::from(line == "//:end");
            at += 1;
        }
        let mut body = String::new();
        unroll(&lines[begin..at - 1], lookup, &mut body);
        // A count that is no constant of the kernel is left for the compiler to stumble over.
        for number in 0..lookup(count).unwrap_or(0) {
            text.push_str(&body.replace(&format!("${name}"), &number.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_repeated_inside_out() {
        let part = "//:for a N\n x$a\n  //:for b 2\n  y$a$b\n  //:end\n//:end\nz";
        let text = source(&[("N", Constant::Whole(2)), ("E", Constant::Real(1e-6))], &[part]);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            ["const N: u32 = 2u;", "const E: f32 = 1e-6f;", "x0", "y00", "y01", "x1", "y10", "y11", "z"]
        );
    }
}
