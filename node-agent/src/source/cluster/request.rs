//! One request to the API server: with a deadline, and its failure in plain words.

use std::future::Future;
use std::time::Duration;

use crate::error_chain::chain_of;

/// How long one request may take.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// There was no answer in time.
    #[error("no answer within {} s", REQUEST.as_secs())]
    NoAnswer,
    /// It was refused, or did not get through.
    #[error("{}", plainly(.0))]
    Failed(kube::Error),
}

/// The outcome of a request, or that it took too long.
pub(crate) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(outcome) => outcome.map_err(RequestError::Failed),
        Err(_) => Err(RequestError::NoAnswer),
    }
}

/// The API server's own words where it answered; kube repeats them together with their encoding.
pub(crate) fn plainly(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => chain_of(error),
    }
}
