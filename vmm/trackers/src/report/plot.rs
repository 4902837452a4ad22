//! Curves over a rate, as SVG that needs nothing from elsewhere.

use std::fmt::Write as _;

use super::html::escape;

/// Of the picture, in its own units.
const SIZE: (f64, f64) = (430.0, 300.0);
/// Room for the labels: left, top, right, bottom.
const ROOM: (f64, f64, f64, f64) = (62.0, 26.0, 12.0, 40.0);

/// One curve.
pub(super) struct Curve<'a> {
    pub(super) name: String,
    /// A colour of CSS.
    pub(super) colour: &'a str,
    /// Drawn as rings around the points of the others, without a line.
    pub(super) rings: bool,
    /// Both above zero.
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot with logarithmic axes; `label` says what a value on the y axis is.
pub(super) fn plot(title: &str, curves: &[Curve<'_>], label: impl Fn(f64) -> String) -> String {
    let points = || curves.iter().flat_map(|curve| curve.points.iter());
    let x = Axis::of(points().map(|p| p.0), ROOM.0, SIZE.0 - ROOM.2);
    let y = Axis::of(points().map(|p| p.1), SIZE.1 - ROOM.3, ROOM.1);
    let (width, height) = SIZE;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\">\n\
         <text class=\"title\" x=\"{1}\" y=\"15\">{0}</text>\n",
        escape(title),
        ROOM.0
    );
    // Writing to a string cannot fail.
    for value in y.ticks() {
        let at = y.place(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            ROOM.0,
            width - ROOM.2,
            ROOM.0 - 5.0,
            at + 3.5,
            escape(&label(value))
        );
    }
    for value in x.ticks() {
        let at = x.place(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{}\" x2=\"{at:.1}\" y2=\"{}\"/>\
             <text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{}\">{value}</text>",
            ROOM.1,
            height - ROOM.3,
            height - ROOM.3 + 14.0
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{}\">writes/s</text>",
        width - ROOM.2,
        height - 8.0
    );
    for curve in curves {
        draw(&mut svg, curve, &x, &y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, curve: &Curve<'_>, x: &Axis, y: &Axis) {
    let Curve { name, colour, rings, points } = curve;
    let _ = write!(svg, "<g><title>{}</title>", escape(name));
    if !rings {
        let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"");
        for (a, b) in points {
            let _ = write!(svg, "{:.1},{:.1} ", x.place(*a), y.place(*b));
        }
        svg.push_str("\"/>");
    }
    let (radius, fill) = if *rings { (6, "none") } else { (2, *colour) };
    for (a, b) in points {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\"/>",
            x.place(*a),
            y.place(*b)
        );
    }
    svg.push_str("</g>\n");
}

/// Logarithmic, over whole decades.
struct Axis {
    decades: (i32, i32),
    from: f64,
    to: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(log), high.max(log))
        });
        let decades = match low.is_finite() {
            true => (low.floor() as i32, (high.ceil() as i32).max(low.floor() as i32 + 1)),
            false => (0, 1),
        };
        Self { decades, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let (low, high) = (f64::from(self.decades.0), f64::from(self.decades.1));
        // What is below the axis (noise around nothing) is drawn at its end.
        let log = value.max(f64::MIN_POSITIVE).log10().clamp(low, high);
        self.from + (self.to - self.from) * (log - low) / (high - low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        (self.decades.0..=self.decades.1).map(|decade| 10f64.powi(decade))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_covers_whole_decades() {
        let axis = Axis::of([30.0, 2000.0].into_iter(), 100.0, 0.0);
        assert_eq!(axis.decades, (1, 4));
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [10.0, 100.0, 1000.0, 10_000.0]);
        assert!((axis.place(10.0) - 100.0).abs() < 1e-9 && axis.place(1e4).abs() < 1e-9);
        assert!((axis.place(1.0) - 100.0).abs() < 1e-9, "no further than the end");
        // One value, or none that can be drawn.
        assert_eq!(Axis::of([1000.0].into_iter(), 0.0, 1.0).decades, (3, 4));
        assert_eq!(Axis::of([-5.0, 0.0].into_iter(), 0.0, 1.0).decades, (0, 1));
        assert!(axis.place(-5.0).is_finite());
    }
}
