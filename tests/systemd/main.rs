//! What operators have: configuration files, systemd's units and Debian's packages, with the real programs under a real systemd.

mod booted;
mod cluster;
mod exposure;
mod files;
mod packages;
