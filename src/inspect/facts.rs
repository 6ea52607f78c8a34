//! What is known about one thing, as lines for people and as JSON for programs.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::bars::{bytes, grouped};

/// Facts in the order they were said.
pub struct Facts {
    kind: &'static str,
    path: String,
    lines: Vec<(String, String, Value)>,
    /// For programs only.
    details: Vec<(&'static str, Value)>,
    problem: Option<String>,
}

impl Facts {
    /// Nothing known yet but what it is: `store`, `model`.
    pub fn new(kind: &'static str, path: &Path) -> Self {
        Self {
            kind,
            path: path.display().to_string(),
            lines: Vec::new(),
            details: Vec::new(),
            problem: None,
        }
    }

    /// A text.
    pub fn say(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let text = text.into();
        self.lines.push((key.into(), text.clone(), text.into()));
    }

    /// A text, where there is one.
    pub fn optional(&mut self, key: &str, text: Option<String>) {
        if let Some(text) = text {
            self.say(key, text);
        }
    }

    /// A count.
    pub fn number(&mut self, key: &str, n: u64) {
        self.lines.push((key.into(), grouped(n), n.into()));
    }

    /// A measured figure.
    pub fn figure(&mut self, key: &str, value: f64, digits: usize) {
        self.lines.push((key.into(), format!("{value:.digits$}"), value.into()));
    }

    /// How many bytes it takes.
    pub fn size(&mut self, n: u64) {
        self.lines.push(("size".into(), bytes(n), n.into()));
    }

    /// Something long that only programs read.
    pub fn detail(&mut self, key: &'static str, value: Value) {
        self.details.push((key, value));
    }

    /// It is damaged or unfinished; `problem` says so and what to do.
    pub fn broken(&mut self, problem: impl Into<String>) {
        self.problem = Some(problem.into());
    }

    /// Whether nothing was found wrong.
    pub fn whole(&self) -> bool {
        self.problem.is_none()
    }

    /// All of it, details included.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), self.kind.into());
        object.insert("path".into(), self.path.clone().into());
        object.insert("whole".into(), self.whole().into());
        for (key, _, value) in &self.lines {
            object.insert(key.replace(' ', "_"), value.clone());
        }
        for (key, value) in &self.details {
            object.insert((*key).into(), value.clone());
        }
        if let Some(problem) = &self.problem {
            object.insert("problem".into(), problem.clone().into());
        }
        object.into()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .lines
            .iter()
            .map(|(key, ..)| key.len())
            .max()
            .unwrap_or(0)
            .max(self.kind.len());
        writeln!(f, "{:<width$}  {}", self.kind, self.path)?;
        for (key, text, _) in &self.lines {
            writeln!(f, "{key:<width$}  {text}")?;
        }
        match &self.problem {
            Some(problem) => writeln!(f, "{:<width$}  {problem}", "problem"),
            None => Ok(()),
        }
    }
}
