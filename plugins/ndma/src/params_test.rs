use super::*;

fn pages(given: &[(&str, &str)]) -> Result<usize, Failure> {
    scratch_pages(&Params::new(SPECS, given)?)
}

#[test]
fn sizes_are_whole_pages() {
    assert_eq!(pages(&[]).unwrap(), 16);
    assert_eq!(pages(&[("scratch_kib", "4")]).unwrap(), 1);
    assert_eq!(pages(&[("scratch_kib", "65536")]).unwrap(), 16384);
}

#[test]
fn a_refusal_names_the_parameter_and_the_value() {
    for value in ["0", "3", "6", "65540", "-4", "lots", ""] {
        let text = pages(&[("scratch_kib", value)]).unwrap_err().to_string();
        assert!(text.contains(&format!("scratch_kib={value}")), "{text}");
    }
    let text = pages(&[("scratch_mib", "1")]).unwrap_err().to_string();
    assert!(text.contains("scratch_mib") && text.contains("scratch_kib"), "{text}");
}
