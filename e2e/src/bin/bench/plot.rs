//! Lines over a logarithmic number of pods, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
/// Readable on white for those who do not tell red from green (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// One line: its name, and what was measured at which number.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A plot of `lines`; both axes are logarithmic, `unit` is that of the upright one.
pub fn svg(title: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (first, last) = range(&mut points().map(|point| point.0));
    let (low, high) = range(&mut points().map(|point| point.1).filter(|value| *value > 0.0));
    if first > last || low > high {
        return String::new();
    }
    let (low, high) = (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil()));
    let along = |value: f64, from: f64, to: f64| {
        if to > from {
            (value.max(from).log10() - from.log10()) / (to.log10() - from.log10())
        } else {
            0.5
        }
    };
    let x = |value: f64| LEFT + along(value, first, last) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - along(value, low, high) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut tick = low;
    while tick <= high * 1.001 {
        let at = y(tick);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            LEFT - 8.0,
            at + 4.0
        );
        tick *= 10.0;
    }
    let mut numbers: Vec<f64> = points().map(|point| point.0).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    for number in numbers {
        let at = x(number);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {bottom}v5\" stroke=\"black\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{number}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">pods</text>\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, right),
        bottom + 38.0,
        f64::midpoint(TOP, bottom),
        escaped(unit)
    );
    for (n, line) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(pods, value)| format!("{:.1},{:.1}", x(*pods), y(*value)))
            .collect();
        let row = TOP + 14.0 + 20.0 * n as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <path d=\"M{:.1} {row:.1}h20\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            path.join(" "),
            right + 12.0,
            right + 38.0,
            row + 4.0,
            escaped(&line.name)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_higher_and_further_right() {
        let line = Line {
            name: "a<b".into(),
            points: vec![(1.0, 2.0), (10.0, 20.0), (100.0, 200.0)],
        };
        let text = svg("t", "ms", &[line]);
        let path = text.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let points: Vec<(f64, f64)> = path
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 > b.1), "{points:?}");
        assert!((points[0].0 - LEFT).abs() < 0.1 && (points[2].0 - (WIDTH - RIGHT)).abs() < 0.1);
        assert!(text.contains("a&lt;b"));
    }

    #[test]
    fn nothing_measured_is_no_plot() {
        assert_eq!(svg("t", "ms", &[]), "");
    }
}
