//! Starts the site when its module is loaded.

fn main() {
    halfbyte_web::start();
}
