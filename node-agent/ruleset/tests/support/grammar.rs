//! What may stand in the text of a change, written down anew: nothing that anybody wrote can look like one of its lines.

use std::sync::LazyLock;

use regex::RegexSet;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::installed::{Installed, InstalledRuleset};
use sallyport_ruleset::iptables::plan::{plan, render};
use sallyport_ruleset::iptables::restore::restore;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::iptables::shadow::Packets;

use super::kernel::Kernel;

/// Each line that there is.
static GRAMMAR: LazyLock<RegexSet> = LazyLock::new(|| {
    let chain = r"SALLY-(?:PRE|POST|FWD|[MP][TU]?|[MP][TU]-\d{1,5}-\d{1,5}|[SDI]-[0-9a-f]{16}|IN)";
    let ip = r"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f:]*:[0-9a-f:]*)";
    let port = r"\d{1,5}";
    let to = format!(r"(?:{ip}|(?:\d{{1,3}}\.){{3}}\d{{1,3}}:{port}|\[[0-9a-f:]+\]:{port})");
    let guard = format!(
        r"(?:-s {ip}/\d{{1,3}} )?(?:-d {ip}/(?:32|128) )?(?:-p (?:tcp|udp) )?(?:-m (?:tcp|udp) --dport {port}(?::{port})? )?(?:-m statistic --mode random --probability 0\.\d{{11}} )?"
    );
    let ours = r"(?:-m conntrack --ctstate DNAT -m connmark --mark 0x[13]0000000/0x[13]0000000 )";
    let action = format!(
        r"(?:-j RETURN|-[jg] {chain}|-j CONNMARK --set-xmark 0x[0-3]0{{0,7}}/0x30000000|-j DNAT --to-destination {to})"
    );
    RegexSet::new([
        r"^\*(?:filter|nat|mangle)$".to_owned(),
        "^COMMIT$".to_owned(),
        format!(r"^:{chain} - \[0:0\]$"),
        format!(r"^-A {chain} {guard}{action}$"),
        format!(r"^-A SALLY-(?:POST|FWD) {ours}-j (?:MASQUERADE|ACCEPT)$"),
        r"^(?:-A FORWARD|-I FORWARD \d{1,5}) -j SALLY-FWD$".to_owned(),
        r"^-A SALLY-IN -m conntrack ! --ctstate INVALID -j RETURN$".to_owned(),
        r"^-A SALLY-IN -p tcp -m tcp --tcp-flags RST RST -j RETURN$".to_owned(),
        format!(
            r"^-A SALLY-I(?:N|-[0-9a-f]{{16}}) -s {ip}/(?:32|128) -p tcp -m tcp --sport {port}(?::{port})? -j DROP$"
        ),
        "^-I INPUT 1 -j SALLY-IN$".to_owned(),
        "^-D INPUT -j SALLY-IN$".to_owned(),
        "^-I (?:PREROUTING|OUTPUT) 1 -j SALLY-PRE$".to_owned(),
        "^-I POSTROUTING 1 -j SALLY-POST$".to_owned(),
        "^-D FORWARD -j SALLY-FWD$".to_owned(),
        "^-D (?:PREROUTING|OUTPUT) -j SALLY-PRE$".to_owned(),
        "^-D POSTROUTING -j SALLY-POST$".to_owned(),
        format!("^-X {chain}$"),
    ])
    .unwrap()
});

/// Checks that a kernel takes the change that installs `ruleset`, and that neither it nor the one that removes it says
/// anything but what the grammar knows.
pub fn changes_are_clean(ruleset: &Ruleset) -> Result<(), String> {
    let mut installed = InstalledRuleset::default();
    let ops = render(ruleset);
    for family in Family::BOTH {
        let Some(text) = restore(&ops, family) else { continue };
        let mut kernel = Kernel::default();
        kernel.restore(&text)?;
        *installed.family_mut(family) = Installed::parse(&kernel.save());
    }
    if installed.ours() != *ruleset {
        return Err(format!("the kernel holds something else: {installed:?}"));
    }
    let removal = plan(&Ruleset::default(), &Packets::default(), &installed);
    let texts = Family::BOTH.into_iter().flat_map(|family| [restore(&ops, family), restore(&removal, family)]);
    for text in texts.flatten() {
        if let Some(line) = text.split('\n').find(|line| !line.is_empty() && !GRAMMAR.is_match(line)) {
            return Err(format!("no line of ours: {line:?}"));
        }
    }
    Ok(())
}
