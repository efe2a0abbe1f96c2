//! A forward that expires is closed and its connections are ended on time; no clock and no restart opens it again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use sallyport_e2e::article::{APP1, DB1, GW1, SOON, Scene, scene, socket};
use sallyport_e2e::gateway::Backend;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::manifest::Forward;
use sallyport_e2e::traffic::{Held, Protocol, hold, serve};
use sallyport_e2e::wait;

/// What the agent promises is about a second; the machine may be busy.
const ON_TIME: Duration = Duration::from_secs(3);
/// Longer than an answer may take: a conversation that was cut is over by then.
const CERTAIN: Duration = Duration::from_millis(1500);

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A whole second, so far from now.
fn moment(seconds: i64) -> Result<Timestamp> {
    let now = Timestamp::now().as_second();
    Timestamp::from_second(now + seconds).context("add seconds to now")
}

/// One forward a protocol of port 3306, which expires then.
fn declare(scene: &Scene, expires_at: Timestamp) -> Result<()> {
    let source = format!("{APP1}/32");
    for mut forward in [Forward::tcp("tcp", 3306, &source, DB1), Forward::udp("udp", 3306, &source, DB1)] {
        forward.expires_at = Some(expires_at.to_string());
        scene.gateway.manifests().save(&forward)?;
    }
    Ok(())
}

fn is_open(scene: &Scene, port: u16) -> Result<bool> {
    Ok(scene.article.gw1.iptables_save(Variant::Nft, Family::V4)?.contains(&format!("--dport {port} -j DNAT")))
}

/// Waits until it is closed, which may not be before `end` and not long after; says how long after.
fn wait_until_closed(scene: &Scene, end: Timestamp) -> Result<SignedDuration> {
    wait::until_true("the expired forward being closed", Duration::from_secs(30), || Ok(!is_open(scene, 3306)?))?;
    let late = Timestamp::now().duration_since(end);
    ensure!(late >= SignedDuration::ZERO, "closed {late:?} before it expired");
    ensure!(late.unsigned_abs() < ON_TIME, "closed {late:?} after it expired");
    Ok(late)
}

#[test]
fn expired_forward_is_closed_and_cut_on_time_and_stays_closed() -> Result<()> {
    scene(Variant::Nft, Backend::Auto, |scene| {
        let (app1, db1) = (scene.article.app1.clone(), scene.article.db1.clone());
        scene.article.let_gateway_in(&db1, Protocol::Udp, 3306, 3306)?;
        scene.article.let_gateway_in(&db1, Protocol::Tcp, 3307, 3307)?;
        let listeners = [(Protocol::Tcp, 3306), (Protocol::Udp, 3306), (Protocol::Tcp, 3307)];
        let _db1 = serve(&db1, &listeners.map(|(protocol, port)| (protocol, socket(DB1, port))))?;
        scene.gateway.manifests().save(&Forward::tcp("lasting", 3307, &format!("{APP1}/32"), DB1))?;
        let end = moment(10)?;
        declare(scene, end)?;
        scene.start_agent()?;
        scene.wait_for_answer(Protocol::Tcp, 3307, "db1")?;
        let mut lasting = hold(&app1, Protocol::Tcp, socket(GW1, 3307), None)?;
        let mut cut = Vec::new();
        for protocol in BOTH {
            scene.wait_for_answer(protocol, 3306, "db1")?;
            cut.push(hold(&app1, protocol, socket(GW1, 3306), None)?);
        }
        println!("closed {:?} after it expired", wait_until_closed(scene, end)?);
        for held in &mut cut {
            held.wait_until_cut(SOON)?;
        }
        for protocol in BOTH {
            scene.expect_no_answer(protocol, 3306)?;
        }
        wait::holds_for("the other forward's connection", CERTAIN, || Held::is_alive(&mut lasting))?;
        ensure!(scene.gateway.log().contains(&format!("expired at {end}; set a later moment")), "nobody is told");

        // As if the host's clock had been an hour ahead and were stepped back while it is off: what had expired then
        // has expired, in spite of what the clock says now.
        scene.agent()?.terminate(SOON)?;
        let clock = scene.gateway.state().join("clock.json");
        let kept: i64 = std::fs::read_to_string(&clock).context("read the time")?.trim().parse().context("read it")?;
        ensure!(kept >= end.as_second(), "{kept} is on disk, before {}", end.as_second());
        let ahead = SystemTime::now().duration_since(UNIX_EPOCH).context("tell the time")?.as_secs() + 3600;
        std::fs::write(&clock, ahead.to_string()).context("write the time")?;
        declare(scene, moment(1800)?)?;
        scene.start_agent()?;
        wait::until_true("the agent looking at its clock", SOON, || {
            Ok(scene.gateway.log().contains("this host's clock is behind the highest time that was seen here"))
        })?;
        // What expires later opens, so the agent has decided.
        let mut late = Forward::tcp("late", 3308, &format!("{APP1}/32"), DB1);
        late.expires_at = Some(moment(7200)?.to_string());
        scene.gateway.manifests().save(&late)?;
        wait::until_true("a forward that expires later", SOON, || is_open(scene, 3308))?;
        ensure!(!is_open(scene, 3306)?, "a clock that was stepped back opened what had expired");
        ensure!(lasting.is_alive()?, "the lasting forward's connection was cut");
        Ok(())
    })
}
