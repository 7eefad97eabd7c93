//! Things worth a log line that are no failure: found by pure code, logged by `main`.

use std::fmt;

/// One log line in waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// How loudly it is said.
    pub level: NoteLevel,
    /// A sentence.
    pub text: String,
}

/// How loudly a [`Note`] is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteLevel {
    /// For the record.
    Info,
    /// Something may be mistaken.
    Warning,
    /// Something is mistaken, and the process goes on.
    Error,
}

impl Note {
    /// A note of level info.
    pub fn info(text: String) -> Note {
        Note { level: NoteLevel::Info, text }
    }

    /// A note of level warning.
    pub fn warning(text: String) -> Note {
        Note { level: NoteLevel::Warning, text }
    }

    /// A note of level error.
    pub fn error(text: String) -> Note {
        Note { level: NoteLevel::Error, text }
    }

    /// Logs it.
    pub fn log(&self) {
        match self.level {
            NoteLevel::Info => tracing::info!("{}", self.text),
            NoteLevel::Warning => tracing::warn!("{}", self.text),
            NoteLevel::Error => tracing::error!("{}", self.text),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
