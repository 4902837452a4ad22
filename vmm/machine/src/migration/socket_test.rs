use super::*;

const SHORT: Duration = Duration::from_millis(20);

fn pair() -> (SocketLink, SocketLink) {
    let (a, b) = UnixStream::pair().unwrap();
    (SocketLink::new(a).unwrap(), SocketLink::new(b).unwrap())
}

#[test]
fn bytes_arrive_in_order() {
    let (mut a, mut b) = pair();
    let sent = a.send(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")], SHORT).unwrap();
    let mut buf = [0; 8];
    let got = b.receive(&mut buf, SHORT).unwrap();
    assert_eq!((sent, &buf[..got]), (4, &b"abcd"[..]));
}

#[test]
fn silence_and_a_full_socket_time_out_and_leave_the_link_usable() {
    let (mut a, mut b) = pair();
    let mut buf = [0; 4096];
    assert!(matches!(b.receive(&mut buf, Duration::ZERO), Err(LinkError::TimedOut(_))));
    assert!(matches!(b.receive(&mut buf, SHORT), Err(LinkError::TimedOut(_))));
    let full = loop {
        if let Err(error) = a.send(&[IoSlice::new(&[7; 4096])], SHORT) {
            break error;
        }
    };
    assert!(matches!(full, LinkError::TimedOut(_)), "{full}");
    assert!(b.receive(&mut buf, SHORT).unwrap() > 0);
}

#[test]
fn a_cut_is_seen_by_both() {
    let (mut a, mut b) = pair();
    a.handle().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(b.receive(&mut [0; 8], SHORT), Err(LinkError::Closed)));
    assert!(matches!(a.receive(&mut [0; 8], SHORT), Err(LinkError::Closed)));
    assert!(matches!(a.send(&[IoSlice::new(b"x")], SHORT), Err(LinkError::Closed)));
}

/// For a record of 256 KiB at least, where the host's limits let it.
#[test]
fn there_is_room_for_what_is_on_its_way() {
    let (a, _b) = pair();
    let (plain, _other) = UnixStream::pair().unwrap();
    let room = |stream: &UnixStream| rustix::net::sockopt::socket_send_buffer_size(stream).unwrap();
    let limit = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let (ours, by_itself) = (room(&a.stream), room(&plain));
    assert!(ours >= SEND_BUFFER_BYTES.min(limit).max(by_itself), "{ours}, {by_itself}, {limit}");
}
