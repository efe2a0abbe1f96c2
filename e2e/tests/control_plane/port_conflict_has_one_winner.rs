//! Many forwards want one port: one gets it and keeps it, whoever restarts or edits; the others learn that it is taken and
//! not by whom; and the next gets it once no node carries the former holder any more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{KINDS, ORDERS, PAYMENTS, SOON, Scene, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;
use serde_json::{Value, json};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/sallyport-system/leases/sallyport-operator";

/// Namespaces, and forwards in each of them.
const TENANTS: u16 = 10;
const EACH: u16 = 10;
/// The longest from the end of a holder until its successor is Ready.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Who competes for port 3306. Target ports tell in the rules whose they are.
struct Contender {
    namespace: String,
    name: String,
    target_port: u16,
}

impl Contender {
    fn all() -> Vec<Self> {
        let each = |tenant| (0..EACH).map(move |number| (tenant, number));
        (0..TENANTS)
            .flat_map(each)
            .map(|(tenant, number)| Self {
                namespace: format!("tenant-{tenant}"),
                name: format!("of-tenant-{tenant}-{number}"),
                target_port: 20_000 + tenant * EACH + number,
            })
            .collect()
    }

    fn path(&self) -> String {
        forward_path(&self.namespace, &self.name)
    }

    fn spec(&self) -> Value {
        let mut spec = spec(3306);
        spec["ports"][0]["targetPort"] = self.target_port.into();
        spec
    }
}

#[test]
fn of_a_hundred_at_once_one_wins_and_neither_restarts_nor_edits_evict_it() -> Result<()> {
    scene(|scene| {
        let contenders = Contender::all();
        create_at_once(scene, &contenders)?;
        let winner = winner_among(scene, &contenders)?;
        let losers: Vec<&Contender> =
            contenders.iter().filter(|other| other.target_port != winner.target_port).collect();
        losers_are_told_nothing_of_others(scene, &losers)?;
        let _db1 = scene.serve(&[winner.target_port])?;
        scene.expect_answers(3306)?;

        for restart in 1..=4 {
            replace_the_operator(scene, &format!("operator-{restart}"))?;
            // Whoever leads now has looked at everything once it has carried out something new.
            scene.apply_ready(PAYMENTS, "probe", &spec(3400 + restart))?;
            still_holds(scene, winner, &contenders)?;
        }
        edits_evict_nobody(scene, winner, &losers)?;
        still_holds(scene, winner, &contenders)?;
        let took = hand_over(scene, winner, &losers)?;
        figure(19, format_args!("handed over in {} ms", took.as_millis()));
        Ok(())
    })
}

/// All of them, from as many threads as there are namespaces.
fn create_at_once(scene: &Scene, contenders: &[Contender]) -> Result<()> {
    for tenant in 0..TENANTS {
        let namespace = json!({ "metadata": { "name": format!("tenant-{tenant}"), "labels": { "team": "payments" } } });
        scene.api.create("/api/v1/namespaces", &namespace)?;
    }
    std::thread::scope(|threads| {
        let create = |of: &[Contender]| {
            of.iter().try_for_each(|contender| scene.apply(&contender.namespace, &contender.name, &contender.spec()))
        };
        let running: Vec<_> =
            contenders.chunks(usize::from(EACH)).map(|chunk| threads.spawn(move || create(chunk))).collect();
        running.into_iter().try_for_each(|thread| thread.join().ok().context("a creating thread panicked")?)
    })
}

/// The reason of `Ready` of every contender, in their order.
fn verdicts(scene: &Scene, contenders: &[Contender]) -> Result<Vec<String>> {
    let all = scene.api.list(&format!("{KINDS}/portforwards"))?;
    let reason = |contender: &Contender| {
        let object = all.iter().find(|object| object["metadata"]["name"] == *contender.name)?;
        let mut conditions = object["status"]["conditions"].as_array()?.iter();
        let ready = conditions.find(|condition| condition["type"] == "Ready")?;
        ready["reason"].as_str().map(str::to_owned)
    };
    Ok(contenders.iter().map(|contender| reason(contender).unwrap_or_default()).collect())
}

/// The one that is Ready when everybody has a verdict.
fn winner_among<'a>(scene: &Scene, contenders: &'a [Contender]) -> Result<&'a Contender> {
    let mut verdict = Vec::new();
    wait::until_true("one winner and 99 losers", 2 * SOON, || {
        one_forward_a_gateway(scene)?;
        verdict = verdicts(scene, contenders)?;
        let count = |reason: &str| verdict.iter().filter(|own| *own == reason).count();
        Ok(count("Ready") == 1 && count("PortConflict") == contenders.len() - 1)
    })?;
    let at = verdict.iter().position(|reason| reason == "Ready").context("find the winner")?;
    Ok(&contenders[at])
}

/// The losers in other namespaces than the holder may not read what is there, and neither status nor Events tell it.
fn losers_are_told_nothing_of_others(scene: &Scene, losers: &[&Contender]) -> Result<()> {
    for loser in losers {
        let accepted = scene.condition(&loser.path(), "Accepted")?.context("find the condition")?;
        ensure!(accepted.message.contains("port 3306/TCP is held by"), "the port is not named: {}", accepted.message);
        let object = scene.api.get(&loser.path())?.context("find a loser")?;
        tells_of_nobody_else(&object["status"].to_string(), &loser.namespace)?;
    }
    for tenant in 0..TENANTS {
        let namespace = format!("tenant-{tenant}");
        for event in scene.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))? {
            tells_of_nobody_else(&event["note"].to_string(), &namespace)?;
        }
    }
    Ok(())
}

fn tells_of_nobody_else(text: &str, namespace: &str) -> Result<()> {
    for other in (0..TENANTS).map(|tenant| format!("tenant-{tenant}")).filter(|other| other != namespace) {
        ensure!(!text.contains(&other), "{namespace} is told of {other}: {text}");
    }
    Ok(())
}

/// Kills the leader and starts another operator. The Lease goes too: waiting until it has run out is tested elsewhere.
fn replace_the_operator(scene: &mut Scene, name: &str) -> Result<()> {
    scene.operators.last_mut().context("find the operator")?.process().kill()?;
    scene.api.delete(LEASE)?;
    scene.start_operator(name)
}

fn still_holds(scene: &Scene, winner: &Contender, contenders: &[Contender]) -> Result<()> {
    for (contender, verdict) in contenders.iter().zip(verdicts(scene, contenders)?) {
        let expected = if contender.target_port == winner.target_port { "Ready" } else { "PortConflict" };
        ensure!(verdict == expected, "{} is {verdict}, not {expected}", contender.path());
    }
    for rules in scene.rules()? {
        let target = format!(":{}", winner.target_port);
        let ours = rules.lines().filter(|rule| rule.contains("--dport 3306 ") && rule.contains("DNAT"));
        ensure!(ours.clone().count() == 1 && ours.clone().all(|rule| rule.ends_with(&target)), "not {target}: {rules}");
    }
    scene.expect_answers(3306)
}

/// Neither the oldest loser's edit, nor an older forward edited onto the port, nor the holder's own edit moves it.
fn edits_evict_nobody(scene: &Scene, winner: &Contender, losers: &[&Contender]) -> Result<()> {
    let narrowed = |contender: &Contender| {
        let mut spec = contender.spec();
        spec["sources"]["deny"] = json!([{ "cidr": "10.30.1.99/32" }]);
        scene.apply(&contender.namespace, &contender.name, &spec)
    };
    let oldest = oldest(scene, losers)?;
    narrowed(oldest)?;
    narrowed(winner)?;
    let mut onto = spec(3401);
    onto["ports"][0]["port"] = 3306.into();
    scene.apply(PAYMENTS, "probe", &onto)?;
    for path in [oldest.path(), forward_path(PAYMENTS, "probe")] {
        scene.wait_for(&path, "Accepted", "PortConflict", SOON)?;
    }
    scene.wait_for(&winner.path(), "Ready", "Ready", SOON).map(drop)
}

/// Who was created first, the name deciding within a second.
fn oldest<'a>(scene: &Scene, contenders: &[&'a Contender]) -> Result<&'a Contender> {
    let mut aged = Vec::new();
    for contender in contenders {
        let object = scene.api.get(&contender.path())?.context("find a contender")?;
        let created = object["metadata"]["creationTimestamp"].as_str().context("read its age")?.to_owned();
        aged.push((created, &contender.namespace, &contender.name, *contender));
    }
    aged.sort_by(|a, b| (&a.0, a.1, a.2).cmp(&(&b.0, b.1, b.2)));
    aged.first().map(|(.., contender)| *contender).context("there is nobody")
}

/// The holder goes, and the oldest of the others follows, after every gateway has let go.
fn hand_over(scene: &Scene, winner: &Contender, losers: &[&Contender]) -> Result<Duration> {
    scene.api.delete(&forward_path(PAYMENTS, "probe"))?;
    scene.wait_until_gone(&forward_path(PAYMENTS, "probe"), SOON)?;
    let next = oldest(scene, losers)?;
    let _db1 = scene.serve(&[next.target_port])?;
    scene.api.delete(&winner.path())?;
    let took = wait::until_true("the successor being Ready", HAND_OVER, || {
        one_forward_a_gateway(scene)?;
        Ok(scene.condition(&next.path(), "Ready")?.is_some_and(|ready| ready.status == "True"))
    })?;
    ensure!(scene.api.get(&winner.path())?.is_none(), "the successor came in before the former holder was gone");
    scene.expect_answers(3306)?;
    Ok(took)
}

/// No kernel ever has rules of two.
fn one_forward_a_gateway(scene: &Scene) -> Result<()> {
    for rules in scene.rules()? {
        let forwards = rules.lines().filter(|rule| rule.contains("--dport 3306 ") && rule.contains("DNAT")).count();
        ensure!(forwards <= 1, "a gateway carries two forwards of one port:\n{rules}");
    }
    Ok(())
}

#[test]
fn successor_waits_for_every_node() -> Result<()> {
    scene(|scene| {
        scene.apply_ready(ORDERS, "first", &spec(3306))?;
        let (first, second) = (forward_path(ORDERS, "first"), forward_path(PAYMENTS, "second"));
        scene.apply(PAYMENTS, "second", &spec(3306))?;
        scene.wait_for(&second, "Accepted", "PortConflict", SOON)?;
        let gw2 = scene.kubelets.agent("gw2").context("find the agent on gw2")?;
        let stopped = Stopped::stop(gw2)?;
        scene.api.delete(&first)?;
        wait::until_true("gw1 dropping the first forward", SOON, || Ok(!scene.rules()?[0].contains("3306")))?;
        wait::holds_for("the successor waiting for gw2", Duration::from_secs(2), || {
            let waits = scene.condition(&second, "Ready")?.is_none_or(|ready| ready.status != "True");
            Ok(waits && scene.api.get(&first)?.is_some() && !scene.rules()?[0].contains("3306"))
        })?;
        drop(stopped);
        scene.wait_for(&second, "Ready", "Ready", SOON)?;
        ensure!(scene.api.get(&first)?.is_none(), "both forwards hold the port");
        Ok(())
    })
}
