//! What stands for `traces` in a build without the feature `otlp`: nothing is traced, and who wants it is told.

use std::{convert::Infallible, future::Future, time::Duration};

use http::HeaderMap;

use super::{Export, Stages};

/// This build has no traces.
#[derive(Debug, thiserror::Error)]
#[error("tracing.endpoint {0}: this build of wharf was made without the feature otlp")]
pub struct Error(String);

/// There are none.
#[derive(Debug, Clone)]
pub struct Traces(Infallible);

/// There is none.
#[derive(Debug)]
pub struct Call(Infallible);

/// Nobody's.
#[derive(Debug)]
pub struct Parent;

impl Traces {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn open(export: &Export) -> Result<Self, Error> {
        Err(Error(export.endpoint.clone()))
    }

    /// Can't be.
    pub fn call(&self, _path: &str, _headers: &HeaderMap) -> Call {
        match self.0 {}
    }

    /// Can't be.
    pub fn operation(
        &self,
        _parent: &Parent,
        _call: &'static str,
        _object: (&str, &str),
        _taken: Duration,
        _stages: Stages<'_>,
    ) {
        match self.0 {}
    }

    /// Can't be.
    pub fn shut_down(&self) {
        match self.0 {}
    }
}

impl Call {
    /// Can't be.
    pub fn within<T>(&self, _begin: impl FnOnce() -> T) -> T {
        match self.0 {}
    }

    /// Can't be.
    pub fn end(self, _code: u16) {
        match self.0 {}
    }
}

impl Parent {
    /// Nobody's.
    pub fn present() -> Self {
        Self
    }
}

/// `work` as it is.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work
}
