//! Data-parallel runs as a user has them: processes on one machine, started in every way, killed and continued.
#![cfg(unix)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// How soon the other ranks must have ended once one is gone.
const BOUND: Duration = Duration::from_secs(30);

/// Each of these runs takes all cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder with a little of the shipped data, and a recipe of 5 steps an epoch, the last of them a micro-batch short.
struct Case {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Case {
    fn new(more: &str) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [model, train, test] = common::shipped(folder.path(), [37, 7]);
        let recipe = format!(
            "model = {model:?}\ndevice = \"cpu\"\n\
             [data]\ntrain = {train:?}\ntest = {test:?}\nmax_length = 64\n\
             [lora]\nr = 4\nlora_dropout = 0.1\ntarget_modules = [\"q_proj\", \"down_proj\"]\n\
             [training]\nepochs = 4\nbatch_size = 2\nlearning_rate = 1e-3\nneftune_noise_alpha = 5.0\n\
             {more}\n"
        );
        fs::write(folder.path().join("recipe.toml"), recipe).expect("a recipe");
        Self { folder, _turn: turn }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
        command.current_dir(&self.folder).args(["train", "recipe.toml", "--output", output]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Whatever started the tests may have set them.
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"] {
            command.env_remove(name);
        }
        command
    }

    /// The same with 4 micro-batches to a step, whoever takes them.
    fn dealt(&self, output: &str, processes: usize, more: &[&str]) -> Command {
        let accumulation = format!("training.gradient_accumulation_steps={}", 4 / processes);
        let mut command = self.train(output, &["--set", &accumulation]);
        command.args(["--processes", &processes.to_string()]).args(more);
        command
    }

    /// Steps and losses, gradient norms or held-out losses of a run.
    fn figures(&self, output: &str, key: &str) -> Vec<(u64, f64)> {
        let lines = fs::read_to_string(self.output(output).join("metrics.jsonl")).unwrap_or_default();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?))).collect()
    }

    fn adapter(&self, output: &str) -> Vec<u8> {
        fs::read(self.output(output).join("adapter/adapter_model.safetensors")).expect("an adapter")
    }

    fn optimizer(&self, output: &str, step: usize) -> Vec<u8> {
        let folder = self.output(output).join(format!("checkpoint-{step}"));
        fs::read(folder.join("optimizer.safetensors")).expect("a checkpoint")
    }

    /// Waits until a run under way has made so many steps.
    fn after(&self, output: &str, steps: usize, child: &mut Child) {
        let begun = Instant::now();
        while self.figures(output, "loss").len() < steps {
            assert!(begun.elapsed() < PATIENCE, "no step was made");
            assert!(child.try_wait().expect("a state").is_none(), "it ended before step {steps}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a run left when it ended, by itself.
fn ended(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().expect("a state").is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().expect("it can be killed");
            let output = child.wait_with_output().expect("it ended");
            panic!("it hangs: {}{}", text(&output.stdout), text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it ended")
}

/// Both outputs of a run that goes well.
fn works(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = ended(command.spawn().expect("the command starts"));
    let printed = text(&stdout) + &text(&stderr);
    assert!(status.success(), "{command:?}: {status}: {printed}");
    printed
}

/// What a run says that is refused.
fn refuses(command: &mut Command) -> String {
    let Output { status, stderr, .. } = ended(command.spawn().expect("the command starts"));
    let message = text(&stderr);
    assert!(status.code() == Some(1) && message.contains("error: ") && !message.contains("panicked"), "{message}");
    message
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// The processes that a launcher has started, by their ranks.
fn ranks(launcher: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-o", "pid=", "--ppid", &launcher.to_string()]).output().expect("ps");
    let mut ranks: Vec<u32> = text(&listed.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // They are started in their order.
    ranks.sort_unstable();
    ranks
}

/// Whether a process is there, and not just waiting for somebody to ask how it ended.
fn runs(process: u32) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output().expect("ps");
    !matches!(text(&state.stdout).trim().chars().next(), None | Some('Z'))
}

/// The largest relative difference of two curves, which must be of the same steps.
fn apart(a: &[(u64, f64)], b: &[(u64, f64)]) -> f64 {
    assert!(a.iter().map(|(step, _)| step).eq(b.iter().map(|(step, _)| step)), "{a:?}\n{b:?}");
    a.iter().zip(b).map(|((_, a), (_, b))| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

#[test]
fn one_two_and_four_processes_give_the_same_curves() {
    let case = Case::new("[evaluation]\neval_strategy = \"steps\"\neval_steps = 5");
    for processes in [1, 2, 4] {
        let printed = works(&mut case.dealt(&processes.to_string(), processes, &[]));
        assert!(processes == 1 || printed.contains(&format!("{processes} processes x ")), "{printed}");
        assert_eq!(printed.matches("trainable params").count(), 1, "one of them prints: {printed}");
        for (key, count) in [("loss", 20), ("grad_norm", 20), ("eval_loss", 5), ("tokens", 20), ("trained_tokens", 20)]
        {
            let [found, expected] = [&processes.to_string(), "1"].map(|output| case.figures(output, key));
            let apart = apart(&found, &expected);
            println!("{processes} x {}: {key} differs from that of one process by {apart:.1e} at most", 4 / processes);
            assert_eq!(found.len(), count);
            assert!(apart < if key.contains("tokens") { 1e-12 } else { 1e-5 }, "{key}: {found:?}\n{expected:?}");
        }
    }
    let losses = case.figures("1", "loss");
    assert!(losses[19].1 < 0.9 * losses[0].1, "nothing was learned: {losses:?}");
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_what_they_save_goes_on_to_the_same_end() {
    let case = Case::new("[checkpoints]\nsave_steps = 1000\n");
    let of_three = ["--set", "training.gradient_accumulation_steps=1", "--processes", "3", "--epochs", "6"];
    works(case.train("straight", &of_three).args(["--set", "checkpoints.save_steps=42"]));
    let expected = (case.adapter("straight"), case.optimizer("straight", 42));
    // Rank 0 is missed by rank 1, which saves in its place.
    for killed in [2, 0] {
        let output = format!("killed-{killed}");
        let mut child = case.train(&output, &of_three).spawn().expect("the command starts");
        case.after(&output, 3, &mut child);
        let launcher = child.id();
        let ranks = ranks(launcher);
        assert_eq!(ranks.len(), 3);
        signal("KILL", ranks[killed]);
        let begun = Instant::now();
        let Output { status, stderr, .. } = ended(child);
        let (took, message) = (begun.elapsed(), text(&stderr));
        println!("rank {killed} was killed; all had ended {took:?} later:\n{message}");
        assert_eq!(status.code(), Some(128 + 9), "{message}");
        assert!(took < BOUND, "{took:?}: {message}");
        let named = format!("rank {killed} (process {}) was ended: signal: 9", ranks[killed]);
        assert!(message.contains(&named), "{message}");
        assert!(message.contains(&format!("rank {killed} (127.0.0.1:")) && message.contains("is gone"), "{message}");
        let goes_on = format!("is saved; continue: halfbyte train {output}/recipe.toml --resume --processes 3");
        assert!(message.contains(&goes_on), "{message}");
        let printed = works(case.train(&output, &of_three).args(["--resume", "--set", "checkpoints.save_steps=42"]));
        assert!(printed.contains(&format!("continuing {output}/checkpoint-")), "{printed}");
        let found = (case.adapter(&output), case.optimizer(&output, 42));
        assert!(found == expected, "not the adapter of the run without a stop: {printed}");
    }
}

#[test]
fn a_signal_to_the_launcher_or_to_any_rank_saves() {
    let case = Case::new("");
    for (output, name) in [("launcher", "TERM"), ("rank", "INT"), ("lost", "KILL")] {
        let mut child = case.dealt(output, 2, &["--epochs", "200"]).spawn().expect("the command starts");
        case.after(output, 2, &mut child);
        let ranks = ranks(child.id());
        signal(name, if output == "rank" { ranks[1] } else { child.id() });
        // Ranks whose launcher is killed go on alone for a moment.
        let begun = Instant::now();
        while output == "lost" && ranks.iter().any(|rank| runs(*rank)) {
            assert!(begun.elapsed() < BOUND, "they go on without their launcher");
            std::thread::sleep(Duration::from_millis(10));
        }
        let Output { status, stderr, .. } = ended(child);
        let message = text(&stderr);
        let done = case.figures(output, "loss").len();
        assert!(case.output(output).join(format!("checkpoint-{done}/run.json")).exists(), "{output}: {message}");
        if output == "lost" {
            continue;
        }
        assert_eq!(status.code(), Some(130), "{message}");
        let goes_on = format!(
            "{output}/checkpoint-{done} is saved; continue: halfbyte train {output}/recipe.toml --resume --processes 2"
        );
        assert_eq!(message.matches(&goes_on).count(), 1, "{message}");
    }
    // By how many it goes on is free, as long as a step stays what it was.
    let message = refuses(&mut case.train("launcher", &["--resume", "--epochs", "200"]));
    let both = "the run began with 2 processes x gradient_accumulation_steps = 2, and is now 1 process x \
                gradient_accumulation_steps = 1";
    assert!(message.contains(both), "{message}");
    let done = case.figures("launcher", "loss").len();
    let printed = works(&mut case.dealt("launcher", 1, &["--resume", "--max-steps", &(done + 2).to_string()]));
    assert!(printed.contains("now: the same examples in each step"), "{printed}");
    assert_eq!(case.figures("launcher", "loss").len(), done + 2);
}

/// A port that was free a moment ago.
fn port() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port().to_string()
}

/// Runs a rank per environment; what each printed.
fn together(case: &Case, output: &str, more: &[&str], ranks: &[Vec<(&str, &str)>]) -> Vec<Output> {
    let start = |variables: &Vec<(&str, &str)>| {
        let mut command = case.train(output, &["--set", "training.gradient_accumulation_steps=2"]);
        command.args(more).envs(variables.iter().copied()).spawn().expect("the command starts")
    };
    let children: Vec<Child> = ranks.iter().map(start).collect();
    children.into_iter().map(ended).collect()
}

#[test]
fn torchrun_slurm_and_open_mpi_start_it_by_their_variables() {
    let case = Case::new("");
    works(&mut case.dealt("one", 1, &[]));
    let expected = case.figures("one", "loss");
    for launcher in ["torch", "kubeflow", "slurm", "mpi"] {
        let port = port();
        let master = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())];
        let variables = |rank: &'static str| match launcher {
            "torch" => [&master[..], &[("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)]].concat(),
            "kubeflow" => [&master[..], &[("RANK", rank), ("WORLD_SIZE", "2")]].concat(),
            "slurm" => vec![
                ("SLURM_PROCID", rank),
                ("SLURM_NTASKS", "2"),
                ("SLURM_LOCALID", rank),
                ("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
                master[1],
            ],
            _ => {
                let mpi = [("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", "2")];
                [&master[..], &mpi, &[("OMPI_COMM_WORLD_LOCAL_RANK", rank)]].concat()
            }
        };
        let ended = together(&case, launcher, &[], &["0", "1"].map(variables));
        let printed = |rank: usize| (text(&ended[rank].stdout), text(&ended[rank].stderr));
        assert!(ended.iter().all(|rank| rank.status.success()), "{launcher}: {:?}\n{:?}", printed(0), printed(1));
        assert!(printed(0).0.contains("2 processes x gradient_accumulation_steps = 2"), "{launcher}: {:?}", printed(0));
        assert_eq!(printed(1).0, "", "{launcher}");
        let apart = apart(&case.figures(launcher, "loss"), &expected);
        assert!(apart < 1e-5, "{launcher}: {apart:.1e}");
    }
}

#[test]
fn environments_that_are_incomplete_or_of_one_task_are_told_apart() {
    let case = Case::new("");
    let short = ["--max-steps", "2"];
    for (variables, missing) in [
        (vec![("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")], "MASTER_ADDR is not set"),
        (vec![("WORLD_SIZE", "2")], "RANK is not set"),
        (vec![("OMPI_COMM_WORLD_RANK", "1")], "OMPI_COMM_WORLD_SIZE is not set"),
        (vec![("SLURM_NTASKS", "2")], "SLURM_PROCID is not set"),
    ] {
        let message = refuses(case.train("refused", &short).envs(variables));
        assert!(message.contains(missing), "{message}");
    }
    let torch = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")];
    let message = refuses(case.train("refused", &["--processes", "2"]).envs(torch));
    assert!(message.contains("--processes 2 and the environment both start ranks"), "{message}");
    let shell = [("SLURM_NTASKS", "1"), ("SLURM_PROCID", "0"), ("SLURM_LAUNCH_NODE_IPADDR", "192.0.2.1")];
    let printed = works(case.train("shell", &short).envs(shell));
    assert!(!printed.contains("processes"), "{printed}");
    assert!(!case.output("refused").exists());
}

#[test]
fn ranks_that_run_different_things_refuse_each_other() {
    let case = Case::new("");
    let port = port();
    let rank = |rank: &'static str, world_size: &'static str| {
        vec![("RANK", rank), ("WORLD_SIZE", world_size), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]
    };
    let mut other = case.train("other", &["--set", "training.gradient_accumulation_steps=2", "--rank", "8"]);
    let other = other.envs(rank("1", "2")).spawn().expect("the command starts");
    let refusing = together(&case, "run", &[], &[rank("0", "2")]);
    for Output { status, stderr, .. } in [&refusing[0], &ended(other)] {
        let message = text(stderr);
        assert_eq!(status.code(), Some(1), "{message}");
        assert!(message.contains("runs something else than rank 0: the recipe's `lora` differs"), "{message}");
    }
    // What is wrong with all of them is said once.
    let message = refuses(&mut case.train("run", &["--processes", "3", "--train", "missing.jsonl"]));
    assert_eq!(message.matches("missing.jsonl").count(), 1, "{message}");
}

#[test]
fn a_plan_counts_the_processes() {
    let case = Case::new("");
    let printed = works(&mut case.train("plan", &["--plan", "--processes", "3"]));
    assert!(printed.contains("3 processes on this machine, with their sums of gradients: "), "{printed}");
}

#[test]
fn a_folder_that_another_run_writes_into_is_refused_once_for_all_ranks() {
    let case = Case::new("");
    let mut first = case.dealt("run", 2, &["--epochs", "200"]).spawn().expect("the command starts");
    case.after("run", 2, &mut first);
    let second = ended(case.dealt("run", 2, &[]).spawn().expect("the command starts"));
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(said.contains("`output`: another run writes into run and holds run/run.lock"), "{said}");
    first.kill().expect("it can be killed");
    let Output { status, .. } = ended(first);
    assert!(!status.success());
}
