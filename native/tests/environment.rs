//! What launchers say in their variables, beside its tests. It is compiled here by its path: building the whole command a second
//! time for them would take minutes.

#![allow(dead_code)]

#[path = "../src/parallel/environment.rs"]
mod environment;
