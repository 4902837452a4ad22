use proptest::prelude::*;

use super::*;

/// Data of the sessions that the frames carried; the last one counts.
fn parse(frames: &[u8], piece: usize) -> Result<(Vec<Vec<u8>>, Parser), FrameError> {
    let mut sessions = vec![Vec::new()];
    let mut parser = Parser::default();
    for bytes in frames.chunks(piece.max(1)) {
        parser.feed(bytes, |part| {
            match part {
                Part::Restart => sessions.push(Vec::new()),
                Part::Data(data) => {
                    sessions.last_mut().expect("one at least").extend_from_slice(data);
                }
            }
            Ok::<_, FrameError>(())
        })?;
    }
    Ok((sessions, parser))
}

fn data(bytes: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; HEADER + bytes.len()];
    payload(&mut buf).expect("room").copy_from_slice(bytes);
    assert_eq!(finish_data(&mut buf, bytes.len()), buf.len());
    buf
}

fn restart() -> Vec<u8> {
    let mut buf = vec![0; HEADER];
    assert_eq!(put_restart(&mut buf), HEADER);
    buf
}

#[test]
fn any_pieces_give_the_same_sessions() {
    let frames = [data(b"old"), restart(), data(b"new "), data(b"state")].concat();
    for piece in 1..=frames.len() {
        let (sessions, parser) = parse(&frames, piece).expect("good frames");
        assert_eq!(sessions, [b"old".to_vec(), b"new state".to_vec()], "pieces of {piece}");
        assert_eq!(parser.finish(), Ok(()));
    }
}

#[test]
fn a_cut_is_noticed() {
    let frames = data(b"state");
    for len in 1..frames.len() {
        let (_, parser) = parse(&frames[..len], len).expect("good so far");
        assert_eq!(parser.finish(), Err(FrameError::Truncated), "{len}");
    }
}

#[test]
fn frames_that_nobody_sends_are_refused() {
    for (kind, len) in [(0, 0), (0, 4), (1, 0), (1, 0x0010_0001), (1, u32::MAX), (2, 1), (3, 1)] {
        let [a, b, c, d] = u32::to_le_bytes(len);
        let refused = parse(&[kind, a, b, c, d, 0, 0, 0, 0], 9).err();
        assert_eq!(refused, Some(FrameError::Header { kind, len }));
    }
}

#[test]
fn small_buffers_hold_no_frame() {
    let mut buf = [0; HEADER];
    assert!(payload(&mut buf).is_none());
    assert_eq!(put_restart(&mut buf[..HEADER - 1]), 0);
}

proptest! {
    #[test]
    fn random_frames_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), piece in 1..9_usize) {
        if let Ok((sessions, _)) = parse(&bytes, piece) {
            prop_assert!(sessions.iter().map(Vec::len).sum::<usize>() <= bytes.len());
        }
    }
}
