//! A `PortForward` that is applied reaches the kernels of all gateways, its status says so only once they were read
//! back, and deleting it closes what it opened.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{APP2, DB1, GW1, socket};
use sallyport_e2e::control_plane::scene::{GW2, PAYMENTS, SOON, forward_path, scene, spec};
use sallyport_e2e::traffic::{Answer, Protocol, ask, hold};

#[test]
fn applied_forward_carries_packets_and_deleted_one_is_cut() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let before = scene.rules()?;
        scene.expect_refusals(3306)?;
        let direct = scene.ask(DB1, 3306)?;
        ensure!(direct == Answer::Silence, "db1 can be reached past the gateways: {direct:?}");

        let took = scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        println!("ready after {} ms", took.as_millis());
        // Ready says that it works: nothing is waited for from here on.
        scene.expect_answers(3306)?;
        for (gateway, ip) in [(GW1, GW1), (GW2, GW2)] {
            let Answer::Heard { peer, .. } = scene.ask(gateway, 3306)? else {
                anyhow::bail!("no answer at {gateway}");
            };
            ensure!(peer.ip().to_string() == ip, "db1 sees {peer}, not {ip}");
        }
        let stranger = ask(&scene.app2, Protocol::Tcp, socket(GW1, 3306))?;
        ensure!(!matches!(stranger, Answer::Heard { .. }), "{APP2} is not listed and was answered: {stranger:?}");

        let path = forward_path(PAYMENTS, "mysql");
        let object = scene.api.get(&path)?.context("find the forward")?;
        let status = &object["status"];
        ensure!(status["nodes"]["desired"] == 2 && status["nodes"]["programmed"] == 2, "nodes: {status}");
        ensure!(status["hash"].is_string() && status["hash"] == status["appliedHash"], "hashes: {status}");
        ensure!(status["observedGeneration"] == object["metadata"]["generation"], "generation: {status}");
        let columns = scene.terminal.kubectl(&["get", "pf", "mysql", "-n", PAYMENTS, "--no-headers"])?;
        for word in ["default", "3306/TCP", &format!("{DB1}:3306"), "True", "2/2"] {
            ensure!(columns.split_whitespace().any(|column| column == word), "no {word} in {columns}");
        }

        let mut held = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3306), None)?;
        scene.api.delete(&path)?;
        let gone = scene.wait_until_gone(&path, SOON)?;
        println!("gone after {} ms", gone.as_millis());
        // The object may only go once no node carries it.
        scene.expect_refusals(3306)?;
        held.wait_until_cut(SOON)?;
        let left: Vec<_> = scene.rules()?.into_iter().flat_map(|rules| lines_with_db1(&rules)).collect();
        ensure!(left.is_empty(), "rules of the deleted forward are left: {left:?}; before there was {before:?}");
        Ok(())
    })
}

fn lines_with_db1(rules: &str) -> Vec<String> {
    rules.lines().filter(|line| line.contains(DB1)).map(str::to_owned).collect()
}
