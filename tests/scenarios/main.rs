//! Scenarios that drive the real programs as people do: git, bazooka, a browser's request.

mod adoption;
mod apps;
mod bad_input;
mod callers;
mod commands;
mod deadly;
mod disaster;
mod full;
mod identities;
mod links;
mod matrix;
mod operations;
mod peers;
mod planted;
mod ports;
mod releases;
mod rmless;
mod rms;
mod sealing;
mod settings;
mod ssh;
mod telemetry;
mod transcript;
mod versioned_app;
mod web_page;
