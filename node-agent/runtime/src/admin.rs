//! The address where a program is watched: `/healthz`, `/readyz` and `/metrics`.
//!
//! Nothing can be changed there and nothing secret is shown. What is measured, and what ready means, is the program's.
//! Anybody on the host may come, so nobody can use up more than a few connections, and only for a moment; and who has the
//! address first keeps nothing but the address.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::tasks::Tasks;

/// What `encode` writes, as Prometheus asks for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once; the next one takes the place of the oldest, since a probe is answered within milliseconds.
const MOST: usize = 32;
/// Longest time from the beginning of a connection to the last byte of its one answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes that are kept of a request; its head must fit.
const BUFFER_BYTES: usize = 16 * 1024;
/// Time until the next try to take the address, or to accept when that has failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether the address is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serving {
    /// Nobody has tried yet, or nobody is asked to.
    #[default]
    NotYet,
    /// On this address: with the real port if port 0 was asked for.
    On(SocketAddr),
    /// It cannot be taken, and why; tried again each second.
    Refused(String),
}

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Answers on `address` from the moment when it can be had, and says how that stands. `ready` says why not, for whoever
/// reads `/readyz`.
pub fn start<R>(tasks: &mut Tasks, address: SocketAddr, registry: Registry, ready: R) -> watch::Receiver<Serving>
where
    R: Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
{
    let registry = Arc::new(registry);
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(move || std::future::ready(readiness(ready()))))
        .route("/metrics", get(move || std::future::ready(metrics(&registry))));
    let (serving, told) = watch::channel(Serving::NotYet);
    tasks.spawn("admin", async move {
        let listener = bind(address, &serving).await;
        serve(&listener, &router).await;
    });
    told
}

async fn bind(address: SocketAddr, serving: &watch::Sender<Serving>) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!(%address, "answering probes");
                serving.send_replace(Serving::On(address));
                return listener;
            }
            Err(error) => {
                let refused = Serving::Refused(format!("cannot listen on {address}: {error}"));
                serving.send_if_modified(|known| {
                    let new = *known != refused;
                    if new {
                        tracing::warn!(%address, %error, "cannot answer probes there, trying again each second");
                        *known = refused;
                    }
                    new
                });
            }
        }
        sleep(AGAIN).await;
    }
}

async fn serve(listener: &TcpListener, router: &Router) {
    let mut open = VecDeque::with_capacity(MOST);
    loop {
        let stream = tokio::select! {
            stream = accept(listener) => stream,
            () = go_on(&mut open) => continue,
        };
        if open.len() == MOST {
            open.pop_front();
        }
        open.push_back(answer(stream, router.clone()));
    }
}

/// The next connection. Where there are no descriptors left, some may be a moment later.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if !told => {
                tracing::warn!(%error, "cannot accept a probe, trying again each second");
                told = true;
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// Answers all of them, for ever, and takes away those that are done.
async fn go_on(open: &mut VecDeque<Connection>) {
    poll_fn(|context| -> Poll<()> {
        open.retain_mut(|connection| connection.as_mut().poll(context).is_pending());
        Poll::Pending
    })
    .await;
}

/// One request, one answer.
fn answer(stream: TcpStream, router: Router) -> Connection {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    Box::pin(async {
        match timeout(LIMIT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a probe was not answered"),
            Err(_) => tracing::debug!("a connection was closed that took too long"),
        }
    })
}

fn readiness(ready: Result<(), String>) -> Response {
    match ready {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the metrics: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
