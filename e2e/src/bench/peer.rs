//! The layout that others use, to compare with: chains for every forward. In nat a dispatch rule finds the
//! forward's chain, which holds its DNAT; in filter another finds the chain that accepts what goes to its
//! target; and a MASQUERADE rule hides its clients. That last one is keyed on the port that the client asked
//! for, so that a changed target rewrites the forward's two chains and nothing else.

use std::fmt::Write as _;

use super::many::{FIRST_PORT, TARGET_PORT};
use crate::article::{APP1, DB1, GW1};

/// The restore text of so many forwards.
pub fn all(count: u16) -> String {
    let mut nat = String::from("*nat\n:PEER-PRE - [0:0]\n:PEER-POST - [0:0]\n");
    let mut filter = String::from("*filter\n:PEER-FORWARD - [0:0]\n");
    for number in 0..count {
        let _ = writeln!(nat, ":PEER-{number} - [0:0]");
        let _ = writeln!(filter, ":PEER-{number} - [0:0]");
    }
    nat += "-A PREROUTING -j PEER-PRE\n-A POSTROUTING -j PEER-POST\n";
    filter += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j PEER-FORWARD\n";
    for number in 0..count {
        let port = FIRST_PORT + number;
        let flow = format!("-p tcp -m conntrack --ctorigdst {GW1} --ctorigdstport {port}");
        let _ = writeln!(
            nat,
            "-A PEER-PRE -s {APP1}/32 -d {GW1}/32 -p tcp -m tcp --dport {port} -j PEER-{number}\n\
             {}\n\
             -A PEER-POST {flow} -j MASQUERADE",
            dnat(number, TARGET_PORT)
        );
        let _ = writeln!(filter, "-A PEER-FORWARD {flow} -j PEER-{number}\n{}", accept(number, TARGET_PORT));
    }
    format!("{nat}COMMIT\n{filter}COMMIT\n")
}

/// The restore text that gives one forward another target port.
pub fn change(number: u16, target_port: u16) -> String {
    format!(
        "*nat\n:PEER-{number} - [0:0]\n{}\nCOMMIT\n*filter\n:PEER-{number} - [0:0]\n{}\nCOMMIT\n",
        dnat(number, target_port),
        accept(number, target_port)
    )
}

fn dnat(number: u16, target_port: u16) -> String {
    format!("-A PEER-{number} -p tcp -j DNAT --to-destination {DB1}:{target_port}")
}

fn accept(number: u16, target_port: u16) -> String {
    format!("-A PEER-{number} -d {DB1}/32 -p tcp -m tcp --dport {target_port} -j ACCEPT")
}
