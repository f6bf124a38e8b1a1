//! Halfbyte in a browser tab: lessons, the playground, the memory calculator and the GPU lab, as a site without a server.
//!
//! A page is a module with a component and a line in `routes.rs`. Styles are set by classes or by `style:property=`; the
//! content security policy lets no `style="..."` and no inline script pass.

#[macro_use]
mod routes;

mod app;
mod calculator;
mod home;
mod lessons;
mod ui;

fn main() {
    console_error_panic_hook::set_once();
    leptos::mount::mount_to_body(app::App);
}
