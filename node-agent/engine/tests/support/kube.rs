//! Rules in the shape of kube-proxy's, as text for `iptables-nft-restore --noflush`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// What `services` have in `nat`, each with three endpoints.
pub fn services(services: usize) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for number in 0..services {
        let (ip, port, service) = (address(number), port(number), format!("KUBE-SVC-{number:016}"));
        let comment = format!("-m comment --comment \"shop/svc-{number}:http cluster IP\"");
        writeln!(chains, ":{service} - [0:0]").unwrap();
        writeln!(
            rules,
            "-A {service} ! -s 10.244.0.0/16 -d {ip}/32 -p tcp {comment} -m tcp --dport {port} -j KUBE-MARK-MASQ"
        )
        .unwrap();
        for (endpoint, chance) in [Some("0.33333333349"), Some("0.50000000000"), None].into_iter().enumerate() {
            let chain = format!("KUBE-SEP-{number:015}{endpoint}");
            let target = format!("10.244.{}.{}", number % 250, endpoint + 2);
            let chance = chance.map(|p| format!("-m statistic --mode random --probability {p} ")).unwrap_or_default();
            writeln!(chains, ":{chain} - [0:0]").unwrap();
            writeln!(rules, "-A {service} {comment} {chance}-j {chain}").unwrap();
            writeln!(rules, "-A {chain} -s {target}/32 {comment} -j KUBE-MARK-MASQ").unwrap();
            writeln!(rules, "-A {chain} -p tcp {comment} -m tcp -j DNAT --to-destination {target}:8080").unwrap();
        }
    }
    let mark = ":KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n";
    format!("*nat\n{mark}{chains}{rules}COMMIT\n")
}

/// What kube-proxy writes again at each sync: the chain that leads to all services, `turned` so far since it has no order, and
/// those of the nodes' ports.
pub fn sync(services: usize, turned: usize) -> String {
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n".to_owned();
    for number in (0..services).map(|number| (number + turned) % services) {
        writeln!(
            text,
            "-A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment \"shop/svc-{number}:http cluster IP\" -m tcp \
             --dport {} -j KUBE-SVC-{number:016}",
            address(number),
            port(number)
        )
        .unwrap();
    }
    text.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n");
    text
}

fn address(number: usize) -> String {
    format!("10.96.{}.{}", number / 250, number % 250 + 1)
}

fn port(number: usize) -> usize {
    1000 + number % 100
}

/// Loads `text` beside what is there.
pub fn restore(text: &str) {
    let mut child = Command::new("iptables-nft-restore").arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}
