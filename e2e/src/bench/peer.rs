//! The layout that others use, to compare with: a chain for every forward. A dispatch rule finds it, it
//! holds the DNAT, and a FORWARD and a MASQUERADE rule accept and hide the forward's flows. Those two are
//! keyed on the port that the client asked for, so that a changed target rewrites one chain only: the
//! kindest form of this layout.

use std::fmt::Write as _;

use super::many::{FIRST_PORT, TARGET_PORT};
use crate::article::{APP1, DB1, GW1};

/// The restore text of so many forwards.
pub fn all(count: u16) -> String {
    let mut nat = String::from("*nat\n:PEER-PRE - [0:0]\n:PEER-POST - [0:0]\n");
    let mut filter = String::from("*filter\n:PEER-FORWARD - [0:0]\n");
    for number in 0..count {
        let _ = writeln!(nat, ":PEER-{number} - [0:0]");
    }
    nat += "-A PREROUTING -j PEER-PRE\n-A POSTROUTING -j PEER-POST\n";
    filter += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j PEER-FORWARD\n";
    for number in 0..count {
        let port = FIRST_PORT + number;
        let flow = format!("-p tcp -m conntrack --ctorigdst {GW1} --ctorigdstport {port}");
        let _ = writeln!(
            nat,
            "-A PEER-PRE -s {APP1}/32 -d {GW1}/32 -p tcp -m tcp --dport {port} -j PEER-{number}\n\
             -A PEER-{number} -p tcp -j DNAT --to-destination {DB1}:{TARGET_PORT}\n\
             -A PEER-POST {flow} -j MASQUERADE"
        );
        let _ = writeln!(filter, "-A PEER-FORWARD {flow} -j ACCEPT");
    }
    format!("{nat}COMMIT\n{filter}COMMIT\n")
}

/// The restore text that gives one forward another target port.
pub fn change(number: u16, target_port: u16) -> String {
    format!(
        "*nat\n:PEER-{number} - [0:0]\n\
         -A PEER-{number} -p tcp -j DNAT --to-destination {DB1}:{target_port}\nCOMMIT\n"
    )
}
