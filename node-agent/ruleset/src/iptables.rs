//! The forwarding table as rules of iptables, and what a kernel holds of them.
//!
//! ```text
//! ForwardingTable ─ layout ─► Ruleset ─ plan ─► Op ─ restore ─► iptables-restore
//!                                ▲ differs? │
//!                 iptables-save ─┴ installed └─► drift, diff: what people are told
//! ```
//! Rules are compared as the text that `iptables-save` prints; nothing here reads text of our own rules. Another engine would
//! be a folder beside this one.

pub mod desired;
pub mod diff;
pub mod drift;
pub mod installed;
mod jump;
pub mod layout;
pub mod op;
pub mod plan;
pub mod restore;
pub mod rule;
pub mod shadow;
