//! Rules, sets and chains as bytes that a kernel could have written.

use super::*;

/// An attribute as the kernel writes it.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u16::try_from(HEADER_OF_ATTRIBUTE + value.len()).unwrap().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let name = attribute(uapi::EXPRESSION_NAME, format!("{name}\0").as_bytes());
    attribute(1, &[name, attribute(uapi::EXPRESSION_DATA, &data.concat())].concat())
}

fn counter(packets: u64) -> Vec<u8> {
    expression("counter", &[attribute(1, &[0; 8]), attribute(2, &packets.to_be_bytes())])
}

fn jump(chain: &str) -> Vec<u8> {
    let verdict = attribute(uapi::VERDICT_CHAIN, format!("{chain}\0").as_bytes());
    let verdict = [attribute(1, &(-3_i32).to_be_bytes()), verdict].concat();
    expression("immediate", &[attribute(uapi::IMMEDIATE_DATA, &attribute(uapi::DATA_VERDICT, &verdict))])
}

fn interface(number: u32) -> Vec<u8> {
    let meta = expression("meta", &[attribute(uapi::META_KEY, &uapi::META_IIF.to_be_bytes())]);
    let value = attribute(uapi::DATA_VALUE, &number.to_ne_bytes());
    [meta, expression("cmp", &[attribute(uapi::CMP_DATA, &value)])].concat()
}

fn rule_of(handle: u64, position: u64, expressions: &[Vec<u8>]) -> Rule {
    let bytes = [
        attribute(uapi::RULE_TABLE, b"nat\0"),
        attribute(uapi::RULE_CHAIN, b"FOO\0"),
        attribute(uapi::RULE_HANDLE, &handle.to_be_bytes()),
        attribute(uapi::RULE_EXPRESSIONS, &expressions.concat()),
        attribute(6, &position.to_be_bytes()),
    ]
    .concat();
    rule(&bytes).unwrap().unwrap().1
}

#[test]
fn a_rule_is_the_same_wherever_it_is_and_whatever_it_has_counted() {
    let one = rule_of(7, 0, &[counter(5), jump("BAR")]);
    let other = rule_of(9, 7, &[counter(500), jump("BAR")]);
    assert_eq!(one.print, other.print);
    assert_eq!((one.chain.as_str(), one.handle, one.leads_to.as_deref()), ("FOO", 7, Some("BAR")));
}

#[test]
fn rules_that_say_something_else_have_other_prints() {
    let rules = [
        rule_of(7, 0, &[counter(5), jump("BAR")]),
        rule_of(7, 0, &[counter(5), jump("BAZ")]),
        rule_of(7, 0, &[jump("BAR"), counter(5)]),
        rule_of(7, 0, &[jump("BAR")]),
        rule_of(7, 0, &[]),
    ];
    for (place, rule) in rules.iter().enumerate() {
        assert!(rules[..place].iter().all(|before| before.print != rule.print), "rule {place}");
    }
}

#[test]
fn what_iptables_does_not_use_was_made_with_nft() {
    assert!(rule_of(7, 0, &[counter(5), jump("BAR")]).is_of_iptables);
    assert!(!rule_of(7, 0, &[expression("lookup", &[]), jump("BAR")]).is_of_iptables);
}

#[test]
fn the_number_of_an_interface_says_nothing_about_its_name_but_that_of_loopback() {
    assert!(!rule_of(7, 0, &[interface(1), jump("BAR")]).has_interface);
    assert!(rule_of(7, 0, &[interface(2), jump("BAR")]).has_interface);
    let meta = expression("meta", &[attribute(uapi::META_KEY, &uapi::META_OIF.to_be_bytes())]);
    assert!(rule_of(7, 0, &[meta.clone(), expression("lookup", &[])]).has_interface);
    assert!(rule_of(7, 0, &[meta]).has_interface);
}

#[test]
fn a_set_of_the_same_name_is_another_one() {
    let of = |handle: u64, count: u32| {
        let bytes = [
            attribute(uapi::SET_TABLE, b"guard\0"),
            attribute(2, b"__set0\0"),
            attribute(uapi::SET_HANDLE, &handle.to_be_bytes()),
            attribute(uapi::SET_COUNT, &count.to_be_bytes()),
        ];
        set(&bytes.concat()).unwrap().1.print
    };
    assert!(of(1, 5).is_some());
    assert_ne!(of(1, 5), of(2, 5));
    assert_eq!(of(1, 5), of(1, 6), "its elements are read by themselves");
    assert_eq!(set(&attribute(uapi::SET_TABLE, b"guard\0")).unwrap().1.print, None, "it cannot be told from another");
}

#[test]
fn a_base_chain_says_where_it_is_called_and_what_it_drops() {
    let hook =
        [attribute(uapi::HOOK_NUMBER, &2_u32.to_be_bytes()), attribute(uapi::HOOK_PRIORITY, &0_u32.to_be_bytes())];
    let bytes = [
        attribute(uapi::CHAIN_TABLE, b"filter\0"),
        attribute(uapi::CHAIN_NAME, b"FORWARD\0"),
        attribute(uapi::CHAIN_HOOK, &hook.concat()),
        attribute(uapi::CHAIN_POLICY, &0_u32.to_be_bytes()),
        attribute(uapi::CHAIN_USE, &3_u32.to_be_bytes()),
        attribute(uapi::CHAIN_TYPE, b"filter\0"),
    ];
    let bytes = bytes.concat();
    let (table, found) = chain(&bytes).unwrap();
    assert_eq!((table.as_ref(), found.name.as_str(), found.uses), ("filter", "FORWARD", 3));
    assert_eq!(found.base, Some(Base { kind: "filter".to_owned(), hook: 2, priority: 0, drops: true }));
}

#[test]
fn what_is_cut_off_is_an_error() {
    let whole = attribute(uapi::RULE_EXPRESSIONS, &counter(5));
    assert!(rule(&whole[..whole.len() - 4]).is_err());
    assert!(chain(&attribute(uapi::CHAIN_USE, &[0, 1])).is_err());
}
