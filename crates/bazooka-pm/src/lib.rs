//! bazooka-pm: two programs in one. The host's part runs the instances of one machine; the converger, elected among
//! any number of processes, places the instances of the whole cluster. The two share no code but `visor` and
//! `bazooka-daemon`.
//!
//! ```text
//! host      the host's part: claims what is assigned to this host, runs it, and reports each instance's state
//! converge  the converger: turns formations into placed instances
//! ```

pub mod converge;
pub mod host;
