//! Rules of others that let in who is not listed, take the packets elsewhere or overwrite the mark are named with a command,
//! and the command helps.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Answer, Protocol, ask, serve};
use sallyport_e2e::wait;

const NFT: Variant = Variant::Nft;
/// What is said where nothing is in the way.
const WELL: &str = "nothing else on this host drops or diverts forwarded packets";

/// Waits until the last thing that the agent said of other firewalls holds all of `words`.
fn says(scene: &Scene, words: &[&str]) -> Result<String> {
    let told = |line: &&str| line.contains("forwarded packets");
    let (line, _) = wait::until(&format!("the agent saying {words:?}"), SOON, || {
        let log = scene.gateway.log();
        let last = log.lines().rfind(told).filter(|line| words.iter().all(|word| line.contains(word)));
        Ok(last.map(str::to_owned))
    })?;
    Ok(line)
}

/// Runs the first command of `message` on gw1 that begins like `begin`.
fn obey(scene: &Scene, message: &str, begin: &str) -> Result<()> {
    let command = message.split('`').find(|part| part.starts_with(begin)).context("find the remedy")?;
    scene.article.gw1.check(&["sh", "-c", command]).map(drop)
}

fn forwarding(scene: &mut Scene) -> Result<sallyport_e2e::lab::Process> {
    let db1 = serve(&scene.article.db1, &[(Protocol::Tcp, socket(DB1, 3306))])?;
    scene.gateway.manifests().save(&Forward::tcp("mysql", 3306, &format!("{APP1}/32"), DB1))?;
    scene.start_agent()?;
    scene.wait_for_answer(Protocol::Tcp, 3306, "db1")?;
    Ok(db1)
}

#[test]
fn rules_made_by_hand_before_there_was_a_forward_are_named_and_their_removal_shuts_out_who_is_not_listed() -> Result<()>
{
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let gw1 = scene.article.gw1.clone();
        for rule in [
            format!("-t nat -A PREROUTING -d {GW1} -p tcp --dport 3306 -j DNAT --to-destination {DB1}"),
            format!("-t nat -A POSTROUTING -d {DB1} -p tcp --dport 3306 -j MASQUERADE"),
            format!("-A FORWARD -d {DB1} -p tcp --dport 3306 -j ACCEPT"),
            format!("-A FORWARD -s {DB1} -p tcp --sport 3306 -j ACCEPT"),
        ] {
            gw1.iptables(NFT, Family::V4, &rule)?;
        }
        let _db1 = forwarding(scene)?;
        let of_app2 = || ask(&scene.article.app2, Protocol::Tcp, socket(GW1, 3306));
        ensure!(of_app2()?.is_from("db1"), "the rules made by hand let app2 in");
        let message = says(scene, &["clients who are not listed", "table nat of iptables-nft, chain PREROUTING"])?;
        ensure!(scene.gateway.log().contains("(HostFirewallBypass)"), "{}", scene.gateway.log());
        obey(scene, &message, "iptables-nft -t nat -D PREROUTING")?;
        says(scene, &[WELL])?;
        ensure!(!matches!(of_app2()?, Answer::Heard { .. }), "app2 still gets in");
        scene.expect_answer(Protocol::Tcp, 3306, "db1")
    })
}

#[test]
fn a_redirection_in_a_table_of_nftables_is_named_and_its_removal_helps() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let _db1 = forwarding(scene)?;
        let rule = "tcp dport 3306 redirect to :1";
        let table =
            format!("table ip site {{\nchain pre {{\ntype nat hook prerouting priority -110;\n{rule}\n}}\n}}\n");
        scene.article.gw1.check_with_input(&["nft", "-f", "-"], table.as_bytes())?;
        let message = says(scene, &["before our jump", "table ip site, chain pre", "handle"])?;
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        obey(scene, &message, "nft delete rule ip site pre handle")?;
        says(scene, &[WELL])?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")
    })
}

#[test]
fn whoever_overwrites_the_mark_is_named_and_the_masked_form_helps() -> Result<()> {
    scene(NFT, Backend::Iptables(NFT), |scene| {
        let _db1 = forwarding(scene)?;
        let gw1 = scene.article.gw1.clone();
        let rule = "-t mangle -A PREROUTING -i eth0 -j CONNMARK --set-mark 1";
        gw1.iptables(NFT, Family::V4, rule)?;
        let message = says(scene, &["lose our bits", "table mangle of iptables-nft, chain PREROUTING"])?;
        // FORWARD drops what it does not know, which is all that follows the first packet.
        scene.expect_no_answer(Protocol::Tcp, 3306)?;
        gw1.iptables(NFT, Family::V4, &rule.replace("-A", "-D"))?;
        obey(scene, &message, "iptables-nft -t mangle -A PREROUTING")?;
        says(scene, &[WELL])?;
        scene.expect_answer(Protocol::Tcp, 3306, "db1")
    })
}
