//! What a host's kernel holds, as text, so that before and after can be compared: every rule of both
//! iptables variants and of nftables, and every forwarding-related setting.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::lab::{Family, Host, Variant};

/// The rules and settings of one host at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, String>,
}

impl Snapshot {
    /// Reads everything.
    pub fn of(host: &Host) -> Result<Self> {
        let mut sections = BTreeMap::new();
        for variant in Variant::ALL {
            for family in [Family::V4, Family::V6] {
                let saved = host.iptables_save(variant, family)?;
                let text = match variant {
                    Variant::Nft => saved,
                    Variant::Legacy => without_empty_tables(&saved),
                };
                sections.insert(variant.program(family, "save"), text);
            }
        }
        sections.insert("nft list ruleset".to_owned(), nft_ruleset(host)?);
        sections.insert("sysctl".to_owned(), settings(host)?);
        Ok(Self { sections })
    }

    /// The names of what is compared.
    pub fn names(&self) -> Vec<&str> {
        self.sections.keys().map(String::as_str).collect()
    }

    /// Fails with the lines that differ.
    pub fn expect_equal(&self, later: &Self) -> Result<()> {
        let mut differences = String::new();
        for (name, before) in &self.sections {
            let after = later.sections.get(name).map_or("", String::as_str);
            let missing = before.lines().filter(|line| !after.lines().any(|other| other == *line));
            let added = after.lines().filter(|line| !before.lines().any(|other| other == *line));
            let changed: Vec<String> =
                missing.map(|line| format!("  - {line}\n")).chain(added.map(|line| format!("  + {line}\n"))).collect();
            if !changed.is_empty() {
                differences.extend([name, ":\n"].into_iter().chain(changed.iter().map(String::as_str)));
            } else if before != after {
                differences.extend([name, ": the same lines in another order\n"]);
            }
        }
        if !differences.is_empty() {
            bail!("the host is not as it was:\n{differences}");
        }
        Ok(())
    }
}

/// Leaves out the tables without a rule, a chain or a policy: once the kernel has made a legacy table, only
/// a reboot takes it away.
fn without_empty_tables(saved: &str) -> String {
    let is_empty = |table: &&str| table.lines().skip(1).all(|line| line.starts_with(':') && line.ends_with(" ACCEPT"));
    saved.split_inclusive("COMMIT\n").filter(|table| !is_empty(&table.trim_end_matches("COMMIT\n"))).collect()
}

/// The chains and rules of an `iptables-save` text, each with the table it is in: `nat -A PREROUTING …`.
#[must_use]
pub fn rules(saved: &str) -> Vec<String> {
    let mut table = "";
    let mut rules = Vec::new();
    for line in saved.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if line == "COMMIT" => {}
            None => rules.push(format!("{table} {line}")),
        }
    }
    rules
}

/// Those of `rules` that are not in `others`, in their order; what is there twice counts twice.
#[must_use]
pub fn without(rules: &[String], others: &[String]) -> Vec<String> {
    let mut others = others.to_vec();
    let mut rest = Vec::new();
    for rule in rules {
        match others.iter().position(|other| other == rule) {
            Some(position) => drop(others.remove(position)),
            None => rest.push(rule.clone()),
        }
    }
    rest
}

/// `nft list ruleset` without its counters.
fn nft_ruleset(host: &Host) -> Result<String> {
    host.check(&["nft", "--stateless", "list", "ruleset"])
}

/// Every setting that turning forwarding on or off may change, one `path:value` a line.
fn settings(host: &Host) -> Result<String> {
    let text = host.check(&[
        "sh",
        "-c",
        "grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf || true",
    ])?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::{rules, without, without_empty_tables};

    const SAVED: &str = "*nat\n:PREROUTING ACCEPT\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";

    #[test]
    fn rules_carry_their_table() {
        let expected = ["nat :PREROUTING ACCEPT", "filter :INPUT DROP", "filter -A INPUT -i lo -j ACCEPT"];
        assert_eq!(rules(SAVED), expected);
    }

    #[test]
    fn rule_that_is_there_twice_counts_twice() {
        let twice = ["a".to_owned(), "a".to_owned(), "b".to_owned()];
        assert_eq!(without(&twice, &["a".to_owned()]), ["a", "b"]);
    }

    #[test]
    fn only_tables_that_change_nothing_are_left_out() {
        assert_eq!(without_empty_tables(SAVED), "*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n");
    }
}
