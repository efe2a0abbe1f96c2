//! The network of the origin story: app1 wants the database on db1, every host drops what it does not know,
//! and db1 lets only gw1 in. Added to the story: app2, which nobody listed, and web1, a host behind gw1 for
//! which gw1 is a plain router.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::gateway::{Backend, Gateway};
use crate::lab::{Family, Host, Lab, Process, Variant};
use crate::manifest::{Forward, Manifests};
use crate::traffic::{self, Answer, Protocol, RunningLoad, ask};
use crate::wait;

/// app1, the client.
pub const APP1: &str = "10.30.1.80";
/// app2, a client that nobody listed.
pub const APP2: &str = "10.30.1.81";
/// gw1, the gateway.
pub const GW1: &str = "10.30.1.78";
/// db1, the database.
pub const DB1: &str = "10.30.1.79";
/// web1, behind gw1.
pub const WEB1: &str = "10.40.0.10";
/// gw1 on the network of web1.
pub const GW1_BEHIND: &str = "10.40.0.1";

/// The IPv6 addresses of the same hosts.
pub const APP1_V6: &str = "fd00:30::80";
/// app2.
pub const APP2_V6: &str = "fd00:30::81";
/// gw1.
pub const GW1_V6: &str = "fd00:30::78";
/// db1.
pub const DB1_V6: &str = "fd00:30::79";

/// The longest that anything the agent does may take here.
pub const SOON: Duration = Duration::from_secs(5);

/// The firewall that every host of the story starts with.
pub(crate) const FIREWALL: &str = "\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -s 10.50.0.0/24 -j ACCEPT
-A INPUT -p icmp -j ACCEPT
COMMIT
";

/// The same for IPv6, where neighbour discovery is ICMP.
pub(crate) const FIREWALL_V6: &str = "\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
COMMIT
";

/// The hosts of the story.
#[derive(Debug)]
pub struct Article {
    /// The client.
    pub app1: Host,
    /// A client that is not listed.
    pub app2: Host,
    /// The gateway.
    pub gw1: Host,
    /// The database host.
    pub db1: Host,
    /// A host behind the gateway.
    pub web1: Host,
    variant: Variant,
    // Holds the hosts until this value is dropped.
    _lab: Lab,
}

impl Article {
    /// Builds the network; the administrators load their firewalls by the given variant.
    pub fn build(variant: Variant) -> Result<Self> {
        let mut lab = Lab::new();
        let front = lab.network("lan")?;
        let back = lab.network("back")?;
        let app1 = lab.host("app1")?;
        let app2 = lab.host("app2")?;
        let gw1 = lab.host("gw1")?;
        let db1 = lab.host("db1")?;
        let web1 = lab.host("web1")?;
        for (host, v4, v6) in [(&app1, APP1, APP1_V6), (&app2, APP2, APP2_V6), (&gw1, GW1, GW1_V6), (&db1, DB1, DB1_V6)]
        {
            lab.connect(host, "eth0", &front, &[&format!("{v4}/23"), &format!("{v6}/64")])?;
        }
        lab.connect(&gw1, "eth1", &back, &[&format!("{GW1_BEHIND}/24")])?;
        lab.connect(&web1, "eth0", &back, &[&format!("{WEB1}/24")])?;
        app1.add_route("10.40.0.0/24", GW1)?;
        web1.add_route("default", GW1_BEHIND)?;

        let article = Self { app1, app2, gw1, db1, web1, variant, _lab: lab };
        for host in [&article.app1, &article.app2, &article.gw1, &article.db1, &article.web1] {
            host.iptables_restore(variant, Family::V4, FIREWALL)?;
        }
        article.allow_routed_traffic()?;
        article.let_gateway_in(&article.db1, Protocol::Tcp, 3306, 3306)?;
        Ok(article)
    }

    /// gw1's administrators let one flow be routed to web1, and nothing else.
    fn allow_routed_traffic(&self) -> Result<()> {
        let to_web1 = format!("-A FORWARD -s 10.30.0.0/23 -d {WEB1}/32 -p tcp --dport 3306 -j ACCEPT");
        let from_web1 = format!("-A FORWARD -s {WEB1}/32 -d 10.30.0.0/23 -p tcp --sport 3306 -j ACCEPT");
        let accept = "-A INPUT -s 10.30.0.0/23 -p tcp --dport 3306 -j ACCEPT";
        self.gw1.iptables(self.variant, Family::V4, &to_web1)?;
        self.gw1.iptables(self.variant, Family::V4, &from_web1)?;
        self.web1.iptables(self.variant, Family::V4, accept)
    }

    /// The administrators of `host` let gw1 reach a range of its ports.
    pub fn let_gateway_in(&self, host: &Host, protocol: Protocol, first: u16, last: u16) -> Result<()> {
        let rule = format!("-A INPUT -s {GW1}/32 -p {protocol} --dport {first}:{last} -j ACCEPT");
        host.iptables(self.variant, Family::V4, &rule)
    }

    /// Gives every host of the front network the same firewall for IPv6 too, and lets gw1 reach a range of
    /// ports of db1.
    pub fn guard_ipv6(&self, first: u16, last: u16) -> Result<()> {
        for host in [&self.app1, &self.app2, &self.gw1, &self.db1] {
            host.iptables_restore(self.variant, Family::V6, FIREWALL_V6)?;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let rule = format!("-A INPUT -s {GW1_V6}/128 -p {protocol} --dport {first}:{last} -j ACCEPT");
            self.db1.iptables(self.variant, Family::V6, &rule)?;
        }
        Ok(())
    }

    /// The variant that the administrators use.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }
}

/// The article's network, a gateway on gw1, and the agent once it has been started.
#[derive(Debug)]
pub struct Scene {
    /// The hosts.
    pub article: Article,
    /// gw1's manifests, state and log.
    pub gateway: Gateway,
    /// The agent, when started.
    pub agent: Option<Process>,
}

impl Scene {
    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent = Some(self.gateway.start()?);
        Ok(())
    }

    /// The running agent.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("find the running agent")
    }

    /// Starts servers on db1's port 3306, TCP and UDP, and the agent that leads gw1's there; returns when both work.
    pub fn forward_to_db1(&mut self) -> Result<Process> {
        let db1 = self.article.db1.clone();
        self.article.let_gateway_in(&db1, Protocol::Udp, 3306, 3306)?;
        let server =
            traffic::serve(&db1, &[Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, socket(DB1, 3306))))?;
        let source = format!("{APP1}/32");
        self.gateway.manifests().save(&Forward::tcp("tcp", 3306, &source, DB1))?;
        self.gateway.manifests().save(&Forward::udp("udp", 3306, &source, DB1))?;
        self.start_agent()?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.wait_for_answer(protocol, 3306, "db1")?;
        }
        Ok(server)
    }

    /// Starts a load from app1 through gw1's port 3306: of five connections four are TCP and one is UDP.
    pub fn load(&self, longest: Duration) -> Result<RunningLoad> {
        RunningLoad::start(&self.article.app1, &mostly_tcp(&[socket(GW1, 3306)]), 250, 250, longest.as_secs())
    }

    /// Waits until the server `name` answers app1 at gw1's `port`.
    pub fn wait_for_answer(&self, protocol: Protocol, port: u16, name: &str) -> Result<Duration> {
        let to = socket(GW1, port);
        wait::until_true(&format!("{name} answering at {to}"), SOON, || Ok(self.ask(protocol, port)?.is_from(name)))
    }

    /// Asks from app1 at gw1's `port`.
    pub fn ask(&self, protocol: Protocol, port: u16) -> Result<Answer> {
        ask(&self.article.app1, protocol, socket(GW1, port))
    }

    /// Asks once from app1 at gw1's `port` and fails unless `name` answers.
    pub fn expect_answer(&self, protocol: Protocol, port: u16, name: &str) -> Result<()> {
        let answer = self.ask(protocol, port)?;
        ensure!(answer.is_from(name), "{answer:?} at gw1's {protocol} port {port}, not {name}");
        Ok(())
    }

    /// Asks once from app1 at gw1's `port` and fails if anybody answers.
    pub fn expect_no_answer(&self, protocol: Protocol, port: u16) -> Result<()> {
        let answer = self.ask(protocol, port)?;
        let heard = matches!(answer, Answer::Heard { .. });
        ensure!(!heard, "{answer:?} at gw1's {protocol} port {port}, not silence");
        Ok(())
    }

    /// Waits until nobody answers app1 at gw1's `port`.
    pub fn wait_for_no_answer(&self, protocol: Protocol, port: u16) -> Result<Duration> {
        let to = socket(GW1, port);
        wait::until_true(&format!("nobody answering at {to}"), SOON, || {
            Ok(!matches!(ask(&self.article.app1, protocol, to)?, Answer::Heard { .. }))
        })
    }
}

/// Runs `body` in the article's network with an agent that is not yet started. On failure it prints what
/// explains it. Everything is removed afterwards, also when `body` panics.
pub fn scene(variant: Variant, backend: Backend, body: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let article = Article::build(variant)?;
    let gateway = Gateway::new(&article.gw1, backend, Manifests::new()?)?;
    let mut scene = Scene { article, gateway, agent: None };
    let outcome = body(&mut scene);
    if let Err(error) = outcome {
        bail!("{error:#}\n{}", scene.gateway.diagnostics());
    }
    Ok(())
}

/// Each of `doors` four times by TCP and once by UDP.
#[must_use]
pub fn mostly_tcp(doors: &[SocketAddr]) -> Vec<(Protocol, SocketAddr)> {
    let [tcp, udp] = [Protocol::Tcp, Protocol::Udp].map(|protocol| doors.iter().map(move |door| (protocol, *door)));
    tcp.cycle().take(4 * doors.len()).chain(udp).collect()
}

/// An address and port of the article's network.
///
/// # Panics
/// When `ip` is no IP address.
#[must_use]
pub fn socket(ip: &str, port: u16) -> SocketAddr {
    let ip: IpAddr = ip.parse().expect("the addresses above and in tests are literals");
    SocketAddr::new(ip, port)
}
