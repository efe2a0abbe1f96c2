//! A backend without a kernel: prints what would be applied, and remembers it as a kernel would.

use sallyport_ruleset::family::Family;
use sallyport_ruleset::installed::{Installed, InstalledRuleset};
use sallyport_ruleset::listener::Listener;
use sallyport_ruleset::plan::Batch;
use sallyport_ruleset::rule::Table;

use crate::conntrack::Conntrack;
use crate::iptables::Place;
use crate::{Engine, Error};

/// Starts empty and holds what was applied.
#[derive(Debug, Default)]
pub struct DryRun {
    installed: InstalledRuleset,
}

impl Engine for DryRun {
    fn name(&self) -> &'static str {
        "dry-run"
    }

    async fn observe(&mut self) -> Result<InstalledRuleset, Error> {
        Ok(self.installed.clone())
    }

    async fn apply(&mut self, batch: &Batch) -> Result<(), Error> {
        for family in Family::BOTH {
            if let Some(text) = batch.family(family) {
                tracing::info!(%family, "would apply:\n{text}");
                let mut after = self.installed.family(family).clone();
                interpret(&mut after, text)?;
                *self.installed.family_mut(family) = after;
            }
        }
        Ok(())
    }

    async fn unhook(&mut self, family: Family, table: Table, ours: &str) -> Result<(), Error> {
        let table_now = self.installed.family_mut(family).table_mut(table);
        for (builtin, _) in table.hooks().iter().filter(|(_, chain)| *chain == ours) {
            table_now.chain(builtin).retain(|rule| *rule != format!("-j {ours}"));
        }
        Ok(())
    }

    fn moved(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn absent(&self) -> Result<Vec<Place>, Error> {
        Ok(Vec::new())
    }

    fn conntrack(&self) -> Result<Option<Conntrack>, Error> {
        Ok(None)
    }

    fn listeners(&self) -> Result<Option<Vec<Listener>>, Error> {
        Ok(None)
    }
}

/// Does to `installed` what `iptables-restore --noflush` does to a kernel with the lines that a [`Batch`] can hold.
fn interpret(installed: &mut Installed, text: &str) -> Result<(), Error> {
    let mut current = None;
    for line in text.lines() {
        let bad = || Error::Batch { line: line.to_owned() };
        if let Some(name) = line.strip_prefix('*') {
            current = Some(name.to_owned());
            continue;
        }
        if line == "COMMIT" {
            current = None;
            continue;
        }
        let table = current.as_deref().and_then(|name| installed.table_named(name)).ok_or_else(bad)?;
        if let Some(rest) = line.strip_prefix(':') {
            table.chain(rest.split(' ').next().ok_or_else(bad)?).clear();
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let (Some(flag), Some(chain)) = (words.next(), words.next()) else { return Err(bad()) };
        let rule = words.next().unwrap_or_default();
        match flag {
            "-A" => table.chain(chain).push(rule.to_owned()),
            "-I" => {
                let rule = rule.strip_prefix("1 ").ok_or_else(bad)?;
                table.chain(chain).insert(0, rule.to_owned());
            }
            "-D" => {
                let rules = table.chain(chain);
                let at = rules.iter().position(|there| there == rule).ok_or_else(bad)?;
                rules.remove(at);
            }
            "-X" => {
                table.ours.remove(chain).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::plan::plan;
    use sallyport_ruleset::rule::{Rules, Ruleset};

    use super::*;

    fn ruleset(port: u16) -> Ruleset {
        let rule = format!("-d 10.0.0.1/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.0.0.2");
        let nat = [("SALLY-PRE".to_owned(), vec![rule]), ("SALLY-POST".to_owned(), Vec::new())].into();
        let filter = [("SALLY-FWD".to_owned(), vec!["-j ACCEPT".to_owned()])].into();
        Ruleset { v4: Rules { filter, nat }, v6: Rules::default() }
    }

    #[tokio::test]
    async fn what_was_applied_is_read_back_and_needs_no_further_change() {
        let mut engine = DryRun::default();
        for desired in [ruleset(80), ruleset(81), Ruleset::default()] {
            let installed = engine.observe().await.unwrap();
            engine.apply(&plan(&desired, &installed, false)).await.unwrap();
            let installed = engine.observe().await.unwrap();
            assert_eq!(installed.ours(), desired);
            assert!(plan(&desired, &installed, false).is_empty());
        }
    }

    #[tokio::test]
    async fn a_line_that_no_batch_holds_changes_nothing() {
        let mut engine = DryRun::default();
        let batch = Batch { v4: Some("*nat\n-F PREROUTING\nCOMMIT\n".into()), v6: None };
        assert!(matches!(engine.apply(&batch).await, Err(Error::Batch { .. })));
        assert_eq!(engine.observe().await.unwrap(), InstalledRuleset::default());
    }
}
