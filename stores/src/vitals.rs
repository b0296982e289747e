//! What a process knows of its own health beside the stores: shown by `/readyz`, whoever serves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Faults and notes of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Vitals(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    faults: BTreeMap<String, String>,
    notes: BTreeMap<String, String>,
}

impl Vitals {
    /// Says what is wrong with a part: the process is not ready while a fault stands.
    pub fn fault(&self, part: &str, detail: impl Into<String>) {
        self.with(|inner| inner.faults.insert(part.to_owned(), detail.into()));
    }

    /// The part is well again.
    pub fn well(&self, part: &str) {
        self.with(|inner| inner.faults.remove(part));
    }

    /// Says what a reader should know, though nothing is wrong. Replaces the notes of all such parts.
    pub fn notes(&self, notes: impl IntoIterator<Item = (String, String)>) {
        self.with(|inner| inner.notes = notes.into_iter().collect());
    }

    /// What is wrong: part and detail.
    pub fn faults(&self) -> BTreeMap<String, String> {
        self.with(|inner| inner.faults.clone())
    }

    /// What a reader should know: part and detail.
    pub fn all_notes(&self) -> BTreeMap<String, String> {
        self.with(|inner| inner.notes.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
