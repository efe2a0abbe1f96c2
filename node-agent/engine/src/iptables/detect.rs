//! Which variant of iptables the host itself uses: rules in the other one would be evaluated as well, but no admin of
//! the host would see them beside theirs.
//!
//! The order of evidence is that of the Kubernetes project's iptables-wrappers: the kubelet's hint chains, then where
//! the rules are, then what the command `iptables` is.

use sallyport_ruleset::chain::is_ours;
use sallyport_ruleset::family::Family;

use super::apart::missing;
use super::{Variant, has_family, has_legacy_tables};
use crate::{Error, command};

/// The variant to use, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detected {
    /// Where to put rules.
    pub variant: Variant,
    /// What spoke for it.
    pub because: &'static str,
}

/// Chains that the kubelet makes in the variant that the node uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

#[derive(Clone, Copy, Debug, Default)]
struct Traces {
    hint: bool,
    rules: usize,
}

/// Looks at both variants; changes nothing, and does not create the legacy tables by looking.
pub async fn detect() -> Result<Detected, Error> {
    let nft = traces(Variant::Nft).await?;
    let legacy = traces(Variant::Legacy).await?;
    let command = command::run("iptables", &["--version"], "").await.unwrap_or_default();
    Ok(choose(nft, legacy, &command))
}

fn choose(nft: Traces, legacy: Traces, command: &str) -> Detected {
    let (variant, because) = if nft.hint {
        (Variant::Nft, "the kubelet's hint chain is there")
    } else if legacy.hint {
        (Variant::Legacy, "the kubelet's hint chain is there")
    } else if legacy.rules > nft.rules {
        (Variant::Legacy, "most of the host's rules are there")
    } else if nft.rules > 0 {
        (Variant::Nft, "most of the host's rules are there")
    } else if command.contains("legacy") {
        (Variant::Legacy, "the host has no rules and its iptables command is this")
    } else {
        (Variant::Nft, "the host has no rules and its iptables command is not the legacy one")
    };
    Detected { variant, because }
}

async fn traces(variant: Variant) -> Result<Traces, Error> {
    let mut traces = Traces::default();
    for family in Family::BOTH {
        if !has_family(family) || (variant == Variant::Legacy && !has_legacy_tables(family)?) {
            continue;
        }
        match command::run(variant.save_program(family), &[], "").await {
            Ok(save) => {
                let found = read(&save);
                traces.hint |= found.hint;
                traces.rules += found.rules;
            }
            // A host may have only one of the two; the missing one has no rules.
            Err(command::Error::NotInstalled { .. }) => {}
            // Somebody has rules there, that much is certain.
            Err(command::Error::Failed { .. }) => traces.rules += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(traces)
}

fn read(save: &str) -> Traces {
    // A table that cannot be shown is not an empty one.
    let mut traces = Traces { rules: usize::from(missing(save).is_some()), ..Traces::default() };
    for line in save.lines() {
        if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            traces.hint |= HINTS.contains(&chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let ours = rule.split(' ').next().is_some_and(is_ours) || rule.rsplit(' ').next().is_some_and(is_ours);
            traces.rules += usize::from(!ours);
        }
    }
    traces
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND_NFT: &str = "iptables v1.8.9 (nf_tables)";
    const COMMAND_LEGACY: &str = "iptables v1.8.9 (legacy)";

    fn rules(rules: usize) -> Traces {
        Traces { hint: false, rules }
    }

    #[test]
    fn a_hint_of_the_kubelet_outweighs_any_number_of_rules() {
        let hint = Traces { hint: true, rules: 1 };
        assert_eq!(choose(rules(50), hint, COMMAND_NFT).variant, Variant::Legacy);
        assert_eq!(choose(hint, rules(50), COMMAND_LEGACY).variant, Variant::Nft);
    }

    #[test]
    fn the_variant_with_more_rules_of_the_host_is_chosen() {
        assert_eq!(choose(rules(2), rules(5), COMMAND_NFT).variant, Variant::Legacy);
        assert_eq!(choose(rules(5), rules(0), COMMAND_LEGACY).variant, Variant::Nft);
    }

    #[test]
    fn without_rules_the_command_decides() {
        assert_eq!(choose(rules(0), rules(0), COMMAND_LEGACY).variant, Variant::Legacy);
        assert_eq!(choose(rules(0), rules(0), COMMAND_NFT).variant, Variant::Nft);
        assert_eq!(choose(rules(0), rules(0), "").variant, Variant::Nft);
    }

    #[test]
    fn our_own_rules_of_an_earlier_run_are_no_evidence() {
        let save = "*nat\n:SALLY-PRE - [0:0]\n-A PREROUTING -j SALLY-PRE\n-A SALLY-PRE -d 10.0.0.1/32 -j SALLY-M\n-A PREROUTING -j OTHER\nCOMMIT\n";
        assert_eq!(read(save).rules, 1);
    }

    #[test]
    fn a_table_that_cannot_be_shown_is_evidence_of_rules() {
        let save = "# Table `nat' is incompatible, use 'nft' tool.\n";
        assert_eq!(choose(read(save), rules(0), COMMAND_LEGACY).variant, Variant::Nft);
    }
}
