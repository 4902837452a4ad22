use std::io::Write as _;
use std::time::{Duration, Instant};

use super::*;
use crate::io_thread::IoThread;

const LONG: Duration = Duration::from_secs(30);
const BASE: PioAddress = PioAddress(0x3F8);

fn com1(io: &IoThread) -> Arc<Com1> {
    Com1::new(Output::new(None, io.handle()), io.handle()).expect("an eventfd")
}

fn read(com1: &Com1, offset: u16) -> u8 {
    let mut byte = [0xFF];
    com1.pio_read(BASE, offset, &mut byte);
    byte[0]
}

/// The next received byte, once there is one.
fn receive(com1: &Com1) -> u8 {
    let until = Instant::now() + LONG;
    while read(com1, 5) & 1 == 0 {
        assert!(Instant::now() < until, "no byte comes");
        std::thread::yield_now();
    }
    read(com1, 0)
}

#[test]
fn input_larger_than_the_fifo_arrives_whole() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let com1 = com1(&io);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    com1.attach_input(reader.into()).expect("watched");
    let text: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
    writer.write_all(&text).expect("the pipe takes it");
    drop(writer);
    let seen: Vec<u8> = text.iter().map(|_| receive(&com1)).collect();
    assert_eq!(seen, text);
}

#[test]
fn state_moves_with_unread_input_and_pending_interrupt() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let source = com1(&io);
    source.pio_write(BASE, 1, &[0x01]);
    source.pio_write(BASE, 7, &[0x5A]);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    source.attach_input(reader.into()).expect("watched");
    writer.write_all(b"abc").expect("the pipe takes it");
    let until = Instant::now() + LONG;
    while source.save().len() < 12 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(source.interrupt().read().ok(), Some(1), "it has asked for attention");
    let state = source.save();
    let destination = com1(&io);
    destination.load(&state).expect("it is valid");
    assert_eq!(destination.save(), state);
    assert!(destination.interrupt().read().is_err(), "which the controllers know, so once only");
    assert_eq!(read(&destination, 7), 0x5A);
    assert_eq!([(); 3].map(|()| receive(&destination)), *b"abc");
}

#[test]
fn wrong_state_is_refused() {
    let io = IoThread::start().expect("a thread");
    let com1 = com1(&io);
    let good = com1.save();
    for bad in [0, 8, 9 + 65, 4096] {
        let error = com1.load(&vec![0; bad]);
        assert!(matches!(error, Err(StateError::Device { .. })), "{bad} bytes: {error:?}");
    }
    assert_eq!(com1.save(), good, "a refused state changes nothing");
    com1.load(&[0xFF; 9 + 64]).expect("any register value is one that a guest may have set");
    for offset in 0..16 {
        read(&com1, offset);
        com1.pio_write(BASE, offset, &[0xFF]);
    }
    com1.pio_write(BASE, 0, &[]);
}
