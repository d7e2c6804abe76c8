//! Runtime handlers by name, as RuntimeClass refers to them.

use std::path::Path;

use super::{BUILTIN_RUNTIME as BUILTIN, Config, RuntimeHandler};

impl Config {
    /// The name behind a request's handler: the empty one stands for the default.
    #[must_use]
    pub fn resolve_handler<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.default_runtime } else { name }
    }

    /// Whether `name` (empty for the default) is a configured handler.
    #[must_use]
    pub fn has_handler(&self, name: &str) -> bool {
        let name = self.resolve_handler(name);
        name == BUILTIN || self.runtimes.contains_key(name)
    }

    /// The OCI runtime command of handler `name`; `None` for the built-in one.
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<&RuntimeHandler> {
        let handler = self.runtimes.get(self.resolve_handler(name));
        handler.filter(|handler| !handler.path.as_os_str().is_empty())
    }

    /// Every handler's name with its OCI runtime command; `None` for the built-in one.
    pub fn programs(&self) -> impl Iterator<Item = (&str, Option<&Path>)> {
        let program = |name| self.handler(name).map(|handler| handler.path.as_path());
        self.handler_names().into_iter().map(move |name| (name, program(name)))
    }

    /// The settings of handler `name` (empty for the default), the built-in one's too.
    #[must_use]
    pub fn handler_settings(&self, name: &str) -> RuntimeHandler {
        self.runtimes
            .get(self.resolve_handler(name))
            .cloned()
            .unwrap_or_default()
    }

    /// Names of all handlers, the built-in one first.
    #[must_use]
    pub fn handler_names(&self) -> Vec<&str> {
        let commands = self.runtimes.keys().map(String::as_str).filter(|name| *name != BUILTIN);
        std::iter::once(BUILTIN).chain(commands).collect()
    }
}
