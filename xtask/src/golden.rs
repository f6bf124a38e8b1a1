//! `cargo xtask golden`: makes the test fixtures anew with the Python reference (transformers, PEFT, bitsandbytes), and
//! has the reference load what Halfbyte writes.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::command::Step;

/// Makes `.venv` from `tests/golden/requirements.txt` when it is missing, runs `tests/golden/make.py`,
/// and checks that transformers and PEFT read what Halfbyte writes.
pub(crate) fn make(root: &Path) -> Result<()> {
    let python = root.join(if cfg!(windows) { ".venv/Scripts/python.exe" } else { ".venv/bin/python" });
    let python = python.to_string_lossy();
    let requirements = "tests/golden/requirements.txt";
    ensure!(root.join(requirements).exists(), "{requirements} is missing: run this in a full checkout");
    if !Path::new(&*python).exists() {
        Step::new("make .venv", &["python3", "-m", "venv", ".venv"]).run(root)?;
        // A half-filled environment would pass for a whole one the next time.
        if let Err(error) = Step::new("fill .venv", &[&python, "-m", "pip", "install", "-r", requirements]).run(root) {
            std::fs::remove_dir_all(root.join(".venv"))?;
            return Err(error);
        }
    }
    // PEFT writes a set's members in hash order, which is random by default.
    Step::new("make the fixtures", &[&python, "tests/golden/make.py"]).with("PYTHONHASHSEED", "0").run(root)?;
    let test = "cargo test --release -p halfbyte-tests --test llama what_is_written_is_what_was_computed";
    Step::line("write a model and an adapter for the reference", test).run(root)?;
    let test = "cargo test --release -p halfbyte-tests --test interchange --test multimodal what_is_written_for_others";
    Step::line("write adapters, merged models and exports for it", test).run(root)?;
    let run = "cargo run --release -p halfbyte-cli -- train recipes/kinds.toml --device cpu --output out/check/run \
               --max-steps 6 --set show.max_new_tokens=4";
    Step::line("write a run for TensorBoard", run).run(root)?;
    Step::new("compare them in the reference", &[&python, "tests/golden/check.py"]).run(root)
}
