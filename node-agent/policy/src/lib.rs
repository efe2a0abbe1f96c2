//! Pure: who may have what.
//!
//! ```text
//! PortForward ─ validate ─► Intent ─ judge ─► claims ─ arbitrate ─► slices
//! GatewayPool ─ pool ──────────────────┘
//! ```
//! The operator and a lone host decide by the same function, and every agent holds what it is given to the same limits
//! once more. What becomes of an intent in a kernel is not here: `sallyport-ruleset` makes rules of it. No I/O, no clock, no
//! process, no random source: every function here can be called a million times in a test.

mod arbitrate;
mod candidate;
pub mod claim;
pub mod decide;
pub mod digest;
pub mod expiry;
pub mod family;
pub mod intersection;
mod intervals;
mod judge;
pub mod limits;
pub mod observed;
mod outgoing;
pub mod places;
pub mod pool;
pub mod recheck;
pub mod slice;
pub mod validate;
