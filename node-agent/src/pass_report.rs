//! What became of a pass, and what is known besides: the one value that status, metrics and log are made of.

use std::rc::Rc;

use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_ruleset::iptables::drift::{Difference, told};

use crate::connections::Draining;
use crate::converge::preview::PlannedChange;
use crate::converge::{Error, Report};
use crate::error_chain::chain_of;
use crate::intents::Intents;

/// The last pass, kept up to date with what is found out between two.
#[derive(Debug)]
pub(crate) struct PassReport {
    /// Why it was made, for the log.
    pub cause: &'static str,
    /// What the kernel should hold.
    pub intents: Rc<Intents>,
    /// What came of it.
    pub outcome: Result<Report, Error>,
    /// Name of the engine in use, for people.
    pub engine: &'static str,
    /// The program in use; none where no kernel is involved.
    pub backend: Option<FirewallBackend>,
    /// What somebody else had changed and the pass has put back.
    pub repaired: Vec<Difference>,
    /// Whether so much is put back that this single repair is no news.
    pub fought: bool,
    /// What somebody else has changed and is not put back yet.
    pub pending: Option<String>,
    /// What somebody else keeps doing to our rules, although passes are good.
    pub persistent_drift: Option<String>,
    /// Connections that are left to end by themselves.
    pub draining: Draining,
    /// What would change for forwards that are only planned; unknown until that was first worked out.
    pub plans: Option<Vec<PlannedChange>>,
}

impl PassReport {
    /// What the pass has put back, where that is news.
    #[must_use]
    pub(crate) fn repair(&self) -> Option<String> {
        let news = !self.repaired.is_empty() && !self.fought;
        news.then(|| told(&self.repaired)).filter(|what| !what.is_empty())
    }

    /// What the pass could not do.
    #[must_use]
    pub(crate) fn failure(&self) -> Option<String> {
        match &self.outcome {
            Ok(report) => Some(report.unreadable.join("; ")).filter(|why| !why.is_empty()),
            Err(error) => Some(chain_of(error)),
        }
    }

    /// What somebody else does to our rules, after a pass that was good.
    #[must_use]
    pub(crate) fn drift(&self) -> Option<String> {
        let pending = self.pending.as_ref();
        pending
            .map(|what| format!("somebody has changed this and it is not put back yet: {what}"))
            .or_else(|| self.persistent_drift.clone())
    }
}

/// Takes in what becomes of passes.
pub(crate) trait ReportSink {
    /// A pass has ended.
    fn passed(&mut self, report: &PassReport);

    /// Something has changed since the last pass, or the sink itself has something new to add.
    fn updated(&mut self, report: &PassReport);
}

#[cfg(test)]
impl PassReport {
    /// Of a pass through iptables-nft with nobody else about.
    pub(crate) fn of(intents: &Rc<Intents>, outcome: Result<Report, Error>) -> Self {
        Self {
            cause: "test",
            intents: Rc::clone(intents),
            outcome,
            engine: "fake",
            backend: Some(FirewallBackend::IptablesNft),
            repaired: Vec::new(),
            fought: false,
            pending: None,
            persistent_drift: None,
            draining: Draining::new(),
            plans: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use sallyport_ruleset::family::Family::V4;

    use super::*;
    use crate::converge::fake::intents;

    fn report(outcome: Result<Report, Error>) -> PassReport {
        PassReport::of(&Rc::new(intents("")), outcome)
    }

    #[test]
    fn what_could_not_be_done_is_an_error_or_a_table_that_cannot_be_read() {
        assert_eq!(report(Ok(Report::default())).failure(), None);
        assert_eq!(report(Err(Error::Addresses)).failure().unwrap(), "cannot read this host's addresses");
        let unreadable = vec!["IPv4: nat".to_owned(), "IPv6: nat".to_owned()];
        let partly = report(Ok(Report { unreadable, ..Report::default() }));
        assert_eq!(partly.failure().unwrap(), "IPv4: nat; IPv6: nat");
    }

    #[test]
    fn a_repair_is_news_unless_it_is_one_of_many() {
        let mut pass = report(Ok(Report::default()));
        assert_eq!(pass.repair(), None);
        pass.repaired = vec![Difference::forwarding(V4)];
        assert_eq!(pass.repair().unwrap(), "forwarding of IPv4 packets is off");
        pass.fought = true;
        assert_eq!(pass.repair(), None);
    }

    #[test]
    fn what_is_not_put_back_yet_comes_before_what_somebody_keeps_doing() {
        let mut pass = report(Ok(Report::default()));
        assert_eq!(pass.drift(), None);
        pass.persistent_drift = Some("they keep at it".to_owned());
        assert_eq!(pass.drift().unwrap(), "they keep at it");
        pass.pending = Some("the jump is missing".to_owned());
        assert!(pass.drift().unwrap().ends_with("it is not put back yet: the jump is missing"));
    }
}
