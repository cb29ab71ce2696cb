//! A client that says exactly what went over the wire.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A connection that is kept open between requests.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    pub async fn request(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        more: &str,
        body: &str,
    ) -> Result<Answer, String> {
        let length =
            if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}{more}\r\n{body}");
        let exchange = async {
            self.stream.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
            self.answer().await
        };
        timeout(PATIENCE, exchange).await.map_err(|_| "no answer in time".to_owned())?
    }

    async fn answer(&mut self) -> Result<Answer, String> {
        let mut head = String::new();
        loop {
            let read = self.stream.read_line(&mut head).await.map_err(|error| format!("receive: {error}"))?;
            if read == 0 {
                return Err(format!("cut after {head:?}"));
            }
            if head.ends_with("\r\n\r\n") {
                break;
            }
        }
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body).await.map_err(|error| format!("body: {error}"))?;
            }
            None => {
                self.stream.read_to_end(&mut body).await.map_err(|error| format!("body: {error}"))?;
            }
        }
        Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// One request on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    Connection::open(address).await?.request("GET", host, path, "connection: close\r\n", "").await
}
