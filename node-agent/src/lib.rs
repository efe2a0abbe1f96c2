//! The program on a gateway node: from intents to rules that the kernel was seen to hold.
//!
//! ```text
//! source (manifests or cluster) ─► intents ─► converge: table, observe, plan, apply, verify ─► report
//! ```
//! A library for `main.rs`, and for the fuzz targets, which read manifests and decide upon them; all else is its own.

#![warn(unreachable_pub)]

mod agent;
pub mod args;
pub mod backend;
pub mod cleanup;
mod clock;
pub mod connections;
pub mod converge;
mod drift_tracker;
mod error_chain;
mod holders;
mod host;
pub mod intents;
pub mod manifest;
mod metrics;
mod pass_report;
pub mod plan;
mod port_gate;
pub mod render;
pub mod run;
pub mod script;
pub mod source;
pub mod state;
pub mod waiting;
