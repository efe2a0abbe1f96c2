//! Many forwards at once, and the gateway that holds them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::article::{APP1, DB1, GW1, socket};
use crate::gateway::{Backend, Gateway};
use crate::lab::{Family, Host, Lab, Variant};
use crate::manifest::{Forward, Manifests};
use crate::program;

/// The gateway's port of the first forward.
pub const FIRST_PORT: u16 = 12_000;

/// Where every forward goes on the target.
pub const TARGET_PORT: u16 = 3306;

/// Forwards in one file.
const A_FILE: u16 = 100;

/// The forward with a number, from 0.
pub fn forward(number: u16) -> Forward {
    let port = FIRST_PORT + number;
    let mut forward = Forward::tcp(&format!("forward-{number}"), port, &format!("{APP1}/32"), DB1);
    forward.target_port = Some(TARGET_PORT);
    // The gateway has another address, towards the target: one rule a forward is what others have too.
    forward.addresses = vec![GW1.to_owned()];
    forward
}

/// Manifests of so many forwards; the one numbered `count - 1` is in a file of its own.
pub fn manifests(count: u16) -> Result<Manifests> {
    let manifests = Manifests::new()?;
    let last = count - 1;
    for first in (0..last).step_by(usize::from(A_FILE)) {
        let documents: Vec<String> = (first..last.min(first + A_FILE)).map(|number| forward(number).yaml()).collect();
        manifests.write(&format!("many-{first}.yaml"), documents.join("---\n"))?;
    }
    manifests.save(&forward(last))?;
    Ok(manifests)
}

/// A gateway between a client and a target, each on a network of its own, without any firewall.
#[derive(Debug)]
pub struct Path {
    /// The client, with the address of app1.
    pub client: Host,
    /// The gateway, with the address of gw1 on the client's side.
    pub gateway: Host,
    /// The target, with the address of db1.
    pub target: Host,
    // Holds the hosts until this value is dropped.
    _lab: Lab,
}

impl Path {
    /// Builds it; the gateway already routes.
    pub fn build() -> Result<Self> {
        let mut lab = Lab::new();
        let (front, back) = (lab.network("front")?, lab.network("back")?);
        let (client, gateway, target) = (lab.host("client")?, lab.host("gateway")?, lab.host("target")?);
        lab.connect(&client, "eth0", &front, &[&format!("{APP1}/32")])?;
        lab.connect(&gateway, "eth0", &front, &[&format!("{GW1}/32")])?;
        lab.connect(&gateway, "eth1", &back, &["10.30.1.77/32"])?;
        lab.connect(&target, "eth0", &back, &[&format!("{DB1}/32")])?;
        for (host, interface, peer) in
            [(&client, "eth0", GW1), (&gateway, "eth0", APP1), (&gateway, "eth1", DB1), (&target, "eth0", "10.30.1.77")]
        {
            host.check(&["ip", "route", "add", &format!("{peer}/32"), "dev", interface])?;
        }
        client.add_route("default", GW1)?;
        target.add_route("default", "10.30.1.77")?;
        gateway.write_sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { client, gateway, target, _lab: lab })
    }

    /// An agent's place on the gateway.
    pub fn agent(&self, variant: Variant, manifests: Manifests) -> Result<Gateway> {
        Gateway::new(&self.gateway, Backend::Iptables(variant), manifests)
    }

    /// Where the client reaches the forward with a number.
    pub fn entrance(number: u16) -> SocketAddr {
        socket(GW1, FIRST_PORT + number)
    }
}

/// The restore text that `render` prints for gw1, IPv4 only.
pub fn rendered(host: &Host, manifests: &Manifests) -> Result<String> {
    let printed = host.check(&[
        &program::node_agent()?.display().to_string(),
        "render",
        "--manifests",
        &manifests.path().display().to_string(),
        "--node-address",
        GW1,
    ])?;
    section(&printed, Family::V4).context("find the IPv4 text that render prints")
}

/// The restore text that `plan` prints for what has changed, IPv4 only.
pub fn planned(gateway: &Gateway) -> Result<String> {
    let mut command = gateway.run_command()?;
    if let Some(verb) = command.get_mut(1) {
        "plan".clone_into(verb);
    }
    let printed = gateway.host().check(&command)?;
    section(&printed, Family::V4).context("find the IPv4 text that plan prints")
}

/// What a printed script feeds to one family's restore program.
fn section(printed: &str, family: Family) -> Result<String> {
    let wanted = match family {
        Family::V4 => "iptables-",
        Family::V6 => "ip6tables-",
    };
    let text: String = printed
        .lines()
        .skip_while(|line| !line.starts_with(wanted))
        .skip(1)
        .take_while(|line| *line != "EOF")
        .flat_map(|line| [line, "\n"])
        .collect();
    ensure!(text.contains("COMMIT"), "no section {wanted:?} in:\n{printed:.2000}");
    Ok(text)
}
