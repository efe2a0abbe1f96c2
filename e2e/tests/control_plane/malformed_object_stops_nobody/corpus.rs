//! What somebody might write to break a parser, a shell or a firewall: one field of a good spec at a time.

use serde_json::{Value, json};

/// A field of a spec, what is written there, and a word that the operator's refusal must hold.
pub struct Hostile {
    pub pointer: &'static str,
    pub value: Value,
    pub word: &'static str,
}

/// What the schema does not refuse: how blocks relate, what is no listen address, what a gateway keeps for itself.
pub fn for_the_operator_alone() -> Vec<Hostile> {
    vec![
        Hostile { pointer: "/sources/deny", value: json!([{ "cidr": "0.0.0.0/0" }]), word: "deny" },
        Hostile { pointer: "/addresses", value: json!(["127.0.0.1"]), word: "addresses[0]" },
        Hostile { pointer: "/ports/0/port", value: json!(22), word: "ports[0].port: 22/TCP is kept" },
        Hostile { pointer: "/ports/0/port", value: json!(10_250), word: "ports[0].port: 10248-10260/TCP is kept" },
        Hostile { pointer: "/ports/0/endPort", value: json!(4240), word: "ports[0].port: 4240/TCP is kept" },
    ]
}

/// What the schema refuses, and the operator where it is there all the same.
pub fn hostile() -> Vec<Hostile> {
    let mut corpus = Vec::new();
    let mut add = |pointer: &'static str, word: &'static str, values: Vec<Value>| {
        corpus.extend(values.into_iter().map(|value| Hostile { pointer, value, word }));
    };
    let texts = |all: &[&str]| all.iter().map(|text| json!(text)).collect::<Vec<_>>();
    add("/targets/0/ip", "targets[0].ip", texts(&injections("10.30.1.79")));
    add("/targets/0/ip", "targets[0].ip", texts(&NO_TARGETS));
    add("/targets/0/ip", "target", texts(&["fd00::79", "2001:db8::1"]));
    add("/sources/allow/0/cidr", "allow[0].cidr", texts(&injections("10.30.1.80/32")));
    add("/sources/allow/0/cidr", "allow[0].cidr", texts(&NO_BLOCKS));
    add("/sources/allow/0/cidr", "allow", texts(&["fd00::/64", "::/0"]));
    add("/sources/deny", "deny", vec![json!([{ "cidr": "10.30.1.80" }])]);
    add("/addresses", "addresses[0]", vec![json!(["10.30.1.78/32"]), json!(["-j"])]);
    add("/addresses", "addresses", vec![json!(["fd00::78"])]);
    add("/ports/0/port", "ports[0].port", vec![json!(0), json!(-1), json!(65_536), json!(1_000_000_000)]);
    add("/ports/0/port", "port", vec![json!(4_294_970_605_u64), json!(3309.5), json!("3309"), json!(true), json!([1])]);
    add("/ports/0/endPort", "endPort", vec![json!(3308), json!(0), json!(65_536), json!("3310")]);
    add("/ports/0/targetPort", "targetPort", vec![json!(0), json!(65_536), json!(-3309)]);
    add("/ports/0/protocol", "protocol", texts(&["SCTP", "tcp", "TCP -j ACCEPT", "", "all"]));
    for (pointer, word) in
        [("/ports/0/name", "ports[0].name"), ("/targets/0/name", "targets[0].name"), ("/pool", "pool")]
    {
        add(pointer, word, texts(&injections("p")));
        add(pointer, word, vec![json!("a".repeat(253)), json!("пункт"), json!("-p"), json!("")]);
    }
    add("/targets/0/weight", "weight", vec![json!(-1), json!(1001), json!(i32::MAX), json!("1")]);
    add("/sourceNAT", "sourceNAT", vec![json!({ "mode": "Sometimes" }), json!({ "mode": "MASQUERADE" }), json!("x")]);
    let list = |count: u32, entry: fn(u32) -> Value| (0..count).map(entry).collect::<Value>();
    let target = |n: u32| json!({ "name": format!("t{n}"), "ip": format!("10.31.{}.{}", n / 250, n % 250 + 1) });
    let port = |n: u32| json!({ "name": format!("p{n}"), "port": 4000 + n });
    let block = |n: u32| json!({ "cidr": format!("10.31.{}.{}/32", n / 250, n % 250 + 1) });
    add("/targets", "targets", vec![json!([]), list(65, target), list(200, target), json!("db1")]);
    add("/ports", "ports", vec![json!([]), list(33, port), list(100, port), json!({ "port": 3309 })]);
    add("/sources/allow", "allow", vec![json!([]), list(65, block), list(200, block)]);
    add("/sources", "sources", vec![json!({}), json!({ "deny": [] })]);
    corpus
}

/// `good` with what a shell, a save file or a command line would take for more than an address.
fn injections(good: &str) -> Vec<&'static str> {
    let with = |text: String| &*text.leak();
    vec![
        with(format!("{good}\n-A INPUT -j ACCEPT")),
        with(format!("{good}\r\nCOMMIT")),
        with(format!("{good} -j ACCEPT")),
        with(format!("{good}; reboot")),
        with(format!("{good}\0")),
        with(format!("\"{good}\"")),
        with(format!("'{good}'")),
        with(format!("! {good}")),
        with(format!(" {good}")),
        with(format!("{good}\u{202e}")),
        with(format!("$(echo {good})")),
        "`reboot`",
        "-j",
        "--",
        "--to-destination",
        "\\",
        "%s%n",
    ]
}

const NO_TARGETS: [&str; 34] = [
    "",
    "10.30.1",
    "10.30.1.256",
    "010.030.001.079",
    "0x0a1e014f",
    "169738575",
    "１０.３０.１.７９",
    "10.30.1.79/32",
    "10.30.1.79:3306",
    "10.30.1.79,10.30.1.81",
    "db1.example.com",
    "[fd00::79]",
    "fd00::79%eth0",
    "fe80::1%1",
    "::ffff:10.30.1.79",
    "::10.30.1.79",
    "64:ff9b::a1e:14f",
    "0.0.0.0",
    "127.0.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "64:ff9b:1:ffff::1",
    "2001:0000:ffff::1",
    // Metadata services that are not link-local.
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "FD00:0EC2:0:0:0:0:0:0254",
    "fd20:ce::254",
];

const NO_BLOCKS: [&str; 14] = [
    "",
    "10.30.1.80",
    "10.30.1.80/",
    "10.30.1.80/33",
    "10.30.1.80/-1",
    "10.30.1.80/+32",
    "10.30.1.80/255.255.255.255",
    "10.30.1.80-10.30.1.90",
    "10.30.1.256/32",
    "fd00::/129",
    "fe80::1%eth0/64",
    "::ffff:10.30.1.80/128",
    "::ffff:0.0.0.0/96",
    "any",
];
