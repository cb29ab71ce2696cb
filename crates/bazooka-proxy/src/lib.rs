//! bazooka-proxy: writes HAProxy's configuration and drives its Runtime API; HAProxy carries the traffic.
//!
//! Owns the routes, and reports in the coordinator which revision HAProxy has in force. bazooka-proxy never touches a
//! request, so no fault in it can slow a request down or lose one.
//!
//! ```text
//! mirror ─▶ routes ─▶ plan ─▶ balancer ─▶ driver ──Runtime API──▶ HAProxy    pure: services, routes, config, plan
//!                      ▲                     └──file, reload──▶ HAProxy
//!                      └── in force, as observed from HAProxy
//! proxy (the loop) ─▶ publisher ─▶ proxies/X in the coordinator
//! mirror ─▶ directory ─▶ endpoint, dns ─▶ answers about instances and daemons
//! ```

pub mod balancer;
pub mod config;
pub mod directory;
pub mod dns;
pub mod driver;
pub mod endpoint;
pub mod files;
pub mod haproxy;
pub mod image;
pub mod metrics;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod publisher;
pub mod routes;
pub mod services;
pub mod shares;
pub mod zones;
