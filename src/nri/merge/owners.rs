//! Who has set what. No two plugins may set the same, unless the later one has first removed what the earlier one set.

use std::collections::HashMap;

use wharf_proto::nri::{Field, FieldOwners};

use super::{marked, unmarked};

/// Owners of what has been set, by container.
#[derive(Debug, Default)]
pub struct Owners(HashMap<String, FieldOwners>);

impl Owners {
    /// `plugin` sets a field that has one value.
    ///
    /// # Errors
    /// When another plugin has; both are named.
    pub fn claim(&mut self, container: &str, field: Field, plugin: &str) -> Result<(), String> {
        let owners = &mut self.of(container).simple;
        free(owners.get(&field.into()), field, None, plugin)?;
        owners.insert(field.into(), plugin.to_owned());
        Ok(())
    }

    /// `plugin` sets one entry of a field that has many.
    ///
    /// # Errors
    /// When another plugin has; both are named.
    pub fn claim_entry(&mut self, container: &str, field: Field, entry: &str, plugin: &str) -> Result<(), String> {
        let owners = &mut self.of(container).compound.entry(field.into()).or_default().owners;
        free(owners.get(entry), field, Some(entry), plugin)?;
        owners.insert(entry.to_owned(), plugin.to_owned());
        Ok(())
    }

    /// `plugin` adds to a field that takes what everybody adds.
    pub fn join(&mut self, container: &str, field: Field, plugin: &str) {
        let owners = &mut self.of(container).simple;
        let joined = match owners.get(&field.into()) {
            Some(others) => format!("{others},{plugin}"),
            None => plugin.to_owned(),
        };
        owners.insert(field.into(), joined);
    }

    /// `plugin` removes what a field was set to, and may set it.
    pub fn clear(&mut self, container: &str, field: Field, plugin: &str) {
        self.of(container).simple.insert(field.into(), marked(plugin));
    }

    /// `plugin` removes one entry, and may set it.
    pub fn clear_entry(&mut self, container: &str, field: Field, entry: &str, plugin: &str) {
        let entries = self.of(container).compound.entry(field.into()).or_default();
        entries.owners.insert(entry.to_owned(), marked(plugin));
    }

    /// All of them.
    pub fn finish(self) -> HashMap<String, FieldOwners> {
        self.0
    }

    fn of(&mut self, container: &str) -> &mut FieldOwners {
        self.0.entry(container.to_owned()).or_default()
    }
}

/// Whether `plugin` may set what `owner` has. A mark says who has removed it.
fn free(owner: Option<&String>, field: Field, entry: Option<&str>, plugin: &str) -> Result<(), String> {
    let Some(owner) = owner else { return Ok(()) };
    let other = match unmarked(owner) {
        Some(remover) if remover == plugin => return Ok(()),
        Some(remover) => remover,
        None => owner,
    };
    let entry = entry.map(|entry| format!(" {entry}")).unwrap_or_default();
    Err(format!(
        "plugins {plugin:?} and {other:?} both tried to set {}{entry}",
        field.as_str_name()
    ))
}
