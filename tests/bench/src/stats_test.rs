use super::*;

fn summary(values: &[f64]) -> Summary {
    values.iter().copied().collect::<Samples>().summary().expect("numbers")
}

#[test]
fn the_order_of_measuring_does_not_matter_and_is_kept() {
    let said = summary(&[9.0, 1.0, 5.0, 3.0, 7.0]);
    assert_eq!((said.n, said.median, said.p25, said.p75), (5, 5.0, 3.0, 7.0));
    assert_eq!((said.min, said.max), (1.0, 9.0));
    assert_eq!(said.samples, [9.0, 1.0, 5.0, 3.0, 7.0]);
}

#[test]
fn quantiles_lie_between_neighbours() {
    let said = summary(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!((said.median, said.p25, said.p75), (2.5, 1.75, 3.25));
    assert_eq!(summary(&[4.0]).p25, 4.0);
}

#[test]
fn nothing_is_said_of_nothing() {
    assert_eq!(Samples::default().summary(), None);
    assert_eq!([1.0, f64::NAN].into_iter().collect::<Samples>().summary(), None);
}
