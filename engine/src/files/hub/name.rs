//! Names of the hub: `org/name[@revision]`, and what may be a path there.

use std::fmt;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubKind {
    /// A model or an adapter.
    Model,
    /// A data set.
    Dataset,
}

/// A repository of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// What it holds.
    pub kind: HubKind,
    /// `org/name`.
    pub id: String,
    /// A branch, a tag or a commit; `main` where none was named.
    pub revision: String,
    /// A file of a data set, where one was named.
    pub path: Option<String>,
}

impl HubName {
    /// Reads `org/name[@revision]` as a model's name; none when it has another form.
    pub fn model(text: &str) -> Option<Self> {
        let (id, revision) = split_revision(text)?;
        let valid = id.split('/').count() == 2 && id.split('/').all(is_part) && id.len() <= 96;
        valid.then(|| Self { kind: HubKind::Model, id: id.into(), revision: revision.into(), path: None })
    }

    /// Reads `org/name[@revision]` or `datasets/org/name[/path/of/a/file][@revision]` as a data set's name; none when it
    /// has another form.
    pub fn dataset(text: &str) -> Option<Self> {
        let (whole, revision) = split_revision(text)?;
        let Some(rest) = whole.strip_prefix("datasets/").filter(|rest| rest.contains('/')) else {
            return Some(Self { kind: HubKind::Dataset, ..Self::model(text)? });
        };
        let second = rest.match_indices('/').nth(1).map(|(at, _)| at);
        let (id, path) = second.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
        if path.is_some_and(|path| !is_safe_path(path)) {
            return None;
        }
        let revision = revision.to_string();
        Some(Self { kind: HubKind::Dataset, revision, path: path.map(str::to_string), ..Self::model(id)? })
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The folder in the cache.
    pub(super) fn folder(&self) -> String {
        let kind = match self.kind {
            HubKind::Model => "models",
            HubKind::Dataset => "datasets",
        };
        format!("{kind}--{}", self.id.replace('/', "--"))
    }

    /// The repository under the hub's address.
    pub(super) fn url_path(&self) -> String {
        match self.kind {
            HubKind::Model => self.id.clone(),
            HubKind::Dataset => format!("datasets/{}", self.id),
        }
    }

    /// The repository at its revision under the hub's programming interface.
    pub(super) fn api_path(&self) -> String {
        let kind = match self.kind {
            HubKind::Model => "models",
            HubKind::Dataset => "datasets",
        };
        format!("api/{kind}/{}/revision/{}", self.id, self.revision.replace('/', "%2F"))
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url_path())?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

fn split_revision(text: &str) -> Option<(&str, &str)> {
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let valid = revision.len() <= 256 && revision.chars().all(plain) && is_safe_path(revision);
    valid.then_some((name, revision))
}

/// A part of a name, as the hub allows it: letters, digits, `-`, `_` and `.`, not at the ends, not doubled.
fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether this is the name of a git commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a path from the hub stays inside the folder that it is put into, on every system.
pub(super) fn is_safe_path(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.chars().any(|c| c != '.') && !part.ends_with(['.', ' ']);
    !path.is_empty()
        && path.len() <= 512
        && !path.contains(|c: char| c.is_control() || "\\:*?\"<>|".contains(c))
        && path.split('/').all(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let name = HubName::model("meta-llama/Llama-3.2-1B@refs/pr/1").unwrap();
        assert_eq!((name.id.as_str(), name.revision.as_str()), ("meta-llama/Llama-3.2-1B", "refs/pr/1"));
        assert_eq!(name.api_path(), "api/models/meta-llama/Llama-3.2-1B/revision/refs%2Fpr%2F1");
        assert_eq!(name.folder(), "models--meta-llama--Llama-3.2-1B");
        assert_eq!(name.to_string(), "meta-llama/Llama-3.2-1B@refs/pr/1");
        let data = HubName::dataset("datasets/org/name/data/train.jsonl@v1").unwrap();
        assert_eq!((data.id.as_str(), data.path.as_deref()), ("org/name", Some("data/train.jsonl")));
        assert_eq!((data.revision.as_str(), data.kind), ("v1", HubKind::Dataset));
        assert_eq!(HubName::dataset("org/name").unwrap().folder(), "datasets--org--name");
        assert_eq!(HubName::dataset("datasets/org/name").unwrap().path, None);
    }

    #[test]
    fn paths_are_no_names() {
        let paths = ["model", "a/b/c", "/a/b", "./b", "../b", "a/..", "a/b/", "a/b@", "a/b@../c", "a/b@x y", "a/b@c@d"];
        for path in paths.iter().chain(&["-a/b", "a/b--c", "a b/c", "~/b", "a\\b/c", "a/b@/x", ""]) {
            assert_eq!(HubName::model(path), None, "{path}");
        }
        assert_eq!(HubName::dataset("datasets/org/name/../../x"), None);
        for path in ["../x", "a/../b", "/etc/passwd", "a//b", "C:x", "a\\..\\b", "a/.", "x\0y", ""] {
            assert!(!is_safe_path(path), "{path}");
        }
        assert!(is_safe_path("data/.hidden/train-00000-of-00001.jsonl"));
    }
}
