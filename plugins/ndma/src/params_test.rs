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

#[test]
fn a_word_or_a_size_that_is_none_is_refused_with_those_that_are() {
    let cases = [
        ("log", "yes", "off, on, shared"),
        ("pin", "", "off, some, all"),
        ("ndma", "true", "on, off"),
        ("prefers", "dbits", "none, iommu, device, pinned, fault, all"),
        ("log_min_kib", "3", "4"),
        ("log_min_kib", "12", "power of two"),
        ("log_max_kib", "4096", "2048"),
        ("log_max_kib", "96", "power of two"),
        ("prefers_page_kib", "2", "power of two"),
        ("prefers_page_kib", "5000", "2048"),
    ];
    for (name, value, expected) in cases {
        let ways = Params::new(SPECS, &[(name, value)]).and_then(|params| Ways::new(&params));
        let text = ways.unwrap_err().to_string();
        assert!(text.contains(&format!("{name}={value}")) && text.contains(expected), "{text}");
    }
    let params = Params::new(SPECS, &[("log_min_kib", "64"), ("log_max_kib", "16")]).unwrap();
    let text = Ways::new(&params).unwrap_err().to_string();
    assert!(text.contains("log_min_kib=64: more than log_max_kib=16"), "{text}");
}
