//! The rules of `SALLY-IN`: answers that connection tracking cannot place are dropped, by where they come from.
//!
//! Many of them are split into a chain for each block of addresses, so that a change rewrites one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::Protocol;
use sallyport_policy::digest::short_id;

use super::Written;
use crate::family::Family;
use crate::iptables::rule::{Action, Line, Rule, Table, chain};

/// So many stand in one chain.
const FEW: usize = 32;
/// Bits of an address in which those of one block may differ.
const BLOCK: u8 = 8;

/// An address, and the first and the last port.
pub(super) type Answers = (IpAddr, u16, u16);

/// Where answers come from to the gateway itself.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    /// By block, and by how many bindings.
    blocks: BTreeMap<IpNet, BTreeMap<Answers, usize>>,
    number: usize,
    /// The blocks that are others than were written.
    changed: BTreeSet<IpNet>,
    is_split: bool,
}

fn block_of(ip: IpAddr) -> IpNet {
    IpNet::new(ip, Family::of(ip).bits() - BLOCK).map_or_else(|_| ip.into(), |net| net.trunc())
}

/// `SALLY-I-0123456789abcdef`: the chain of a block.
fn name(block: &IpNet) -> String {
    format!("SALLY-I-{}", short_id(&block.to_string()))
}

impl Unplaced {
    /// They come from there for one binding more.
    pub(super) fn add(&mut self, answers: Answers) {
        let block = block_of(answers.0);
        let bindings = self.blocks.entry(block).or_default().entry(answers).or_default();
        *bindings += 1;
        if *bindings == 1 {
            self.number += 1;
            self.changed.insert(block);
        }
    }

    /// And for one fewer.
    pub(super) fn remove(&mut self, answers: Answers) {
        let block = block_of(answers.0);
        let Some(there) = self.blocks.get_mut(&block) else { return };
        let Some(bindings) = there.get_mut(&answers) else { return };
        *bindings -= 1;
        if *bindings == 0 {
            there.remove(&answers);
            self.number -= 1;
            self.changed.insert(block);
        }
        if there.is_empty() {
            self.blocks.remove(&block);
        }
    }

    /// Cuts the rules into chains.
    pub(super) fn write(&mut self, written: &mut Written<'_>) {
        let mut changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let was_split = std::mem::replace(&mut self.is_split, self.number > FEW);
        if was_split != self.is_split {
            changed.extend(self.blocks.keys());
        }
        let mut other_root = was_split != self.is_split || !self.is_split;
        for block in &changed {
            let name = name(block);
            let is_there = written.has(Table::Mangle, &name);
            match self.blocks.get(block).filter(|_| self.is_split) {
                Some(answers) => written.put(Table::Mangle, &name, answers.keys().map(drop_answers).collect()),
                None => written.remove(Table::Mangle, &name),
            }
            other_root |= is_there != written.has(Table::Mangle, &name);
        }
        if other_root {
            self.write_root(written);
        }
    }

    fn write_root(&self, written: &mut Written<'_>) {
        if self.blocks.is_empty() {
            return written.remove(Table::Mangle, chain::INPUT);
        }
        // -A SALLY-IN -m conntrack ! --ctstate INVALID -j RETURN
        let placed = Rule { placed: true, ..Rule::default() };
        // What says that there is no connection: -A SALLY-IN -p tcp -m tcp --tcp-flags RST RST -j RETURN
        let reset = Rule { protocol: Some(Protocol::Tcp), reset: true, ..Rule::default() };
        let mut rules = vec![placed.line(), reset.line()];
        if self.is_split {
            // -A SALLY-IN -s 10.30.1.0/24 -j SALLY-I-0123456789abcdef
            let jump = |block| Rule { source: Some(block), action: Action::Jump(name(&block)), ..Rule::default() };
            rules.extend(self.blocks.keys().map(|block| jump(*block).line()));
        } else {
            rules.extend(self.blocks.values().flat_map(|answers| answers.keys().map(drop_answers)));
        }
        written.put(Table::Mangle, chain::INPUT, rules);
    }
}

/// `-A SALLY-IN -s 10.30.1.79/32 -p tcp -m tcp --sport 3306 -j DROP`
fn drop_answers(&(ip, first, last): &Answers) -> Line {
    let (source, protocol, source_ports) = (Some(ip.into()), Some(Protocol::Tcp), Some((first, last)));
    Rule { source, protocol, source_ports, action: Action::Drop, ..Rule::default() }.line()
}
