use super::*;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_request_and_its_answer_arrive_whole() {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    send_request(&mut client, "POST", "/v1/x", Some(&serde_json::json!({"a": 1}))).unwrap();
    let request = Request::read(&mut server, SOON).unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/x"));
    assert_eq!(request.json::<serde_json::Value>().unwrap()["a"], 1);

    respond(&mut server, 409, &serde_json::json!({"error": "busy"})).unwrap();
    let head = read_response_head(&mut client, SOON).unwrap();
    assert_eq!(head.status, 409);
    let body = read_body(&mut client, head.rest, head.content_length, SOON).unwrap();
    assert_eq!(body, b"{\"error\":\"busy\"}\n");
}

#[test]
fn an_announced_body_above_the_bound_is_refused_unread() {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
    let error = Request::read(&mut server, SOON).unwrap_err();
    assert!(matches!(error, HttpError::TooLong { part: "body", .. }), "{error}");
}

#[test]
fn noise_an_endless_head_and_an_early_end_are_errors() {
    for (bytes, want) in [
        (b"\x00\xff\x17garbage\r\n\r\n".to_vec(), "does not speak HTTP"),
        (vec![b'a'; 3 * HEAD_BYTES_MAX], "longer than"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "ended after"),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_vec(), "no number"),
    ] {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            // The server may hang up before it has read all of an endless head.
            let _ = client.write_all(&bytes);
        });
        let error = Request::read(&mut server, SOON).unwrap_err().to_string();
        drop(server);
        writer.join().unwrap();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn silence_ends_at_the_deadline() {
    let (_client, mut server) = UnixStream::pair().unwrap();
    let error = Request::read(&mut server, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, HttpError::Deadline(_)), "{error}");
}
