//! A kernel of tests: holds what is applied, lets others meddle, and can refuse.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sallyport_api::Protocol;
use sallyport_api::forward_slice::ForwardSliceSpec;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::dry_run::DryRun;
use sallyport_engine::iptables::NftObject;
use sallyport_engine::route::lookup::Lookups;
use sallyport_engine::{Error, command};
use sallyport_policy::digest::slice_hash;
use sallyport_ruleset::facts::LocalAddress;
use sallyport_ruleset::iptables::installed::{Installed, UNREADABLE};
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::op::Step;
use sallyport_ruleset::iptables::rule::{Chain, Line, Table};
use sallyport_ruleset::listener::Listener;

use super::*;
use crate::manifest;
use crate::source::local::{Decided, decide_here};

/// What it was asked, and what it shall do.
#[derive(Default)]
pub(crate) struct Kernel {
    /// What it holds.
    pub(crate) rules: DryRun,
    /// Times that the rules were read.
    pub(crate) observed: usize,
    /// What the agent applied.
    pub(crate) applied: Vec<Vec<Op>>,
    /// Whether the change counter moved.
    pub(crate) changed: bool,
    /// Somebody's change after each of the agent's, as [`meddle`](Self::meddle) takes it.
    pub(crate) meddling: Option<&'static str>,
    /// Called before each change.
    pub(crate) before_apply: Option<Box<dyn Fn()>>,
    /// Fails the next that many readings, and changes.
    pub(crate) failures: (usize, usize),
    /// What there is beside it.
    pub(crate) network: Rc<FakeNetwork>,
    /// How long each change takes.
    pub(crate) slow: Duration,
    /// Chains and tables that it says a change would make.
    pub(crate) would_create: Vec<NftObject>,
    /// Tables into which somebody put a rule that iptables cannot read.
    pub(crate) native: BTreeSet<(Family, Table)>,
    /// Chains of ours that have such a rule.
    pub(crate) native_in: BTreeSet<String>,
    /// Whether it comes back whenever such a chain is written.
    pub(crate) stays_native: bool,
}

/// Connections and sockets of tests.
#[derive(Default)]
pub(crate) struct FakeNetwork {
    /// Times that connections were looked at.
    pub(crate) looked: Cell<usize>,
    /// Whether connections cannot be listed.
    pub(crate) blind: Cell<bool>,
    /// The sockets that listen.
    pub(crate) listeners: RefCell<Vec<Listener>>,
    /// Times that those were read.
    pub(crate) asked: Cell<usize>,
    /// Whether they cannot be.
    pub(crate) deaf: Cell<bool>,
}

impl Network for FakeNetwork {
    fn conntrack(&self) -> Result<Option<Conntrack>, netlink::Error> {
        self.looked.update(|looked| looked + 1);
        if self.blind.get() { Err(netlink::Error::Interrupted { question: "fake" }) } else { Ok(None) }
    }

    fn listeners(&self) -> Result<Option<Vec<Listener>>, netlink::Error> {
        self.asked.update(|asked| asked + 1);
        if self.deaf.get() {
            return Err(netlink::Error::Interrupted { question: "fake" });
        }
        Ok(Some(self.listeners.borrow().clone()))
    }

    fn lookups(&self) -> Option<Lookups> {
        None
    }
}

/// A converger over `kernel` and what there is beside that.
pub(crate) fn over(kernel: Kernel, sysctl: Option<Sysctl>) -> Converger<Kernel> {
    let network = kernel.network.clone();
    Converger::new(kernel, network, sysctl)
}

impl Kernel {
    /// Somebody else changes IPv4 rules, as `iptables-restore --noflush` would.
    pub(crate) fn meddle(&mut self, text: &str) {
        restore(&mut self.rules.installed.v4, text);
        self.changed = true;
    }

    /// What it holds, read without the agent's knowing.
    pub(crate) async fn rules(&mut self) -> InstalledRuleset {
        self.rules.observe().await.unwrap()
    }
}

/// Does to `installed` what a kernel does with the lines that tests write.
fn restore(installed: &mut Installed, text: &str) {
    let mut table = Table::Nat;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name).expect(line);
            continue;
        }
        let there = installed.table_mut(table);
        if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            there.ours.insert(chain.to_owned(), Chain::default());
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            match there.ours.get_mut(chain) {
                Some(rules) => rules.push(Line::read(rule)),
                None => there.foreign.entry(chain.to_owned()).or_default().push(rule.to_owned()),
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-I ").and_then(|rest| rest.split_once(" 1 ")) {
            there.foreign.entry(chain.to_owned()).or_default().insert(0, rule.to_owned());
        } else if let Some((chain, rule)) = line.strip_prefix("-D ").and_then(|rest| rest.split_once(' ')) {
            let rules = there.foreign.get_mut(chain).expect(line);
            rules.remove(rules.iter().position(|there| there == rule).expect(line));
        } else if let Some(chain) = line.strip_prefix("-X ") {
            there.ours.remove(chain).expect(line);
        } else {
            assert_eq!(line, "COMMIT");
        }
    }
}

fn refuse(left: &mut usize) -> Result<(), Error> {
    if *left == 0 {
        return Ok(());
    }
    *left -= 1;
    Err(command::Error::NotInstalled { program: "iptables-fake" }.into())
}

impl Engine for Kernel {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn observe(&mut self) -> Result<InstalledRuleset, Error> {
        refuse(&mut self.failures.0)?;
        self.observed += 1;
        self.changed = false;
        let mut read = self.rules.observe().await?;
        for (family, table) in &self.native {
            let there = read.family_mut(*family).table_mut(*table);
            there.unreadable = Some(format!("cannot read table {}", table.name()));
            for rules in there.foreign.values_mut() {
                rules.retain(|rule| rule.contains(" SALLY-"));
            }
            there.foreign.retain(|_, rules| !rules.is_empty());
            for (_, rules) in there.ours.iter_mut().filter(|(chain, _)| self.native_in.contains(*chain)) {
                *rules = vec![Line::read(UNREADABLE)].into();
            }
        }
        Ok(read)
    }

    async fn apply(&mut self, ops: &[Op]) -> Result<(), Error> {
        if let Some(look) = &self.before_apply {
            look();
        }
        tokio::time::sleep(self.slow).await;
        refuse(&mut self.failures.1)?;
        for op in ops {
            let native = self.native.contains(&(op.family, op.table));
            match &op.step {
                Step::Jump { .. } | Step::Unjump { .. } => assert!(!native, "{op} where iptables cannot name it"),
                Step::Unhook { .. } => assert!(native, "{op} where iptables can do that"),
                Step::Replace { chain, .. } | Step::Flush { chain } | Step::Delete { chain } => {
                    self.native_in.retain(|there| self.stays_native || !native || there != chain);
                }
            }
        }
        self.rules.apply(ops).await?;
        self.applied.push(ops.to_vec());
        if let Some(meddling) = self.meddling {
            restore(&mut self.rules.installed.v4, meddling);
        }
        Ok(())
    }

    fn changed(&mut self) -> Result<bool, Error> {
        Ok(self.changed)
    }

    fn would_create(&self) -> Result<Vec<NftObject>, Error> {
        Ok(self.would_create.clone())
    }
}

/// A TCP socket that listens on every IPv4 address.
pub(crate) fn listener(port: u16) -> Listener {
    Listener { protocol: Protocol::Tcp, ip: "0.0.0.0".parse().unwrap(), port, inode: 0 }
}

/// The addresses of the host of tests.
pub(crate) fn local() -> Vec<LocalAddress> {
    let of = |ip: &str, prefix_len| LocalAddress { ip: ip.parse().unwrap(), prefix_len, global: true };
    vec![of("10.30.1.78", 24), of("fd00::78", 64)]
}

/// What is decided upon the manifests in `text`, which must all be acceptable, for a node with the addresses of that host.
pub(crate) fn intents(text: &str) -> Intents {
    let objects: Vec<_> = manifest::read(&mut text.as_bytes()).into_iter().map(|object| object.expect(text)).collect();
    let named: Vec<_> = objects.iter().map(|object| ("x.yaml", object)).collect();
    let addresses: Vec<_> = local().iter().map(|own| own.ip).collect();
    let (held, first_seen) = Default::default();
    let Decided { mut intents, problems, .. } =
        decide_here(&named, "gw1", addresses.clone(), &held, None, &first_seen, Moment::default());
    assert_eq!(problems, []);
    (intents.node.addresses, intents.node.listen_cidrs) = (addresses, Vec::new());
    intents
}

/// The rules of the host of tests for `intents`.
pub(crate) fn rules_of(intents: &Intents) -> Ruleset {
    lower(&ForwardingTable::new(&intents.node, intents.forwards(), &NodeFacts::of(&local(), Moment::default())))
}

/// `carried`, with every forward in `text` beside it as planned.
pub(crate) fn planned(carried: &Intents, text: &str) -> Intents {
    let mut both = carried.clone();
    let planned: Vec<_> = intents(text).forwards().cloned().collect();
    let slice = both.slices.entry("default-0000".to_owned()).or_insert_with(|| {
        let pool = "default".to_owned();
        Arc::new(ForwardSliceSpec { pool, hash: slice_hash(&[]), forwards: Vec::new(), planned: Vec::new() })
    });
    Arc::make_mut(slice).planned = planned;
    both
}

/// A manifest of a forward from 10.30.1.80 to 10.30.1.79.
pub(crate) fn forward(name: &str, port: u16) -> String {
    format!("---\n{}", Forward::tcp(&format!("default/{name}"), port).manifest())
}

/// A manifest of a pool that grants everything and never turns forwarding on by itself.
pub(crate) const REQUIRE: &str = "---\napiVersion: sallyport.dev/v1alpha1\nkind: GatewayPool\nmetadata: { name: default }\n\
    spec:\n  nodeSelector: {}\n  ipForward: Require\n  grants: [ { name: g, namespaceSelector: {}, \
    ports: [ { port: 1, endPort: 65535 } ], targetCIDRs: [ 0.0.0.0/0 ], sourceCIDRs: [ 0.0.0.0/0 ] } ]\n";
