//! The names of links, of their variables, and of the address where services are reached.
//!
//! Owns the syntax (`api:web`) and the name of a link's variable. `links` decides where a link leads.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{AppName, HostName, InvalidName, ProcName};

/// A service whose address an app's instances get: `APP:PROC`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link {
    /// The app of the service.
    pub app: AppName,
    /// The proc of that app.
    pub proc: ProcName,
}

impl Link {
    /// Returns the variable that has its address. Two links may have the same one (`a-b:c` and `a:b-c`).
    pub fn variable(&self) -> String {
        format!("BAZOOKA_SERVICE_{}_{}", self.app, self.proc).to_ascii_uppercase().replace(['-', '.'], "_")
    }
}

impl FromStr for Link {
    type Err = InvalidLink;

    fn from_str(said: &str) -> Result<Self, InvalidLink> {
        let (app, proc) =
            said.split_once(':').ok_or_else(|| InvalidLink::Form(said.chars().take(80).collect()))?;
        Ok(Link { app: app.parse()?, proc: ProcName::of_spelling(proc)? })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.app, self.proc)
    }
}

impl TryFrom<String> for Link {
    type Error = InvalidLink;
    fn try_from(said: String) -> Result<Self, InvalidLink> {
        said.parse()
    }
}

impl From<Link> for String {
    fn from(link: Link) -> String {
        link.to_string()
    }
}

/// The error for text that is not a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLink {
    /// The colon is missing.
    #[error("link {0:?} is not valid: an app and its proc with a colon between, such as api:web")]
    Form(String),
    /// One of the names breaks its rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// The address where a host reaches the services' own ports: a proxy's address or its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServicesAddress(String);

impl ServicesAddress {
    /// Returns the address with a service's port, as programs take it.
    pub fn at(&self, port: u16) -> String {
        if self.0.contains(':') { format!("[{}]:{port}", self.0) } else { format!("{}:{port}", self.0) }
    }
}

/// The error for text that is not an address of services.
///
/// The message is the rule alone; the caller shows the given text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address or the name of a proxy, without a port, such as 10.0.0.7")]
pub struct InvalidServicesAddress;

impl FromStr for ServicesAddress {
    type Err = InvalidServicesAddress;

    fn from_str(said: &str) -> Result<Self, InvalidServicesAddress> {
        if let Ok(ip) = said.parse::<IpAddr>() {
            let is_somebodys = !ip.is_unspecified() && !ip.is_multicast();
            return if is_somebodys {
                Ok(ServicesAddress(ip.to_string()))
            } else {
                Err(InvalidServicesAddress)
            };
        }
        // Every resolver takes a name whose last part is a number for an address, and this is not one.
        let is_address = said.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        match said.parse::<HostName>() {
            Ok(name) if !is_address => Ok(ServicesAddress(name.to_string())),
            _ => Err(InvalidServicesAddress),
        }
    }
}

impl fmt::Display for ServicesAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ServicesAddress {
    type Error = InvalidServicesAddress;
    fn try_from(said: String) -> Result<Self, InvalidServicesAddress> {
        said.parse()
    }
}

impl From<ServicesAddress> for String {
    fn from(address: ServicesAddress) -> String {
        address.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(said: &str) -> Link {
        said.parse().expect("a link")
    }

    #[test]
    fn a_link_is_an_app_and_its_proc_and_has_a_variable() {
        for (said, variable) in [
            ("api:web", "BAZOOKA_SERVICE_API_WEB"),
            ("goto-rocket:web-2", "BAZOOKA_SERVICE_GOTO_ROCKET_WEB_2"),
        ] {
            assert_eq!(link(said).variable(), variable);
            assert_eq!(link(said).to_string(), said);
        }
        for bad in
            ["", "api", "api:", ":web", "api/web", "api:web:2", "Api:web", "api:we b", "api:\n", "a.b:web"]
        {
            assert!(bad.parse::<Link>().is_err(), "{bad:?}");
        }
        let long = "x".repeat(10_000).parse::<Link>().expect_err("no colon").to_string();
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn an_address_of_services_is_somebodys_and_goes_before_a_port() {
        for (said, whole) in [
            ("10.0.0.7", "10.0.0.7:8501"),
            ("127.0.0.1", "127.0.0.1:8501"),
            ("fd00::7", "[fd00::7]:8501"),
            ("proxy.north.example.org", "proxy.north.example.org:8501"),
            ("localhost", "localhost:8501"),
        ] {
            assert_eq!(said.parse::<ServicesAddress>().map(|address| address.at(8501)), Ok(whole.to_owned()));
        }
        let wrong = [
            "",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.7:80",
            "[fd00::7]",
            "a b",
            "http://a",
        ];
        for bad in wrong {
            assert!(bad.parse::<ServicesAddress>().is_err(), "{bad:?}");
        }
    }
}
