//! Serves the built site in a folder of a host, as GitHub Pages does.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use tiny_http::{Header, Request, Response, Server};

/// The folder that the site lies in.
pub(crate) const FOLDER: &str = "/halfbyte/";

/// Starts to serve `dist` at `port` of this machine, 0 for any free one; the site's address.
///
/// # Errors
/// When the port is taken.
pub(crate) fn serve(dist: PathBuf, port: u16) -> Result<String> {
    let server = Server::http(("127.0.0.1", port)).map_err(|error| anyhow!("cannot serve at port {port}: {error}"))?;
    let port = server.server_addr().to_ip().map_or(port, |address| address.port());
    std::thread::spawn(move || {
        for request in server.incoming_requests() {
            // Who asked and went away needs no answer.
            let _ = answer(&dist, request);
        }
    });
    Ok(format!("http://127.0.0.1:{port}{FOLDER}"))
}

fn answer(dist: &Path, request: Request) -> std::io::Result<()> {
    let path = request.url().split(['?', '#']).next().unwrap_or_default().to_owned();
    let inside = path.strip_prefix(FOLDER).filter(|path| !path.split('/').any(|part| part == ".."));
    let Some(inside) = inside else { return request.respond(Response::empty(404)) };
    let mut file = dist.join(inside);
    if file.is_dir() {
        if !inside.is_empty() && !inside.ends_with('/') {
            let location = header("Location", &format!("{path}/"));
            return request.respond(Response::empty(301).with_header(location));
        }
        file.push("index.html");
    }
    let (status, file) = if file.is_file() { (200, file) } else { (404, dist.join("404.html")) };
    let response = Response::from_data(std::fs::read(&file)?)
        .with_status_code(status)
        .with_header(header("Content-Type", kind(&file)))
        // As GitHub Pages answers: whoever embeds the widget has another origin.
        .with_header(header("Access-Control-Allow-Origin", "*"));
    request.respond(response)
}

fn header(name: &str, value: &str) -> Header {
    // Names and values here are letters, digits and paths.
    Header::from_bytes(name, value).unwrap_or_else(|()| unreachable!("{name}: {value} is no header"))
}

/// The type of a file by its name.
fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("css") => "text/css",
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("wasm") => "application/wasm",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
