//! A `GatewayPool` as its admin wrote it → typed grants, listen addresses and reserved ports.
//!
//! Deny by default: a list that is absent allows nothing, and one grant must cover the whole forward.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kube::core::{Selector, SelectorExt as _};
use sallyport_api::condition::Reason;
use sallyport_api::gateway_pool::{GatewayPoolSpec, ListenAddress, ListenAddressType, ReservedPort};
use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_api::names::MAX_LIFETIME_HOURS;
use sallyport_api::{Protocol, SourceNatMode};

use crate::expiry;
use crate::validate::{self, Problem, Problems, range};

/// Labels of a namespace or a node.
pub type Labels = BTreeMap<String, String>;

/// A valid pool.
#[derive(Clone, Debug)]
pub struct Pool {
    node_selector: Selector,
    listen: Vec<Listen>,
    reserved: Vec<Reserved>,
    /// What namespaces may ask for, in the order written.
    pub grants: Vec<Grant>,
}

#[derive(Clone, Debug)]
enum Listen {
    NodeAddresses,
    Within(IpNet),
}

/// Ports kept for the gateway beside the built-in list.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    protocol: Option<Protocol>,
    first: u16,
    last: u16,
}

/// What the namespaces that it selects may ask of a pool.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Its name in the pool.
    pub name: String,
    namespaces: Selector,
    ports: Vec<GrantedPorts>,
    targets: Vec<IpNet>,
    sources: Vec<IpNet>,
    modes: BTreeSet<SourceNatMode>,
    /// Forwards a namespace may hold through this grant; unlimited if absent.
    pub max_forwards: Option<usize>,
    /// How long a forward may last; unlimited if absent.
    max_lifetime: Option<MaxLifetime>,
}

/// Ports that a grant allows to listen on.
#[derive(Clone, Copy, Debug)]
struct GrantedPorts {
    protocol: Protocol,
    first: u16,
    last: u16,
}

/// How long a grant lets a forward last.
#[derive(Clone, Debug)]
struct MaxLifetime {
    seconds: i64,
    /// The same as its author wrote it.
    text: String,
}

/// How long the grants that cover a forward let it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The grants that let it last longest, by index; never empty.
    pub grants: Vec<usize>,
    /// When it expires; `None` if it does not.
    pub expires_at: Option<Moment>,
    /// Why it expires then, if not because it says so itself: the limit, in words.
    pub limit: Option<String>,
}

/// Types `spec`, or returns every problem that it has.
///
/// # Errors
/// All problems of the pool, in field order.
pub fn validate_pool(spec: &GatewayPoolSpec) -> Result<Pool, Vec<Problem>> {
    let mut problems = Problems::default();
    let node_selector = selector(&mut problems, "spec.nodeSelector", &spec.node_selector);
    let listen = spec
        .listen
        .addresses
        .iter()
        .enumerate()
        .filter_map(|(index, address)| listen(&mut problems, &format!("spec.listen.addresses[{index}]"), address))
        .collect();
    if spec.listen.addresses.is_empty() {
        problems.add("spec.listen.addresses", Reason::UnsupportedValue, "needs at least 1 entry");
    }
    let reserved = reserved_ports(&mut problems, &spec.reserved_ports);
    let mut names = BTreeSet::new();
    let grants = spec
        .grants
        .iter()
        .enumerate()
        .map(|(index, written)| {
            let at = format!("spec.grants[{index}]");
            if !names.insert(written.name.as_str()) {
                problems.add(format!("{at}.name"), Reason::UnsupportedValue, "is used twice; names must be unique");
            }
            grant(&mut problems, &at, written)
        })
        .collect::<Vec<_>>();
    match node_selector {
        Some(node_selector) if problems.0.is_empty() => {
            Ok(Pool { node_selector, listen, reserved, grants: grants.into_iter().flatten().collect() })
        }
        _ => Err(problems.0),
    }
}

/// Types the reserved ports of a pool.
fn reserved_ports(problems: &mut Problems, written: &[ReservedPort]) -> Vec<Reserved> {
    written
        .iter()
        .enumerate()
        .filter_map(|(index, port)| {
            let at = format!("spec.reservedPorts[{index}]");
            let (first, last) = ports(problems, &at, port.port, port.end_port)?;
            Some(Reserved { protocol: port.protocol, first, last })
        })
        .collect()
}

impl Reserved {
    /// The reserved ports of a gateway node's configuration; what is none is left out.
    #[must_use]
    pub fn of(written: &[ReservedPort]) -> Vec<Self> {
        reserved_ports(&mut Problems::default(), written)
    }

    fn touches(self, protocol: Protocol, first: u16, last: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol) && self.first <= last && first <= self.last
    }

    /// The problems of an intent that asks for a reserved port.
    pub(crate) fn check(reserved: &[Self], intent: &Intent) -> Vec<Problem> {
        let mut problems = Problems::default();
        for port in &intent.ports {
            if let Some(held) = reserved.iter().find(|held| held.touches(port.protocol, port.port, port.end_port)) {
                problems.add(
                    "spec.ports",
                    Reason::ReservedPort,
                    format!(
                        "port {}/{} is reserved by the pool; choose another port",
                        range(held.first, held.last),
                        port.protocol
                    ),
                );
            }
        }
        problems.0
    }
}

impl Pool {
    /// Whether the pool's selector matches a node with these labels.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.node_selector.matches(labels)
    }

    /// Those of a node's addresses that the pool listens on.
    #[must_use]
    pub fn listen_addresses(&self, node: &[IpAddr]) -> Vec<IpAddr> {
        let wanted = |ip: &IpAddr| {
            self.listen.iter().any(|listen| match listen {
                Listen::NodeAddresses => true,
                Listen::Within(net) => net.contains(ip),
            })
        };
        let chosen: BTreeSet<IpAddr> = node.iter().copied().filter(wanted).collect();
        chosen.into_iter().collect()
    }

    /// Blocks in which every address of a node is one that the pool listens on.
    #[must_use]
    pub fn listen_cidrs(&self) -> Vec<IpNet> {
        let blocks = self.listen.iter().filter_map(|listen| match listen {
            Listen::NodeAddresses => None,
            Listen::Within(net) => Some(*net),
        });
        blocks.collect()
    }

    /// Checks what the pool itself forbids whoever asks.
    #[must_use]
    pub fn check(&self, intent: &Intent) -> Vec<Problem> {
        Reserved::check(&self.reserved, intent)
    }

    /// The grants that cover `intent` as a whole, for a namespace with these labels, by index.
    ///
    /// # Errors
    /// One problem that says, for each grant that selects the namespace, what it lacks.
    pub fn covering(&self, namespace: &str, labels: &Labels, intent: &Intent) -> Result<Vec<usize>, Problem> {
        let mut covering = Vec::new();
        let mut lacks = Vec::new();
        for (index, grant) in self.grants.iter().enumerate().filter(|(_, grant)| grant.namespaces.matches(labels)) {
            match grant.refuses(intent) {
                None => covering.push(index),
                Some(clause) => lacks.push(format!("grant {} {clause}", grant.name)),
            }
        }
        if !covering.is_empty() {
            return Ok(covering);
        }
        let message = if lacks.is_empty() {
            format!("no grant of the pool selects namespace {namespace}; ask the pool's admin for one")
        } else {
            format!("{}; one grant must cover the whole forward", lacks.join("; "))
        };
        Err(Problem { field: "spec".into(), reason: Reason::NotGranted, message })
    }

    /// How long a forward lasts that was `created` then and asks to expire as `asked`, if `covering` grants cover it.
    #[must_use]
    pub fn lifetime(&self, covering: &[usize], created: Moment, asked: Option<Moment>) -> Lifetime {
        let expiry = |index: &usize| {
            let limit = self.grants[*index].max_lifetime.as_ref().map(|max| created.plus(max.seconds));
            limit.into_iter().chain(asked).min()
        };
        // A grant for no forward at all lets none last.
        let open: Vec<usize> =
            covering.iter().copied().filter(|index| self.grants[*index].max_forwards != Some(0)).collect();
        let usable = if open.is_empty() { covering } else { &open };
        let latest = usable.iter().map(|index| expiry(index).unwrap_or(Moment::MAX)).max().unwrap_or_default();
        let grants: Vec<usize> =
            usable.iter().copied().filter(|index| expiry(index).unwrap_or(Moment::MAX) == latest).collect();
        let expires_at = grants.first().and_then(expiry);
        let limit = grants.first().filter(|_| expires_at != asked).and_then(|index| {
            let grant = &self.grants[*index];
            let max = grant.max_lifetime.as_ref()?;
            Some(format!("grant {} allows maxLifetime {}", grant.name, max.text))
        });
        Lifetime { grants, expires_at, limit }
    }
}

impl Grant {
    /// The first clause that does not cover `intent`, in words that say what would be allowed.
    fn refuses(&self, intent: &Intent) -> Option<String> {
        let port = intent.ports.iter().find(|port| {
            !self.ports.iter().any(|granted| {
                granted.protocol == port.protocol && granted.first <= port.port && port.end_port <= granted.last
            })
        });
        if let Some(port) = port {
            let allowed =
                self.ports.iter().map(|granted| format!("{}/{}", range(granted.first, granted.last), granted.protocol));
            let asked = range(port.port, port.end_port);
            return Some(format!("allows ports [{}], not {asked}/{}", join(allowed), port.protocol));
        }
        let outside = |ip: IpNet, nets: &[IpNet]| !nets.iter().any(|net| net.contains(&ip));
        if let Some(target) = intent.targets.iter().find(|target| outside(target.ip.into(), &self.targets)) {
            return Some(format!("allows targetCIDRs [{}], not {}", join(self.targets.iter()), target.ip));
        }
        if let Some(source) = intent.allow.iter().find(|source| outside(**source, &self.sources)) {
            return Some(format!("allows sourceCIDRs [{}], not {source}", join(self.sources.iter())));
        }
        if !self.modes.contains(&intent.source_nat) {
            return Some(format!("allows sourceNATModes [{}], not {}", join(self.modes.iter()), intent.source_nat));
        }
        None
    }
}

fn join(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn listen(problems: &mut Problems, at: &str, written: &ListenAddress) -> Option<Listen> {
    match (written.r#type, &written.value) {
        (ListenAddressType::NodeInternalIp, None) => Some(Listen::NodeAddresses),
        (ListenAddressType::NodeInternalIp, Some(_)) => {
            problems.add(format!("{at}.value"), Reason::UnsupportedValue, "goes with type CIDR only; remove it");
            None
        }
        (ListenAddressType::Cidr, Some(value)) => {
            validate::cidr(problems, &format!("{at}.value"), value).map(Listen::Within)
        }
        (ListenAddressType::Cidr, None) => {
            problems.add(
                format!("{at}.value"),
                Reason::UnsupportedValue,
                "is needed with type CIDR, for example 10.30.1.0/24",
            );
            None
        }
    }
}

fn grant(problems: &mut Problems, at: &str, written: &sallyport_api::gateway_pool::Grant) -> Option<Grant> {
    let before = problems.0.len();
    validate::dns_label(problems, &format!("{at}.name"), &written.name, 63);
    let namespaces = selector(problems, &format!("{at}.namespaceSelector"), &written.namespace_selector);
    let granted_ports = written
        .ports
        .iter()
        .enumerate()
        .filter_map(|(index, port)| {
            let (first, last) = ports(problems, &format!("{at}.ports[{index}]"), port.port, port.end_port)?;
            Some(GrantedPorts { protocol: port.protocol, first, last })
        })
        .collect();
    let mut cidrs = |list: &str, written: &[String]| -> Vec<IpNet> {
        written
            .iter()
            .enumerate()
            .filter_map(|(index, text)| validate::cidr(problems, &format!("{at}.{list}[{index}]"), text))
            .collect()
    };
    let targets = cidrs("targetCIDRs", &written.target_cidrs);
    let sources = cidrs("sourceCIDRs", &written.source_cidrs);
    let max_forwards = written.max_forwards.and_then(|max| {
        let typed = usize::try_from(max).ok();
        if typed.is_none() {
            let message = format!("{max} is below 0; use 0 or more, or leave it out for no limit");
            problems.add(format!("{at}.maxForwards"), Reason::UnsupportedValue, message);
        }
        typed
    });
    let max_lifetime = written.max_lifetime.as_ref().and_then(|text| {
        let typed = expiry::lifetime(text);
        if typed.is_none() {
            let message = format!(
                "{} is not a duration from 1s to {MAX_LIFETIME_HOURS}h, such as 24h or 1h30m",
                validate::quoted(text)
            );
            problems.add(format!("{at}.maxLifetime"), Reason::UnsupportedValue, message);
        }
        typed.map(|seconds| MaxLifetime { seconds, text: text.clone() })
    });
    let modes = written.source_nat_modes.iter().copied().collect();
    let namespaces = namespaces.filter(|_| problems.0.len() == before)?;
    let name = written.name.clone();
    Some(Grant { name, namespaces, ports: granted_ports, targets, sources, modes, max_forwards, max_lifetime })
}

fn ports(problems: &mut Problems, at: &str, first: i32, last: Option<i32>) -> Option<(u16, u16)> {
    let first = validate::port_number(problems, &format!("{at}.port"), first);
    let last = match last {
        Some(last) => validate::port_number(problems, &format!("{at}.endPort"), last),
        None => first,
    };
    let (first, last) = (first?, last?);
    if last < first {
        let message = format!("{last} is below port {first}; swap them");
        problems.add(format!("{at}.endPort"), Reason::UnsupportedValue, message);
        return None;
    }
    Some((first, last))
}

fn selector(
    problems: &mut Problems,
    field: &str,
    written: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
) -> Option<Selector> {
    let typed = Selector::try_from(written.clone());
    if let Err(error) = &typed {
        problems.add(field, Reason::UnsupportedValue, error.to_string());
    }
    typed.ok()
}

#[cfg(test)]
mod tests;
