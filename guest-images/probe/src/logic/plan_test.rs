use super::*;
use std::collections::HashMap;

fn source() -> Vec<u8> {
    (0..SOURCE).map(|n| (n % 251) as u8).collect()
}

#[test]
fn plans_stay_inside_and_use_every_operation() {
    for scratch in [0, 100, 5000, 1 << 20] {
        let mut planner = Planner::new(7, 16, scratch);
        let (source, mut cell, mut own) = (source(), vec![0; CELL], vec![0; scratch]);
        let mut seen = HashMap::new();
        for _ in 0..5000 {
            let plan = planner.plan();
            assert!(plan.len >= 1);
            assert!(plan.apply(&source, &mut cell, &mut own).is_some(), "{plan:?}");
            assert_eq!(plan.cell.is_some(), !plan.pieces().is_empty());
            if plan.cell.is_some() {
                assert_eq!(plan.pieces().iter().map(|piece| piece.len).sum::<usize>(), plan.len);
            }
            if plan.op == Op::Checksum {
                assert_eq!((plan.len % 8, plan.source % 8), (0, 0));
            }
            *seen.entry(plan.op as u16).or_insert(0) += 1;
        }
        let ops = if scratch == 0 { 4 } else { 6 };
        assert_eq!(seen.len(), ops, "scratch {scratch}: {seen:?}");
    }
}

#[test]
fn scratch_is_stored_before_it_is_loaded() {
    let mut planner = Planner::new(1, 16, 20_000);
    for round in 0..2 {
        let mut known = 0;
        for _ in 0..3 {
            let plan = planner.plan();
            assert_eq!((plan.op, plan.scratch), (Op::Store, known), "round {round}");
            known += plan.len;
        }
        assert_eq!(known, 20_000);
        planner.forget_scratch();
    }
}

#[test]
fn a_batch_names_no_cell_twice() {
    let mut planner = Planner::new(3, 64, 4096);
    let mut last: HashMap<usize, usize> = HashMap::new();
    for n in 0..10_000 {
        let Some(cell) = planner.plan().cell else { continue };
        if let Some(before) = last.insert(cell, n) {
            assert!(n - before >= 64, "cell {cell} at {before} and {n}");
        }
    }
    assert_eq!(last.len(), 64);
}

#[test]
fn apply_does_what_the_datasheet_says() {
    let source = source();
    let (mut cell, mut own) = (vec![0xee; CELL], vec![0; CELL]);
    let plan = |op, pieces: &[Piece]| {
        let mut all = [Piece::default(); PIECES];
        all[..pieces.len()].copy_from_slice(pieces);
        let len = pieces.iter().map(|piece| piece.len).sum();
        let (source, scratch, pattern) = (3, 5, 0x0807_0605_0403_0201);
        Plan { op, cell: Some(0), source, scratch, len, pattern, pieces: all, used: pieces.len() }
    };
    let at = |offset, len| Piece { offset, len };

    assert_eq!(plan(Op::Copy, &[at(10, 20)]).apply(&source, &mut cell, &mut own), Some(20));
    assert_eq!(cell[10..30], source[3..23]);
    assert_eq!((cell[9], cell[30]), (0xee, 0xee));

    assert_eq!(plan(Op::Fill, &[at(1, 11)]).apply(&source, &mut cell, &mut own), Some(11));
    assert_eq!(cell[1..12], [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]);

    let pieces = [at(100, 4), at(200, 2)];
    assert_eq!(plan(Op::Scatter, &pieces).apply(&source, &mut cell, &mut own), Some(6));
    assert_eq!((&cell[100..104], &cell[200..202]), (&source[3..7], &source[7..9]));
    assert_eq!((cell[104], cell[202]), (0xee, 0xee));

    assert_eq!(plan(Op::Store, &[at(0, 8)]).apply(&source, &mut cell, &mut own), Some(8));
    assert_eq!(own[5..13], source[3..11]);
    assert_eq!(plan(Op::Load, &[at(300, 8)]).apply(&source, &mut cell, &mut own), Some(8));
    assert_eq!(cell[300..308], source[3..11]);

    let sum = plan(Op::Checksum, &[at(0, 16)]).apply(&source, &mut cell, &mut own);
    assert_eq!(sum, Some(checksum(&source[3..19])));
    assert_eq!(plan(Op::Copy, &[at(CELL - 1, 2)]).apply(&source, &mut cell, &mut own), None);
}
