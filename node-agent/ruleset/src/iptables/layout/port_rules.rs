//! Rules of one protocol by their ports, cut into chains so that no connection is held against many.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_api::Protocol;

use crate::iptables::layout::Written;
use crate::iptables::layout::forward::PortRule;
use crate::iptables::rule::{Action, Line, Rule, Table};
use crate::table::Entry;

/// A chain that would hold more rules than this is split by port.
const SPLIT_ABOVE: usize = 32;
/// Ports in the protocol's root, in a chain below it, below that, and so on. The kernel looks at one rule of a chain after
/// the other, so eight ways at each fork are few to look at; more forks would be more chains.
const BUCKETS: [u32; 5] = [65536, 8192, 1024, 128, 16];
const FINEST: usize = BUCKETS.len() - 1;

/// A chain: which of [`BUCKETS`], and which range of so many ports.
type Bucket = (usize, u32);
const ROOT: Bucket = (0, 0);

/// Where a rule stands: by its first port, then by the order of the forwards and of their own rules.
type Place = (u16, Among, usize);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Among {
    BeforeAll,
    Of(Entry),
    AfterAll,
}

#[derive(Debug, Default)]
pub(super) struct PortRules {
    /// How many bindings there are, some of which may have no rule.
    bindings: usize,
    /// By the finest bucket that holds all the ports of a rule.
    rules: [BTreeMap<Place, Line>; BUCKETS.len()],
    /// How many rules are in a bucket and in those within it.
    counts: BTreeMap<Bucket, usize>,
    /// Where that has changed.
    touched: BTreeSet<Bucket>,
    /// The chains that there are.
    chains: BTreeSet<Bucket>,
}

impl PortRules {
    pub(super) fn is_empty(&self) -> bool {
        self.bindings == 0
    }

    /// There is one binding more: the root chain is there even if that has no rule.
    pub(super) fn bind(&mut self) {
        self.bindings += 1;
        self.touched.insert(ROOT);
    }

    /// There is one binding less.
    pub(super) fn unbind(&mut self) {
        self.bindings -= 1;
        self.touched.insert(ROOT);
    }

    /// Puts in a rule, the `order`th of a forward.
    pub(super) fn insert(&mut self, entry: &Entry, order: usize, rule: PortRule) {
        let level = self.touch(&rule);
        for bucket in (0..=level).map(|level| bucket(level, rule.first)) {
            *self.counts.entry(bucket).or_default() += 1;
        }
        self.rules[level].insert((rule.first, Among::Of(entry.clone()), order), rule.line);
    }

    /// Takes it out again.
    pub(super) fn remove(&mut self, entry: &Entry, order: usize, rule: &PortRule) {
        let level = self.touch(rule);
        if self.rules[level].remove(&(rule.first, Among::Of(entry.clone()), order)).is_none() {
            return;
        }
        for bucket in (0..=level).map(|level| bucket(level, rule.first)) {
            if let Some(count) = self.counts.get_mut(&bucket) {
                *count -= 1;
            }
            if self.counts.get(&bucket) == Some(&0) {
                self.counts.remove(&bucket);
            }
        }
    }

    /// The level of the finest bucket that holds all its ports; that one and those around it are to be written again.
    fn touch(&mut self, rule: &PortRule) -> usize {
        let holds = |level: &usize| bucket(*level, rule.first) == bucket(*level, rule.last);
        let level = (0..=FINEST).take_while(holds).last().unwrap_or_default();
        self.touched.extend((0..=level).map(|level| bucket(level, rule.first)));
        level
    }

    /// Writes the chains in which something has changed, from `root` on.
    pub(super) fn write(&mut self, written: &mut Written<'_>, root: &str, protocol: Protocol) {
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            self.write_bucket(written, root, protocol, ROOT, &touched);
        }
    }

    fn write_bucket(
        &mut self,
        written: &mut Written<'_>,
        root: &str,
        protocol: Protocol,
        at: Bucket,
        touched: &BTreeSet<Bucket>,
    ) {
        let (level, _) = at;
        let name = name(root, at);
        let count = self.counts.get(&at).copied().unwrap_or_default();
        let children = if count > SPLIT_ABOVE && level < FINEST { self.within(at, level + 1) } else { Vec::new() };
        for gone in self.chains_within(at).into_iter().filter(|gone| !children.contains(gone)) {
            self.remove_chains(written, root, gone);
        }
        if count == 0 && (at != ROOT || self.is_empty()) {
            self.chains.remove(&at);
            return written.remove(Table::Nat, &name);
        }
        self.chains.insert(at);
        // A range that crosses a border stays here, before the buckets; claims never overlap, so there are few such.
        let here = if children.is_empty() { level..=FINEST } else { level..=level };
        let mut rules: Vec<(&Place, &Line)> = here.flat_map(|level| self.rules[level].range(places(at))).collect();
        rules.sort_unstable_by_key(|(place, _)| *place);
        let mut body: Vec<Line> = rules.into_iter().map(|(_, line)| line.clone()).collect();
        for child in &children {
            // -A SALLY-MT -p tcp -m tcp --dport 0:8191 -g SALLY-MT-0-8191
            let action = Action::Goto(self::name(root, *child));
            body.push(Rule { protocol: Some(protocol), ports: Some(ports(*child)), action, ..Rule::default() }.line());
        }
        written.put(Table::Nat, &name, body);
        for child in children {
            if touched.contains(&child) || !self.chains.contains(&child) {
                self.write_bucket(written, root, protocol, child, touched);
            }
        }
    }

    /// The buckets of `level` in which there are rules, of those within `at`.
    fn within(&self, at: Bucket, level: usize) -> Vec<Bucket> {
        let (first, last) = ports(at);
        self.counts.range(bucket(level, first)..=bucket(level, last)).map(|(bucket, _)| *bucket).collect()
    }

    /// The chains one level below `at` that there are.
    fn chains_within(&self, at: Bucket) -> Vec<Bucket> {
        let ((first, last), level) = (ports(at), at.0 + 1);
        if level > FINEST {
            return Vec::new();
        }
        self.chains.range(bucket(level, first)..=bucket(level, last)).copied().collect()
    }

    fn remove_chains(&mut self, written: &mut Written<'_>, root: &str, at: Bucket) {
        for below in self.chains_within(at) {
            self.remove_chains(written, root, below);
        }
        self.chains.remove(&at);
        written.remove(Table::Nat, &name(root, at));
    }
}

/// The bucket of `level` that holds `port`.
fn bucket(level: usize, port: u16) -> Bucket {
    (level, u32::from(port) / BUCKETS[level])
}

/// The first and the last port of a bucket.
fn ports((level, number): Bucket) -> (u16, u16) {
    let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    (port(number * BUCKETS[level]), port(number * BUCKETS[level] + BUCKETS[level] - 1))
}

/// The places of the rules whose first port is in a bucket.
fn places(at: Bucket) -> std::ops::RangeInclusive<Place> {
    let (first, last) = ports(at);
    (first, Among::BeforeAll, 0)..=(last, Among::AfterAll, 0)
}

fn name(root: &str, at: Bucket) -> String {
    let (first, last) = ports(at);
    if at.0 == 0 { root.to_owned() } else { format!("{root}-{first}-{last}") }
}
