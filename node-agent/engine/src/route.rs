//! rtnetlink(7): this host's addresses, the ways to others, and the kernel's word that either may have changed.

pub mod addresses;
pub mod events;
pub mod lookup;
pub mod masquerade;
pub mod routes;
