//! What a call has made so far, so that a failure can undo it.

use crate::resource::{Ensured, Lease, Resource, Scope, World};
use crate::spec::{CniError, CniResult, Code};

/// The resources that this call created, oldest first.
///
/// Dropped before [`Journal::commit`], as by a panic, it removes them.
#[derive(Debug)]
pub struct Journal<'a, 'w> {
    world: &'a mut World<'w>,
    created: Vec<Resource>,
}

impl<'a, 'w> Journal<'a, 'w> {
    /// An empty journal.
    pub fn new(world: &'a mut World<'w>) -> Self {
        Self { world, created: Vec::new() }
    }

    /// The world that the resources are made in.
    pub fn world(&mut self) -> &mut World<'w> {
        self.world
    }

    /// Makes a resource, and remembers it if it was not there before.
    ///
    /// After an error it may be there all the same, wholly or in part: the kernel's answer may be what was lost. What
    /// belongs to the attachment is therefore undone in any case; what is shared sees to it by itself, since only it
    /// knows whether it was there before.
    pub fn ensure(&mut self, resource: Resource) -> anyhow::Result<()> {
        let outcome = resource.ensure(self.world);
        let is_to_be_undone = match &outcome {
            Ok(ensured) => *ensured == Ensured::Created,
            Err(_) => resource.scope() == Scope::Attachment,
        };
        if is_to_be_undone {
            self.created.push(resource);
        }
        outcome.map(|_| ())
    }

    /// Takes a lease, and remembers it.
    pub fn lease(&mut self, lease: Lease) -> anyhow::Result<CniResult> {
        let leased = lease.ensure(self.world)?;
        self.created.push(Resource::Lease(lease));
        Ok(leased)
    }

    /// All went well: what was made stays.
    pub fn commit(mut self) {
        self.created.clear();
    }

    /// Undoes what was made, newest first, on account of an error. The error comes back with what went wrong while
    /// undoing, and whether nothing did.
    pub fn roll_back(mut self, error: anyhow::Error) -> (anyhow::Error, bool) {
        let failures: Vec<String> = self.undo().iter().map(|e| format!("while undoing: {e:#}")).collect();
        let is_clean = failures.is_empty();
        (if is_clean { error } else { also(error, &failures) }, is_clean)
    }

    fn undo(&mut self) -> Vec<anyhow::Error> {
        let mut failures = Vec::new();
        while let Some(resource) = self.created.pop() {
            failures.extend(resource.remove(self.world).err());
        }
        failures
    }
}

impl Drop for Journal<'_, '_> {
    fn drop(&mut self) {
        for failure in self.undo() {
            log::error!("while undoing: {failure:#}");
        }
    }
}

/// An error with more of them in its details. Its code and message stay those of the first.
pub fn also(first: anyhow::Error, others: &[String]) -> anyhow::Error {
    CniError::from_chain(&first, Code::Kernel).also(others.iter().map(String::as_str)).into()
}
