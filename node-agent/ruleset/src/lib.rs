//! Pure: from the intents of a node to what its kernel shall hold, and back from what it holds.
//!
//! ```text
//! slices ─► ForwardingTable ─ lower ─► Ruleset ─ plan ─► Op ─ restore ─► iptables-restore
//!                                         ▲                                 │ kernel
//!                               installed └──────── iptables-save ◄─────────┘
//! ```
//! Which intents a node is given is not here: `sallyport-policy` decides that.
//! No I/O, no clock, no process, no random source: every function here can be called a million times in a test.

pub mod address;
pub mod binding;
pub mod chain;
pub mod facts;
pub mod firewall;
pub mod flow;
mod gate;
pub mod iptables;
pub mod listen;
pub mod listener;
pub mod routing;
pub mod table;

pub use sallyport_api::Protocol;
pub use sallyport_policy::family;
