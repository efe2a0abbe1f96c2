//! A UDP flow goes where the manifests say now, also when it is older than they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, APP2, DB1, GW1, SOON, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Answer, Protocol, ask_from, hold, serve};
use sallyport_e2e::wait;

#[test]
fn flow_older_than_its_forward_reaches_the_target() -> Result<()> {
    for variant in Variant::ALL {
        scene(variant, Backend::Iptables(variant), |scene| {
            let (app1, gw1, db1) = (scene.article.app1.clone(), scene.article.gw1.clone(), scene.article.db1.clone());
            scene.article.let_gateway_in(&db1, Protocol::Udp, 5300, 5300)?;
            let open = format!("-I INPUT -s {APP1}/32 -p udp --dport 5300 -j ACCEPT");
            gw1.iptables(variant, Family::V4, &open)?;
            // One client port throughout, so that the kernel sees one flow.
            let flow = || ask_from(&app1, Protocol::Udp, socket(APP1, 40_000), socket(GW1, 5300));
            let on_gw1 = serve(&gw1, &[(Protocol::Udp, socket(GW1, 5300))])?;
            ensure!(flow()?.is_from("gw1"), "gw1 itself does not answer before");
            drop(on_gw1);
            ensure!(
                !gw1.conntrack(&["-p", "udp", "--orig-port-src", "40000"])?.is_empty(),
                "there is no old conntrack entry to follow"
            );

            let _db1 = serve(&db1, &[(Protocol::Udp, socket(DB1, 5300))])?;
            scene.gateway.manifests().save(&Forward::udp("dns", 5300, &format!("{APP1}/32"), DB1))?;
            scene.start_agent()?;
            let took = wait::until_true("the old flow reaching db1", SOON, || Ok(flow()?.is_from("db1")))?;
            println!("{variant}: followed after {} ms", took.as_millis());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn flow_to_a_removed_target_goes_to_the_new_one() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, app2, db1) = (scene.article.app1.clone(), scene.article.app2.clone(), scene.article.db1.clone());
        let _targets = [(&db1, DB1), (&app2, APP2)]
            .map(|(host, ip)| {
                scene.article.let_gateway_in(host, Protocol::Udp, 5300, 5300)?;
                serve(host, &[(Protocol::Udp, socket(ip, 5300))])
            })
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let mut forward = Forward::udp("dns", 5300, &format!("{APP1}/32"), DB1);
        scene.gateway.manifests().save(&forward)?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Udp, 5300, "db1")?;
        let mut held = hold(&app1, Protocol::Udp, socket(GW1, 5300), None)?;

        forward.targets = vec![(APP2.to_owned(), 1)];
        scene.gateway.manifests().save(&forward)?;
        wait::until_true("the flow reaching the new target", Duration::from_secs(5), || {
            ensure!(held.is_alive()?, "the flow got no answer for 900 ms");
            Ok(held.last().as_ref().is_some_and(|answer: &Answer| answer.is_from("app2")))
        })?;
        Ok(())
    })
}
