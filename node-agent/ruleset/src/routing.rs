//! Whether the host itself lets the packets of its forwards pass, as its routing says: by which interfaces they come and go.
//!
//! ```text
//! client ─► L: forwards what comes in, does not filter its source ─► T: a route to the target
//! client ◄─ L: the same as the host's own answers take           ◄─ T: forwards what comes in
//! ```
//! Pure: the kernel is asked by whoever calls. Only what is certain is a failure; where the kernel cannot be asked for the
//! packets in question, nothing is said.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::ForwardRef;

use crate::address::LocalAddress;
use crate::binding::Binding;
use crate::family::Family;
use crate::table::{Failure, ForwardingTable};

/// What the kernel is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// By which interface the host sends to an address, from one of its own if that is given.
    Sends {
        /// Its own address.
        from: Option<IpAddr>,
        /// The address of another.
        to: IpAddr,
    },
    /// What becomes of a packet of somebody else.
    Forwards {
        /// The interface by which it comes in.
        by: String,
        /// Its source.
        from: IpAddr,
        /// Its destination.
        to: IpAddr,
    },
    /// Whether routes of a family may depend on marks, which nobody can tell of a packet before it is there.
    ByMark(Family),
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It leaves by this interface.
    By(String),
    /// There is no route for it; or none that depends on marks.
    NoRoute,
    /// What comes in by that interface is not forwarded.
    NotForwarding,
    /// The answer to its source would not leave by the interface that it came in by, and `rp_filter` asks for that.
    Filtered,
    /// Nobody knows.
    Unclear,
}

/// The forwards of `table` whose packets do not pass on a host with the addresses `local`, and why; one failure for each.
#[must_use]
pub fn failures(
    table: &ForwardingTable,
    local: &[LocalAddress],
    ask: &mut dyn FnMut(Question) -> Answer,
) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut done: Option<&ForwardRef> = None;
    for binding in table.bindings().filter(|binding| table.is_here(binding.listen)) {
        if done == Some(&binding.forward.r#ref) {
            continue;
        }
        if let Some((reason, message)) = problem(&binding, local, ask) {
            failures.push(Failure { forward: binding.forward.r#ref.clone(), reason, message });
            done = Some(&binding.forward.r#ref);
        }
    }
    failures
}

/// Why packets of `binding` do not pass.
fn problem(
    binding: &Binding<'_>,
    local: &[LocalAddress],
    ask: &mut dyn FnMut(Question) -> Answer,
) -> Option<(Reason, String)> {
    let mut ways = BTreeSet::new();
    for target in binding.targets().filter(|target| target.weight > 0) {
        match ask(Question::Sends { from: None, to: target.ip }) {
            Answer::By(interface) if ways.iter().all(|(known, _)| *known != interface) => {
                ways.insert((interface, target.ip));
            }
            Answer::NoRoute => return Some(no_route(target.ip)),
            _ => {}
        }
    }
    for net in binding.allowed() {
        let Some(client) = client_in(net, local) else { continue };
        let by = match ask(Question::Sends { from: Some(binding.listen), to: client }) {
            Answer::By(interface) => interface,
            Answer::NoRoute if net.prefix_len() == net.max_prefix_len() => {
                return Some((
                    Reason::NoRouteBack,
                    format!(
                        "this gateway has no route to client {client}, so its answers go nowhere; add one (`ip route get {client}` shows it)"
                    ),
                ));
            }
            _ => continue,
        };
        for (to_target, target) in &ways {
            let problem = one_way(binding, net, client, &by, *target, ask)
                .or_else(|| the_other(binding, net, client, &by, to_target, *target, ask));
            if problem.is_some() {
                return problem;
            }
        }
    }
    None
}

/// What is wrong with packets of clients in `net`, which come in by the interface `by`.
fn one_way(
    binding: &Binding<'_>,
    net: IpNet,
    client: IpAddr,
    by: &str,
    target: IpAddr,
    ask: &mut dyn FnMut(Question) -> Answer,
) -> Option<(Reason, String)> {
    match ask(Question::Forwards { by: by.to_owned(), from: client, to: target }) {
        Answer::NotForwarding => Some(not_forwarding(by, &format!("clients in {net}"))),
        Answer::Filtered => Some((
            Reason::NoRouteBack,
            format!(
                "the kernel drops what clients in {net} send to {listen}: it comes in by {by}, and rp_filter there asks that \
                 answers to them, from target {target}, leave by {by} as well; set it to loose (`sysctl -w \
                 net.ipv4.conf.{by}.rp_filter=2`)",
                listen = binding.listen,
            ),
        )),
        _ => None,
    }
}

/// What is wrong with the answers of `target`, which come in by `to_target`.
fn the_other(
    binding: &Binding<'_>,
    net: IpNet,
    client: IpAddr,
    by: &str,
    to_target: &str,
    target: IpAddr,
    ask: &mut dyn FnMut(Question) -> Answer,
) -> Option<(Reason, String)> {
    match ask(Question::Forwards { by: to_target.to_owned(), from: target, to: client }) {
        Answer::NotForwarding => Some(not_forwarding(to_target, &format!("answers of target {target}"))),
        Answer::Filtered => Some((
            Reason::NoRouteBack,
            format!(
                "the kernel drops the answers of target {target}: they come in by {to_target}, where rp_filter asks that what is \
                 sent to it leaves by {to_target} as well; set it to loose (`sysctl -w net.ipv4.conf.{to_target}.rp_filter=2`)"
            ),
        )),
        Answer::By(back) if back != by && ask(Question::ByMark(binding.family())) == Answer::NoRoute => {
            let listen = binding.listen;
            Some((
                Reason::NoRouteBack,
                format!(
                    "answers of target {target} to clients in {net} that connect to {listen} leave by {back}, where this gateway's \
                     own answers from {listen} leave by {by}; route them by a mark, with masks: `iptables -t mangle -A PREROUTING \
                     -i {by} -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x2/0xff`, `iptables -t mangle -A PREROUTING ! -i \
                     {by} -m connmark --mark 0x2/0xff -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff`, `ip rule add fwmark \
                     0x2/0xff table …`; or keep {listen} out of spec.addresses, or of spec.listen of the pool"
                ),
            ))
        }
        _ => None,
    }
}

fn no_route(target: IpAddr) -> (Reason, String) {
    let message = format!(
        "this gateway has no route to target {target}; add one, or take the target out (`ip route get {target}` shows it)"
    );
    (Reason::NoRoute, message)
}

fn not_forwarding(interface: &str, whose: &str) -> (Reason, String) {
    let message = format!(
        "the kernel does not forward what comes in by {interface}, as {whose} do, though forwarding is on: somebody turned it off \
         there; turn it on: `sysctl -w net.ipv4.conf.{interface}.forwarding=1`, and where that is done (systemd-networkd: \
         IPv4Forwarding= of the link)"
    );
    (Reason::NotForwarding, message)
}

/// An address in `net` that is no address of the host: one that stands for its clients. For everybody, one of documentation
/// (RFC 5737, RFC 3849), which is routed as most are.
fn client_in(net: IpNet, local: &[LocalAddress]) -> Option<IpAddr> {
    if net.prefix_len() == 0 {
        return Some(match net {
            IpNet::V4(_) => Ipv4Addr::new(203, 0, 113, 1).into(),
            IpNet::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        });
    }
    net.hosts().take(local.len() + 1).find(|host| local.iter().all(|own| own.ip != *host))
}

#[cfg(test)]
mod tests;
