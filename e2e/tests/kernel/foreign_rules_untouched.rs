//! Rules, chains, counters and tables of others stay as they are, and in their order, through everything
//! that the agent does.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Host, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::snapshot::{Snapshot, rules, without};
use sallyport_e2e::traffic::{Protocol, serve};

/// What container engines, cluster networks and administrators leave on a host. The counters of the first
/// rule are set, so that a rule that was taken out and put back would show.
const FOREIGN: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -i eth9 -j MARK --set-xmark 0x4000/0x4000
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
[1234:567890] -A PREROUTING -s 10.77.0.0/16 -m comment --comment \"of the administrator\" -j ACCEPT
[0:0] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[0:0] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
[0:0] -A DOCKER -i docker0 -j RETURN
[0:0] -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.88.0.3:443
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
[4321:98765] -A FORWARD -s 172.17.0.0/16 -j ACCEPT
[0:0] -A FORWARD -j DOCKER-USER
[0:0] -A DOCKER-USER -s 192.0.2.0/24 -j DROP
COMMIT
";

const FOREIGN_NFT: &str = "\
table inet monitoring {
    set seen { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
    chain input { type filter hook input priority 10; policy accept; ip saddr @seen accept; }
}
";

#[test]
fn rules_of_others_keep_their_text_order_and_counters() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let gw1 = scene.article.gw1.clone();
            let restore = variant.program(Family::V4, "restore");
            gw1.check_with_input(&[&restore, "--noflush", "--counters"], FOREIGN.as_bytes())?;
            gw1.check_with_input(&["nft", "-f", "-"], FOREIGN_NFT.as_bytes())?;
            let before = Snapshot::of(&gw1)?;
            let foreign = rules(&gw1.iptables_save(variant, Family::V4)?);
            let _db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;

            let mut forward = Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1);
            scene.gateway.manifests().save(&forward)?;
            scene.start_agent()?;
            scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
            untouched(&gw1, variant, &foreign).context("after the first forward")?;

            forward.allow.push("10.30.1.90/32".to_owned());
            scene.gateway.manifests().save(&forward)?;
            scene.gateway.manifests().save(&Forward::udp("dns", 53, &format!("{APP1}/32"), DB1))?;
            scene.gateway.manifests().remove("mysql.yaml")?;
            scene.wait_for_no_answer(Protocol::Tcp, 3306)?;
            untouched(&gw1, variant, &foreign).context("after changes")?;

            scene.agent()?.kill()?;
            scene.gateway.cleanup()?;
            untouched(&gw1, variant, &foreign).context("after cleanup")?;
            before.expect_equal(&Snapshot::of(&gw1)?)
        })?;
    }
    Ok(())
}

fn untouched(gw1: &Host, variant: Variant, foreign: &[String]) -> Result<()> {
    let now = rules(&gw1.iptables_save(variant, Family::V4)?);
    let ours = without(&now, foreign);
    // In each chain by itself: a new chain may be listed between two old ones.
    let left = without(&now, &ours);
    ensure!(left == foreign, "expected {foreign:#?}\nfound {left:#?}");
    let counted = gw1.check(&[variant.program(Family::V4, "save").as_str(), "-c"])?;
    for counters in ["[1234:567890] -A PREROUTING", "[4321:98765] -A FORWARD"] {
        ensure!(counted.contains(counters), "{counters} was reset:\n{counted}");
    }
    let table = gw1.check(&["nft", "list", "table", "inet", "monitoring"])?;
    ensure!(table.contains("192.0.2.1, 192.0.2.2"), "the nftables table changed:\n{table}");
    Ok(())
}
