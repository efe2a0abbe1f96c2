//! Makes the kernel equal to a rule set, and reads back what it really holds.
//!
//! The only package that asks or changes the kernel's network: netfilter, addresses and routes, forwarding. What the rules
//! should be is `sallyport-ruleset`'s, when to look and what to report is the agent's.

pub mod command;
pub mod conntrack;
pub mod dry_run;
pub mod generation;
pub mod iptables;
pub mod listeners;
pub mod netlink;
pub mod network;
mod nftables;
pub mod route;
pub mod sysctl;
pub mod tracking;

use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::op::Op;
use sallyport_ruleset::iptables::shadow::Packets;

use crate::iptables::NftObject;

/// What can go wrong with a backend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program of iptables failed.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The kernel did not answer as expected.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A file of the kernel could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A way to put rules into a kernel.
#[expect(async_fn_in_trait, reason = "the agent runs on one thread, so no future has to be Send")]
pub trait Engine {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// From now on only what may happen to these packets matters of the rules of others, if an engine can save reading the rest.
    fn attend_to(&mut self, _packets: &Packets) {}

    /// Reads what the kernel holds now.
    async fn observe(&mut self) -> Result<InstalledRuleset, Error>;

    /// Does `ops`: each table of each family changes in one step or not at all.
    async fn apply(&mut self, ops: &[Op]) -> Result<(), Error>;

    /// Whether anything may have changed since [`Self::observe`] last began; costs microseconds when nothing did.
    fn changed(&mut self) -> Result<bool, Error>;

    /// Chains and tables that [`Self::apply`] would bring into being, beside our own, by putting rules into them.
    fn would_create(&self) -> Result<Vec<NftObject>, Error>;
}
