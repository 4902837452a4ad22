use super::*;

#[test]
fn entries_name_side_phase_and_action() {
    let hooks: TestHooks = "source:ready=kill; destination:commit=wait:/tmp/x".parse().unwrap();
    let seen: Vec<_> = hooks.entries.iter().map(|e| (e.side, e.phase, e.action.clone())).collect();
    assert_eq!(
        seen,
        [
            (Side::Source, Phase::Ready, Action::Kill),
            (Side::Destination, Phase::Commit, Action::Wait("/tmp/x".into())),
        ]
    );
}

#[test]
fn what_cannot_be_understood_is_named() {
    for bad in ["ready=kill", "source:nowhere=kill", "source:ready=explode", "middle:ready=cut"] {
        let error = bad.parse::<TestHooks>().unwrap_err().to_string();
        assert!(error.contains(bad), "{error}");
    }
}

#[test]
fn a_cut_happens_once_and_only_there() {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut hooks: TestHooks = "source:bulk=cut".parse().unwrap();
    hooks.reached(Side::Destination, Phase::Bulk, Some(&near));
    hooks.reached(Side::Source, Phase::Setup, Some(&near));
    let read = |stream: &UnixStream| std::io::Read::read(&mut &*stream, &mut [0; 1]);
    assert_eq!(read(&far).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    hooks.reached(Side::Source, Phase::Bulk, Some(&near));
    assert_eq!(read(&far).unwrap(), 0);
}
