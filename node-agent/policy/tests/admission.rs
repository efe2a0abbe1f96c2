//! What the API server's schema says of a target is what `validate` says of it, word for word: a target that is always refused
//! is refused by `kubectl apply`, and no other is.

#![allow(clippy::unwrap_used, reason = "this is a test, its functions outside of #[test] included")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use proptest::prelude::*;
use proptest::sample::select;
use sallyport_api::PortForwardSpec;
use sallyport_api::condition::Reason;
use sallyport_api::limits::REFUSED_TARGETS;
use sallyport_api::manifest::crds;
use sallyport_policy::validate::validate;
use serde_json::{Value, json};

/// A spec with one target, and a source of the target's family.
fn spec(target: &str) -> Value {
    let source = if target.contains(':') { "fd00::80/128" } else { "10.30.1.80/32" };
    json!({
        "ports": [{ "name": "p", "port": 3306 }],
        "sources": { "allow": [{ "cidr": source }] },
        "targets": [{ "name": "t", "ip": target }],
    })
}

/// What the CEL rules of the schema say of `spec`, without the paths.
fn schema(spec: &Value) -> Vec<String> {
    static RULES: LazyLock<CompiledSchema> = LazyLock::new(|| {
        let crd = crds().into_iter().find(|crd| crd.spec.names.kind == "PortForward").unwrap();
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema;
        compile_schema(&serde_json::to_value(schema).unwrap())
    });
    let object = json!({ "metadata": { "name": "f" }, "spec": spec });
    let found = Validator::new().validate_compiled(&RULES, &object, None);
    found.err().into_iter().flatten().map(|error| error.message).collect()
}

/// What the operator and the agents say of it.
fn code(spec: &Value) -> Vec<(Reason, String)> {
    let spec: PortForwardSpec = serde_json::from_value(spec.clone()).unwrap();
    validate(&spec).err().into_iter().flatten().map(|problem| (problem.reason, problem.message)).collect()
}

/// The spec is refused by both, in the same words, or by neither.
fn agree_on_target(text: &str) {
    let spec = spec(text);
    let (schema, code) = (schema(&spec), code(&spec));
    assert_eq!(schema.is_empty(), code.is_empty(), "{text}: the schema says {schema:?}, the code {code:?}");
    let Some((reason, words)) = code.first() else { return };
    assert_eq!((code.len(), *reason), (1, Reason::InvalidTarget), "{text}: {words}");
    assert_eq!(schema.len(), 1, "{text}: {schema:?}");
    if words.contains("IPv4-mapped") {
        // Kubernetes takes it for no address at all.
        assert!(schema[0].starts_with("must be one IP address"), "{text}: {schema:?}");
    } else {
        let canonical = text.parse::<IpAddr>().unwrap().to_string();
        assert_eq!(schema[0].replacen(text, &canonical, 1), *words);
    }
}

/// The address so many steps on.
fn beside(ip: IpAddr, step: i8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).wrapping_add_signed(step.into())).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add_signed(step.into())).into(),
    }
}

/// An address in the block, with the bits of `random` where the block leaves any.
fn within(block: IpNet, random: u128) -> IpAddr {
    match block {
        IpNet::V4(net) => {
            let random = u32::try_from(random >> 96).unwrap();
            Ipv4Addr::from(u32::from(net.network()) | u32::from(net.hostmask()) & random).into()
        }
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) | u128::from(net.hostmask()) & random).into(),
    }
}

#[test]
fn schema_and_code_agree_at_both_ends_of_every_refused_block_and_beside_them() {
    for (block, _) in REFUSED_TARGETS {
        let block: IpNet = block.parse().unwrap();
        for ip in [block.network(), block.broadcast(), beside(block.network(), -1), beside(block.broadcast(), 1)] {
            agree_on_target(&ip.to_string());
        }
    }
}

fn blocks() -> impl Strategy<Value = IpNet> {
    select(REFUSED_TARGETS).prop_map(|(block, _)| block.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn schema_and_code_agree_on_every_target(
        v4: u32, v6: u128, block in blocks(), random: u128, private in 0..=0xff_ffff_u32,
    ) {
        let inside = within(block, random);
        let private = Ipv4Addr::from(0x0a00_0000 | private);
        for ip in [IpAddr::from(Ipv4Addr::from(v4)), Ipv6Addr::from(v6).into(), inside, private.into()] {
            agree_on_target(&ip.to_string());
        }
        if let IpAddr::V6(ip) = inside {
            // Every digit, as nobody writes it.
            agree_on_target(&ip.segments().map(|segment| format!("{segment:04X}")).join(":"));
        }
        agree_on_target(&private.to_ipv6_mapped().to_string());
        agree_on_target(&private.to_ipv6_compatible().to_string());
    }
}
