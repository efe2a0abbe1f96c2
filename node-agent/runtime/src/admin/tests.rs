//! The answers over a real socket.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

async fn get_page(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn health_readiness_and_metrics_are_answered() {
    let mut registry = Registry::default();
    let passes: Counter = Counter::default();
    registry.register("passes", "Passes", passes.clone());
    let ready = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ready);
    let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = admin.address().unwrap();
    let server = tokio::spawn(admin.serve(Arc::new(registry), move || {
        if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("the last pass failed".to_owned()) }
    }));

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
    server.abort();
}

#[tokio::test]
async fn an_occupied_address_is_an_error_at_once() {
    let first = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    assert_eq!(Admin::bind(first.address().unwrap()).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}
