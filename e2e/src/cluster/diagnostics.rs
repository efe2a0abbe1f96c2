//! What explains a failure in the cluster.

use super::{Cluster, NAMESPACE};
use crate::lab::Host;

impl Cluster {
    /// Objects, events, logs, and the rules of every gateway.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        let mut text = String::new();
        for line in [
            "get portforwards,gatewaypools,forwardslices,gatewaynodes --all-namespaces --output yaml",
            "get nodes,pods,daemonsets,deployments,leases --all-namespaces --show-labels --output wide",
            "get events --all-namespaces --sort-by=.lastTimestamp",
            &format!("describe pods --namespace {NAMESPACE}"),
            &format!("logs --namespace {NAMESPACE} --selector app.kubernetes.io/name=sallyport-operator --tail=100"),
            &format!("logs --namespace {NAMESPACE} --selector app.kubernetes.io/name=sallyport-uninstall --tail=100"),
            &format!("logs --namespace {NAMESPACE} --selector app.kubernetes.io/name=sallyport-node-agent --tail=100"),
        ] {
            text += &print(&self.admin, &super::words("kubectl", line));
        }
        for gateway in &self.gateways {
            for program in ["iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save"] {
                text += &print(&gateway.host, &[program.to_owned(), "-c".to_owned()]);
            }
        }
        text
    }
}

fn print(host: &Host, command: &[String]) -> String {
    let output = match host.run(command) {
        Ok(outcome) => outcome.stdout + &outcome.stderr,
        Err(error) => format!("{error:#}\n"),
    };
    format!("--- {} on {}\n{output}", command.join(" "), host.name())
}
