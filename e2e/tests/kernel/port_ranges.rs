//! Ranges of ports: on the same ports, and shifted to others.

use anyhow::{Result, ensure};
use sallyport_e2e::article::{APP1, DB1, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::Variant;
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Answer, Protocol, serve};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A forward of ports 8000 to 8009 reaches ten ports of db1 from `first` on, one by one, and no others.
fn range_reaches(variant: Variant, first: u16) -> Result<()> {
    scene(variant, Backend::Iptables(variant), |scene| {
        let db1 = scene.article.db1.clone();
        let mut listeners = Vec::new();
        for protocol in BOTH {
            scene.article.let_gateway_in(&db1, protocol, 1024, 65535)?;
            listeners.extend((first - 1..=first + 10).map(|port| (protocol, socket(DB1, port))));
        }
        let _db1 = serve(&db1, &listeners)?;
        let source = format!("{APP1}/32");
        for mut forward in [Forward::tcp("tcp", 8000, &source, DB1), Forward::udp("udp", 8000, &source, DB1)] {
            forward.end_port = Some(8009);
            forward.target_port = Some(first);
            scene.gateway.manifests().save(&forward)?;
        }
        scene.gateway.once_accepting()?;
        for protocol in BOTH {
            for step in 0..10 {
                let answer = scene.ask(protocol, 8000 + step)?;
                ensure!(
                    matches!(answer, Answer::Heard { port, .. } if port == first + step),
                    "{protocol} port {} should reach {}: {answer:?}",
                    8000 + step,
                    first + step
                );
            }
            scene.expect_no_answer(protocol, 7999)?;
            scene.expect_no_answer(protocol, 8010)?;
        }
        Ok(())
    })
}

#[test]
fn range_reaches_the_same_ports() -> Result<()> {
    Variant::ALL.into_iter().try_for_each(|variant| range_reaches(variant, 8000))
}

#[test]
fn shifted_range_reaches_each_port_at_its_own_distance() -> Result<()> {
    Variant::ALL.into_iter().try_for_each(|variant| range_reaches(variant, 9500))
}
