use super::*;

#[test]
fn every_page_gets_its_turn_and_its_generation() {
    for count in [1, 2, 3, 7, 64, 100, 4096] {
        let mut share = Share::new(9, 50, count);
        let mut held = vec![0; usize::try_from(count).expect("Small")];
        for round in 0..3 * count + 1 {
            let turn = share.turn();
            let place = usize::try_from(turn.index - 50).expect("Small");
            assert_eq!(held[place], turn.generation, "count {count} round {round}");
            held[place] += 1;
            share.advance();
            if count <= 100 || round % 997 == 0 {
                for (place, generation) in held.iter().enumerate() {
                    let index = 50 + u64::try_from(place).expect("Small");
                    assert_eq!(share.content(index).generation, *generation);
                }
            }
        }
    }
}

#[test]
fn shares_cover_the_working_set_once() {
    for (pages, of) in [(4096, 1), (4096, 3), (5, 4), (3, 8)] {
        let mut next = 0;
        for n in 0..of {
            let (first, count) = Share::part(1, pages, n, of).range();
            assert_eq!(first, next);
            next = first + count;
        }
        assert_eq!(next, pages);
    }
}

#[test]
fn any_wrong_bit_is_found() {
    let content = Content { index: 3, seed: 1, generation: 8 };
    let mut page = [0; WORDS];
    content.write(&mut page);
    assert_eq!(content.check(&page), Ok(()));
    for word in [0, 1, 2, 3, 4, 255, 511] {
        for bit in [0, 17, 63] {
            let good = page[word];
            page[word] ^= 1 << bit;
            let wrong = Wrong { word, want: good, got: page[word] };
            assert_eq!(content.check(&page), Err(wrong));
            page[word] = good;
        }
    }
}

#[test]
fn an_older_page_or_a_swapped_page_is_wrong() {
    let content = Content { index: 3, seed: 1, generation: 8 };
    let mut page = [0; WORDS];
    for other in [
        Content { generation: 7, ..content },
        Content { index: 4, ..content },
        Content { seed: 2, ..content },
    ] {
        other.write(&mut page);
        assert!(content.check(&page).is_err(), "{other:?}");
        // The words after the head differ as well: half a page of each is found too.
        let mut half = [0; WORDS];
        content.write(&mut half);
        half[256..].copy_from_slice(&page[256..]);
        assert_eq!(content.check(&half).map_err(|wrong| wrong.word), Err(256));
    }
}

#[test]
fn numbers_stay_below_their_bound() {
    let mut rng = Rng::new(4);
    assert!((0..1000).all(|_| rng.below(7) < 7));
    assert_eq!(rng.below(0), 0);
}
