//! A server that speaks the part of the hub's interface that downloads need, on a port of this machine. It is written over
//! plain sockets because it has to cut connections in the middle of a file.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use sha2::{Digest, Sha256};

/// A repository.
#[derive(Clone, Default)]
pub struct Repo {
    /// Files by their paths; those that end in `.safetensors` are stored elsewhere, as the hub stores large files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The commit.
    pub commit: String,
    /// Other names of the commit, beside `main`.
    pub tags: Vec<String>,
    /// Only who sends this token may read it.
    pub token: Option<String>,
    /// Paths that are listed without being there.
    pub listed: Vec<String>,
}

/// What sees the path of a request.
pub type OnContent = Box<dyn Fn(&str) + Send>;

/// What the server does wrong on purpose, and what was asked of it.
#[derive(Default)]
pub struct State {
    /// Repositories by `models/org/name` or `datasets/org/name`.
    pub repos: BTreeMap<String, Repo>,
    /// Every request: method, path and range.
    pub requests: Vec<String>,
    /// Lengths after which the next bodies of large files are cut.
    pub cuts: Vec<usize>,
    /// Large files are answered whole, whatever range is asked for.
    pub no_ranges: bool,
    /// One byte of each large file is wrong.
    pub corrupt: bool,
    /// Announced in place of the right hash.
    pub wrong_etag: Option<String>,
    /// Called with the path of each request for a large file's content.
    pub on_content: Option<OnContent>,
}

/// A running server; it ends with the process.
pub struct HubServer {
    /// Its address, for `HF_ENDPOINT`.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Starts a server.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, own) = (state.clone(), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, own) = (shared.clone(), own.clone());
                std::thread::spawn(move || answer(stream, &state, &own));
            }
        });
        Self { url, state }
    }

    /// Changes what the server has or does.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What has been asked since the last call.
    pub fn requests(&self) -> Vec<String> {
        self.with(|state| std::mem::take(&mut state.requests))
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut request = Request { method, path, range: None, token: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((key, value)) = line.split_once(": ") else { continue };
        match key.to_ascii_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=")?.split('-').next()?.parse().ok(),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    Some(request)
}

/// Writes a response, of its body only the first `cut` bytes.
fn send(mut stream: &TcpStream, head: bool, status: &str, headers: &[String], body: &[u8], cut: Option<usize>) {
    let length = format!("content-length: {}", body.len());
    let headers = headers.iter().map(String::as_str).chain([length.as_str(), "connection: close"]);
    let text = format!("HTTP/1.1 {status}\r\n{}\r\n\r\n", headers.collect::<Vec<_>>().join("\r\n"));
    let body = if head { &[] } else { &body[..cut.unwrap_or(body.len()).min(body.len())] };
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
}

fn answer(stream: TcpStream, state: &Mutex<State>, url: &str) {
    let Some(request) = read(&stream) else { return };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let range = request.range.map(|from| format!(" from {from}")).unwrap_or_default();
    state.requests.push(format!("{} {}{range}", request.method, request.path));
    let head = request.method == "HEAD";
    let refuse = |status: &str, code: &str| send(&stream, head, status, &[format!("x-error-code: {code}")], b"", None);
    let path = request.path.split('?').next().unwrap_or_default();
    if let Some(hash) = path.strip_prefix("/cdn/") {
        // The place of large files: it must not see the hub's token.
        assert!(request.token.is_none(), "the token was sent to another host's address");
        return content(&stream, &mut state, &request, hash);
    }
    let (api, rest) = match path.strip_prefix("/api/") {
        Some(rest) => (true, rest.to_string()),
        None if path.starts_with("/datasets/") => (false, path[1..].to_string()),
        None => (false, format!("models{path}")),
    };
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let [kind, org, name, _, revision] = parts[..] else { return refuse("404 Not Found", "") };
    let Some(repo) = state.repos.get(&format!("{kind}/{org}/{name}")) else {
        return refuse("401 Unauthorized", "RepoNotFound");
    };
    if repo.token.is_some() && repo.token != request.token {
        return refuse(if request.token.is_some() { "403 Forbidden" } else { "401 Unauthorized" }, "GatedRepo");
    }
    let (revision, file) = if api { (revision, "") } else { revision.split_once('/').unwrap_or((revision, "")) };
    let revision = revision.replace("%2F", "/");
    if revision != "main" && revision != repo.commit && !repo.tags.contains(&revision) {
        return refuse("404 Not Found", "RevisionNotFound");
    }
    let commit = format!("x-repo-commit: {}", repo.commit);
    if api {
        let files = repo.files.iter().map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()}));
        let listed = repo.listed.iter().map(|name| json!({"rfilename": name}));
        let body = json!({"sha": repo.commit, "siblings": files.chain(listed).collect::<Vec<_>>()}).to_string();
        return send(&stream, head, "200 OK", &[commit], body.as_bytes(), None);
    }
    let Some(bytes) = repo.files.get(file) else { return refuse("404 Not Found", "EntryNotFound") };
    let hash = sha256(bytes);
    let etag = state.wrong_etag.clone().unwrap_or_else(|| hash.clone());
    if file.ends_with(".safetensors") {
        let to = format!("location: {}/cdn/{hash}", url.replace("127.0.0.1", "localhost"));
        let linked = [format!("x-linked-etag: \"{etag}\""), format!("x-linked-size: {}", bytes.len())];
        let headers = [&[commit, to, "etag: \"of-the-redirect\"".into()][..], &linked].concat();
        return send(&stream, head, "302 Found", &headers, b"", None);
    }
    send(&stream, head, "200 OK", &[commit, format!("etag: W/\"{}\"", &etag[..40.min(etag.len())])], bytes, None);
}

/// The content of a large file, or the part that was asked for.
fn content(stream: &TcpStream, state: &mut State, request: &Request, hash: &str) {
    if let Some(seen) = &state.on_content {
        seen(&request.path);
    }
    let mut all = state.repos.values().flat_map(|repo| repo.files.values());
    let Some(mut bytes) = all.find(|bytes| sha256(bytes) == hash).cloned() else { return };
    if let (true, Some(last)) = (state.corrupt, bytes.last_mut()) {
        *last ^= 1;
    }
    let cut = (!state.cuts.is_empty()).then(|| state.cuts.remove(0));
    match request.range.filter(|_| !state.no_ranges) {
        Some(from) => {
            let range = format!("content-range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            send(stream, false, "206 Partial Content", &[range], &bytes[from.min(bytes.len())..], cut);
        }
        None => send(stream, false, "200 OK", &[], &bytes, cut),
    }
}
