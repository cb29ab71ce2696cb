//! bazooka-proxy: writes HAProxy's configuration and drives its Runtime API; HAProxy carries the traffic.
//!
//! Owns what is routed, and says in the coordinator how far it has come. It never touches a request
//! itself, so that nothing here can slow one down or lose it.
//!
//! ```text
//! mirror ─▶ routes ─▶ plan ─▶ balancer ─▶ driver ──Runtime API──▶ HAProxy    pure: routes, config, plan
//!                      ▲                     └──file, reload──▶ HAProxy
//!                      └── what is in force, as HAProxy says
//! proxy (the loop) ─▶ publisher ─▶ proxies/X in the coordinator
//! mirror ─▶ directory ─▶ endpoint, dns ─▶ who asks what runs where
//! ```

pub mod balancer;
pub mod config;
pub mod directory;
pub mod dns;
pub mod driver;
pub mod endpoint;
pub mod files;
pub mod haproxy;
pub mod metrics;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod publisher;
pub mod routes;
pub mod shares;
pub mod zones;
