//! What to tell people of a rule that stands in the way: where it is, what it does, and what helps.

use std::fmt;

use sallyport_api::condition::Reason;
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};

use crate::family::Family;
use crate::firewall::leg::{Leg, is_pre_dnat};
use crate::firewall::path::{ClientPath, Finding, PreDnat, Wrong};
use crate::firewall::place::{Forward, Spot, drops_all, is_our_jump, narrows};
use crate::firewall::rules::Rule;
use crate::firewall::screen::Screen;
use crate::firewall::{BaseChain, Effect, FirewallTable, Holder, Hook, HostFirewall, MarkOf};

/// What stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What kind of trouble it makes,
    pub reason: Reason,
    /// for certain, or perhaps.
    pub certain: bool,
    /// What it does to packets, as in "are dropped by".
    pub does: String,
    /// Table, chain, and rule if it is one.
    pub place: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.does, self.place, self.remedy)
    }
}

impl Conflict {
    /// The same as something that is to come.
    pub(super) fn announced(self) -> Self {
        Self {
            does: format!(
                "pass now, as this host keeps what an older version did, but from version {WINS_FROM} on {}",
                self.does
            ),
            remedy: format!("{}; or set spec.firewall.order of the pool to First, which keeps it so", self.remedy),
            ..self
        }
    }
}

/// The version from which on a host keeps no order that nobody has set.
const WINS_FROM: &str = "0.3.0";

/// The reason of a forward that does not work for it.
fn reason(wrong: Wrong) -> Reason {
    match wrong {
        Wrong::LetIn => Reason::HostFirewallBypass,
        Wrong::Diverted => Reason::Diverted,
        Wrong::Held => Reason::PortInUse,
        Wrong::Marked => Reason::MarkOverwritten,
        Wrong::Dropped | Wrong::Untracked | Wrong::Renamed | Wrong::Unhidden => Reason::HostFirewallConflict,
        Wrong::Untold => Reason::HostFirewallUnclear,
    }
}

/// What becomes of packets, or may become of them, by whatever is named next.
fn does(wrong: Wrong, certain: bool) -> &'static str {
    match (wrong, certain) {
        (Wrong::LetIn, true) => "are joined by those of clients who are not listed, let in to a target by",
        (Wrong::LetIn, false) => "may be joined by those of clients who are not listed, let in to a target by",
        (Wrong::Dropped, true) => "are dropped by",
        (Wrong::Dropped, false) => "may be dropped by",
        (Wrong::Untracked, true) => "are kept from connection tracking, and so from being translated, by",
        (Wrong::Untracked, false) => "may be kept from connection tracking, and so from being translated, by",
        (Wrong::Diverted, true) => "are taken before our jump to SALLY-PRE by",
        (Wrong::Diverted, false) => "may be taken before our jump to SALLY-PRE by",
        (Wrong::Held, _) => "are given to somebody else by",
        (Wrong::Marked, true) => "lose our bits 0x30000000 of the connection mark to",
        (Wrong::Marked, false) => "may lose our bits 0x30000000 of the connection mark to",
        (Wrong::Renamed, true) => "lose the source address, which sourceNAT Preserve is to keep, to",
        (Wrong::Renamed, false) => "may lose the source address, which sourceNAT Preserve is to keep, to",
        (Wrong::Unhidden, true) => "keep the client's source address, which sourceNAT Masquerade is to hide, by",
        (Wrong::Unhidden, false) => "may keep the client's source address, which sourceNAT Masquerade is to hide, by",
        (Wrong::Untold, _) => "may or may not pass",
    }
}

/// firewalld has this table for the moment of a reload, and drops everything new meanwhile.
pub(super) fn passes_soon(table: &FirewallTable) -> bool {
    table.holder == Holder::Nftables && table.name == "firewalld_policy_drop"
}

/// Matches our packets in nftables, once they are translated.
const OURS_IN_NFT: &str = "ct status dnat ct mark and 0x10000000 == 0x10000000";
/// The same in iptables.
const OURS_IN_IPTABLES: &str = "-m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000";

/// What `finding` is for people.
pub(super) fn conflict(
    firewall: &HostFirewall,
    screen: &Screen,
    finding: Finding,
    path: Option<&ClientPath<'_>>,
) -> Option<Conflict> {
    let stage = screen.stages.get(finding.stage)?;
    let (table, base) = stage.place.and_then(|(table, base)| {
        let table = firewall.tables.get(table)?;
        Some((table, table.base.get(base)?))
    })?;
    let rule = finding.at.map(|at| stage.rule(at));
    let at = Place { table, base, rule, family: path.map(|path| path.family), finding };
    // Others may have written anything into a comment.
    let clean = |text: String| text.replace(char::is_control, "?");
    Some(Conflict {
        reason: if at.is_emergency_stop() { Reason::ForwardingStopped } else { reason(finding.wrong) },
        certain: finding.certain,
        does: does(finding.wrong, finding.certain).to_owned(),
        place: clean(at.to_string()),
        remedy: clean(at.remedy(path)),
    })
}

/// A base chain, and perhaps a rule in it or in a chain that it leads to.
struct Place<'a> {
    table: &'a FirewallTable,
    base: &'a BaseChain,
    rule: Option<&'a Rule>,
    family: Option<Family>,
    finding: Finding,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, base) = (self.table, self.base);
        match table.holder {
            Holder::Nftables => write!(f, "table {} {}", nft_family(table), table.name)?,
            Holder::Iptables { program, .. } => write!(f, "table {} of {program}", table.name)?,
        }
        let policy = if base.drops { ", policy drop" } else { "" };
        write!(f, ", chain {} (hook {}, priority {}{policy})", base.name, base.hook.name(), base.priority)?;
        match self.rule {
            Some(rule) if !rule.text.is_empty() => write!(f, ", rule `{}`", self.text(rule)),
            _ => Ok(()),
        }
    }
}

impl Place<'_> {
    /// The rule as its program shows it.
    fn text(&self, rule: &Rule) -> String {
        match self.table.holder {
            Holder::Nftables => format!("{} {}", rule.chain, rule.text),
            Holder::Iptables { .. } => format!("-A {} {}", rule.chain, rule.text),
        }
    }

    /// The command that removes the rule.
    fn removal(&self, rule: &Rule) -> String {
        let table = self.table;
        match table.holder {
            Holder::Nftables => {
                format!("nft delete rule {} {} {} {}", nft_family(table), table.name, rule.chain, rule.text)
            }
            Holder::Iptables { program, .. } => format!("{program} -t {} -D {} {}", table.name, rule.chain, rule.text),
        }
    }

    fn remedy(&self, path: Option<&ClientPath<'_>>) -> String {
        match (self.finding.wrong, self.rule) {
            (Wrong::LetIn, Some(rule)) => format!(
                "list those clients in the forward's sources, or run `{}` and take the rule out of what loads it, as \
                 well as those that accept its packets in FORWARD",
                self.removal(rule)
            ),
            (Wrong::Unhidden, Some(rule)) => {
                format!("run `{}` and take the rule out of what loads it", self.removal(rule))
            }
            (Wrong::Diverted, Some(rule)) => {
                format!("choose another port, or run `{}` and take the rule out of what loads it", self.removal(rule))
            }
            (Wrong::Held, Some(rule)) => format!(
                "have whoever made that rule (docker, a hostPort, a Service) give the port up, or choose another port, or \
                 run `{}` and take the rule out of what loads it",
                self.removal(rule)
            ),
            (Wrong::Marked, Some(rule)) => match self.masked(rule) {
                Some(masked) => format!("make that rule leave those bits alone: `{masked}`"),
                None => "make that rule leave those bits alone".to_owned(),
            },
            (_, Some(rule)) if self.is_beside_ours() => self.let_pass_beside_ours(rule),
            _ => self.let_pass(path),
        }
    }

    /// Whether it is the chain in which our jump to what lets packets pass stands.
    fn is_beside_ours(&self) -> bool {
        self.base.hook == Hook::Forward && self.table.name == "filter" && self.table.holds_ours()
    }

    /// Whether it is the first rule of `FORWARD`, which drops everything, above our jump: nobody but an admin in need writes that.
    fn is_emergency_stop(&self) -> bool {
        let rules = self.table.chains.get(&self.base.name).map(Vec::as_slice).unwrap_or_default();
        let first = rules.first().filter(|first| drops_all(first));
        let is_first =
            |rule: &&Rule| *rule.chain == *self.base.name && first.is_some_and(|first| first.text == rule.text);
        self.is_beside_ours() && self.rule.as_ref().is_some_and(is_first) && rules.iter().any(is_our_jump)
    }

    /// What would make `rule`, which is asked before our jump, let the packets pass.
    fn let_pass_beside_ours(&self, rule: &Rule) -> String {
        let Holder::Iptables { program, .. } = self.table.holder else { return String::new() };
        if self.is_emergency_stop() {
            return format!(
                "somebody has stopped all forwarding; to let it go on run `{program} -D {} 1`",
                self.base.name
            );
        }
        let family = self.family.or_else(|| self.table.families.first().copied()).unwrap_or(Family::V4);
        let is_it = |(chain, number): &Spot<'_>| {
            *chain == &*rule.chain
                && self.table.chains[*chain].get(*number).is_some_and(|there| there.text == rule.text)
        };
        match Forward::new(family, &self.table.chains).defaults(&self.base.name).into_iter().find(is_it) {
            // Denies before it are to win, so our jump stays behind its chain, and the exception has to be made inside.
            Some((chain, number)) => format!(
                "denies that are to win stand in the same chain, so the exception belongs there: run \
                 `{program} -t filter -I {chain} {} {OURS_IN_IPTABLES} -j ACCEPT` and make whoever writes that chain keep it",
                number + 1
            ),
            // Without it what leads there would let all others pass, too.
            None if !rule.tests.iter().any(narrows) => format!(
                "what leads to {} names these packets, and that denial wins: take those clients out of the forward's sources, or \
                 let them pass in whatever writes that chain",
                rule.chain
            ),
            None => format!(
                "what it names it denies, and that wins: take those clients out of the forward's sources, or run `{}` and \
                 take the rule out of what loads it",
                self.removal(rule)
            ),
        }
    }

    /// The rule in a form that leaves our bits of the connection mark alone.
    fn masked(&self, rule: &Rule) -> Option<String> {
        let ours = MARK_OURS | MARK_MASQUERADE;
        let change = rule.effects.iter().find_map(|effect| match effect {
            Effect::Mark { of: MarkOf::Connection, of_connection, of_packet, flip } => {
                Some((*of_connection, *of_packet, *flip))
            }
            _ => None,
        });
        let (of_connection, of_packet, flip) = change?;
        let (kept, flip, copied) = (of_connection | ours, flip & !ours, of_packet & !ours);
        Some(match self.table.holder {
            Holder::Nftables if copied != 0 => return None,
            Holder::Nftables => format!("ct mark set ct mark and {kept:#x} xor {flip:#x}"),
            Holder::Iptables { program, .. } => {
                let asks = rule.text.split(" -j ").next().filter(|_| rule.text.contains(" -j ")).unwrap_or_default();
                let target = if copied == 0 {
                    format!("--set-xmark {flip:#x}/{:#x}", !kept)
                } else {
                    format!("--save-mark --nfmask {copied:#x} --ctmask {:#x}", !kept)
                };
                let words = [program, "-t", &self.table.name, "-A", &rule.chain, asks, "-j CONNMARK", &target];
                words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
            }
        })
    }

    /// What would make the chain let the packets pass.
    fn let_pass(&self, path: Option<&ClientPath<'_>>) -> String {
        let (table, base) = (self.table, self.base);
        let (name, chain) = (&table.name, &base.name);
        let family = self.family.or_else(|| table.families.first().copied()).unwrap_or(Family::V4);
        // There our mark cannot be seen yet, and the destination is still the gateway.
        let pre_dnat = is_pre_dnat(base);
        let path = path.and_then(|path| path.pre_dnat(self.finding.leg != Leg::Answer));
        match table.holder {
            Holder::Nftables if passes_soon(table) => {
                "firewalld makes it while it reloads; if it stays, run `systemctl restart firewalld`".to_owned()
            }
            Holder::Nftables if name == "firewalld" => {
                "set StrictForwardPorts=no in /etc/firewalld/firewalld.conf and \
                 run `firewall-cmd --reload`, or allow these packets in a policy of firewalld"
                    .to_owned()
            }
            Holder::Nftables => {
                let what = if pre_dnat { pre_dnat_in_nft(family, path.as_ref()) } else { OURS_IN_NFT.to_owned() };
                let insert = format!("nft insert rule {} {name} {chain} {what} accept", nft_family(table));
                format!("run `{insert}` and put the same rule into the file that the table is loaded from")
            }
            Holder::Iptables { own: true, .. } if name == "filter" => {
                "make what leaves FORWARD before the jump to SALLY-FWD let these packets pass".to_owned()
            }
            Holder::Iptables { program, .. } => {
                let what = if pre_dnat { pre_dnat_in_iptables(path.as_ref()) } else { OURS_IN_IPTABLES.to_owned() };
                let insert = format!("{program} -t {name} -I {chain} {what} -j ACCEPT");
                format!("run `{insert}` and make whoever writes that table keep it")
            }
        }
    }
}

fn nft_family(table: &FirewallTable) -> &'static str {
    match table.families.as_slice() {
        [Family::V4] => "ip",
        [Family::V6] => "ip6",
        _ => "inet",
    }
}

fn pre_dnat_in_nft(family: Family, path: Option<&PreDnat>) -> String {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    match path {
        Some(PreDnat { request: true, protocol, ip: own, port }) => format!("{ip} daddr {own} {protocol} dport {port}"),
        Some(PreDnat { request: false, protocol, ip: own, port }) => {
            format!("{ip} saddr {own} {protocol} sport {port}")
        }
        None => format!("{ip} daddr ADDRESS tcp dport PORT"),
    }
}

fn pre_dnat_in_iptables(path: Option<&PreDnat>) -> String {
    match path {
        Some(PreDnat { request: true, protocol, ip, port }) => format!("-d {ip} -p {protocol} --dport {port}"),
        Some(PreDnat { request: false, protocol, ip, port }) => format!("-s {ip} -p {protocol} --sport {port}"),
        None => "-d ADDRESS -p tcp --dport PORT".to_owned(),
    }
}
