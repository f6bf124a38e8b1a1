//! Halfbyte in a browser tab: lessons, the playground, the memory calculator and the GPU lab, as a site without a server.
//!
//! A page is a module with a component and a line in `routes.rs`. Styles are set by classes or by `style:property=`; the
//! content security policy lets no `style="..."` and no inline script pass.

#![allow(unreachable_pub, reason = "what #[component] makes of a component is public")]

#[macro_use]
mod routes;

mod app;
mod calculator;
mod home;
mod lab;
mod lessons;
mod playground;
pub mod ui;
mod worker;

/// Shows the site in the document.
pub fn start() {
    console_error_panic_hook::set_once();
    leptos::mount::mount_to_body(app::App);
}
