//! Pure: from what users ask to what a kernel shall hold, and back from what it holds.
//!
//! ```text
//! PortForward ─ validate ─► Intent ─ decide ─► slices ─► ForwardingTable ─ lower ─► Ruleset ─ plan ─► Op ─ restore
//!                                                                                      ▲                    │ kernel
//!                                                                            installed └── iptables-save ◄──┘
//! ```
//! No I/O, no clock, no process, no random source: every function here can be called a million times in a test.

mod arbitrate;
pub mod claim;
pub mod decide;
pub mod diff;
pub mod digest;
pub mod drift;
pub mod expiry;
pub mod facts;
pub mod family;
pub mod firewall;
pub mod flow;
mod gate;
pub mod installed;
pub mod intersection;
mod judge;
pub mod kept;
pub mod layout;
pub mod limits;
pub mod listener;
pub mod plan;
pub mod pool;
pub mod restore;
pub mod rivals;
pub mod rule;
pub mod slice;
pub mod table;
pub mod validate;
