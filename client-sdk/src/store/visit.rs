//! Being in a store.

use std::fmt;

/// A stay in a store: as long as it lasts, no other process reads what it is about to write.
///
/// Operations of one process share a stay; they have locks of their own.
#[must_use = "the stay ends when this is dropped"]
pub struct Visit {
    generation: u64,
    _stay: Option<Box<dyn Send + Sync>>,
}

impl Visit {
    /// A stay where no other process comes: nothing has to be done about it.
    pub fn alone() -> Self {
        Self {
            generation: 0,
            _stay: None,
        }
    }

    /// A stay that ends when `stay` is dropped; `generation` is another than the last time, and not
    /// zero, if another process may have written since.
    pub fn new(generation: u64, stay: impl Send + Sync + 'static) -> Self {
        Self {
            generation,
            _stay: Some(Box::new(stay)),
        }
    }

    /// Whatever was read under another generation may be outdated.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Visit")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
