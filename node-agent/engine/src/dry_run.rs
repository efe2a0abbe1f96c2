//! A backend without a kernel: prints what would be applied, and remembers it as a kernel would.

use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::op::Op;
use sallyport_ruleset::iptables::restore::restore;

use crate::iptables::NftObject;
use crate::{Engine, Error};

/// Starts empty and holds what was applied.
#[derive(Debug, Default)]
pub struct DryRun {
    /// What it holds.
    pub installed: InstalledRuleset,
}

impl Engine for DryRun {
    fn name(&self) -> &'static str {
        "dry-run"
    }

    async fn observe(&mut self) -> Result<InstalledRuleset, Error> {
        Ok(self.installed.clone())
    }

    async fn apply(&mut self, ops: &[Op]) -> Result<(), Error> {
        for family in Family::BOTH {
            if let Some(text) = restore(ops, family) {
                tracing::info!(%family, "would apply:\n{text}");
            }
        }
        for op in ops {
            self.installed.apply(op);
        }
        Ok(())
    }

    fn changed(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn would_create(&self) -> Result<Vec<NftObject>, Error> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::iptables::plan::plan;
    use sallyport_ruleset::iptables::rule::{Chain, Line, Rules, Ruleset};
    use sallyport_ruleset::iptables::shadow::Packets;

    use super::*;

    fn ruleset(port: u16) -> Ruleset {
        let rule = format!("-d 10.0.0.1/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.0.0.2");
        let nat =
            [("SALLY-PRE".to_owned(), vec![Line::read(rule)].into()), ("SALLY-POST".to_owned(), Chain::default())]
                .into();
        let filter = [("SALLY-FWD".to_owned(), vec![Line::read("-j ACCEPT")].into())].into();
        Ruleset { v4: Rules { filter, nat, ..Rules::default() }, v6: Rules::default() }
    }

    #[tokio::test]
    async fn what_was_applied_is_read_back_and_needs_no_further_change() {
        let mut engine = DryRun::default();
        for desired in [ruleset(80), ruleset(81), Ruleset::default()] {
            let installed = engine.observe().await.unwrap();
            engine.apply(&plan(&desired, &Packets::default(), &installed)).await.unwrap();
            let installed = engine.observe().await.unwrap();
            assert_eq!(installed.ours(), desired);
            assert_eq!(plan(&desired, &Packets::default(), &installed), []);
        }
    }
}
