//! `render`: the rules for given gateway addresses, and what the targets' own firewalls need. Looks at no kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use sallyport_api::SourceNatMode;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_api::id::Moment;
use sallyport_engine::iptables::Variant;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::plan;
use sallyport_ruleset::table::ForwardingTable;

use crate::args::Audience;
use crate::manifest::Identity;
use crate::plan::report;
use crate::script::{HEAD, write_change, write_comment, write_restore};
use crate::source::describe;
use crate::source::directory::Directory;
use crate::source::local::{Decided, decide_here};
use crate::state::StateDir;

/// Prints the rules as a shell script. Exit code 1 when an object has problems.
pub fn render(manifests: &Path, addresses: &[IpAddr], audience: Audience) -> anyhow::Result<ExitCode> {
    let mut directory = Directory::new(manifests);
    let all = directory.names_now().with_context(|| format!("cannot list the manifests in {}", manifests.display()))?;
    let state = StateDir::read_only(Path::new("/nonexistent"));
    directory.look(&all, &state)?;
    let (objects, mut problems) = directory.objects();
    let now = Moment(jiff::Timestamp::now().as_second());
    let Decided { intents, problems: refused, .. } = decide_here(
        &objects,
        "render",
        addresses.to_vec(),
        &BTreeMap::new(),
        directory.broken_pool(),
        &BTreeMap::new(),
        now,
    );
    problems.extend(refused);
    // How far the links of these gateways reach is not known here, so each address stands alone.
    let local: Vec<LocalAddress> =
        addresses.iter().map(|ip| LocalAddress { ip: *ip, prefix_len: Family::of(*ip).bits(), global: true }).collect();
    let forwards: Vec<_> = intents.forwards().collect();
    let table = ForwardingTable::new(&intents.node, forwards.iter().copied(), &NodeFacts::of(&local, now));
    let mut out = std::io::stdout().lock();
    match audience {
        Audience::Gateway => write_change(&mut out, variant(intents.node.backend), &plan::render(&lower(&table)))?,
        Audience::Targets => print_targets(&mut out, &forwards, &table)?,
    }
    let mut lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.extend(table.failures().map(|failure| {
        let file = directory.file_of(&Identity(format!("PortForward {}", failure.forward))).unwrap_or_default();
        format!("{file}: {}", describe(failure))
    }));
    report(&lines)
}

/// The variant that the pool asks for, if it does: which one a gateway would find is not known here.
fn variant(backend: FirewallBackend) -> Option<Variant> {
    match backend {
        FirewallBackend::Auto => None,
        FirewallBackend::IptablesNft => Some(Variant::Nft),
        FirewallBackend::IptablesLegacy => Some(Variant::Legacy),
    }
}

/// What a target does with a packet, in the order in which its rules stand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Drop,
    Accept,
}

/// For each target, the rules that let the gateways' packets in.
fn print_targets(
    out: &mut impl std::io::Write,
    forwards: &[&Arc<SliceForward>],
    table: &ForwardingTable,
) -> std::io::Result<()> {
    let failed: BTreeSet<_> = table.failures().map(|failure| &failure.forward).collect();
    let mut rules: BTreeMap<IpAddr, BTreeSet<(Verdict, String)>> = BTreeMap::new();
    for forward in forwards.iter().filter(|forward| !failed.contains(&forward.r#ref)) {
        let intent = &forward.intent;
        for target in &intent.targets {
            let family = Family::of(target.ip);
            let sources: Vec<(Verdict, String)> = match intent.source_nat {
                SourceNatMode::Masquerade => {
                    let gateways = table.listen().iter().filter(|ip| Family::of(**ip) == family);
                    gateways.map(|ip| (Verdict::Accept, ip.to_string())).collect()
                }
                SourceNatMode::Preserve => {
                    let meets =
                        |deny: &IpNet| intent.allow.iter().any(|allow| allow.contains(deny) || deny.contains(allow));
                    let denied = intent.deny.iter().filter(|deny| meets(deny)).map(|net| (Verdict::Drop, net));
                    let clients = denied.chain(intent.allow.iter().map(|net| (Verdict::Accept, net)));
                    let clients = clients.filter(|(_, net)| Family::of(net.addr()) == family);
                    clients.map(|(verdict, net)| (verdict, net.to_string())).collect()
                }
            };
            for (verdict, source) in sources {
                for port in &intent.ports {
                    let protocol = port.protocol.to_string().to_ascii_lowercase();
                    let last = port.target_port + (port.end_port - port.port);
                    let ports = if last == port.target_port {
                        last.to_string()
                    } else {
                        format!("{}:{last}", port.target_port)
                    };
                    let rule = format!("-A INPUT -s {source} -p {protocol} -m {protocol} --dport {ports}");
                    rules.entry(target.ip).or_default().insert((verdict, rule));
                }
            }
        }
    }
    if !rules.is_empty() {
        out.write_all(HEAD.as_bytes())?;
    }
    for (target, rules) in rules {
        let mut text = "*filter\n".to_owned();
        for (verdict, rule) in rules {
            let verdict = if verdict == Verdict::Drop { "DROP" } else { "ACCEPT" };
            text.push_str(&format!("{rule} -j {verdict}\n"));
        }
        text.push_str("COMMIT\n");
        write_comment(out, &format!("on {target}"))?;
        write_restore(out, None, Family::of(target), &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
