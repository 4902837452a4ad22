use super::*;

fn samples(values: &[f64]) -> Samples {
    values.iter().copied().collect()
}

#[test]
fn the_ratio_is_ours_over_theirs() {
    let row = Row::new("time", "ms", Better::Lower, &samples(&[1.0, 2.0, 3.0]))
        .against("QEMU", &samples(&[16.0]));
    assert_eq!(row.ratio, Some(0.125));
}

#[test]
fn a_side_that_is_missing_gives_no_ratio() {
    let mut section = Section::new("s");
    let ours = samples(&[2.0]);
    section.row(Row::new("a", "ms", Better::Lower, &ours).against("QEMU", &Samples::default()));
    section.row(Row::new("b", "ms", Better::Lower, &Samples::default()));
    assert_eq!(section.rows.len(), 1, "of b nothing was measured");
    assert_eq!(section.rows[0].ratio, None);
    assert!(
        section.text().contains("2.00 ms [2.00..2.00]  -       -      1"),
        "{}",
        section.text()
    );
}

#[test]
fn columns_line_up() {
    let mut section = Section::new("title");
    section.row(Row::new("a long metric", "ms", Better::Lower, &samples(&[1234.0, 1236.0])));
    section.row(
        Row::new("b", "us", Better::Lower, &samples(&[0.5])).against("c", &samples(&[40.0, 50.0])),
    );
    section.note("hear, hear");
    let expected = "\
title
  metric         ours                  theirs               ratio   n
  a long metric  1235 ms [1234..1236]  -                    -       2
  b : c          0.500 us [0.500..0.500]  45.0 us [42.5..47.5]  0.011x  1/2
  - hear, hear
";
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeeze(&section.text()), squeeze(expected));
    let text = section.text();
    let mut lines = text.lines().skip(1);
    let at = lines.next().and_then(|line| line.find("ratio")).expect("a header");
    let ratios: Vec<_> =
        lines.take(2).map(|line| line[at..].split(' ').next().expect("a cell")).collect();
    assert_eq!(ratios, ["-", "0.011x"], "{text}");
}
