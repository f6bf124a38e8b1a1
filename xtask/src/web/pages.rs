//! A folder for each page, so that any host of files finds it by its address.

use std::path::Path;

use anyhow::{Context, Result};

use crate::files;

#[macro_use]
#[path = "../../../web/src/routes.rs"]
mod routes;

/// A page of the app.
struct Page {
    path: &'static str,
    title: &'static str,
    about: &'static str,
}

macro_rules! pages {
    ($($path:tt, $word:tt, $title:tt, $about:tt, $view:path;)*) => {
        const PAGES: &[Page] = &[$(Page { path: $path, title: $title, about: $about }),*];
    };
}
routes!(pages);

/// Writes what trunk made for the first page into the folder of every page; and `404.html`, which hosts show for any other
/// address.
pub(super) fn write(root: &Path, dist: &Path) -> Result<()> {
    let first = dist.join("index.html");
    let made = std::fs::read_to_string(&first).with_context(|| format!("cannot read {}", first.display()))?;
    let made = made.replacen("<html ", "<html data-offline=\"offline.js\" ", 1);
    for page in PAGES {
        files::write(&dist.join(page.path).join("index.html"), &page.of(&made)?)?;
    }
    std::fs::copy(root.join("web/404.html"), dist.join("404.html")).context("cannot copy web/404.html")?;
    Ok(())
}

impl Page {
    /// The first page with this one's title and subject, its addresses leading up to the site's root.
    fn of(&self, made: &str) -> Result<String> {
        let depth = self.path.split('/').filter(|part| !part.is_empty()).count();
        let title = if depth == 0 { self.title.to_owned() } else { format!("{} · Halfbyte", self.title) };
        let made = between(made, "<title>", "</title>", &title)?;
        let made = between(&made, "<meta name=\"description\" content=\"", "\"", &format!("{}.", self.about))?;
        Ok(if depth == 0 { made } else { made.replace("\"./", &format!("\"{}", "../".repeat(depth))) })
    }
}

/// The text with what stands between two marks replaced.
fn between(text: &str, from: &str, to: &str, with: &str) -> Result<String> {
    let missing = || format!("web/index.html has no {from}");
    let (before, rest) = text.split_once(from).with_context(missing)?;
    let (_, after) = rest.split_once(to).with_context(missing)?;
    Ok([before, from, with, to, after].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Page;

    #[test]
    fn a_page_below_leads_up_and_says_what_it_is() {
        let made = r#"<title>x</title><meta name="description" content="x"><script src="./a.js"></script>"#;
        let page = Page { path: "lessons/nf4", title: "NF4", about: "Four bits" };
        assert_eq!(
            page.of(made).unwrap(),
            r#"<title>NF4 · Halfbyte</title><meta name="description" content="Four bits."><script src="../../a.js"></script>"#
        );
        let first = Page { path: "", title: "Halfbyte", about: "All" };
        assert!(first.of(made).unwrap().contains(r#"<title>Halfbyte</title>"#));
        assert!(first.of("<p>").unwrap_err().to_string().contains("<title>"));
    }
}
