//! Requests to the hub, and what its refusals mean. Whatever it answers is checked before it becomes a path or a size.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::name::{HubName, is_commit, is_safe_path};
use super::settings::HubSettings;

/// The longest answer about a repository that is read: a hundred thousand files fit.
const INFO_LIMIT: u64 = 64 << 20;

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub was not reached, or was overburdened: trying again may help.
    Unreachable(String),
    /// It said no, or something that cannot be used.
    Refused(String),
}

/// A repository at a commit.
#[derive(Clone)]
pub(super) struct Info {
    pub(super) commit: String,
    /// Files and their sizes, where the hub says them.
    pub(super) files: Vec<(String, Option<u64>)>,
}

/// A file at a commit.
pub(super) struct Meta {
    /// Names the content: the SHA-256 of a large file, git's hash of a small one.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// The hub's answer about a repository (`/api/models/ID/revision/REV?blobs=true`).
#[derive(Deserialize)]
struct RawInfo {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
}

/// Asks the hub.
pub(super) struct Client {
    pub(super) settings: HubSettings,
    agent: Agent,
}

impl Client {
    pub(super) fn new(settings: HubSettings) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Files lie on another host, which the token is none of the business of.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("halfbyte/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(Duration::from_secs(20)))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Self { settings, agent: config.new_agent() }
    }

    fn unreachable(&self, error: impl std::fmt::Display) -> Failure {
        Failure::Unreachable(format!("{} cannot be reached: {error}", self.settings.endpoint))
    }

    fn request(&self, url: &str, head: bool, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        // Compressed bytes would have another length and no ranges.
        request = request.header("accept-encoding", "identity");
        if let Some(token) = &self.settings.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if head {
            request = request.config().max_redirects(0).max_redirects_will_error(false).build();
        }
        request.call().map_err(|e| self.unreachable(e))
    }

    /// What a repository holds, and the commit that its revision stands for.
    pub(super) fn info(&self, name: &HubName) -> Result<Info, Failure> {
        let url = format!("{}/{}?blobs=true", self.settings.endpoint, name.api_path());
        let mut response = self.request(&url, false, 0)?;
        if !response.status().is_success() {
            return Err(self.refusal(response.status().as_u16(), response.headers(), name, None));
        }
        let body = response.body_mut().with_config().limit(INFO_LIMIT).read_to_vec();
        let body = body.map_err(|e| self.unreachable(e))?;
        let strange = |reason: String| Failure::Refused(format!("{}: {reason}", self.settings.endpoint));
        let raw: RawInfo = serde_json::from_slice(&body)
            .map_err(|e| strange(format!("the answer about the repository is not the hub's: {e}")))?;
        let commit = raw.sha.filter(|sha| is_commit(sha)).ok_or_else(|| strange("it names no commit".into()))?;
        let mut files = Vec::with_capacity(raw.siblings.len());
        for file in raw.siblings {
            let safe = is_safe_path(&file.rfilename);
            if !safe && leaves_the_folder(&file.rfilename) {
                return Err(strange(format!(
                    "the repository lists the file {:?}, which would lie outside of its folder; nothing was downloaded",
                    file.rfilename
                )));
            }
            // A name that not every system can hold is passed over: nothing that is read here has one.
            if !safe {
                continue;
            }
            files.push((file.rfilename, file.size));
        }
        Ok(Info { commit, files })
    }

    /// The address of a file.
    pub(super) fn url(&self, name: &HubName, commit: &str, file: &str) -> String {
        let mut path = String::new();
        for byte in file.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => path.push(byte.into()),
                other => path.push_str(&format!("%{other:02X}")),
            }
        }
        format!("{}/{}/resolve/{commit}/{path}", self.settings.endpoint, name.url_path())
    }

    /// A file's hash and size. The hub says them itself, before it sends elsewhere for the content (`x-linked-etag`).
    pub(super) fn meta(&self, name: &HubName, commit: &str, file: &str) -> Result<Meta, Failure> {
        let mut url = self.url(name, commit, file);
        for _ in 0..5 {
            let response = self.request(&url, true, 0)?;
            let (status, headers) = (response.status(), response.headers());
            let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
            let within = text("location").filter(|to| to.starts_with('/') && !to.starts_with("//"));
            if let (true, Some(to)) = (status.is_redirection(), within) {
                url = format!("{}{to}", origin(&self.settings.endpoint));
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(status.as_u16(), headers, name, Some(file)));
            }
            let strange = |what: &str| Failure::Refused(format!("{url}: the answer has no usable {what}"));
            if text("x-repo-commit").is_some_and(|found| found != commit) {
                return Err(strange("x-repo-commit"));
            }
            let etag = text("x-linked-etag")
                .or_else(|| text("etag"))
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            let plain = |etag: &&str| {
                !etag.is_empty() && etag.len() <= 128 && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            let etag = etag.filter(plain).ok_or_else(|| strange("etag"))?.to_string();
            let size = text("x-linked-size").or_else(|| text("content-length")).and_then(|size| size.parse().ok());
            return Ok(Meta { etag, size: size.ok_or_else(|| strange("size"))? });
        }
        Err(Failure::Refused(format!("{url}: is redirected in a circle")))
    }

    /// The content of a file from a byte on, and the byte that the answer really begins at.
    pub(super) fn content(
        &self,
        name: &HubName,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<(u64, impl Read + use<>), Failure> {
        let response = self.request(&self.url(name, commit, file), false, from)?;
        let begins = match response.status().as_u16() {
            200 => 0,
            206 => {
                let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
                if !range.is_some_and(|range| range.starts_with(&format!("bytes {from}-"))) {
                    return Err(Failure::Refused(format!(
                        "{file}: the answer is another part of the file than asked for"
                    )));
                }
                from
            }
            status => return Err(self.refusal(status, response.headers(), name, Some(file))),
        };
        Ok((begins, response.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    /// A status that is no success as a sentence with its cure (the codes of `huggingface_hub`, utils/_http.py).
    fn refusal(&self, status: u16, headers: &HeaderMap, name: &HubName, file: Option<&str>) -> Failure {
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let endpoint = &self.settings.endpoint;
        let with_token = self.settings.token.is_some();
        let gated = || match with_token {
            true => format!(
                "access to it is restricted, and the account of the token in use has none: accept its conditions at \
                 {endpoint}/{}",
                name.url_path()
            ),
            false => format!(
                "access to it is restricted: accept its conditions at {endpoint}/{}, then set HF_TOKEN to a token of that \
                 account",
                name.url_path()
            ),
        };
        let unknown = || match with_token {
            true => format!("{endpoint} has no repository of this name, or the account of the token may not see it"),
            false => format!(
                "{endpoint} has no repository of this name, or a private or restricted one: check the spelling, or set \
                 HF_TOKEN to a token of an account that may read it"
            ),
        };
        let missing = |file: &str| format!("the repository has no file `{file}` at this revision");
        Failure::Refused(match (status, text("x-error-code"), file) {
            (429 | 500..=599, ..) => return self.unreachable(format!("it answers {status}")),
            (401 | 403, "GatedRepo", _) => gated(),
            (_, "RevisionNotFound", _) => format!("the repository has no revision `{}`", name.revision),
            (_, "EntryNotFound", Some(file)) => missing(file),
            (_, "RepoNotFound", _) => unknown(),
            (401, ..) => unknown(),
            (403, ..) => gated(),
            (404, _, Some(file)) => missing(file),
            (404, ..) => unknown(),
            _ => format!("{endpoint} answers {status} {:?}", text("x-error-message")),
        })
    }
}

/// Scheme and host of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |slash| &url[..host + slash])
}

/// Whether a path means another folder than its own, on one system or another.
fn leaves_the_folder(path: &str) -> bool {
    path.starts_with('/')
        || path.contains('\\')
        || path.get(1..2) == Some(":")
        || path.split('/').any(|part| part == "..")
}
