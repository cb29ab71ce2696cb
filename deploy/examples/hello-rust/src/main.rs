//! A Rust app with a dependency from the registry.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

fn main() -> std::io::Result<()> {
    let port: u16 = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).expect("PORT is set");
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let mut stream = stream?;
        // The request's head is all that matters here.
        for line in BufReader::new(stream.try_clone()?).lines() {
            if line?.is_empty() {
                break;
            }
        }
        let body = format!("hello from rust, {} times over\n", itoa::Buffer::new().format(42));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes())?;
    }
    Ok(())
}
