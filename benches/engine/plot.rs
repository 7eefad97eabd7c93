//! A plot with two logarithmic axes, as SVG.

use std::fmt::Write;

/// The drawing's size and the plot's edges within it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 520.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 370.0;

/// Decades of the axes: services, and microseconds.
const X: (i32, i32) = (2, 5);
const Y: (i32, i32) = (0, 7);

/// One line of the plot: its name, its colour, its points.
pub type Series<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Latency in microseconds over the number of services.
pub fn latency(title: &str, series: &[Series<'_>]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    axes(&mut svg);
    for (row, (name, colour, points)) in series.iter().enumerate() {
        let at: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        let line = at.join(" ");
        let y = TOP + 14.0 + 20.0 * row as f64;
        let legend = RIGHT + 16.0;
        let text = legend + 12.0;
        let mut push = |part: String| svg.push_str(&part);
        push(format!(
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"
        ));
        for (x, y) in points {
            let (x, y) = (across(*x), up(*y));
            push(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"));
        }
        push(format!("<circle cx=\"{legend}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>\n", y - 4.0));
        push(format!("<text x=\"{text}\" y=\"{y}\">{name}</text>\n"));
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String) {
    let mut push = |part: String| svg.push_str(&part);
    for decade in X.0..=X.1 {
        let x = across(10_f64.powi(decade));
        push(format!("<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/>\n"));
        let label = 10_u64.pow(decade.unsigned_abs());
        let y = BOTTOM + 18.0;
        push(format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>\n"));
    }
    let names = ["1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s", "10 s"];
    for (decade, name) in (Y.0..=Y.1).zip(names) {
        let y = up(10_f64.powi(decade));
        push(format!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>\n"));
        let (x, y) = (LEFT - 6.0, y + 4.0);
        push(format!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{name}</text>\n"));
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    let below = BOTTOM + 38.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">services, 10 endpoints each</text>"
    );
}

fn across(services: f64) -> f64 {
    LEFT + (services.log10() - f64::from(X.0)) / f64::from(X.1 - X.0) * (RIGHT - LEFT)
}

fn up(microseconds: f64) -> f64 {
    let decades = microseconds.max(1.0).log10() - f64::from(Y.0);
    BOTTOM - decades / f64::from(Y.1 - Y.0) * (BOTTOM - TOP)
}
