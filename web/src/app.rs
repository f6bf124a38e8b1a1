//! The frame around every page: skip link, navigation, theme, footer, and the choice of the page by its address.

use leptos::prelude::*;
use leptos_router::components::{FlatRoutes, Route, Router};
use leptos_router::hooks::use_location;
use leptos_router::path;

use crate::ui::{Link, Theme, base};

/// A page as the navigation and the window's title know it.
struct Entry {
    path: &'static str,
    word: &'static str,
    title: &'static str,
}

macro_rules! entries {
    ($($path:tt, $word:tt, $title:tt, $about:tt, $view:path;)*) => {
        const ENTRIES: &[Entry] = &[$(Entry { path: $path, word: $word, title: $title }),*];
    };
}
routes!(entries);

macro_rules! pages {
    ($($path:tt, $word:tt, $title:tt, $about:tt, $view:path;)*) => {
        view! {
            <FlatRoutes fallback=Missing>
                $(<Route path=path!($path) view=$view/>)*
            </FlatRoutes>
        }
    };
}

/// The site.
#[component]
pub(crate) fn App() -> impl IntoView {
    view! {
        <Router base=base()>
            <a class="skip" href="#content" rel="external">"Skip to the content"</a>
            <Header/>
            <main id="content" tabindex="-1">{routes!(pages)}</main>
            <Footer/>
            <Arrival/>
        </Router>
    }
}

/// The path below the site's root, without slashes at its ends.
fn here(pathname: &str) -> String {
    pathname.strip_prefix(base()).unwrap_or(pathname).trim_matches('/').to_owned()
}

#[component]
fn Header() -> impl IntoView {
    let location = use_location();
    let links = ENTRIES.iter().filter(|entry| !entry.word.is_empty()).map(|entry| {
        let current = move || {
            let here = here(&location.pathname.get());
            let below = !entry.path.is_empty() && here.starts_with(&format!("{}/", entry.path));
            if here == entry.path { Some("page") } else { below.then_some("true") }
        };
        let class = if entry.path.is_empty() { "home" } else { "" };
        view! { <li><Link to=entry.path attr:class=class attr:aria-current=current>{entry.word}</Link></li> }
    });
    view! {
        <header class="site-header">
            <Link to="" attr:class="brand" attr:aria-label="Halfbyte, home">
                <svg viewBox="0 0 18 16" aria-hidden="true">
                    <rect x="0" y="0" width="4" height="4" rx="1"/>
                    <rect x="0" y="12" width="4" height="4" rx="1"/>
                    <rect x="7" y="0" width="4" height="16" rx="1"/>
                    <rect x="14" y="6" width="4" height="4" rx="1"/>
                </svg>
                "Halfbyte"
            </Link>
            <nav aria-label="Site"><ul>{links.collect_view()}</ul></nav>
            <Theme/>
        </header>
    }
}

#[component]
fn Footer() -> impl IntoView {
    view! {
        <footer class="site-footer">
            <p>
                "Halfbyte is free software under MIT or Apache-2.0. Everything on this site is computed in your browser; nothing is sent anywhere. "
                <a href="https://github.com/halfbyte/halfbyte" rel="noopener external">"Source code"</a>
            </p>
        </footer>
    }
}

/// What happens when another page is shown: the window gets its title, and the keyboard starts at its content.
#[component]
fn Arrival() -> impl IntoView {
    let pathname = use_location().pathname;
    Effect::new(move |before: Option<String>| {
        let here = here(&pathname.get());
        let entry = ENTRIES.iter().find(|entry| entry.path == here);
        let title = match entry.map(|entry| (entry.path, entry.title)) {
            Some(("", title)) => title.to_owned(),
            Some((_, title)) => format!("{title} · Halfbyte"),
            None => "No such page · Halfbyte".to_owned(),
        };
        document().set_title(&title);
        if before.is_some_and(|before| before != here)
            && let Some(content) = document().get_element_by_id("content")
        {
            crate::ui::focus(&content);
        }
        here
    });
}

#[component]
fn Missing() -> impl IntoView {
    view! {
        <article class="page">
            <h1>"There is no such page"</h1>
            <p>"The address may be mistyped, or the page was moved. " <Link to="">"Start at the beginning"</Link> "."</p>
        </article>
    }
}
