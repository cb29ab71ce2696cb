//! Addresses and ports as settings name them: an address, a range of addresses or a name, with or without ports.
//!
//! Owns reading them, and asking what a name's addresses are.

use std::{
    fmt, io,
    net::{IpAddr, ToSocketAddrs},
    str::FromStr,
};

use crate::protocol::Span;

/// A setting's `ADDR[/BITS][:PORT[-PORT]]` or `NAME[:PORT[-PORT]]`. Without a port, each port is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    host: Where,
    first: u16,
    last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Range(IpAddr, u8),
    Name(String),
}

/// Text that is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ADDR[:PORT], such as 10.0.0.5:5432, 10.0.0.0/8, [fd00::5]:5432, db.example:5432 or 10.0.0.5:8000-8999; without a port \
     each port is meant"
)]
pub struct TargetError;

impl Target {
    /// Returns an address with one port.
    pub fn at(address: IpAddr, port: u16) -> Target {
        Target { host: Where::Range(address, all_bits(address)), first: port, last: port }
    }

    /// Returns an address with these ports.
    pub fn ports(address: IpAddr, first: u16, last: u16) -> Target {
        Target { host: Where::Range(address, all_bits(address)), first, last }
    }

    /// Returns every port of an address or a name.
    pub fn of_host(host: &str) -> Target {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        let host = address.map_or_else(
            |_| Where::Name(host.to_owned()),
            |address| Where::Range(address, all_bits(address)),
        );
        Target { host, first: EVERY_PORT.0, last: EVERY_PORT.1 }
    }

    /// Returns the address and port of a URL.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn of_url(url: &str) -> Result<Target, TargetError> {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or(authority);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let mut target: Target = authority.parse()?;
        if (target.first, target.last) == EVERY_PORT {
            let usual = if url.starts_with("https:") { 443 } else { 80 };
            (target.first, target.last) = (usual, usual);
        }
        Ok(target)
    }

    /// Returns what the target means now. Blocks while a name is resolved.
    ///
    /// # Errors
    /// The resolver's.
    pub fn spans(&self) -> io::Result<Vec<Span>> {
        let span = |address, bits| Span { address, bits, first: self.first, last: self.last };
        match &self.host {
            Where::Range(address, bits) => Ok(vec![span(*address, *bits)]),
            Where::Name(name) => {
                let found = (name.as_str(), 0).to_socket_addrs()?;
                Ok(found.map(|found| span(found.ip(), all_bits(found.ip()))).collect())
            }
        }
    }
}

const EVERY_PORT: (u16, u16) = (0, u16::MAX);

fn all_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or(TargetError)?;
                let (bits, ports) = match rest.split_once(':') {
                    Some((bits, ports)) => (bits, Some(ports)),
                    None => (rest, None),
                };
                (format!("{address}{bits}"), ports)
            }
            // An IPv6 address without brackets has no port.
            None if text.matches(':').count() > 1 => (text.to_owned(), None),
            None => match text.split_once(':') {
                Some((host, ports)) => (host.to_owned(), Some(ports)),
                None => (text.to_owned(), None),
            },
        };
        let (first, last) = ports.map_or(Ok(EVERY_PORT), ports_of)?;
        Ok(Target { host: host_of(&host)?, first, last })
    }
}

fn ports_of(text: &str) -> Result<(u16, u16), TargetError> {
    let port = |text: &str| text.parse().map_err(|_| TargetError);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first == 0 || first > last { Err(TargetError) } else { Ok((first, last)) }
}

fn host_of(text: &str) -> Result<Where, TargetError> {
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| TargetError)?;
        let bits = bits.parse().map_err(|_| TargetError)?;
        return if bits <= all_bits(address) { Ok(Where::Range(address, bits)) } else { Err(TargetError) };
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Where::Range(address, all_bits(address)));
    }
    let is_name = !text.is_empty()
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))
        && text.chars().any(|letter| letter.is_ascii_alphabetic());
    if is_name { Ok(Where::Name(text.to_owned())) } else { Err(TargetError) }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Where::Range(IpAddr::V6(address), 128) => write!(f, "[{address}]")?,
            Where::Range(IpAddr::V6(address), bits) => write!(f, "[{address}]/{bits}")?,
            Where::Range(address, 32) => write!(f, "{address}")?,
            Where::Range(address, bits) => write!(f, "{address}/{bits}")?,
            Where::Name(name) => f.write_str(name)?,
        }
        match (self.first, self.last) {
            EVERY_PORT => Ok(()),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_a_range_and_a_name_are_read_with_and_without_ports() {
        for (text, shown) in [
            ("10.0.0.5:5432", "10.0.0.5:5432"),
            ("10.0.0.5", "10.0.0.5"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:80-90", "10.0.0.0/8:80-90"),
            ("fd00::5", "[fd00::5]"),
            ("fd00::/8", "[fd00::]/8"),
            ("[fd00::5]:80", "[fd00::5]:80"),
            ("[fd00::]/8:80", "[fd00::]/8:80"),
            ("db.example:80", "db.example:80"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse(), Ok(target));
        }
        for bad in [
            "",
            ":80",
            "10.0.0.5:",
            "10.0.0.5:0",
            "10.0.0.5:9-8",
            "10.0.0.0/33",
            "a b",
            "10.0.0",
            "[::1",
            "db:x",
        ] {
            assert_eq!(bad.parse::<Target>(), Err(TargetError), "{bad}");
        }
    }

    #[test]
    fn a_url_means_its_usual_port_unless_it_names_one() {
        for (url, shown) in [
            ("http://127.0.0.1:2379", "127.0.0.1:2379"),
            ("https://[::1]:2380/", "[::1]:2380"),
            ("https://192.0.2.1/git", "192.0.2.1:443"),
            ("http://etcd.internal", "etcd.internal:80"),
            ("10.0.0.1:2379", "10.0.0.1:2379"),
        ] {
            assert_eq!(Target::of_url(url).expect(url).to_string(), shown);
        }
    }

    #[test]
    fn a_name_means_its_addresses_of_now() {
        let target: Target = "localhost:53".parse().expect("valid");
        let spans = target.spans().expect("it resolves");
        assert!(spans.iter().all(|span| span.address.is_loopback() && span.first == 53), "{spans:?}");
        assert!("missing.invalid".parse::<Target>().expect("valid").spans().is_err());
    }
}
