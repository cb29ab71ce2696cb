//! What is decided: routes, configuration, plan. No process, no clock, no disk but the golden files.

#![allow(missing_docs, reason = "tests are named for what they show")]

mod config;
mod directory;
mod dns;
mod held;
mod image;
mod plan;
mod routes;
