//! What anybody on the host may do to the address for probes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use crate::scene::{AGENT, PATIENCE, Running, Scene, forward, wait_until};

/// Few for an agent, and far fewer than connections are opened.
const DESCRIPTORS: &str = "64";
const IDLE: usize = 2_000;

/// An agent that answers probes on `address` and may have `limits` open files.
fn start(scene: &Scene, address: SocketAddr, limits: &str) -> Running {
    let run = scene.on_host("run");
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limits}")).arg(AGENT).args(run.get_args());
    let running = scene.spawn(command.arg("--admin").arg(address.to_string()));
    running.wait_for("verified");
    running
}

/// An address that nobody has.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn is_ready(address: SocketAddr) -> bool {
    let mut answer = String::new();
    TcpStream::connect(address)
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        })
        .is_ok_and(|_| answer.starts_with("HTTP/1.1 200 "))
}

#[test]
fn an_address_that_somebody_has_stops_nothing_and_is_had_when_it_is_free() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let running = start(&scene, address, DESCRIPTORS);
    running.wait_for(&format!("cannot answer probes there, trying again each second address={address}"));
    scene.put("a.yaml", &forward("a", 0));
    running.wait_for("a.yaml: PortForward default/a: ");
    drop(taken);
    wait_until(|| is_ready(address), || running.log());
    assert_eq!(running.log().matches("cannot answer probes").count(), 1, "told again and again:\n{}", running.log());
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn idle_connections_stop_nothing_and_are_in_the_way_of_no_probe() {
    sallyport_runtime::descriptors::raise_limit();
    let (scene, address) = (Scene::new(), free());
    let running = start(&scene, address, DESCRIPTORS);
    wait_until(|| is_ready(address), || running.log());
    let idle: Vec<_> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
    scene.put("a.yaml", &forward("a", 0));
    running.wait_for("a.yaml: PortForward default/a: ");
    wait_until(|| is_ready(address), || running.log());
    drop(idle);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn an_agent_takes_as_many_descriptors_as_it_is_allowed() {
    let scene = Scene::new();
    let running = start(&scene, free(), "64:512");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["512", "512"]);
}
