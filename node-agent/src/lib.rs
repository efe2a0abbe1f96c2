//! The program on a gateway node: from intents to rules that the kernel was seen to hold.
//!
//! ```text
//! source (manifests or cluster) ─► intents ─► converge: table, observe, plan, apply, verify ─► report
//! ```
//! A library so that its parts can be tested; `main.rs` is the only user.

mod agent;
pub mod args;
pub mod backend;
pub mod cleanup;
pub mod clock;
pub mod connections;
pub mod converge;
mod drift_tracker;
mod error_chain;
mod host;
pub mod intents;
pub mod manifest;
pub mod metrics;
mod pass_report;
pub mod plan;
pub mod port_gate;
pub mod render;
pub mod run;
pub mod script;
mod sockets;
pub mod source;
pub mod state;
pub mod waiting;
