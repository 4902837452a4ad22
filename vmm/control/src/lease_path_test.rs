use super::*;

#[test]
fn a_new_lease_lies_in_a_private_folder() {
    let path = of(VmId([7; 16])).unwrap();
    let folder = path.parent().unwrap();
    assert!(is_private(folder).unwrap());
    assert!(path.to_string_lossy().ends_with(".lease"));
}

#[test]
fn a_link_or_an_open_folder_is_not_private() {
    let base = std::env::temp_dir().join(format!("drogher-private-{}", std::process::id()));
    std::fs::create_dir_all(base.join("open")).unwrap();
    std::os::unix::fs::symlink(base.join("open"), base.join("link")).unwrap();
    std::fs::set_permissions(
        base.join("open"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    assert!(!is_private(&base.join("open")).unwrap());
    assert!(!is_private(&base.join("link")).unwrap());
    std::fs::remove_dir_all(&base).unwrap();
}
