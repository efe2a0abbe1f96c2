//! The answers over a real socket, and what those who ask for nothing get.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn get_page(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("the connection stays open").unwrap();
    answer
}

/// Something that is always ready, on a free port.
async fn started(tasks: &mut Tasks) -> SocketAddr {
    let told = start(tasks, "127.0.0.1:0".parse().unwrap(), Registry::default(), || Ok(()));
    on(told).await
}

async fn on(mut told: watch::Receiver<Serving>) -> SocketAddr {
    let serving = told.wait_for(|serving| matches!(serving, Serving::On(_)));
    match timeout(PATIENCE, serving).await.expect("it is not served").unwrap().clone() {
        Serving::On(address) => address,
        other => unreachable!("{other:?}"),
    }
}

/// Whether the other side has closed it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    timeout(PATIENCE, stream.read(&mut [0])).await.is_ok_and(|read| read.unwrap_or(0) == 0)
}

#[tokio::test]
async fn health_readiness_and_metrics_are_answered() {
    let mut registry = Registry::default();
    let passes: Counter = Counter::default();
    registry.register("passes", "Passes", passes.clone());
    let ready = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ready);
    let mut tasks = Tasks::default();
    let told = start(&mut tasks, "127.0.0.1:0".parse().unwrap(), registry, move || {
        if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("the last pass failed".to_owned()) }
    });
    let addr = on(told).await;

    assert!(get_page(addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
    let not_ready = get_page(addr, "/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503 ") && not_ready.ends_with("the last pass failed\n"), "{not_ready}");
    ready.store(true, Ordering::Relaxed);
    assert!(get_page(addr, "/readyz").await.starts_with("HTTP/1.1 200 "));
    passes.inc();
    let metrics = get_page(addr, "/metrics").await;
    assert!(
        metrics.contains("content-type: application/openmetrics-text") && metrics.contains("passes_total 1\n"),
        "{metrics}"
    );
    assert!(get_page(addr, "/secrets").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_taken_address_is_said_and_had_as_soon_as_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let mut tasks = Tasks::default();
    let mut told = start(&mut tasks, address, Registry::default(), || Ok(()));
    let refused =
        timeout(PATIENCE, told.wait_for(|serving| *serving != Serving::NotYet)).await.unwrap().unwrap().clone();
    assert_eq!(refused, Serving::Refused(format!("cannot listen on {address}: Address already in use (os error 98)")));
    drop(taken);
    assert_eq!(on(told).await, address);
    assert!(get_page(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn idle_connections_give_way_to_the_next_one() {
    let mut tasks = Tasks::default();
    let addr = started(&mut tasks).await;
    let mut idle = VecDeque::new();
    for number in 0..MOST * 3 {
        idle.push_back(TcpStream::connect(addr).await.unwrap());
        if number >= MOST {
            assert!(is_closed(&mut idle.pop_front().unwrap()).await, "the {number}th");
        }
    }
    assert!(get_page(addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_or_too_slowly_is_sent_away() {
    let mut tasks = Tasks::default();
    let addr = started(&mut tasks).await;
    for said in ["", "GET /healthz HTTP/1.1\r\nHost: x\r\n", "POST /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\n"] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let begun = tokio::time::Instant::now();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it stays open").ok();
        assert!(begun.elapsed() <= LIMIT + AGAIN, "{said:?}");
    }
}
