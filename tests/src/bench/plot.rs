//! The ratios as a picture: bars on a logarithmic scale, as SVG.

use std::fmt::Write;

use super::results::{Ratios, Results};

const ROW: f64 = 22.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 50.0;
/// Width of a power of ten.
const DECADE: f64 = 170.0;
/// The scale goes from 0.1 to 1000.
const LOWEST: f64 = -1.0;
const HIGHEST: f64 = 3.0;

fn place(value: f64) -> f64 {
    LEFT + (value.log10().clamp(LOWEST, HIGHEST) - LOWEST) * DECADE
}

/// The picture.
pub fn svg(results: &Results) -> String {
    let ratios = results.ratios();
    let bottom = TOP + ROW * ratios.len() as f64;
    let width = place(1000.0) + 60.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\"><tspan fill=\"#2a7\">times as fast as QEMU</tspan> \
         <tspan fill=\"#c63\">times as slow as natively</tspan></text>\n",
        bottom + 20.0
    );
    for power in LOWEST as i32..=HIGHEST as i32 {
        let x = place(10f64.powi(power));
        let _ = writeln!(
            text,
            "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"#ccc\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            TOP - 8.0,
            10f64.powi(power)
        );
    }
    for (index, ratios) in ratios.iter().enumerate() {
        row(&mut text, ratios, TOP + ROW * index as f64);
    }
    text + "</svg>\n"
}

fn row(text: &mut String, ratios: &Ratios, y: f64) {
    let _ = writeln!(
        text,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT - 6.0,
        y + 14.0,
        ratios.name
    );
    for (value, colour, y) in [
        (ratios.qemu, "#2a7", y + 2.0),
        (ratios.native, "#c63", y + 11.0),
    ] {
        let Some(value) = value else { continue };
        let (one, end) = (place(1.0), place(value));
        let _ = writeln!(
            text,
            "<rect x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"8\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\" font-size=\"9\">{value:.2}</text>",
            one.min(end),
            (end - one).abs(),
            one.max(end) + 3.0,
            y + 8.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_begin_at_one_and_have_their_value() {
        let picture = svg(&super::super::results::tests::results());
        assert_eq!(picture.matches("fill=\"#2a7\"/>").count(), 2);
        assert_eq!(
            picture.matches("<text").count(),
            picture.matches("</text>").count()
        );
        // Twice as fast: 0.301 of a decade.
        let width = format!("width=\"{:.1}\"", 2f64.log10() * DECADE);
        assert!(picture.contains(&width), "{width} is not in {picture}");
        assert!(picture.ends_with("</svg>\n"));
    }
}
