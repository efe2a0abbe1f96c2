//! A spec that asks for exactly what an intent says, written anew: what is held is to be held to all that a spec is held to.

use sallyport_api::Mode;
use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_api::port_forward::{ForwardPort, Lifecycle, PortForwardSpec, Source, SourceNat, Sources, Target};

/// A spec that asks for exactly what is carried.
pub fn spec_of(pool: &str, intent: &Intent) -> PortForwardSpec {
    let cidrs = |nets: &[ipnet::IpNet]| nets.iter().map(|net| Source { cidr: net.to_string() }).collect();
    let ports = intent.ports.iter().enumerate().map(|(number, port)| ForwardPort {
        name: format!("p{number}"),
        protocol: port.protocol,
        port: port.port.into(),
        end_port: (port.end_port != port.port).then_some(port.end_port.into()),
        target_port: Some(port.target_port.into()),
    });
    let targets = intent.targets.iter().enumerate().map(|(number, target)| Target {
        name: format!("t{number}"),
        ip: target.ip.to_string(),
        weight: target.weight.into(),
    });
    PortForwardSpec {
        pool: pool.to_owned(),
        addresses: intent.addresses.iter().map(ToString::to_string).collect(),
        ports: ports.collect(),
        sources: Sources { allow: cidrs(&intent.allow), deny: cidrs(&intent.deny) },
        targets: targets.collect(),
        source_nat: SourceNat { mode: intent.source_nat },
        lifecycle: Lifecycle { on_target_removed: intent.on_target_removed },
        expires_at: intent.expires_at.and_then(Moment::to_time),
        mode: Mode::Apply,
    }
}
