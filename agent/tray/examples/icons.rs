//! Writes a sheet of all icons as a PAM picture: states from left to right, sizes downward, on three panels; once as
//! they are and once four times as large. `cargo run -p skein-tray --example icons > icons.pam`.

use std::io::Write;

use skein_tray::icon::{SIZES, draw};
use skein_tray::menu::State;

const PANELS: [[u8; 3]; 3] = [[0xf4, 0xf4, 0xf4], [0x9a, 0x9f, 0xa6], [0x24, 0x24, 0x28]];
const CELL: usize = 56;
const ZOOM: usize = 4;

fn main() -> std::io::Result<()> {
    let (columns, rows) = (State::ALL.len() * PANELS.len(), SIZES.len());
    let small = (columns * CELL, rows * CELL);
    let (width, height) = (small.0 * ZOOM, small.1 * (ZOOM + 1));
    let mut sheet = vec![255_u8; width * height * 3];
    for column in 0..columns {
        let panel = PANELS[column / State::ALL.len()];
        let state = State::ALL[column % State::ALL.len()];
        for (row, size) in SIZES.into_iter().enumerate() {
            let picture = draw(state, size);
            let margin = (CELL - size) / 2;
            for y in 0..CELL {
                for x in 0..CELL {
                    let inside = (margin..margin + size).contains(&x) && (margin..margin + size).contains(&y);
                    let at = inside.then(|| ((y - margin) * size + x - margin) * 4);
                    let pixel = at.map_or([0; 4], |at| std::array::from_fn(|n| picture.rgba[at + n]));
                    let mixed: [u8; 3] = std::array::from_fn(|n| {
                        let (ink, opacity) = (u16::from(pixel[n]), u16::from(pixel[3]));
                        ((ink * opacity + u16::from(panel[n]) * (255 - opacity)) / 255) as u8
                    });
                    let (x, y) = (column * CELL + x, row * CELL + y);
                    sheet[(y * width + x) * 3..][..3].copy_from_slice(&mixed);
                    for (dx, dy) in (0..ZOOM * ZOOM).map(|n| (n % ZOOM, n / ZOOM)) {
                        let (x, y) = (x * ZOOM + dx, small.1 + y * ZOOM + dy);
                        sheet[(y * width + x) * 3..][..3].copy_from_slice(&mixed);
                    }
                }
            }
        }
    }
    let mut out = std::io::stdout().lock();
    write!(out, "P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n")?;
    out.write_all(&sheet)
}
