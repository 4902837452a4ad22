use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use drogher_plugin_host::{Received, Wires};
use tempfile::TempDir;

use super::{FrameReader, TooLong, put_frame};
use crate::{Ports, WireSpec};

const PATIENCE: Duration = Duration::from_secs(20);

fn ports(path: &Path) -> Ports {
    Ports::prepare(&[WireSpec::Unix(path.into())], None, false).unwrap()
}

/// A wire that is prepared, and who listens at its end.
fn prepared() -> (TempDir, UnixListener, Ports) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let listener = UnixListener::bind(&path).unwrap();
    let ports = ports(&path);
    (folder, listener, ports)
}

fn accept(listener: &UnixListener) -> UnixStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn next(peer: &mut UnixStream) -> Vec<u8> {
    let mut head = [0; 4];
    peer.read_exact(&mut head).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(head) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

fn wait(ports: &Ports) -> Vec<u8> {
    let begin = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    loop {
        assert!(begin.elapsed() < PATIENCE, "no frame");
        ports.wait(1, Duration::from_millis(100), &|| true);
        if let Received::Frame(len) = ports.receive(0, &mut buffer) {
            return buffer[..len].to_vec();
        }
    }
}

#[test]
fn a_stream_is_cut_into_frames_however_it_comes() {
    let frames = [vec![1; 14], Vec::new(), vec![2; 65536], vec![3; 60]];
    let mut stream = Vec::new();
    frames.iter().for_each(|frame| put_frame(&mut stream, frame));
    for piece in [1, 3, 4, 1000, stream.len()] {
        let (mut reader, mut found) = (FrameReader::default(), Vec::new());
        for piece in stream.chunks(piece) {
            reader.feed(piece, |frame| found.push(frame.to_vec())).unwrap();
        }
        assert_eq!(found, frames, "in pieces of {piece}");
    }
    let long = 65537_u32.to_be_bytes();
    assert_eq!(FrameReader::default().feed(&long, |_| ()), Err(TooLong(65537)));
}

#[test]
fn frames_pass_both_ways_and_a_prepared_wire_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let error = Ports::prepare(&[WireSpec::Unix(path.clone())], None, false).unwrap_err();
    assert!(error.to_string().contains("start the other end first"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let ports = ports(&path);
    let mut peer = accept(&listener);
    ports.send(0, &[1; 60]);
    peer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(peer.read(&mut [0]).is_err(), "nothing, and no end either");
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    ports.activate();
    ports.send(0, &[2; 60]);
    assert_eq!(next(&mut peer), [2; 60]);
    let mut stream = Vec::new();
    put_frame(&mut stream, &[3; 1514]);
    put_frame(&mut stream, &[4; 14]);
    peer.write_all(&stream).unwrap();
    assert_eq!((wait(&ports), wait(&ports)), (vec![3; 1514], vec![4; 14]));
}

/// What QEMU does: one connection at a time. A destination is prepared while the source is active.
#[test]
fn a_peer_with_one_connection_at_a_time_sees_one_wire_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let listener = UnixListener::bind(&path).unwrap();
    let source = ports(&path);
    let mut peer = accept(&listener);
    source.activate();
    let destination = ports(&path);
    source.send(0, &[1; 60]);
    assert_eq!(next(&mut peer), [1; 60], "the source is not disturbed");
    source.deactivate();
    source.send(0, &[9; 60]);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end, at once");
    let mut peer = accept(&listener);
    destination.activate();
    destination.send(0, &[2; 60]);
    assert_eq!(next(&mut peer), [2; 60]);
    drop(destination);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    // The move was given up: the source comes back.
    source.activate();
    let mut peer = accept(&listener);
    let begin = Instant::now();
    while source.counts()[0].sent == 1 {
        assert!(begin.elapsed() < PATIENCE, "not connected");
        source.send(0, &[3; 60]);
    }
    assert_eq!(next(&mut peer), [3; 60]);
}

#[test]
fn a_peer_that_goes_away_or_talks_rubbish_is_connected_to_anew() {
    let (_folder, listener, ports) = prepared();
    ports.activate();
    drop(accept(&listener));
    let mut peer = accept(&listener);
    peer.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut peer = accept(&listener);
    let mut stream = Vec::new();
    put_frame(&mut stream, &[5; 100]);
    peer.write_all(&stream).unwrap();
    assert_eq!(wait(&ports), [5; 100]);
}

/// A peer that serves others meanwhile, or whose guest is not to be had, may do this for hours.
#[test]
fn a_peer_that_ends_every_connection_is_not_asked_without_a_pause() {
    let (_folder, listener, ports) = prepared();
    ports.activate();
    let begin = Instant::now();
    for _ in 0..10 {
        drop(accept(&listener));
    }
    assert!(begin.elapsed() > Duration::from_millis(100), "one every 20 ms, not more");
}

#[test]
fn a_peer_that_takes_nothing_more_is_connected_to_anew() {
    let (_folder, listener, ports) = prepared();
    ports.activate();
    let half = accept(&listener);
    half.shutdown(std::net::Shutdown::Read).unwrap();
    listener.set_nonblocking(true).unwrap();
    let begin = Instant::now();
    let mut peer = loop {
        ports.send(0, &[1; 60]);
        if let Ok((peer, _)) = listener.accept() {
            break peer;
        }
        assert!(begin.elapsed() < PATIENCE, "it stays with the half connection");
        std::thread::sleep(Duration::from_millis(5));
    };
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = ports.counts()[0].sent;
    while ports.counts()[0].sent == sent {
        assert!(begin.elapsed() < PATIENCE, "not connected");
        ports.send(0, &[1; 60]);
    }
    assert_eq!(next(&mut peer), [1; 60]);
}

/// So also where no thread could be had for it.
#[test]
fn a_wire_that_was_only_prepared_is_given_back_too() {
    let (_folder, listener, ports) = prepared();
    let mut peer = accept(&listener);
    ports.deactivate();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end");
    ports.activate();
    let mut peer = accept(&listener);
    let mut stream = Vec::new();
    put_frame(&mut stream, &[5; 100]);
    peer.write_all(&stream).unwrap();
    assert_eq!(wait(&ports), [5; 100]);
}

/// Frames that the socket has no room for are dropped whole: the peer never sees half a frame.
#[test]
fn a_peer_that_does_not_read_costs_frames_not_time() {
    let (_folder, listener, ports) = prepared();
    ports.activate();
    let mut peer = accept(&listener);
    for number in 0..2000_u32 {
        let mut frame = vec![number as u8; 1500];
        frame[..4].copy_from_slice(&number.to_le_bytes());
        ports.send(0, &frame);
    }
    let counts = ports.counts()[0];
    assert!(counts.sent_dropped > 0 && counts.sent > 10, "{counts:?}");
    let mut last = None;
    for _ in 0..counts.sent {
        let frame = next(&mut peer);
        let number = u32::from_le_bytes(frame[..4].try_into().unwrap());
        assert_eq!(frame[4..], vec![number as u8; 1496]);
        assert!(last < Some(number), "in order");
        last = Some(number);
    }
}
