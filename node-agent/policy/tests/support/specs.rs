//! Random forwards over a small world of addresses and ports, so that they meet often.
#![allow(dead_code, reason = "each test uses what it needs")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sallyport_api::forward_slice::ForwardRef;
use sallyport_api::id::Moment;
use sallyport_api::port_forward::{
    ForwardPort, Lifecycle, Mode, PortForwardSpec, Protocol, Source, SourceNat, SourceNatMode, Sources, Target,
};
use sallyport_api::testing;
use sallyport_policy::observed::Forward;

use crate::scene::Scene;

const POOL: &str = r#"
apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  listen: { addresses: [LISTEN] }
  grants:
    - name: everything
      namespaceSelector: {}
      ports: [{ port: 1, endPort: 65535 }, { protocol: UDP, port: 1, endPort: 65535 }]
      targetCIDRs: [0.0.0.0/0, "::/0"]
      sourceCIDRs: [0.0.0.0/0, "::/0"]
      sourceNATModes: [Masquerade, Preserve]
"#;

/// The gateway: listens on the first addresses of each network; 172.20.0.1 is its own too.
const NODE: &str = r#"
name: gw1
listen: [10.30.1.78, 10.30.1.77, 172.20.0.1, "fd00:30::78", "fd00:30::77"]
local: [127.0.0.1/8, 10.30.1.78/23, 10.30.1.77/23, 172.20.0.1/24, "::1/128", "fd00:30::78/64", "fd00:30::77/64"]
"#;

pub const LISTEN: [&str; 4] = ["10.30.1.78", "10.30.1.77", "fd00:30::78", "fd00:30::77"];
const TARGETS: [&str; 8] =
    ["10.30.1.79", "10.30.1.81", "10.30.0.9", "172.20.0.9", "192.168.9.9", "fd00:30::79", "fd00:31::9", "2a00:1::9"];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.30.1.80/32",
    "10.30.1.0/24",
    "10.30.1.64/26",
    "10.30.0.0/16",
    "10.30.1.78/32",
    "192.168.7.0/25",
    "172.16.0.0/12",
    "255.255.255.255/32",
    "::/0",
    "fd00:30::80/128",
    "fd00:30::/64",
    "fd00:30::/32",
    "ffff::/16",
];
/// Where buckets and the port space begin and end, and some in between.
const PORTS: [i32; 16] = [1, 23, 53, 1023, 2040, 2047, 2048, 2111, 2112, 3306, 4095, 4096, 8191, 8192, 33000, 65500];

fn port() -> impl Strategy<Value = ForwardPort> {
    let width = prop_oneof![5 => Just(0), 3 => 1..20_i32, 1 => 60..200_i32];
    let target = prop_oneof![3 => Just(None), 1 => (1..65000).prop_map(Some), 1 => Just(Some(0))];
    (any::<bool>(), select(PORTS.to_vec()), 0..6_i32, width, target).prop_map(|(tcp, base, more, width, target)| {
        let first = (base + more).min(65535);
        ForwardPort {
            name: "p".into(),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port: first,
            end_port: (width > 0).then_some((first + width).min(65535)),
            // 0 stands for the port itself, written out.
            target_port: target.map(|target| if target == 0 { first } else { target }),
        }
    })
}

/// A forward that is often acceptable.
pub fn spec() -> impl Strategy<Value = PortForwardSpec> {
    let weight = prop_oneof![4 => Just(1), 1 => Just(0), 2 => 2..8, 1 => Just(1000)];
    let addresses = prop_oneof![3 => Just(Vec::new()), 1 => subsequence(LISTEN.to_vec(), 1..=2)];
    (
        addresses,
        vec(port(), 1..3),
        subsequence(BLOCKS.to_vec(), 1..4),
        prop_oneof![2 => Just(Vec::new()), 1 => subsequence(BLOCKS[1..].to_vec(), 1..3)],
        subsequence(TARGETS.to_vec(), 1..4).prop_flat_map(move |ips| (vec(weight.clone(), ips.len()), Just(ips))),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(addresses, mut ports, mut allow, deny, (weights, ips), preserve)| {
            for (index, port) in ports.iter_mut().enumerate() {
                port.name = format!("p{index}");
            }
            // Families that do not fit are refused, which is tested elsewhere: most scenes shall have forwards.
            for (six, whole) in [(false, "0.0.0.0/0"), (true, "::/0")] {
                let wanted = ips.iter().any(|ip| ip.contains(':') == six);
                allow.retain(|cidr| wanted || cidr.contains(':') != six);
                if wanted && !allow.iter().any(|cidr| cidr.contains(':') == six) {
                    allow.push(whole);
                }
            }
            let sources = |cidrs: &[&str]| cidrs.iter().map(|cidr| Source { cidr: (*cidr).to_owned() }).collect();
            PortForwardSpec {
                pool: "default".into(),
                addresses: addresses.into_iter().map(str::to_owned).collect(),
                ports,
                sources: Sources { allow: sources(&allow), deny: sources(&deny) },
                targets: ips
                    .iter()
                    .zip(weights)
                    .enumerate()
                    .map(|(index, (ip, weight))| Target { name: format!("t{index}"), ip: (*ip).to_owned(), weight })
                    .collect(),
                source_nat: SourceNat {
                    mode: if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade },
                },
                lifecycle: Lifecycle::default(),
                expires_at: None,
                mode: Mode::Apply,
            }
        })
}

/// A scene whose pool listens on the chosen addresses only.
pub fn scene(specs: &[PortForwardSpec], listen: &[&str]) -> Scene {
    let listen: Vec<String> = listen
        .iter()
        .map(|ip| format!("{{ type: CIDR, value: \"{ip}/{}\" }}", if ip.contains(':') { 128 } else { 32 }))
        .collect();
    let mut scene = Scene::parse(&POOL.replace("LISTEN", &listen.join(", ")), NODE);
    scene.forwards = specs.iter().enumerate().map(|(number, spec)| forward(number, spec)).collect();
    scene
}

/// The object with this number and spec.
pub fn forward(number: usize, spec: &PortForwardSpec) -> Forward {
    Forward {
        key: ForwardRef { namespace: "payments".into(), name: format!("f{number}") },
        uid: format!("uid-{number}").into(),
        generation: 1,
        created: Moment::default(),
        spec: Ok(spec.clone().into()),
    }
}

/// What a forward asks.
pub fn asks(forward: &Forward) -> &PortForwardSpec {
    forward.spec.as_ref().unwrap()
}

/// The least that a forward has to say.
pub fn minimal() -> PortForwardSpec {
    testing::Forward::tcp("payments/f", 8080).spec()
}

/// A forward with so many rules that the chain of its protocol is split by port, and one bucket below once more.
pub fn crowd(protocol: Protocol, mode: SourceNatMode) -> PortForwardSpec {
    let mut spec = minimal();
    spec.ports[0].protocol = protocol;
    (spec.ports[0].port, spec.ports[0].end_port) = (2500, Some(2599));
    spec.ports[0].target_port = Some(20000);
    spec.targets[0].ip = "192.168.9.9".into();
    spec.source_nat = SourceNat { mode };
    spec
}
