//! Sallyport installed in the cluster, by Helm 4 or Helm 3, from the chart and the images of this checkout.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Cluster, GATEWAY_LABEL, Gateway, PODS};
use crate::{binaries, script, wait};

/// Where it is installed.
pub const NAMESPACE: &str = "sallyport-system";

/// A major version of Helm.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
}

impl Helm {
    /// Helm 4.
    pub fn v4() -> Result<Self> {
        Ok(Self { program: binaries::ensure(&["helm"])?.join("helm") })
    }

    /// Helm 3.
    pub fn v3() -> Result<Self> {
        Ok(Self { program: binaries::ensure(&["helm3"])?.join("helm3") })
    }

    /// The command line that installs the chart, or upgrades to it, and waits until it runs.
    #[must_use]
    pub fn install(&self, settings: &[&str]) -> Vec<String> {
        self.install_from(".", settings)
    }

    /// The same with the chart of the checkout in the folder `tree`.
    #[must_use]
    pub fn install_from(&self, tree: &str, settings: &[&str]) -> Vec<String> {
        let mut command = vec![self.program.display().to_string()];
        let line = format!(
            "upgrade --install sallyport {tree}/charts/sallyport --namespace sallyport-system --create-namespace \
             --values {tree}/e2e/cluster/values.yaml --wait --timeout 3m"
        );
        command.extend(line.split_whitespace().map(str::to_owned));
        for setting in settings {
            command.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        command
    }

    /// The command line that uninstalls it.
    #[must_use]
    pub fn uninstall(&self) -> Vec<String> {
        let line = "uninstall sallyport --namespace sallyport-system --wait --timeout 5m";
        [self.program.display().to_string()].into_iter().chain(line.split_whitespace().map(str::to_owned)).collect()
    }
}

impl Cluster {
    /// Puts the images of this checkout into the cluster.
    pub fn load_images(&self) -> Result<()> {
        script::run("images.sh", &["load"])
    }

    /// Puts the images of the version before into the cluster, under the tag `previous`, and gives the folder of its
    /// checkout.
    pub fn load_previous_images(&self) -> Result<String> {
        script::answer("images.sh", &["load", "previous"])
    }

    /// Whether images of this version were put into the cluster since it was made.
    pub fn has_images(&self) -> Result<bool> {
        let mark = concat!("/kind/sallyport-images-", env!("CARGO_PKG_VERSION"));
        Ok(self.admin.run(&["docker", "exec", "sallyport-worker", "test", "-e", mark])?.success())
    }

    /// Takes away what an earlier run has left: a release, our objects and definitions, labels.
    pub fn reset(&self) -> Result<()> {
        let helm = Helm::v4()?;
        let release = self.kubectl("get secret --all-namespaces --selector owner=helm,name=sallyport --output name")?;
        if !release.is_empty() {
            // A test may have deleted a definition, without which no operator can say what is left.
            self.kubectl("apply --server-side --force-conflicts --filename crds")?;
            self.admin.check(&helm.uninstall())?;
        }
        self.kubectl("delete namespace payments --ignore-not-found --timeout 60s")?;
        let definitions = self.definitions()?.join(" ");
        if !definitions.is_empty() {
            self.kubectl(&format!("delete {definitions} --timeout 60s"))?;
        }
        self.kubectl(&format!("delete namespace {NAMESPACE} --ignore-not-found --timeout 120s"))?;
        self.kubectl(&format!("label nodes --all {GATEWAY_LABEL}-")).map(drop)
    }

    /// The names of our custom resource definitions that there are.
    pub fn definitions(&self) -> Result<Vec<String>> {
        let all = self.kubectl("get customresourcedefinitions --output name")?;
        Ok(all.lines().filter(|name| name.ends_with(".sallyport.dev")).map(str::to_owned).collect())
    }

    /// Installs the release, makes both workers gateways and waits until both carry what the pool asks for.
    pub fn install(&self, helm: &Helm, settings: &[&str]) -> Result<()> {
        self.admin.check(&helm.install(settings))?;
        self.label_gateways()?;
        self.wait_until_gateways_are_ready()
    }

    /// Makes both workers gateways.
    pub fn label_gateways(&self) -> Result<()> {
        let names: Vec<&str> = self.gateways.iter().map(|gateway| gateway.name.as_str()).collect();
        self.kubectl(&format!("label --overwrite nodes {} {GATEWAY_LABEL}=", names.join(" "))).map(drop)
    }

    /// Waits until the agents of both gateways have said that their kernels hold what they shall.
    pub fn wait_until_gateways_are_ready(&self) -> Result<()> {
        for Gateway { name, .. } in &self.gateways {
            wait::until_true(&format!("gatewaynode {name} being Synced"), PODS, || {
                let node = self.get(&format!("gatewaynode/{name}"))?;
                Ok(node.is_some_and(|node| super::condition(&node, "Synced") == Some("True")))
            })?;
        }
        Ok(())
    }

    /// The agent's pod on a gateway.
    pub fn agent_pod(&self, gateway: &Gateway) -> Result<String> {
        let pods = self.kubectl(&format!(
            "get pods --namespace {NAMESPACE} --selector app.kubernetes.io/name=sallyport-node-agent \
             --field-selector spec.nodeName={} --output name",
            gateway.name
        ))?;
        pods.lines().next().map(str::to_owned).with_context(|| format!("find the agent's pod on {}", gateway.name))
    }

    /// Waits until nothing of ours is left but the definitions and what users wrote.
    pub fn wait_until_nothing_is_installed(&self) -> Result<()> {
        wait::until_ok("nothing of ours being left", PODS, || {
            for what in [
                format!("pods,daemonsets,deployments,leases --namespace {NAMESPACE}"),
                "gatewaynodes,forwardslices".to_owned(),
                "nodes --selector sallyport.dev/agent".to_owned(),
            ] {
                let left = self.kubectl(&format!("get {what} --output name"))?;
                ensure!(left.is_empty(), "still there: {left}");
            }
            Ok(())
        })
    }
}
