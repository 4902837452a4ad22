use super::*;

const AT: At = At { record: 3, offset: 99, tag: Some(3) };

/// The checked part, and the contents.
fn payload(builder: &mut PagesBuilder) -> (Vec<u8>, Vec<u8>) {
    let (head, contents) = builder.finish();
    (head.to_vec(), contents.to_vec())
}

/// Pages, and their contents unless they are zero.
type Pages = (Range<u64>, Option<Vec<u8>>);

fn decode((head, contents): &(Vec<u8>, Vec<u8>)) -> Result<Vec<Pages>, WireError> {
    let known = |pages: &Range<u64>| pages.end <= 1000 && pages.start < pages.end;
    let mut decoded = PagesHead::new();
    decoded.decode(head, contents.len() as u64, AT, known)?;
    assert!(decoded.runs.capacity() <= MAX_RUNS, "nothing is allocated for a record");
    let mut rest = &contents[..];
    let mut found = Vec::new();
    for run in &decoded.runs {
        let (pages, count) = (run.range(), usize::try_from(run.pages).unwrap());
        if run.is_zero() {
            found.push((pages, None));
            continue;
        }
        let (own, behind) = rest.split_at(count * PAGE_SIZE);
        found.push((pages, Some(own.to_vec())));
        rest = behind;
    }
    assert!(rest.is_empty());
    match hash_of(contents) == decoded.hash {
        true => Ok(found),
        false => Err(WireError::PageHash { at: AT }),
    }
}

/// Puts pages `first..` with these bytes in, as the engine does.
fn put(builder: &mut PagesBuilder, first: u64, values: &[u8]) {
    let space = builder.space(values.len());
    for (page, value) in space.chunks_mut(PAGE_SIZE).zip(values) {
        page.fill(*value);
    }
    let mut zeroes = 0;
    for page in first..first + values.len() as u64 {
        match builder.take(page, zeroes) {
            Taken::Data => {}
            Taken::Zero => zeroes += 1,
            Taken::Full => panic!("there is room"),
        }
    }
}

fn page(value: u8) -> Vec<u8> {
    vec![value; PAGE_SIZE]
}

#[test]
fn pages_and_zeroes_come_out_as_they_went_in() {
    let mut builder = PagesBuilder::new(true);
    put(&mut builder, 10, &[1, 2, 0, 0, 3]);
    assert!(builder.zeroes(15..800));
    put(&mut builder, 900, &[4]);
    let expected = vec![
        (10..12, Some([page(1), page(2)].concat())),
        (12..14, None),
        (14..15, Some(page(3))),
        (15..800, None),
        (900..901, Some(page(4))),
    ];
    assert_eq!(decode(&payload(&mut builder)).unwrap(), expected);
    assert_eq!(builder.counts(), (4, 787));
    // The buffers are used again, with nothing left over.
    builder.clear();
    assert!(builder.is_empty());
    put(&mut builder, 7, &[9]);
    assert_eq!(decode(&payload(&mut builder)).unwrap(), vec![(7..8, Some(page(9)))]);
}

#[test]
fn a_builder_says_when_it_is_full() {
    let mut builder = PagesBuilder::new(true);
    let mut at = 0;
    while builder.room() > 0 {
        put(&mut builder, at, &[1]);
        at += 1;
    }
    assert_eq!(at, MAX_DATA_PAGES as u64);
    assert!(builder.is_full());
    assert_eq!(builder.take(at, 0), Taken::Full);
    // Runs that do not touch: the number of runs is the limit.
    let mut builder = PagesBuilder::new(true);
    let runs = (0..).take_while(|n| builder.zeroes(n * 2..n * 2 + 1)).count();
    assert!((MAX_RUNS - 1..=MAX_RUNS).contains(&runs), "{runs}");
    assert_eq!(builder.counts().1, runs as u64);
    let count = decode(&payload(&mut builder)).unwrap().len();
    assert_eq!(count, runs);
}

#[test]
fn any_flipped_bit_is_refused_or_changes_no_contents() {
    let mut builder = PagesBuilder::new(true);
    put(&mut builder, 10, &[1, 0, 2]);
    let bytes = payload(&mut builder);
    let good = decode(&bytes).unwrap();
    // The head is under the record's checksum besides; here it may only never panic. Contents are
    // under the hash alone.
    for at in 0..bytes.0.len() * 8 {
        let mut bad = bytes.clone();
        bad.0[at / 8] ^= 1 << (at % 8);
        let _ = decode(&bad);
    }
    for at in (0..bytes.1.len() * 8).step_by(101) {
        let mut bad = bytes.clone();
        bad.1[at / 8] ^= 1 << (at % 8);
        assert!(matches!(decode(&bad), Err(WireError::PageHash { .. })), "bit {at}");
    }
    assert_eq!(decode(&bytes).unwrap(), good);
}

#[test]
fn a_payload_of_any_other_length_is_refused() {
    let mut builder = PagesBuilder::new(true);
    put(&mut builder, 10, &[1, 0, 2]);
    let bytes = payload(&mut builder);
    let (head, contents) = bytes;
    for len in 0..head.len() {
        decode(&(head[..len].to_vec(), contents.clone())).unwrap_err();
    }
    decode(&([&head[..], &[0]].concat(), contents.clone())).unwrap_err();
    for len in (0..contents.len()).step_by(97).chain([contents.len() + 1, 1 << 20]) {
        let mut other = contents.clone();
        other.resize(len, 0);
        let error = decode(&(head.clone(), other)).unwrap_err();
        let named =
            matches!(error, WireError::Size { what: "contents", length, .. } if length == len);
        assert!(named, "{len}: {error}");
    }
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let run = |first: u64, pages: u32, kind: u32| {
        let mut bytes = vec![0; PAGES_HEAD];
        bytes[0] = 1;
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&pages.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&hash_of(&[]).to_le_bytes());
        (bytes, Vec::new())
    };
    assert_eq!(decode(&run(5, 1, KIND_ZERO)).unwrap(), vec![(5..6, None)]);
    for bad in [
        run(5, 0, KIND_ZERO),
        run(999, 2, KIND_ZERO),
        run(u64::MAX, 1, KIND_ZERO),
        run(u64::MAX - 1, u32::MAX, KIND_ZERO),
        run(5, u32::MAX, KIND_DATA),
        run(5, 1, 2),
    ] {
        decode(&bad).unwrap_err();
    }
    let mut none = run(5, 1, KIND_ZERO);
    none.0[0] = 0;
    assert!(matches!(decode(&none), Err(WireError::Value { what: "number of runs", .. })));
    none.0[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode(&none), Err(WireError::Value { what: "number of runs", .. })));
}

#[test]
fn zero_pages_are_told_from_almost_zero_ones() {
    let mut contents = page(0);
    assert!(is_zero(&contents));
    for at in [0, 1, 7, 8, 255, 256, 4000, 4095] {
        contents[at] = 1;
        assert!(!is_zero(&contents), "byte {at}");
        contents[at] = 0;
    }
}
