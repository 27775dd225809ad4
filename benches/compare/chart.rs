//! The picture of the comparison: bars in SVG, one group for each row, readable on light and on dark pages.

use crate::{Cell, Row};

const WIDTH: f64 = 760.0;
/// Where the bars begin, and the longest of them.
const LEFT: f64 = 110.0;
const LONGEST: f64 = 520.0;
const BAR: f64 = 16.0;
const GAP: f64 = 3.0;
const HEADING: f64 = 24.0;
const BETWEEN: f64 = 16.0;

/// Colours are chosen by the reader's scheme. The program that the pages are about stands out by colour and by weight.
const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #1f2328; }
    .row { font-weight: 600; }
    .own { font-weight: 600; }
    rect { fill: #8c959f; }
    rect.own { fill: #0969da; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      rect { fill: #6e7681; }
      rect.own { fill: #4493f8; }
    }";

/// Draws the rows. Each group has a scale of its own: its longest bar is the most costly program.
pub(crate) fn draw(names: &[&str], rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = 8.0;
    for row in rows {
        let most = row.cells.iter().flatten().map(|cell| cell.value).fold(f64::MIN_POSITIVE, f64::max);
        body += &format!("  <text class=\"row\" x=\"8\" y=\"{:.0}\">{}, {}</text>\n", y + 15.0, row.name, row.unit);
        y += HEADING;
        for (name, cell) in names.iter().zip(&row.cells) {
            let Some(Cell { value, .. }) = cell else { continue };
            let class = if *name == "Vestibule" { " class=\"own\"" } else { "" };
            let width = (value / most * LONGEST).max(1.0);
            let baseline = y + BAR - 3.5;
            body += &format!(
                "  <text{class} x=\"{:.0}\" y=\"{baseline:.1}\" text-anchor=\"end\">{name}</text>\n",
                LEFT - 8.0
            );
            body +=
                &format!("  <rect{class} x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>\n");
            body += &format!("  <text{class} x=\"{:.1}\" y=\"{baseline:.1}\">{value:.1}</text>\n", LEFT + width + 6.0);
            y += BAR + GAP;
        }
        y += BETWEEN;
    }
    let height = y.ceil();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"What a request, a message and a socket cost, beside other programs\">\n  <style>\n    {STYLE}\n  </style>\n{body}</svg>\n"
    )
}
