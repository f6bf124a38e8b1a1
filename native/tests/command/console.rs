//! What becomes of a command whose output nobody can write or read any more.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{MODEL, folder, halfbyte, name, text, training};

/// A file that is always full.
fn full() -> Stdio {
    fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it").into()
}

/// Waits until a run has made a few steps.
fn under_way(output: &Path, child: &mut Child) {
    let begun = Instant::now();
    while fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default().lines().count() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step was made");
        assert!(child.try_wait().expect("a state").is_none(), "it ended before its third step");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().expect("kill").success());
}

/// The reason that a run's manifest gives for its end.
fn reason(output: &Path) -> String {
    let run = fs::read(output.join("run.json")).expect("a manifest");
    let run: serde_json::Value = serde_json::from_slice(&run).expect("JSON");
    run["reason"].as_str().unwrap_or_default().to_string()
}

#[test]
fn a_command_that_cannot_print_says_so() {
    for arguments in [
        &["devices"][..],
        &["--help"],
        &["memory", "llama-2-7b"],
        &["memory", "llama-2-7b", "--json"],
        &["inspect", MODEL],
        &["data", "check", "recipes/kinds.toml"],
        &["train", "recipes/kinds.toml", "--plan", "--device", "cpu"],
        &["generate", MODEL, "--device", "cpu", "--prompt", "a", "--max-new-tokens", "4"],
    ] {
        let Output { status, stderr, .. } = halfbyte(arguments).stdout(full()).output().expect("the command starts");
        let said = text(&stderr);
        assert_eq!(status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: cannot write to the standard output: No space left"), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        // A reader that left ends it without a word.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let Output { status, stderr, .. } = halfbyte(arguments).stdout(writer).output().expect("the command starts");
        assert!(!text(&stderr).contains("error"), "{arguments:?}: {}", text(&stderr));
        let sigpipe = 13;
        assert!(status.signal() == Some(sigpipe), "{arguments:?}: {status}");
    }
}

#[test]
fn a_run_outlasts_whoever_reads_what_it_prints() {
    let folder = folder();
    let output = folder.path().join("full");
    let run = halfbyte(&training(name(&output), &["--max-steps", "2"])).stdout(full()).stderr(full()).status();
    assert!(run.expect("the command starts").success());
    assert!(output.join("adapter").exists() && output.join("report.html").exists());

    let output = folder.path().join("piped");
    let mut command = halfbyte(&training(name(&output), &["--epochs", "200"]));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    // As `tee` goes that Ctrl-C ends first.
    drop((child.stdout.take(), child.stderr.take()));
    under_way(&output, &mut child);
    signal("-INT", child.id());
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(reason(&output).contains("is saved; continue"), "{}", reason(&output));
}

#[test]
fn a_run_outlasts_its_terminal() {
    let folder = folder();
    for (number, (session, flag)) in
        [("", ""), ("", "--dashboard"), ("setsid --wait", "--dashboard"), ("setsid --wait", "")].into_iter().enumerate()
    {
        let output = folder.path().join(number.to_string());
        let pid = folder.path().join(format!("{number}.pid"));
        let arguments = training(name(&output), &["--epochs", "200"]).join(" ");
        // In a session of its own a process is not told that the terminal is gone.
        let inner = format!(
            "stty cols 100 rows 30; exec {session} sh -c 'echo $$ > {}; exec {} {arguments} {flag}'",
            name(&pid),
            env!("CARGO_BIN_EXE_halfbyte")
        );
        let mut terminal = Command::new("script");
        terminal.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).env("TERM", "xterm");
        terminal.args(["-qec", &inner, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut terminal = terminal.spawn().expect("script");
        under_way(&output, &mut terminal);
        terminal.kill().expect("it can be killed");
        terminal.wait().expect("it ends");
        let process: u32 = fs::read_to_string(&pid).expect("a number").trim().parse().expect("a number");
        if !session.is_empty() {
            let metrics = || fs::read_to_string(output.join("metrics.jsonl")).expect("metrics").lines().count();
            let (before, begun) = (metrics(), Instant::now());
            // Longer than two pictures of the dashboard are apart.
            while metrics() < before + 5 || begun.elapsed() < Duration::from_millis(500) {
                assert!(begun.elapsed() < Duration::from_secs(120), "no step is made without a terminal");
                std::thread::sleep(Duration::from_millis(20));
            }
            signal("-TERM", process);
        }
        let begun = Instant::now();
        while !reason(&output).contains("is saved; continue") {
            assert!(begun.elapsed() < Duration::from_secs(120), "{session} {flag}: {}", reason(&output));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_log_shows_that_a_run_is_alive() {
    let folder = folder();
    let mut command = halfbyte(&training(name(&folder.path().join("run")), &["--max-steps", "4"]));
    let ended = command.output().expect("the command starts");
    let log = text(&ended.stderr);
    let steps: Vec<&str> = log.lines().filter(|line| line.starts_with("step ")).collect();
    assert!(steps.len() >= 2, "{log}");
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(first.starts_with("step 1 of 4: loss ") && first.contains("learning rate"), "{log}");
    assert!(last.starts_with("step 4 of 4: loss ") && last.ends_with("tokens/s, 00:00:00 left"), "{log}");
}
