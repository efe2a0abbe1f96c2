//! The origin story in a real cluster: Helm installs Sallyport, two workers become gateways, and `kubectl apply` lets
//! app1 read a table of db1 through either of them. Every proof that is printed is also asserted.
//!
//! Not here: the cluster and the hosts beside it (`cluster`), the same story without Kubernetes (`demo_standalone`).

pub mod proofs;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::article::DB1;
use crate::cluster::{Cluster, GATEWAY_LABEL, Gateway, Helm, NAMESPACE};
use crate::demo_standalone::database::{Session, client};
use crate::demo_standalone::story::{Story, note, typed};

use proofs::Kernels;

/// What app1 wants to know.
const QUERY: &str = "SELECT * FROM shop.orders";

/// Tells the whole story in the cluster, leaves Sallyport installed with the forward, and says how to look around.
pub fn run() -> Result<()> {
    let mut story = Story::begin();
    story
        .chapter("the cluster: one control plane, two workers, and beside it app1 and db1 with firewalls (INPUT DROP)");
    let cluster = Cluster::up()?;
    story.chapter("the images of this checkout");
    cluster.load_images()?;
    cluster.reset()?;
    let mut demo = Demo { story: &mut story, cluster: &cluster, helm: Helm::v4()? };
    if let Err(error) = demo.tell() {
        bail!("{error:#}\n{}", cluster.diagnostics());
    }
    demo.story.chapter("installed once more, to look around");
    demo.install()?;
    story.end();
    look_around(&cluster)
}

/// Tells the story in a cluster where nothing of ours is installed.
pub fn tell(cluster: &Cluster, helm: &Helm) -> Result<()> {
    Demo { story: &mut Story::begin(), cluster, helm: helm.clone() }.tell()
}

struct Demo<'a> {
    story: &'a mut Story,
    cluster: &'a Cluster,
    helm: Helm,
}

impl Demo<'_> {
    fn tell(&mut self) -> Result<()> {
        let before = Kernels::of(self.cluster)?;
        self.firewalls_hold()?;
        self.install()?;
        let session = self.forward_works()?;
        self.forward_goes(session)?;
        self.uninstall(&before)
    }

    fn firewalls_hold(&mut self) -> Result<()> {
        let app1 = &self.cluster.app1;
        self.story.chapter("before: the firewalls hold");
        self.story.refused("app1 cannot reach db1 directly", app1, &client(DB1, QUERY))?;
        for Gateway { name, ip, .. } in &self.cluster.gateways {
            let what = format!("app1 cannot reach it through {name} yet");
            self.story.refused(&what, app1, &client(ip, QUERY))?;
        }
        Ok(())
    }

    fn install(&mut self) -> Result<()> {
        self.story.chapter("Helm installs Sallyport, two nodes become gateways, a team asks for a forward");
        let names: Vec<&str> = self.cluster.gateways.iter().map(|gateway| gateway.name.as_str()).collect();
        self.type_in(&self.helm.install(&[]))?;
        self.type_in(&words(&format!("kubectl label --overwrite nodes {} {GATEWAY_LABEL}=", names.join(" "))))?;
        self.type_in(&words("kubectl apply --filename examples/namespace.yaml"))?;
        self.cluster.wait_until_gateways_are_ready()?;
        self.type_in(&words("kubectl apply --filename examples/portforward.yaml"))?;
        let forward = self.cluster.wait_until_ready("payments", "mysql")?;
        self.expect_hashes(&forward)?;
        let table = words("kubectl get pf --namespace payments");
        self.story.shows("the forward is Ready on both gateways", &self.cluster.admin, &table, "2/2")
    }

    /// The status says what the kernels really hold.
    fn expect_hashes(&mut self, forward: &Value) -> Result<()> {
        let status = &forward["status"];
        let hash = status["hash"].as_str().context("find the forward's hash")?;
        ensure!(status["appliedHash"] == hash, "hash {hash}, but appliedHash {}", status["appliedHash"]);
        self.story.proved(&format!("what both kernels hold is what was asked for: hash = appliedHash = {hash}"));
        Ok(())
    }

    /// Proves that the forward works, and gives a session that stays open.
    fn forward_works(&mut self) -> Result<Session> {
        let Cluster { app1, admin, gateways, .. } = self.cluster;
        self.story.chapter("app1 reads a table of db1 through either gateway");
        for Gateway { name, ip, .. } in gateways {
            self.story.shows(&format!("it works through {name}"), app1, &client(ip, QUERY), "brass bell")?;
        }
        let who = "SELECT user, host FROM information_schema.processlist WHERE user = 'app'";
        let ask = ["docker", "exec", "sallyport-db1", "mariadb", "--socket=/run/mariadb.sock", "-t", "-e", who];
        let mut last = None;
        for Gateway { name, ip, .. } in gateways {
            let session = Session::open(app1, ip)?;
            self.story.shows(&format!("db1 sees the address of {name}"), admin, &ask, ip)?;
            last = Some(session);
        }
        self.story.refused("app1 still cannot reach db1 directly", app1, &client(DB1, QUERY))?;
        last.context("find the open session")
    }

    fn forward_goes(&mut self, mut session: Session) -> Result<()> {
        let Cluster { app1, gateways, .. } = self.cluster;
        self.story.chapter("the forward goes: the open session is cut, new ones are refused");
        session.expect_answer().context("the session before its forward went")?;
        self.type_in(&words("kubectl delete --filename examples/portforward.yaml"))?;
        session.expect_silence(Duration::from_secs(2))?;
        self.story.proved("the open session is cut: its next query is never answered");
        for Gateway { name, ip, .. } in gateways {
            self.story.refused(&format!("{name} refuses again"), app1, &client(ip, QUERY))?;
        }
        Ok(())
    }

    fn uninstall(&mut self, before: &Kernels) -> Result<()> {
        self.story.chapter("helm uninstall leaves nothing but what users wrote");
        self.type_in(&self.helm.uninstall())?;
        self.cluster.wait_until_nothing_is_installed()?;
        self.story
            .proved(&format!("no pod, lease, GatewayNode, slice or label of ours is left (namespace {NAMESPACE})"));
        let definitions = self.cluster.definitions()?;
        ensure!(definitions.len() == 4, "of the four definitions there are {definitions:?}");
        self.story.proved("the definitions stay, and with them what users wrote");
        let compared = before.wait_until_equal(self.cluster)?;
        self.story.proved(&format!("both workers' kernels are as before: {compared}"));
        Ok(())
    }

    /// Runs a command of the administrator and prints both.
    fn type_in(&self, command: &[String]) -> Result<()> {
        typed(&self.cluster.admin, command);
        let printed = self.cluster.admin.check(command)?;
        // Helm's notes are for people who read nothing else.
        let end = printed.find("NOTES:").unwrap_or(printed.len());
        note(printed.get(..end).unwrap_or(&printed));
        Ok(())
    }
}

fn look_around(cluster: &Cluster) -> Result<()> {
    let programs = crate::binaries::ensure(&["kubectl", "helm"])?;
    let gateway = cluster.gateways.first().map_or("", |gateway| gateway.ip.as_str());
    note(&format!(
        "
The cluster is still there. To look around:
  export KUBECONFIG={kubeconfig} PATH={programs}:$PATH   # its kubectl and helm
  kubectl get pf,gatewaypools,gatewaynodes,forwardslices -A
  kubectl -n {NAMESPACE} logs ds/sallyport-node-agent
  docker exec sallyport-worker iptables-save | grep SALLY
  docker exec sallyport-app1 mariadb -h {gateway} -u app --password=seaworthy -t -e '{QUERY}'
  make down                  # takes all of it away",
        kubeconfig = cluster.kubeconfig().display(),
        programs = programs.display(),
    ));
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
