//! Pure: from the intents of a node to what its kernel shall hold, and back from what it holds.
//!
//! ```text
//! slices ─ compile ─► Ruleset ─ plan ─► restore text
//!                        ▲                   │ kernel
//!              installed └── iptables-save ◄─┘
//! ```
//! Which intents a node is given is not here: `sallyport-policy` decides that.
//! No I/O, no clock, no process, no random source: every function here can be called a million times in a test.

pub mod compile;
pub mod diff;
pub mod drift;
pub mod facts;
pub mod firewall;
pub mod flow;
pub mod installed;
pub mod listener;
pub mod plan;
mod rivals;
pub mod rule;

pub use sallyport_policy::family;
