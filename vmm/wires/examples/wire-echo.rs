//! A host at the end of a `unix:` wire: answers ARP and ICMP echo for one IPv4 address.
//!
//!     wire-echo SOCKET ADDRESS
//!
//! It serves one connection at a time, as QEMU does: a guest that moves is served on by the next.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};

use drogher_wires::{FrameReader, put_frame};

/// Its Ethernet address.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0xd7, 0x0e, 0xff];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];

/// The Internet checksum; 0 over what holds a right one.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The answer to a frame, if it has one.
fn answer(frame: &[u8], own: [u8; 4]) -> Option<Vec<u8>> {
    let kind = frame.get(12..14)?;
    let mut reply = frame.to_vec();
    reply[..6].copy_from_slice(frame.get(6..12)?);
    reply[6..12].copy_from_slice(&MAC);
    if kind == ARP && frame.len() >= 42 && frame[20..22] == [0, 1] && frame[38..42] == own {
        reply[21] = 2;
        let (who, asker) = (own, frame[22..32].to_vec());
        reply[22..28].copy_from_slice(&MAC);
        reply[28..32].copy_from_slice(&who);
        reply[32..42].copy_from_slice(&asker);
        return Some(reply);
    }
    if kind != IPV4 || frame.len() < 42 || frame[14] != 0x45 || frame[23] != 1 {
        return None;
    }
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let echo = frame.get(34..end).filter(|echo| echo.len() >= 8 && echo[0] == 8)?;
    if frame[30..34] != own || checksum(echo) != 0 || checksum(&frame[14..34]) != 0 {
        return None;
    }
    reply[26..30].copy_from_slice(&own);
    reply[30..34].copy_from_slice(&frame[26..30]);
    reply[34] = 0;
    reply[36..38].copy_from_slice(&[0; 2]);
    let sum = checksum(&reply[34..end]);
    reply[36..38].copy_from_slice(&sum.to_be_bytes());
    Some(reply)
}

fn serve(mut stream: UnixStream, own: [u8; 4]) -> std::io::Result<usize> {
    let (mut frames, mut buffer, mut answered) = (FrameReader::default(), vec![0; 1 << 16], 0);
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(answered);
        }
        let mut out = Vec::new();
        let fed = frames.feed(&buffer[..len], |frame| {
            if let Some(reply) = answer(frame, own) {
                put_frame(&mut out, &reply);
                answered += 1;
            }
        });
        if fed.is_err() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        stream.write_all(&out)?;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(address)) = (args.next(), args.next()) else {
        return Err("use: wire-echo SOCKET ADDRESS".into());
    };
    let own = address.parse::<Ipv4Addr>()?.octets();
    let listener = UnixListener::bind(path)?;
    for stream in listener.incoming() {
        match serve(stream?, own) {
            Ok(answered) => println!("served a connection: {answered} answers"),
            Err(error) => println!("a connection ended: {error}"),
        }
    }
    Ok(())
}
