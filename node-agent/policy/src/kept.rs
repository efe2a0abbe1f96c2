//! What is kept for a forward, asked for like anything else: an intent that the slices hold → a spec.
//!
//! A forward whose own spec is not to be followed, because it is paused, planned or cannot be read, asks for what it has, and is
//! decided upon by the same rules as all others: what it keeps is never more than what it could ask for today.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sallyport_api::Mode;
use sallyport_api::intent::Intent;
use sallyport_api::port_forward::{ForwardPort, Lifecycle, PortForwardSpec, Source, SourceNat, Sources, Target};

/// A spec that asks for exactly what is carried.
#[must_use]
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
        expires_at: intent.expires_at.and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Time),
        mode: Mode::Apply,
    }
}
