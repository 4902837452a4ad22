use std::io::Read;

use super::*;
use crate::io_thread::IoThread;

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let output = Output::new(Some(writer.into()), io.handle());
    // More than a pipe holds, less than the backlog.
    const COUNT: usize = 300_000;
    (0..COUNT).for_each(|i| output.put((i % 251) as u8));
    assert!(!output.drain(), "the pipe is full");
    assert!(!output.flush(Duration::from_millis(1)));
    let mut seen = vec![0; COUNT];
    reader.read_exact(&mut seen).expect("the I/O thread writes on");
    assert!(seen.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8), "in order");
    assert!(output.flush(Duration::from_secs(30)));
    output.put(b'x');
    let mut byte = [0];
    reader.read_exact(&mut byte).expect("at once");
    assert_eq!(byte, [b'x']);
}

#[test]
fn the_backlog_is_bounded_and_what_was_kept_is_in_order() {
    let io = IoThread::start().expect("a thread");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let output = Output::new(Some(writer.into()), io.handle());
    (0..BACKLOG + 200_000).for_each(|i| output.put((i % 251) as u8));
    assert_eq!(output.lock().bytes.len(), BACKLOG);
    assert!(output.lock().lost > 0);
    let mut seen = vec![0; BACKLOG];
    io.handle().unpark();
    reader.read_exact(&mut seen).expect("it is written");
    assert!(seen.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8), "in order");
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let output = Output::new(Some(writer.into()), io.handle());
    drop(reader);
    (0..100).for_each(|_| output.put(b'x'));
    assert!(output.flush(Duration::from_secs(30)));
}

#[test]
fn files_and_nothing() {
    let io = IoThread::start().expect("a thread");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("console");
    for text in ["one", "two"] {
        let (input, output) = ConsoleConfig::File(path.clone()).open().expect("it opens");
        assert!(input.is_none());
        let output = Output::new(output, io.handle());
        text.bytes().for_each(|byte| output.put(byte));
    }
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "onetwo");
    let error = ConsoleConfig::File(dir.path().into()).open().expect_err("a folder");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    let (input, output) = ConsoleConfig::None.open().expect("it opens");
    assert!(input.is_none() && output.is_none());
    Output::new(output, io.handle()).put(b'x');
}

#[test]
fn a_fifo_that_nobody_reads_is_an_error_at_once_and_one_with_a_reader_a_console() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a FIFO");
    let console = || ConsoleConfig::File(path.clone()).opened();
    assert!(matches!(console(), Err(ConsoleError::NoReader(_))));
    let mut reader = File::options().read(true).write(true).open(&path).expect("a reader");
    let Ok(ConsoleConfig::Fds { input: None, output }) = console() else { panic!("no console") };
    let flags = rustix::fs::fcntl_getfl(&output).expect("flags");
    assert!(!flags.contains(OFlags::NONBLOCK));
    rustix::io::write(&output, b"x").expect("a byte");
    let mut byte = [0];
    reader.read_exact(&mut byte).expect("it comes");
    let missing = ConsoleConfig::File(folder.path().join("no/such")).opened();
    assert!(matches!(missing, Err(ConsoleError::Open { .. })));
}
