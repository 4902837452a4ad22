use drogher_tracking::TrackingPageSize;

use super::html::escape;
use super::*;
use crate::grid::Measurement;
use crate::settings::{Fixed, Settings};
use crate::{TrackerCosts, UnitCosts};

/// A grid with made-up figures: more with each cell and choice.
fn grid() -> Grid {
    let settings = Settings {
        working_sets: vec![1 << 20, 8 << 20],
        rates: vec![20_000, 1_000],
        page_sizes: vec![TrackingPageSize::K4, TrackingPageSize::M2],
        ..Settings::default()
    };
    let mut cells = Vec::new();
    for working_set in &settings.working_sets {
        for rate in &settings.rates {
            cells.push(cell(&settings, *working_set, *rate));
        }
    }
    let unit =
        UnitCosts { trackers: Vec::<TrackerCosts>::new(), pin_ns: 1.0, page_ns: 2.0, took_us: 3 };
    Grid { settings, page_ns: 1024.0, unit, cells, processors: 2, took_ms: 1234 }
}

fn cell(settings: &Settings, working_set: u64, rate: u64) -> Cell {
    let choices = settings.choices();
    let measured: Vec<Measurement> = choices.iter().zip(1u32..).map(|(f, n)| one(*f, n)).collect();
    let verdict = Verdict {
        best: choices[0],
        worst: choices[7],
        auto: choices[1],
        expected_ns: 5,
        ratio: if rate == 1_000 { 2.0 } else { 1.25 },
    };
    Cell { working_set, rate, measured, auto: Some(verdict), auto_plain: None }
}

fn one(fixed: Fixed, n: u32) -> Measurement {
    let n = f64::from(n);
    Measurement {
        fixed,
        harvest_ns: 100.0 * n,
        switch_ns: 10.0,
        dma_lost_ns: -3.0,
        dma_slowdown: 0.99,
        resent_bytes: 40_960.0 * n,
        resend_ns: 10_000.0 * n,
        totals_ns: vec![10_107.0 * n],
        total_ns: 10_107.0 * n,
        expected_ns: (n < 8.0).then_some(20_000),
        moved: crate::moving::Moved {
            pages_by_round: vec![16_384, 100, 50],
            final_pages: 5,
            resent_bytes: 700_000,
            blackout_us: 800,
            total_us: 90_000,
        },
    }
}

#[test]
fn the_summary_counts_cells() {
    let expected = "expected within a quarter of what was measured in 4 of 28";
    let auto = "auto within 25 % of the best in 2 of 4 cells, worst in 0";
    assert_eq!(summary(&grid()), [auto, expected]);
    let mut grid = grid();
    for cell in &mut grid.cells {
        cell.auto_plain =
            cell.auto.take().map(|verdict| Verdict { auto: verdict.worst, ..verdict });
    }
    let only = summary(&grid);
    let text = "auto for a device without log and pins within 25 % of the best in 2 of 4 cells, \
                worst in 4";
    assert_eq!(only, [text, expected]);
}

#[test]
fn the_table_has_each_cell_and_each_tracker() {
    let grid = grid();
    let text = text(&grid);
    for cell in &grid.cells {
        assert!(text.contains(&place(cell)), "{text}");
    }
    let rows = text.lines().filter(|line| line.starts_with("  iommu 2M ")).count();
    assert_eq!(rows, 4);
    let row = text.lines().find(|line| line.starts_with("  device 4K ")).expect("there");
    let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let expected = [
        "device 4K",
        "300 ns",
        "10 ns",
        "-3 ns",
        "0.99",
        "120K",
        "30 us",
        "30.3 us",
        "3.00",
        "20 us",
        "2",
        "800 us",
    ];
    assert_eq!(cells, expected);
    assert!(text.contains("best iommu 4K, worst all 4K; auto took iommu 2M: 1.25 of the best"));
    assert!(text.contains("\nauto within 25 % of the best in 2 of 4 cells, worst in 0\n"));
}

#[test]
fn the_json_has_every_figure() {
    let grid = grid();
    let json: serde_json::Value = serde_json::from_str(&json(&grid).unwrap()).unwrap();
    assert_eq!(json["cells"].as_array().unwrap().len(), 4);
    let first = &json["cells"][0];
    assert_eq!((&first["working-set"], &first["rate"]), (&(1 << 20).into(), &20_000.into()));
    let device = &first["measured"][2];
    assert_eq!(device["fixed"]["provider"], "device");
    assert_eq!(device["fixed"]["page-size"], "4K");
    assert_eq!(device["moved"]["pages-by-round"], serde_json::json!([16_384, 100, 50]));
    assert_eq!(first["auto"]["ratio"], 1.25);
    assert_eq!(json["settings"]["runs"], 5);
}

/// The names of the elements, in order, after a check that each is closed where it must be.
fn elements(page: &str) -> Vec<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "a stray > in {:?}", &rest[..start]);
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "{tag:?}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag:?}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in the order of opening");
        } else {
            let name = tag.split([' ', '/']).next().expect("a name");
            all.push(name.to_owned());
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        rest = &rest[end + 1..];
    }
    assert_eq!(open, [""; 0], "all are closed");
    all
}

#[test]
fn the_page_is_well_formed_and_whole() {
    let grid = grid();
    let page = html(&grid);
    let elements = elements(&page);
    let count = |name: &str| elements.iter().filter(|element| *element == name).count();
    assert_eq!(count("svg"), 2 * 3, "three plots a working set");
    assert_eq!(count("table"), 4, "a table a cell");
    assert_eq!(count("tr"), 4 * (1 + grid.settings.choices().len()));
    // Five curves with two points, and two rings, in each plot.
    assert_eq!((count("polyline"), count("circle")), (6 * 5, 6 * 12));
    for cell in &grid.cells {
        assert!(page.contains(&place(cell)));
    }
    for (class, count) in [("best", 4), ("worst", 4), ("auto", 4)] {
        assert_eq!(page.matches(&format!("<tr class=\"{class}\">")).count(), count);
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = html(&grid());
    for reference in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn text_cannot_become_markup() {
    assert_eq!(escape("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
}

#[test]
fn figures_for_people() {
    for (value, text) in
        [(512.0, "512"), (1024.0, "1K"), (1.5e6, "1.43M"), (48.0 * 1048576.0, "48M")]
    {
        assert_eq!(bytes(value), text);
    }
    for (ns, text) in [
        (0.0, "0 ns"),
        (-7.4, "-7 ns"),
        (1500.0, "1.5 us"),
        (-25_040.0, "-25 us"),
        (3e6, "3 ms"),
        (1.25e9, "1.25 s"),
    ] {
        assert_eq!(time(ns), text);
    }
}
