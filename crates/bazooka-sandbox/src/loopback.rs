//! The private addresses behind an instance's loopback.
//!
//! Owns their numbers, which follow from the instance's user, and their set-up on the machine. A user belongs to one
//! instance or build of the machine at a time, and no two shares of users have the same lower halves
//! ([`crate::uids`]), so a private address does too.
//!
//! ```text
//! 127.0.0.0/8, 0.0.0.0 ─▶ 127.99.0.0/16 + the user's lower half   a route of the machine: its source is itself
//! ::1                  ─▶ fd62:617a:6f6f:6b61::/64 + user     an address of `lo`, for as long as the instance lives
//! ```
//!
//! A machine without IPv6 has the first alone; `::1` leads there too.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use crate::{netlink, protocol::Loopback};

/// The first of the private IPv4 addresses.
pub const FOUR_FIRST: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 0);
/// The number of their leading bits.
pub const FOUR_BITS: u8 = 16;
/// The first of the private IPv6 addresses: `fd`, then the name of this platform.
pub const SIX_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x617a, 0x6f6f, 0x6b61, 0, 0, 0, 0);
/// The number of their leading bits.
pub const SIX_BITS: u8 = 64;

/// The user whose address the trials at start have; no instance has it.
pub const OF_TRIALS: u32 = u32::MAX - 1;

/// A step of the set-up that the kernel refuses.
#[derive(Debug, thiserror::Error)]
#[error("can't set up a loopback of its own: {what} (it takes CAP_NET_ADMIN)")]
pub struct LoopbackError {
    what: String,
    source: io::Error,
}

/// Returns the private addresses of a user.
pub fn of(uid: u32, has_six: bool) -> Loopback {
    let host_bits = u32::MAX >> FOUR_BITS;
    let [high, low] = [uid >> 16, uid & 0xffff].map(|half| u16::try_from(half).expect("it is half a word"));
    let prefix = SIX_PREFIX.segments();
    Loopback {
        four: Ipv4Addr::from(u32::from(FOUR_FIRST) | uid & host_bits),
        six: has_six.then(|| Ipv6Addr::new(prefix[0], prefix[1], prefix[2], prefix[3], 0, 0, high, low)),
    }
}

/// Reports whether an address is a private one.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => u32::from(four) >> (32 - FOUR_BITS) == u32::from(FOUR_FIRST) >> (32 - FOUR_BITS),
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => is_private(four.into()),
            None => six.segments()[..4] == SIX_PREFIX.segments()[..4],
        },
    }
}

/// Returns an address as the instance itself sees it: a private one is a loopback address there.
pub fn as_seen_inside(address: IpAddr) -> IpAddr {
    match address {
        address if !is_private(address) => address,
        IpAddr::V6(six) if six.to_ipv4_mapped().is_none() => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Reports whether this machine has `::1`.
pub fn has_six() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Prepares the machine for private addresses; again without harm. Blocks briefly.
///
/// # Errors
/// [`LoopbackError`].
pub fn prepare() -> Result<(), LoopbackError> {
    let what = || format!("a route for {FOUR_FIRST}/{FOUR_BITS}");
    netlink::add_local_route(FOUR_FIRST, FOUR_BITS).map_err(|source| LoopbackError { what: what(), source })
}

/// Takes back what [`prepare`] did. The caller knows that nobody uses it.
pub fn leave() {
    let _ = netlink::remove_local_route(FOUR_FIRST, FOUR_BITS);
}

/// Adds the addresses of one instance or build; again without harm.
///
/// # Errors
/// [`LoopbackError`].
pub fn add(own: &Loopback) -> Result<(), LoopbackError> {
    let Some(six) = own.six else { return Ok(()) };
    match netlink::add_address(six) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(LoopbackError { what: format!("the address {six}"), source })
        }
        _ => Ok(()),
    }
}

/// Removes the addresses of one instance or build that has ended.
pub fn remove(own: &Loopback) {
    if let Some(six) = own.six {
        let _ = netlink::remove_address(six);
    }
}

/// Removes the addresses of a user without processes.
pub fn remove_of(uid: u32) {
    remove(&of(uid, true));
}

/// Removes the addresses of users that are `over`: shims that were killed have left them behind.
pub fn sweep(over: impl Fn(u32) -> bool) {
    // Each line has an address as 32 digits, then numbers, then the interface.
    let listed = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    for digits in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let Ok(address) = u128::from_str_radix(digits, 16).map(Ipv6Addr::from) else { continue };
        let [.., high, low] = address.segments();
        let uid = u32::from(high) << 16 | u32::from(low);
        if is_private(address.into()) && (uid == OF_TRIALS || over(uid)) {
            remove_of(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_of_the_usual_range_has_addresses_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for uid in 1_879_048_192..=1_879_113_727 {
            let own = of(uid, true);
            let six = own.six.expect("it was asked for");
            assert!(is_private(own.four.into()) && is_private(six.into()), "{own:?}");
            assert!(seen.insert(IpAddr::V4(own.four)) && seen.insert(six.into()), "{own:?}");
        }
        assert_eq!(of(7, false), Loopback { four: Ipv4Addr::new(127, 99, 0, 7), six: None });
    }

    #[test]
    fn an_instance_sees_its_private_addresses_as_loopback() {
        for (address, seen) in [
            ("127.99.0.7", "127.0.0.1"),
            ("::ffff:127.99.1.1", "127.0.0.1"),
            ("fd62:617a:6f6f:6b61::7", "::1"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.98.0.7", "127.98.0.7"),
            ("fd62:617a:6f6f:6b62::7", "fd62:617a:6f6f:6b62::7"),
        ] {
            let [address, seen]: [IpAddr; 2] = [address, seen].map(|text| text.parse().expect("valid"));
            assert_eq!(as_seen_inside(address), seen);
        }
    }
}
