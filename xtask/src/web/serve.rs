//! Serves the built site in a folder of a host, as GitHub Pages does: GET of files, a connection each.
//!
//! By hand, because that is all there is to it: the small server crates share threads among connections, and a browser that opens
//! some ahead of time then waits for itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

/// The folder that the site lies in.
const FOLDER: &str = "/halfbyte/";

/// What is answered: a status, further headers, the body.
type Answer = (&'static str, String, Vec<u8>);

/// Starts to serve `dist` at `port` of this machine, 0 for any free one; the site's address.
///
/// # Errors
/// When the port is taken.
pub(crate) fn serve(dist: PathBuf, port: u16) -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("cannot serve at port {port}"))?;
    let port = listener.local_addr()?.port();
    let dist: Arc<Path> = dist.into();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let dist = dist.clone();
            // Who asked and went away needs no answer.
            std::thread::spawn(move || drop(answer(&dist, stream)));
        }
    });
    Ok(format!("http://127.0.0.1:{port}{FOLDER}"))
}

fn answer(dist: &Path, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    // The headers are read to their end, for a connection closed before is reset.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let address = first.split(' ').nth(1).unwrap_or_default();
    let (status, headers, body) = find(dist, address.split(['?', '#']).next().unwrap_or_default())?;
    // As GitHub Pages answers: whoever embeds the widget has another origin.
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

/// The file at a path of the host; of a folder its `index.html`.
fn find(dist: &Path, path: &str) -> std::io::Result<Answer> {
    let inside = path.strip_prefix(FOLDER).filter(|inside| !inside.split('/').any(|part| part == ".."));
    let Some(inside) = inside else { return Ok(("404 Not Found", String::new(), Vec::new())) };
    let mut file = dist.join(inside);
    if file.is_dir() {
        if !inside.is_empty() && !inside.ends_with('/') {
            return Ok(("301 Moved Permanently", format!("Location: {path}/\r\n"), Vec::new()));
        }
        file.push("index.html");
    }
    let (status, file) = if file.is_file() { ("200 OK", file) } else { ("404 Not Found", dist.join("404.html")) };
    Ok((status, format!("Content-Type: {}\r\n", kind(&file)), std::fs::read(&file)?))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::find;

    #[test]
    fn files_are_found_in_their_folder_and_nowhere_else() {
        let dist = std::env::temp_dir().join(format!("halfbyte-serve-{}", std::process::id()));
        crate::files::write(&dist.join("page/index.html"), "page").unwrap();
        crate::files::write(&dist.join("404.html"), "none").unwrap();
        let of = |path: &str| {
            let (status, headers, body) = find(&dist, path).unwrap();
            (status.split(' ').next().unwrap(), headers, String::from_utf8(body).unwrap())
        };
        assert_eq!(of("/halfbyte/page/").2, "page");
        assert_eq!(of("/halfbyte/page"), ("301", "Location: /halfbyte/page/\r\n".into(), String::new()));
        assert_eq!((of("/halfbyte/else").0, of("/halfbyte/else").2.as_str()), ("404", "none"));
        for outside in ["/", "/page/", "/halfbyte/../etc/passwd", ""] {
            assert_eq!((of(outside).0, of(outside).2.as_str()), ("404", ""), "{outside}");
        }
        std::fs::remove_dir_all(dist).unwrap();
    }
}
