//! How our chains are told from those of others.

use sallyport_api::names::CHAIN_PREFIX;

/// Characters of the longest name that iptables takes for a chain (`XT_EXTENSION_MAXNAMELEN` with its end,
/// `include/uapi/linux/netfilter/x_tables.h`).
const LONGEST_NAME: usize = 28;

/// Whether `chain` is one of ours. What iptables could not name was made by somebody else.
#[must_use]
pub fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX) && chain.len() <= LONGEST_NAME
}
