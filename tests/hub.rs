//! Downloads from the hub, against a server that speaks its interface.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use halfbyte::files::hub::{Hub, HubEvent, HubName, HubSettings, Snapshot};
use halfbyte::files::{Checkpoint, quantize_folder, quantize_shards};
use halfbyte_tests::hub_server::{HubServer, Repo, sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const SHARD: &str = "model-00001-of-00003.safetensors";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/llama-untied")
}

/// A model of three shards, with files beside it that nobody needs.
fn model() -> Repo {
    let mut repo = Repo { commit: COMMIT.into(), ..Repo::default() };
    for entry in fs::read_dir(golden()).expect("the fixture").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && name != "expect.safetensors" {
            repo.files.insert(name, fs::read(entry.path()).expect("a file"));
        }
    }
    for beside in ["pytorch_model.bin", "README.md", "original/consolidated.00.pth"] {
        repo.files.insert(beside.into(), b"not to be fetched".to_vec());
    }
    repo
}

struct Case {
    server: HubServer,
    cache: TempDir,
}

impl Case {
    fn new(name: &str, repo: Repo) -> Self {
        let case = Self { server: HubServer::start(), cache: tempfile::tempdir().expect("a folder") };
        case.server.with(|state| state.repos.insert(name.into(), repo));
        case
    }

    fn hub(&self, change: impl FnOnce(&mut HubSettings)) -> Hub {
        let cache = self.cache.path().join("hub");
        let mut settings = HubSettings { endpoint: self.server.url.clone(), cache, token: None, offline: false };
        change(&mut settings);
        Hub::new(settings)
    }

    fn online(&self) -> Hub {
        self.hub(|_| ())
    }
}

fn name(text: &str) -> HubName {
    HubName::model(text).expect("a hub name")
}

/// Everything of a model.
fn fetch(snapshot: &Snapshot) -> halfbyte::Result<PathBuf> {
    snapshot.description(&mut |_| ())?;
    snapshot.weights(&mut |_| ())?;
    Ok(snapshot.folder())
}

fn refused<T>(result: halfbyte::Result<T>) -> String {
    match result {
        Ok(_) => panic!("was not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_first_start_downloads_and_the_second_asks_for_no_file() {
    let case = Case::new("models/org/tiny", model());
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    let (mut begun, mut bytes, mut ended) = (Vec::new(), 0, 0);
    let mut progress = |event: HubEvent<'_>| match event {
        HubEvent::Begin { file, size, present } => begun.push((file.to_string(), size, present)),
        HubEvent::Bytes(count) => bytes += count,
        HubEvent::End => ended += 1,
        HubEvent::Note(note) => panic!("{note}"),
    };
    snapshot.description(&mut progress).expect("a description");
    snapshot.weights(&mut progress).expect("weights");
    assert_eq!(begun.len(), ended);
    assert_eq!(bytes, begun.iter().map(|(_, size, _)| size).sum::<u64>());
    let folder = snapshot.folder();
    let mut names: Vec<String> = begun.into_iter().map(|(file, ..)| file).collect();
    names.sort();
    let wanted = ["config.json", "generation_config.json", SHARD, "model-00002-of-00003.safetensors"];
    assert_eq!(names[..4], wanted);
    assert_eq!(names[4..], ["model-00003-of-00003.safetensors", "model.safetensors.index.json"]);
    // Laid out as the hub's own library lays it out, and what is in it is what was served.
    let root = case.cache.path().join("hub/models--org--tiny");
    assert_eq!(folder, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).expect("a ref"), COMMIT);
    let shard = fs::read(golden().join(SHARD)).expect("a shard");
    assert_eq!(fs::read(root.join("blobs").join(sha256(&shard))).expect("a blob"), shard);
    #[cfg(unix)]
    {
        let link = fs::read_link(folder.join(SHARD)).expect("a link");
        assert_eq!(link, Path::new("../../blobs").join(sha256(&shard)));
    }
    Checkpoint::open(&folder).expect("a whole checkpoint");

    case.server.requests();
    let hub = case.online();
    fetch(&hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository")).expect("the cache");
    assert_eq!(case.server.requests(), ["GET /api/models/org/tiny/revision/main?blobs=true"]);
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let case = Case::new("models/org/tiny", model());
    let size = fs::metadata(golden().join(SHARD)).expect("a shard").len() as usize;
    // Within one run.
    case.server.with(|state| state.cuts = vec![size / 3, 100]);
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    case.server.requests();
    let path = snapshot.file(SHARD, &mut |_| ()).expect("a resumed download");
    assert_eq!(fs::read(path).expect("a file"), fs::read(golden().join(SHARD)).expect("a shard"));
    let ranges: Vec<String> = case.server.requests().into_iter().filter(|r| r.contains("/cdn/")).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[1].ends_with(&format!("from {}", size / 3)), "{ranges:?}");
    assert!(ranges[2].ends_with(&format!("from {}", size / 3 + 100)), "{ranges:?}");

    // From what an earlier process left, with a server that resumes and with one that does not.
    for no_ranges in [false, true] {
        let case = Case::new("models/org/tiny", model());
        case.server.with(|state| state.no_ranges = no_ranges);
        let shard = fs::read(golden().join(SHARD)).expect("a shard");
        let blobs = case.cache.path().join("hub/models--org--tiny/blobs");
        fs::create_dir_all(&blobs).expect("a folder");
        fs::write(blobs.join(format!("{}.incomplete", sha256(&shard))), &shard[..1000]).expect("a file");
        let hub = case.online();
        let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
        let mut bytes = 0;
        let path = snapshot
            .file(SHARD, &mut |event| {
                if let HubEvent::Bytes(count) = event {
                    bytes += count;
                }
            })
            .expect("a download");
        assert_eq!(fs::read(path).expect("a file"), shard);
        assert_eq!(bytes, shard.len() as u64 - if no_ranges { 0 } else { 1000 });
        assert_eq!(fs::read_dir(blobs).expect("a folder").count(), 1, "nothing incomplete is left");
    }
}

#[test]
fn what_is_not_what_the_hub_announced_is_not_kept() {
    let case = Case::new("models/org/tiny", model());
    case.server.with(|state| state.corrupt = true);
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    let message = refused(snapshot.file(SHARD, &mut |_| ()));
    assert!(message.contains(SHARD) && message.contains("SHA-256"), "{message}");
    assert_eq!(fs::read_dir(case.cache.path().join("hub/models--org--tiny/blobs")).expect("a folder").count(), 0);
    case.server.with(|state| state.corrupt = false);
    snapshot.file(SHARD, &mut |_| ()).expect("the next try is whole");
}

#[test]
fn a_refusal_says_what_to_do() {
    let mut gated = model();
    gated.token = Some("hf_right".into());
    let case = Case::new("models/org/gated", gated);
    case.server.with(|state| state.repos.insert("models/org/tiny".into(), model()));
    let ask = |text: &str, token: Option<&str>| {
        let hub = case.hub(|settings| settings.token = token.map(str::to_string));
        refused(hub.snapshot(&name(text), &mut |_| ()).map(|_| ()))
    };
    let message = ask("org/gated", None);
    assert!(
        message.contains("org/gated") && message.contains("conditions") && message.contains("HF_TOKEN"),
        "{message}"
    );
    let message = ask("org/gated", Some("hf_wrong"));
    assert!(message.contains("the account of the token") && !message.contains("hf_wrong"), "{message}");
    let message = ask("org/nothing", None);
    assert!(message.contains("no repository of this name") && message.contains("HF_TOKEN"), "{message}");
    let message = ask("org/tiny@v9", None);
    assert!(message.contains("no revision `v9`"), "{message}");

    let hub = case.hub(|settings| settings.token = Some("hf_right".into()));
    let snapshot = hub.snapshot(&name("org/gated"), &mut |_| ()).expect("the right token");
    fetch(&snapshot).expect("a gated model");
    // Listed, but gone when it is asked for; and never listed.
    case.server.with(|state| state.repos.get_mut("models/org/tiny").expect("it").files.remove("config.json"));
    case.server.with(|state| state.repos.get_mut("models/org/tiny").expect("it").listed.push("config.json".into()));
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    for file in ["config.json", "chat_template.jinja"] {
        let message = refused(snapshot.file(file, &mut |_| ()));
        assert!(message.contains(&format!("no file `{file}`")), "{message}");
    }
}

#[test]
fn a_revision_stays_what_it_is() {
    let mut old = model();
    old.tags = vec!["refs/pr/1".into()];
    let case = Case::new("models/org/tiny", old.clone());
    let hub = case.online();
    let at = |text: &str| {
        let snapshot = hub.snapshot(&name(text), &mut |_| ()).expect("a revision");
        (snapshot.commit().to_string(), snapshot.file("config.json", &mut |_| ()).expect("a file"))
    };
    let first = at("org/tiny@refs/pr/1");
    assert_eq!(first.0, COMMIT);
    let refs = case.cache.path().join("hub/models--org--tiny/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(refs).expect("a ref"), COMMIT);
    // Something is pushed: main moves, and the commit can still be had by its name.
    old.commit = OTHER.into();
    old.files.insert("config.json".into(), b"{}".to_vec());
    case.server.with(|state| state.repos.insert("models/org/tiny".into(), old));
    let moved = at("org/tiny");
    assert_eq!((moved.0.as_str(), fs::read(&moved.1).expect("a file")), (OTHER, b"{}".to_vec()));
    assert_ne!(fs::read(first.1).expect("a file"), b"{}");
    let pinned = case.hub(|settings| settings.offline = true);
    let pinned = pinned.snapshot(&name(&format!("org/tiny@{COMMIT}")), &mut |_| ()).expect("the cache").folder();
    assert!(pinned.ends_with(COMMIT));
}

#[test]
fn offline_takes_the_cache_or_says_what_is_missing() {
    let case = Case::new("models/org/tiny", model());
    let offline = case.hub(|settings| settings.offline = true);
    let message = refused(offline.snapshot(&name("org/tiny"), &mut |_| ()).map(|_| ()));
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("org/tiny"), "{message}");
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    snapshot.description(&mut |_| ()).expect("a description");
    case.server.requests();
    let partly = offline.snapshot(&name("org/tiny"), &mut |_| ()).expect("what is there");
    partly.description(&mut |_| ()).expect("a description");
    let message = refused(partly.weights(&mut |_| ()));
    assert!(message.contains("safetensors"), "{message}");
    let folder = fetch(&snapshot).expect("all of it");
    case.server.requests();
    let whole = offline.snapshot(&name("org/tiny"), &mut |_| ()).expect("the cache");
    assert_eq!(fetch(&whole).expect("all of it"), folder);
    assert!(case.server.requests().is_empty());
    // A hub that is away is no reason to stop either.
    let away = case.hub(|settings| settings.endpoint = "http://127.0.0.1:9".into());
    let mut notes = Vec::new();
    let mut note = |event: HubEvent<'_>| {
        if let HubEvent::Note(text) = event {
            notes.push(text.to_string());
        }
    };
    let there = away.snapshot(&name("org/tiny"), &mut note).expect("the cache");
    assert_eq!(fetch(&there).expect("all of it"), folder);
    assert!(notes[0].contains("cannot be reached") && notes[0].contains("from the cache"), "{notes:?}");
    let message = refused(away.snapshot(&name("org/other"), &mut |_| ()).map(|_| ()));
    assert!(message.contains("127.0.0.1:9") && message.contains("not in the cache"), "{message}");
}

#[test]
fn what_is_hostile_is_refused() {
    for evil in ["../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil"] {
        let mut repo = model();
        repo.listed.push(evil.into());
        let case = Case::new("models/org/evil", repo);
        let message = refused(case.online().snapshot(&name("org/evil"), &mut |_| ()).map(|_| ()));
        assert!(message.contains("outside of its folder"), "{message}");
        assert!(!case.cache.path().join("hub").exists(), "nothing was written");
    }
    // A name that some systems cannot hold is only passed over.
    let mut odd = model();
    odd.listed.push("results_2024-05-01T10:11:12.json".into());
    let case = Case::new("models/org/odd", odd);
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/odd"), &mut |_| ()).expect("a repository with an odd name in it");
    fetch(&snapshot).expect("all that is read of it");
    let case = Case::new("models/org/evil", model());
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/evil"), &mut |_| ()).expect("a repository");
    case.server.with(|state| state.wrong_etag = Some("../../../evil".into()));
    assert!(refused(snapshot.file(SHARD, &mut |_| ())).contains("etag"));
    case.server.with(|state| state.wrong_etag = None);
    assert!(refused(snapshot.file("../../../x", &mut |_| ())).contains("no file"));
    let evil = |commit: &str| {
        let repo = Repo { commit: commit.into(), ..model() };
        let case = Case::new("models/org/evil", repo);
        refused(case.online().snapshot(&name("org/evil"), &mut |_| ()).map(|_| ()))
    };
    assert!(evil("../../../evil").contains("names no commit"));
    // An index that points elsewhere, and weights that run code.
    let mut repo = model();
    let index = br#"{"weight_map": {"a": "../../x.safetensors"}}"#.to_vec();
    repo.files.insert("model.safetensors.index.json".into(), index);
    let case = Case::new("models/org/evil", repo);
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/evil"), &mut |_| ()).expect("a repository");
    assert!(refused(snapshot.weights(&mut |_| ())).contains("`../../x.safetensors` is not a safetensors file"));
    let mut repo = model();
    repo.files.retain(|name, _| !name.contains("safetensors"));
    let case = Case::new("models/org/pickled", repo);
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/pickled"), &mut |_| ()).expect("a repository");
    let message = refused(snapshot.weights(&mut |_| ()));
    assert!(message.contains("pickle") && message.contains("original/consolidated.00.pth"), "{message}");
    assert!(!case.server.requests().iter().any(|request| request.contains(".bin") || request.contains(".pth")));
}

#[test]
fn a_model_is_quantized_while_it_is_downloaded_one_shard_at_a_time() {
    let case = Case::new("models/org/tiny", model());
    let folder = tempfile::tempdir().expect("a folder");
    let kind = (64, true);
    let expected = folder.path().join("expected");
    quantize_folder(&golden(), &expected, kind, &[], &mut |_| ()).expect("the same from a folder");
    let expected = Checkpoint::open(&expected).expect("a model");
    // How many shards are on the disk whenever another one is asked for.
    let counts = Arc::new(Mutex::new(Vec::new()));
    let (blobs, seen) = (case.cache.path().join("hub/models--org--tiny/blobs"), counts.clone());
    case.server.with(|state| {
        state.on_content = Some(Box::new(move |_| {
            let names = fs::read_dir(&blobs).into_iter().flatten().flatten().map(|e| e.file_name());
            let whole = names.filter(|name| name.len() == 64).count();
            seen.lock().expect("no panic").push(whole);
        }));
    });
    for keep in [false, true] {
        let hub = case.online();
        let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
        let input = snapshot.description(&mut |_| ()).expect("a description");
        let output = folder.path().join(format!("nf4-{keep}"));
        let mut progress = |_: HubEvent<'_>| ();
        let shards = snapshot.shards(keep, &mut progress).expect("shards");
        quantize_shards(&input, shards, &output, kind, &[], &mut |_| ()).expect("a quantized model");
        let written = Checkpoint::open(&output).expect("a model");
        assert_eq!(written.names(), expected.names());
        for tensor in written.names() {
            let (a, b) = (written.tensor(tensor).expect(tensor), expected.tensor(tensor).expect(tensor));
            assert_eq!((a.dtype, a.shape, a.bytes), (b.dtype, b.shape, b.bytes), "{tensor}");
        }
        assert_eq!(snapshot.folder().join(SHARD).exists(), keep);
        let counts = std::mem::take(&mut *counts.lock().expect("no panic"));
        assert_eq!(counts, if keep { [0, 1, 2] } else { [0, 0, 0] });
    }
    // What was there before this run stays, and nothing is asked for.
    case.server.requests();
    let hub = case.online();
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    let output = folder.path().join("again");
    let mut progress = |_: HubEvent<'_>| ();
    let shards = snapshot.shards(false, &mut progress).expect("shards");
    quantize_shards(&snapshot.folder(), shards, &output, kind, &[], &mut |_| ()).expect("a quantized model");
    assert!(snapshot.folder().join(SHARD).exists());
    assert_eq!(case.server.requests().len(), 1);
    // A shard that never came leaves no half model.
    case.server.with(|state| {
        let repo = state.repos.get_mut("models/org/tiny").expect("it");
        let index = br#"{"weight_map": {"model.norm.weight": "model-00001-of-00003.safetensors"}}"#.to_vec();
        repo.files.insert("model.safetensors.index.json".into(), index);
        repo.commit = OTHER.into();
    });
    let snapshot = hub.snapshot(&name("org/tiny"), &mut |_| ()).expect("a repository");
    let input = snapshot.description(&mut |_| ()).expect("a description");
    let output = folder.path().join("half");
    let shards = snapshot.shards(false, &mut progress).expect("shards");
    let message = refused(quantize_shards(&input, shards, &output, kind, &[], &mut |_| ()));
    assert!(message.contains("is missing") && !output.exists(), "{message}");
}

#[test]
fn a_data_set_gives_the_file_of_a_split() {
    let mut repo = Repo { commit: COMMIT.into(), ..Repo::default() };
    for file in ["README.md", "data/train.jsonl", "data/test.jsonl", "constraint.jsonl", "extra/a.jsonl"] {
        repo.files.insert(file.into(), file.as_bytes().to_vec());
    }
    let case = Case::new("datasets/org/data", repo);
    let hub = case.online();
    let open = |text: &str| hub.snapshot(&HubName::dataset(text).expect("a name"), &mut |_| ()).expect("a data set");
    let snapshot = open("org/data");
    let file = snapshot.data_file(&["train"], &["jsonl"]).expect("one file");
    assert_eq!(file, "data/train.jsonl");
    assert_eq!(snapshot.data_file(&["validation", "test"], &["jsonl"]).expect("one file"), "data/test.jsonl");
    let path = snapshot.file(&file, &mut |_| ()).expect("a download");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "data/train.jsonl");
    assert!(path.ends_with("data/train.jsonl"));
    let message = refused(snapshot.data_file(&["dev"], &["jsonl"]));
    assert!(message.contains("datasets/org/data/PATH") && message.contains("extra/a.jsonl"), "{message}");
    assert!(refused(snapshot.data_file(&["train"], &["csv"])).contains("no file of a kind"));
    let named = open("datasets/org/data/extra/a.jsonl");
    assert_eq!(named.data_file(&["train"], &["jsonl"]).expect("the named file"), "extra/a.jsonl");
}
