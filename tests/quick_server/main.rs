//! quick_server: a web server that costs next to nothing, for loads that are about everything else.
//!
//! Answers each request on $PORT with the word that it was given and its instance. A thread for each connection, which
//! asks the kernel twice a request: to read and to write.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

/// More than any request's head here.
const HEAD: usize = 16 << 10;

fn main() -> std::io::Result<()> {
    let word = std::env::args().nth(1).unwrap_or_default();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let port: u16 = variable("PORT").parse().map_err(std::io::Error::other)?;
    let body = format!("{word}\n{}\n", variable("BAZOOKA_INSTANCE"));
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for stream in TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.incoming() {
        let answer = answer.clone();
        // A connection that broke is its own affair.
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            let _ = serve(stream?, answer.as_bytes());
            std::io::Result::Ok(())
        })?;
    }
    Ok(())
}

/// Answers what comes on a connection, one after the other, until it is closed.
fn serve(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; HEAD];
    let mut filled = 0;
    loop {
        // What is left of this request's body after what has been read.
        let rest = loop {
            if let Some(head) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                let whole = head + 4 + body_length(&buffer[..head]);
                let rest = whole.saturating_sub(filled);
                buffer.copy_within(whole.min(filled)..filled, 0);
                filled = filled.saturating_sub(whole);
                break rest;
            }
            match stream.read(&mut buffer[filled..])? {
                0 => return Ok(()),
                read => filled += read,
            }
        };
        if rest > 0 {
            std::io::copy(&mut (&stream).take(rest as u64), &mut std::io::sink())?;
        }
        stream.write_all(answer)?;
    }
}

/// What the head says of the body's length; nothing is copied for it.
fn body_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    let lines = head.split(|byte| *byte == b'\n');
    let mut values = lines.filter_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    let value = values.next().and_then(|value| std::str::from_utf8(value).ok());
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
