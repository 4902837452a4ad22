use super::*;

/// A listening socket whose queue is full, and what fills it.
fn full(path: &Path) -> (rustix::fd::OwnedFd, Vec<UnixStream>) {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = connect(path, Duration::ZERO, || false) {
        filling.push(stream);
    }
    (socket, filling)
}

#[test]
fn a_socket_is_private_and_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (listener, file) = listen(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    drop(file);
    assert!(!path.exists());
    drop(listener);
    drop(UnixListener::bind(&path).unwrap());
    assert!(listen(&path).is_ok());
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(listen(&file), Err(SocketError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn the_name_of_a_successor_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (_listener, file) = listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (_successor, theirs) = listen(&path).unwrap();
    drop(file);
    assert!(path.exists(), "it is the successor's");
    drop(theirs);
    assert!(!path.exists());
}

#[test]
fn a_full_queue_is_an_error_in_time_and_no_dead_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _full = full(&path);
    let error = connect(&path, Duration::from_millis(30), || false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let mut asked = 0;
    let error = connect(&path, Duration::from_secs(3600), || {
        asked += 1;
        asked == 3
    });
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
    assert!(path.exists());
}

#[test]
fn a_full_queue_that_moves_on_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (socket, _filling) = full(&path);
    let accepting = std::thread::spawn(move || rustix::net::accept(&socket).map(|fd| (fd, socket)));
    connect(&path, Duration::from_secs(60), || false).unwrap();
    accepting.join().unwrap().unwrap();
}

#[test]
fn a_peer_in_this_process_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (_listener, _file) = listen(&path).unwrap();
    let stream = connect(&path, Duration::ZERO, || false).unwrap();
    assert!(peer_is_us(&stream) && peer_is_self(&stream));
}
