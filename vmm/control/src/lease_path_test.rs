use super::*;

#[test]
fn a_new_lease_lies_in_a_private_folder_and_is_known_as_ours() {
    let path = of(VmId([7; 16])).unwrap();
    let folder = path.parent().unwrap();
    assert!(is_private(folder).unwrap());
    assert!(is_ours(&path));
    assert!(!is_ours(&folder.join("mine.lease")));
    assert!(!is_ours(Path::new("/somewhere/drogher-0.lease")));
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
