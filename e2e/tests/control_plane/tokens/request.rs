//! One request of a token, which changes nothing even where it is let through, and what must come of it.

use anyhow::{Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::{Answer, Api};
use serde_json::Value;

/// A request, and words of the policy that refuses it.
pub struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
    what: String,
    words: &'static str,
}

impl Request {
    pub fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), body: None, what: String::new(), words: "" }
    }

    pub fn body(self, body: Value) -> Self {
        Self { what: body.to_string(), body: Some(body), ..self }
    }

    /// What is told of a long body.
    pub fn called(self, what: String) -> Self {
        Self { what, ..self }
    }

    /// What the refusal must say.
    pub fn words(self, words: &'static str) -> Self {
        Self { words, ..self }
    }

    pub fn send(&self, api: &Api) -> Result<Answer> {
        let content = if self.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        api.send(&self.method, &format!("{}?dryRun=All", self.path), content, self.body.as_ref())
    }

    pub fn is_accepted(&self, api: &Api) -> Result<()> {
        let answer = self.send(api)?;
        ensure!(answer.success(), "{self} is part of its work and gave {}: {}", answer.code, answer.message());
        Ok(())
    }

    pub fn is_refused(&self, api: &Api) -> Result<()> {
        let answer = self.send(api)?;
        ensure!(answer.code == 403, "{self} gave {}, not 403: {}", answer.code, answer.message());
        Ok(())
    }

    pub fn is_refused_with_words(&self, api: &Api) -> Result<()> {
        let answer = self.send(api)?;
        let refused = answer.code == 403 && answer.message().contains(self.words);
        ensure!(refused, "{self} gave {}, not 403 with {:?}: {}", answer.code, self.words, answer.message());
        Ok(())
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.method, self.path, self.what)
    }
}
