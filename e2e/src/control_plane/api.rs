//! A Kubernetes API server as one user sees it: paths, JSON, and answers with their codes.
//!
//! Typed objects are not here: the tests look at what is on the wire.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request, header};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection with the rights of one user.
#[derive(Clone)]
pub struct Api {
    client: Client,
    runtime: Arc<Runtime>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status code.
    pub code: u16,
    /// The object, the list, or the Status that explains a refusal.
    pub body: Value,
}

impl Answer {
    /// Whether the request was carried out.
    #[must_use]
    pub fn success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// The explanation of a refusal.
    #[must_use]
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    fn carried_out(self) -> Result<Value> {
        if !self.success() {
            bail!("{}: {}", self.code, self.message());
        }
        Ok(self.body)
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// Connects as the user of a kubeconfig file says.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start the API client's runtime")?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            config.connect_timeout = Some(PATIENCE);
            config.read_timeout = Some(PATIENCE);
            config.write_timeout = Some(PATIENCE);
            Client::try_from(config).context("make an API client")
        })?;
        Ok(Self { client, runtime: Arc::new(runtime) })
    }

    /// Sends one request; a refusal is an answer too.
    pub fn send(&self, method: &Method, path: &str, content_type: &str, body: Option<&Value>) -> Result<Answer> {
        let bytes = body.map(serde_json::to_vec).transpose().context("write JSON")?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, "application/json")
            .body(Body::from(bytes))
            .with_context(|| format!("form a request for {path}"))?;
        let sent = self.runtime.block_on(async {
            let exchange = async {
                let response = self.client.send(request).await?;
                let code = response.status().as_u16();
                Ok::<_, kube::Error>((code, response.into_body().collect_bytes().await?))
            };
            tokio::time::timeout(PATIENCE, exchange).await
        });
        let (code, bytes) =
            sent.with_context(|| format!("{method} {path}: no answer"))?.with_context(|| format!("{method} {path}"))?;
        // Paths such as /readyz answer with plain text.
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Ok(Answer { code, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) })
    }

    /// Sends one request that must be carried out.
    fn carry_out(&self, method: &Method, path: &str, content_type: &str, body: Option<&Value>) -> Result<Value> {
        self.send(method, path, content_type, body)?.carried_out().with_context(|| format!("{method} {path}"))
    }

    /// An object, or `None` where there is none.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.send(&Method::GET, path, "application/json", None)?;
        if answer.code == 404 {
            return Ok(None);
        }
        answer.carried_out().map(Some).with_context(|| format!("GET {path}"))
    }

    /// The objects of a list.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.carry_out(&Method::GET, path, "application/json", None)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("{path} is no list"),
        }
    }

    /// Creates an object (or asks for a token, or binds a pod) at the path of its kind.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.carry_out(&Method::POST, path, "application/json", Some(object))
    }

    /// Server-side apply, taking over the fields of others. The object gets the name that the path ends with.
    pub fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let mut object = object.clone();
        object["metadata"]["name"] = path.rsplit('/').next().into();
        let path = format!("{path}?fieldManager=sallyport-e2e&force=true");
        self.carry_out(&Method::PATCH, &path, "application/apply-patch+yaml", Some(&object))
    }

    /// A merge patch.
    pub fn merge(&self, path: &str, changes: &Value) -> Result<Value> {
        self.carry_out(&Method::PATCH, path, "application/merge-patch+json", Some(changes))
    }

    /// Asks for the end of an object; it may linger for its finalizers.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.carry_out(&Method::DELETE, path, "application/json", None).map(drop)
    }
}
