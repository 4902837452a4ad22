use super::*;

/// What a run says of all that the rows need.
fn output() -> String {
    let mut text =
        String::from("write    64B: tracked 14.6 ns\niotlb_hit_ns=10\niotlb_miss_ns=30\n");
    for size in ["64B", "4KiB", "64KiB"] {
        text += &format!("write_{size}_tracked_ns=20.0\nwrite_{size}_after_clear_ns=25\n");
        for of in ["untracked", "direct", "memcpy"] {
            text += &format!("write_{size}_tracked_over_{of}_speed=0.500\n");
        }
    }
    for (leaves, _) in LEAVES {
        for (fill, _) in FILLS {
            let key = format!("harvest_{leaves}_{fill}");
            text += &format!("{key}_us_per_gib=50\n{key}_time_over_scan=0.25\n");
        }
    }
    text += "unmap_dirty_time_over_plain=1.4\nunmap_leaves_dirty_time_over_plain=1.1\n";
    text
}

#[test]
fn speeds_become_times() {
    let section = rows(&[figures(&output()), figures(&output())]).expect("all is there");
    let row = |metric: &str, against: &str| {
        let of = |row: &&Row| row.metric == metric && row.against == against;
        section.rows.iter().find(of).expect("a row").clone()
    };
    let write = row("DMA write of 4KiB, tracked", "memcpy");
    assert_eq!(write.ours.map(|said| (said.median, said.n)), Some((20.0, 2)));
    assert_eq!(write.theirs.map(|said| said.median), Some(10.0));
    let harvest =
        row("read_and_clear_dirty per GiB, 4 KiB leaves, 1 % dirty", "scan of as many entries");
    assert_eq!(harvest.ratio, Some(0.25));
    assert_eq!(row("access without a copy, IOTLB miss", "hit").ratio, Some(3.0));
}

#[test]
fn a_figure_that_is_missing_is_named() {
    let cut = output().replace("iotlb_miss_ns=30\n", "");
    let error = rows(&[figures(&cut)]).expect_err("one is missing");
    assert!(error.to_string().contains("iotlb_miss_ns"), "{error}");
}
