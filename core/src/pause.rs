//! What operators can hold back, and what that means for a partition.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::command;

/// What a pause holds back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every partition.
    All,
    /// One partition, by its name, such as `03` or `low.01`.
    Partition(String),
    /// One type of command. Since the order of a subject's commands holds, whatever is behind such a command in its
    /// partition waits as well.
    Type(&'static str),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Partition(name) => write!(f, "partition:{name}"),
            Self::Type(kind) => write!(f, "type:{kind}"),
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("partition", name)) if is_partition(name) => Ok(Self::Partition(name.to_owned())),
            Some(("partition", name)) => {
                Err(format!("{name:?} is no partition; one looks like 03 or low.01"))
            }
            Some(("type", name)) => Self::of_type(name),
            _ => Err(format!("{text:?} can't be paused; say all, partition:03 or type:task.create")),
        }
    }
}

impl Scope {
    /// The pause of a type of command.
    ///
    /// # Errors
    /// There is no such type; the text names those there are.
    pub fn of_type(name: &str) -> Result<Self, String> {
        let known = command::TYPES.into_iter().find(|kind| *kind == name);
        known
            .map(Self::Type)
            .ok_or_else(|| format!("{name:?} is no type of command; there are {}", command::TYPES.join(", ")))
    }
}

fn is_partition(name: &str) -> bool {
    let digits = name.strip_prefix("low.").unwrap_or(name);
    digits.len() >= 2 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// All pauses of a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses(BTreeSet<Scope>);

impl FromIterator<Scope> for Pauses {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().collect())
    }
}

impl Pauses {
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// The pause that keeps a partition from consuming at all.
    pub fn of_partition(&self, name: &str) -> Option<&Scope> {
        self.0.iter().find(|scope| match scope {
            Scope::All => true,
            Scope::Partition(paused) => paused == name,
            Scope::Type(_) => false,
        })
    }

    /// The pause of a type of command.
    pub fn of_type(&self, kind: &str) -> Option<&Scope> {
        self.0.iter().find(|scope| matches!(scope, Scope::Type(paused) if *paused == kind))
    }

    /// Whether any type is paused: only then must commands be looked at.
    pub fn has_types(&self) -> bool {
        self.0.iter().any(|scope| matches!(scope, Scope::Type(_)))
    }

    pub fn contains(&self, scope: &Scope) -> bool {
        self.0.contains(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reads_as_it_is_written() {
        for text in ["all", "partition:03", "partition:low.01", "type:task.create"] {
            let scope: Scope = text.parse().expect(text);
            assert_eq!(scope.to_string(), text);
        }
        for text in
            ["", "everything", "partition:", "partition:3", "partition:low.x", "type:task.paint", "a:b"]
        {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_scope_holds_back_what_it_names() {
        let pauses: Pauses =
            ["partition:03", "type:task.create"].map(|s| s.parse().expect(s)).into_iter().collect();
        assert!(pauses.of_partition("03").is_some() && pauses.of_partition("low.03").is_none());
        assert!(pauses.of_type("task.create").is_some() && pauses.of_type("task.update").is_none());
        assert!(pauses.has_types());
        let all: Pauses = [Scope::All].into_iter().collect();
        assert!(all.of_partition("00").is_some() && !all.has_types() && all.of_type("task.create").is_none());
    }
}
