use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::{Pcap, QUEUE};
use crate::WireError;

/// Frames of a capture, with their times in ns, by the format's description.
pub fn read(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(16), word(20)), (0xa1b2_3c4d, 65536, 1));
    assert_eq!(bytes[4..8], [2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
    let (mut at, mut frames) = (24, Vec::new());
    while at < bytes.len() {
        let (seconds, nanos, len) = (word(at), word(at + 4), word(at + 8) as usize);
        assert!(nanos < 1_000_000_000);
        assert_eq!(word(at + 12) as usize, len, "nothing is cut off");
        let time = u64::from(seconds) * 1_000_000_000 + u64::from(nanos);
        frames.push((time, bytes[at + 16..at + 16 + len].to_vec()));
        at += 16 + len;
    }
    frames
}

#[test]
fn a_capture_grows_over_several_openings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pcap");
    assert!(matches!(Pcap::open(&path, false), Err(WireError::Capture { .. })), "not there");
    Pcap::open(&path, true).unwrap().write(&[1; 14]);
    let second = Pcap::open(&path, false).unwrap();
    second.write(&[2; 1514]);
    second.write(&[3; 60]);
    drop(second);
    let frames = read(&std::fs::read(&path).unwrap());
    let bytes: Vec<_> = frames.iter().map(|(_, frame)| frame.clone()).collect();
    assert_eq!(bytes, [vec![1; 14], vec![2; 1514], vec![3; 60]]);
    assert!(frames.is_sorted_by_key(|(time, _)| *time));
    assert!(frames[0].0 > 1_700_000_000_000_000_000);
}

#[test]
fn other_files_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    for bytes in [&b"something else, of more than 24 bytes"[..], b"short"] {
        std::fs::write(&path, bytes).unwrap();
        for create in [false, true] {
            assert!(matches!(Pcap::open(&path, create), Err(WireError::NotCapture { .. })));
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Pcap::open(&path, false), Err(WireError::NotCapture { .. })), "empty");
    assert!(Pcap::open(folder.path(), true).is_err(), "a folder");
}

/// Each write waits to be let.
struct Slow {
    gate: Receiver<()>,
    out: Sender<Vec<u8>>,
}

impl Write for Slow {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        self.gate.recv().map_err(|_| std::io::Error::other("the test is over"))?;
        self.out.send(record.to_vec()).map_err(std::io::Error::other)?;
        Ok(record.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_and_loses_only_what_is_too_much() {
    let ((go, gate), (out, written)) = (channel(), channel());
    let capture = Pcap::to(Path::new("slow"), Slow { gate, out }).unwrap();
    let begin = Instant::now();
    for number in 0..QUEUE * 2 {
        capture.write(&[number as u8; 20]);
    }
    capture.settle();
    assert!(begin.elapsed() < Duration::from_secs(20), "it does not wait for the disk");
    // One more may be in the thread's hands.
    let kept = capture.waiting.load(super::Ordering::SeqCst);
    assert!((QUEUE..=QUEUE + 1).contains(&kept), "{kept} kept");
    for _ in 0..kept {
        go.send(()).unwrap();
    }
    for number in 0..kept {
        let record = written.recv_timeout(Duration::from_secs(20)).unwrap();
        // The thread may have taken the first before the last that found room came.
        assert_eq!(record.len(), 36);
        assert!(number >= QUEUE || record[16..] == [number as u8; 20], "in order");
    }
}
