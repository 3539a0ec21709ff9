//! The store across processes: whatever ends one of them or spoils the file, the last pin that was answered is there in the next outage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::serve::{Fixture, generate};
use crate::support::driver::{Driver, Ran, skipped, until};
use crate::support::registry::FakeRegistry;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// A registry with 1.0.0, which was asked once, and a driver that asks again each time.
async fn fixture() -> (FakeRegistry, Driver) {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0"]);
    let driver = Driver::new(PROGRAM, &registry).impatient().env("PINION_LOOKUP_TIMEOUT", "100s");
    // The second one copies the store.
    for _ in 0..2 {
        assert_eq!(ask(&driver).ok(), "1.0.0\n");
    }
    assert!(dir(&driver).join("pinion.db.copy").exists());
    (registry, driver)
}

fn ask(driver: &Driver) -> Ran {
    driver.run(["resolve", "ghcr.io/acme/web:~1"])
}

fn dir(driver: &Driver) -> PathBuf {
    driver.home().join("store")
}

/// What is answered while the registry is down.
fn offline(registry: &FakeRegistry, driver: &Driver) -> String {
    registry.stop();
    let ran = ask(driver);
    registry.resume();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ran.stdout
}

fn database(driver: &Driver) -> rusqlite::Connection {
    rusqlite::Connection::open(dir(driver).join("pinion.db")).expect("a database")
}

/// Turns the store into the JSON files that it was before.
fn as_json(driver: &Driver) {
    let (key, choice): (String, String) =
        database(driver).query_row("SELECT key, choice FROM pins", [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a pin");
    let choice: serde_json::Value = serde_json::from_str(&choice).expect("JSON");
    let (tag, listed, considered) = (&choice["tag"], &choice["listed"], &choice["considered"]);
    let pin = serde_json::json!({ "key": key, "pin": tag, "created": null, "at": listed, "considered": considered });
    fs::remove_dir_all(dir(driver)).expect("removed");
    fs::create_dir_all(dir(driver).join("v1/pins")).expect("made");
    fs::write(dir(driver).join("v1/pins/1.json"), pin.to_string()).expect("written");
}

fn damage(driver: &Driver) {
    let path = dir(driver).join("pinion.db");
    let connection = database(driver);
    connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).expect("in the file");
    drop(connection);
    let mut bytes = fs::read(&path).expect("read");
    bytes[4100..4200].fill(0x5a);
    fs::write(path, bytes).expect("written");
}

/// What is done before the process that is killed.
type Prepares = fn(&Driver);

/// Every point at which the store kills its process on purpose.
const POINTS: [(&str, Prepares); 9] = [
    ("store::before_commit", |_| {}),
    ("store::after_commit", |_| {}),
    ("store::before_commit_of_a_record", |_| {}),
    ("store::before_migration", as_json),
    ("store::after_migration", as_json),
    ("store::before_import", as_json),
    ("store::in_copy", |driver| fs::remove_file(dir(driver).join("pinion.db.copy")).expect("removed")),
    ("store::in_rescue", damage),
    ("store::after_set_aside", damage),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_point_loses_no_pin_that_was_answered() {
    for (point, prepare) in POINTS {
        let (registry, driver) = fixture().await;
        prepare(&driver);
        registry.tags("acme/web", ["1.1.0"]);
        // The answer waits for the store as long as the test needs.
        let killed = ask(&driver_with(&driver, &registry, &format!("{point}=return;resolve::wait_for_the_store=return")));
        assert_eq!(killed.status, -1, "{point}: it was not killed: {killed:?}");
        let answered = if killed.stdout.is_empty() { "1.0.0\n" } else { &killed.stdout };
        let offline = offline(&registry, &driver);
        assert!(offline.as_str() >= answered, "{point}: {offline} after {answered}");
        assert_eq!(ask(&driver).ok(), "1.1.0\n", "{point}: and it works on");
        assert_eq!(self::offline(&registry, &driver), "1.1.0\n", "{point}");
    }
}

/// A driver of the same home with points of failure.
fn driver_with(driver: &Driver, registry: &FakeRegistry, points: &str) -> Driver {
    let own = |name: &str| driver.environment()[name].clone();
    let same = Driver::new(PROGRAM, registry).impatient().env("PINION_LOOKUP_TIMEOUT", "100s").env("FAILPOINTS", points);
    same.env("PINION_STORE", own("PINION_STORE")).env("PINION_REGISTRIES_CONF", own("PINION_REGISTRIES_CONF"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_write_and_none_loses_the_others_pins() {
    let (registry, driver) = fixture().await;
    let names: Vec<String> = (0..12).map(|number| format!("acme/app-{number}")).collect();
    names.iter().for_each(|name| drop(registry.tags(name, ["2.0.0"])));
    std::thread::scope(|scope| {
        for half in names.chunks(6) {
            let driver = &driver;
            scope.spawn(move || {
                for name in half {
                    assert_eq!(driver.run(["resolve", &format!("ghcr.io/{name}:~2")]).ok(), "2.0.0\n");
                }
            });
        }
    });
    registry.stop();
    for name in &names {
        assert_eq!(driver.run(["resolve", &format!("ghcr.io/{name}:~2")]).ok(), "2.0.0\n", "{name}");
    }
}

/// A lock that is held for the whole run: the answer is fresh, and the process ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_delays_no_answer_and_makes_none_stale() {
    let (registry, driver) = fixture().await;
    for lock in ["BEGIN IMMEDIATE", "PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; UPDATE pins SET at = at"] {
        registry.tags("acme/web", ["1.1.0"]);
        let other = database(&driver);
        other.execute_batch(lock).expect("locked");
        let ran = driver.run(["resolve", "ghcr.io/acme/web:~1", "-o", "json"]);
        let report: serde_json::Value = serde_json::from_str(&ran.clone().ok()).expect("JSON");
        assert_eq!((report["tag"].as_str(), report["freshness"].as_str()), (Some("1.1.0"), Some("fresh")), "{ran:?}");
        assert!(ran.stderr.contains("another process may have locked it"), "{}", ran.stderr);
    }
    assert_eq!(ask(&driver).ok(), "1.1.0\n");
    assert_eq!(offline(&registry, &driver), "1.1.0\n");
}

/// The server has its pins in memory: a locked file is nothing to it, even in an outage.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers_from_memory_while_the_store_is_locked() {
    let mut fixture = Fixture::new().await;
    fixture.driver = fixture.driver.impatient();
    {
        let mut first = fixture.serve(&[]);
        generate(&first, fixture.messages(1024)).await.expect("manifests");
        assert!(tokio::task::block_in_place(|| first.terminate()).success());
    }
    let serving = fixture.serve(&[]);
    let other = database(&fixture.driver);
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    fixture.registry.stop();
    for _ in 0..3 {
        let manifests = generate(&serving, fixture.messages(1024)).await.expect("manifests");
        assert!(manifests.contains("web:1.1.0"), "{manifests}");
    }
    fixture.registry.resume();
    fixture.registry.tags("acme/web", ["1.2.0"]);
    assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains("web:1.2.0"));
    drop(other);
    let stored = async || {
        let choices: i64 = database(&fixture.driver)
            .query_row("SELECT count(*) FROM pins WHERE choice LIKE '%1.2.0%'", [], |row| row.get(0))
            .unwrap_or(0);
        choices == 1
    };
    until("what was learned meanwhile is stored", stored).await;
    assert!(serving.get("/metrics").await.contains("pinion_store_failed_writes_total"));
}

/// Runs the program with a bound on the files that it writes.
fn with_file_size(driver: &Driver, bytes: u64) -> Ran {
    let output = Command::new("prlimit")
        .arg(format!("--fsize={bytes}"))
        .args([PROGRAM, "resolve", "ghcr.io/acme/web:~1"])
        .env_clear()
        .envs(driver.environment())
        .output()
        .expect("prlimit is part of util-linux");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_on_file_sizes_ends_no_process_and_loses_nothing() {
    for bytes in [0, 100, 5000, 40_000, 100_000] {
        let (registry, driver) = fixture().await;
        registry.tags("acme/web", ["1.1.0"]);
        let ran = with_file_size(&driver, bytes);
        assert_eq!((ran.status, ran.stdout.as_str()), (0, "1.1.0\n"), "{bytes}: {}", ran.stderr);
        let offline = offline(&registry, &driver);
        let is_told = ran.stderr.contains("the store cannot be");
        assert!(offline == "1.1.0\n" || (is_told && offline == "1.0.0\n"), "{bytes}: {offline} {}", ran.stderr);
        assert_eq!(ask(&driver).ok(), "1.1.0\n");
        assert_eq!(self::offline(&registry, &driver), "1.1.0\n");
    }
}

/// A small file system of its own, unmounted when this is dropped.
struct Mount(PathBuf);

impl Mount {
    /// Mounts one. Where this user may not, the test is skipped and says so past libtest's capture; where `CI` is set it fails.
    fn new(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).expect("made");
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], path);
        if !mounted {
            skipped("a tmpfs cannot be mounted; run as root");
        }
        mounted.then(|| Self(path.to_owned()))
    }

    fn make_read_only(&self) {
        assert!(mount(&["-o", "remount,ro"], &self.0));
    }
}

fn mount(words: &[&str], path: &Path) -> bool {
    Command::new("mount").args(words).arg(path).status().is_ok_and(|status| status.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_what_was_stored_and_is_reported() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0"]);
    let driver = Driver::new(PROGRAM, &registry).impatient();
    let Some(_mount) = Mount::new(&dir(&driver), "2m") else { return };
    assert_eq!(ask(&driver).ok(), "1.0.0\n");
    // All that is left is taken.
    let rest = fs::File::create(dir(&driver).join("rest")).expect("made");
    while std::io::Write::write_all(&mut &rest, &[0; 4096]).is_ok() {}
    registry.tags("acme/web", ["1.1.0"]);
    let ran = ask(&driver);
    assert_eq!(ran.stdout, "1.1.0\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("the store cannot be written"), "{}", ran.stderr);
    assert_eq!(offline(&registry, &driver), "1.0.0\n");
    // Also its last user lets go of it.
    drop(rest);
    fs::remove_file(dir(&driver).join("rest")).expect("removed");
    assert_eq!(ask(&driver).ok(), "1.1.0\n");
    assert_eq!(offline(&registry, &driver), "1.1.0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_can_only_be_read_is_read() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0"]);
    let driver = Driver::new(PROGRAM, &registry).impatient();
    let Some(mount) = Mount::new(&dir(&driver), "4m") else { return };
    assert_eq!(ask(&driver).ok(), "1.0.0\n");
    mount.make_read_only();
    assert_eq!(offline(&registry, &driver), "1.0.0\n");
    registry.tags("acme/web", ["1.1.0"]);
    let ran = ask(&driver);
    assert!(ran.stderr.contains("the store cannot be written"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.1.0\n");
    let error = driver.run(["resolve", "ghcr.io/acme/other:~1"]).err();
    assert!(error.contains("registry has no"), "{error}");
}

/// No damage keeps the program from starting, and none makes it answer with another tag.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_never_answers_with_something_else() {
    let (registry, driver) = fixture().await;
    let connection = database(&driver);
    connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).expect("in the file");
    drop(connection);
    let path = dir(&driver).join("pinion.db");
    let (whole, copy) = (fs::read(&path).expect("read"), fs::read(dir(&driver).join("pinion.db.copy")).expect("a copy"));
    registry.stop();
    for place in (0..whole.len()).step_by(whole.len() / 40) {
        for (damaged, has_copy) in [(&path, true), (&dir(&driver).join("pinion.db.copy"), false)] {
            fs::remove_dir_all(dir(&driver)).expect("removed");
            fs::create_dir_all(dir(&driver)).expect("made");
            fs::write(&path, &whole).expect("written");
            fs::write(dir(&driver).join("pinion.db.copy"), &copy).expect("written");
            let mut bytes = fs::read(damaged).expect("read");
            let place = place.min(bytes.len() - 1);
            let end = (place + 64).min(bytes.len());
            bytes[place..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
            fs::write(damaged, bytes).expect("written");
            let ran = ask(&driver);
            assert_eq!((ran.status, ran.stdout.as_str()), (0, "1.0.0\n"), "{place}, copy {has_copy}: {}", ran.stderr);
        }
    }
}

/// A store that somebody emptied, removed or spoiled in its head is made again from the copy, offline too.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_comes_back_from_its_copy() {
    let (registry, driver) = fixture().await;
    let path = dir(&driver).join("pinion.db");
    let spoil = |sql: &str| database(&driver).execute_batch(sql).expect("written");
    let byte = |place: usize, value: u8| {
        let mut bytes = fs::read(&path).expect("read");
        bytes[place] = value;
        fs::write(&path, bytes).expect("written");
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("emptied", &|| fs::write(&path, "").expect("written")),
        ("removed", &|| fs::remove_file(&path).expect("removed")),
        ("version", &|| byte(60, 1)),
        ("no version", &|| byte(63, 0)),
        ("format", &|| byte(47, 9)),
        ("no table", &|| spoil("DROP TABLE pins")),
    ];
    for (name, damage) in damages {
        spoil("PRAGMA wal_checkpoint(truncate)");
        damage();
        assert_eq!(offline(&registry, &driver), "1.0.0\n", "{name}");
        let copy = rusqlite::Connection::open(dir(&driver).join("pinion.db.copy")).expect("a copy");
        let pins: i64 = copy.query_row("SELECT count(*) FROM pins", [], |row| row.get(0)).expect("a number");
        assert!(pins > 0, "{name}");
        assert_eq!(ask(&driver).ok(), "1.0.0\n", "{name}");
    }
}

/// A row that was damaged after a newer listing: the listing tells more than the copy's pin.
#[tokio::test(flavor = "multi_thread")]
async fn a_rescued_pin_is_not_older_than_the_listing() {
    let (registry, driver) = fixture().await;
    registry.tags("acme/web", ["1.1.0"]);
    assert_eq!(ask(&driver).ok(), "1.1.0\n");
    database(&driver).execute("UPDATE pins SET choice = replace(choice, '1.1.0', '1.0.0')", []).expect("written");
    assert_eq!(offline(&registry, &driver), "1.1.0\n");
}

/// The log of the store is removed or emptied below a running server: it goes on with another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_store_loses_its_log_stores_again() {
    let mut fixture = Fixture::new().await;
    fixture.driver = fixture.driver.impatient();
    let serving = fixture.serve(&[]);
    let path = dir(&fixture.driver).join("pinion.db");
    let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    for (number, end) in ["-wal", "-shm", ""].into_iter().enumerate() {
        // The index of the log is mapped into memory: to empty it under its users ends them, whatever they do.
        let ways = if end == "-shm" { &[false][..] } else { &[false, true] };
        for &empty in ways {
            let tag = format!("1.{}.{}", number + 2, u8::from(empty));
            if empty {
                let _ = fs::OpenOptions::new().write(true).truncate(true).open(beside(end));
            } else {
                let _ = fs::remove_file(beside(end));
            }
            fixture.registry.tags("acme/web", [tag.clone()]);
            let stored = async || {
                assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains(&tag));
                let sql = format!("SELECT count(*) FROM pins WHERE choice LIKE '%\"{tag}\"%'");
                rusqlite::Connection::open(&path)
                    .and_then(|store| store.query_row(&sql, [], |row| row.get::<_, i64>(0)))
                    .is_ok_and(|count| count == 1)
            };
            until(&format!("{tag} is stored after `{end}`, emptied: {empty}"), stored).await;
        }
    }
}

/// The files of version 0.1 are taken over before the first question is answered.
#[tokio::test(flavor = "multi_thread")]
async fn the_json_store_of_before_answers_in_an_outage() {
    let (registry, driver) = fixture().await;
    as_json(&driver);
    assert_eq!(offline(&registry, &driver), "1.0.0\n");
    assert!(dir(&driver).join("v1.taken-over").is_dir() && !dir(&driver).join("v1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_of_the_store_is_kept() {
    let registry = FakeRegistry::start().await;
    let driver = Driver::new(PROGRAM, &registry).impatient().env("PINION_STORE_BYTES", (4 << 20).to_string());
    for number in 0..8 {
        let name = format!("acme/large-{number}");
        registry.tags(&name, (0..40_000).map(|tag| format!("1.{number}.{tag}-{}", "x".repeat(20))));
        let ran = driver.run(["resolve", &format!("ghcr.io/{name}"), "semver", "~1-0"]);
        assert_eq!(ran.stdout.trim(), format!("1.{number}.39999-{}", "x".repeat(20)), "{}", ran.stderr);
        assert!(fs::metadata(dir(&driver).join("pinion.db")).expect("there").len() <= 4 << 20);
    }
    let few = driver.env("PINION_STORE_BYTES", "1000").run(["resolve", "ghcr.io/acme/large-1:~1"]).err();
    assert!(few.contains("`store-bytes`: 1000 bytes are too few"), "{few}");
}
