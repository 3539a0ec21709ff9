use std::fs;
use std::os::unix::fs::PermissionsExt;

use jiff::{SignedDuration, Timestamp};

use super::*;

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

struct Fixture {
    dir: tempfile::TempDir,
    clock: Clock,
    most_bytes: u64,
}

impl Fixture {
    fn new() -> Self {
        let clock = Clock::fixed(at(1000));
        Self { dir: tempfile::tempdir().expect("a directory"), clock, most_bytes: 64 << 20 }
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn path(&self) -> PathBuf {
        self.dir().join("pinion.db")
    }

    fn open(&self) -> Store {
        self.open_with(false)
    }

    fn open_with(&self, check: bool) -> Store {
        Store::open(Settings { dir: self.dir(), most_bytes: self.most_bytes, check, clock: self.clock.clone() })
    }

    /// Stores these pins and waits for it.
    async fn put(&self, pins: &[PinRow]) {
        let store = self.open();
        for pin in pins {
            store.put_pin(pin.clone());
        }
        assert!(store.flush(LONG).await);
    }

    async fn pin(&self, key: &str) -> Option<String> {
        Some(self.open().pin(key).await.expect("readable")?.choice)
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn pin(key: &str, choice: &str, second: i64) -> PinRow {
    owned("team", key, choice, second)
}

fn owned(tenant: &str, key: &str, choice: &str, second: i64) -> PinRow {
    let stored = StoredChoice { at: at(second), choice: choice.to_owned() };
    PinRow { key: key.to_owned(), tenant: tenant.to_owned(), stored }
}

fn listing(text: &str, second: i64) -> Changes {
    let text = text.to_owned();
    let listing = NewListing { at: at(second), bytes: text.len(), text: Arc::new(move || text.clone()) };
    Changes { listing: Some(listing), ..Changes::default() }
}

#[tokio::test]
async fn the_newest_pin_is_kept_and_one_of_the_future_gives_way() {
    let fixture = Fixture::new();
    assert_eq!(fixture.pin("a").await, None);
    assert!(!fixture.dir().exists(), "nothing is made to read");
    fixture.put(&[pin("a", "1.1", 20)]).await;
    fixture.put(&[pin("a", "1.0", 10)]).await;
    assert_eq!(fixture.pin("a").await.as_deref(), Some("1.1"));
    fixture.put(&[pin("a", "9.9", 5000)]).await;
    fixture.put(&[pin("a", "1.2", 30)]).await;
    assert_eq!(fixture.pin("a").await.as_deref(), Some("1.2"), "the clock was set back");
    assert_eq!(fixture.pin("b").await, None);
}

#[tokio::test]
async fn a_question_of_several_tenants_has_the_newest_of_their_pins() {
    let fixture = Fixture::new();
    fixture.put(&[owned("one", "a", "1.0", 10), owned("two", "a", "1.1", 20), owned("three", "a", "1.0", 15)]).await;
    assert_eq!(fixture.pin("a").await.as_deref(), Some("1.1"));
    assert_eq!(fixture.open().pins().await.expect("readable").len(), 3);
}

#[tokio::test]
async fn what_is_learned_is_merged() {
    let fixture = Fixture::new();
    let tag = |name: &str, second, digest: Option<&str>| (name.to_owned(), (at(second), digest.map(str::to_owned)));
    let store = fixture.open();
    store.learn("r", listing("first", 10));
    let tags = BTreeMap::from([tag("a", 10, Some("old")), tag("b", 10, Some("b")), tag("c", 10, Some("c"))]);
    let metadata = BTreeMap::from([("x".to_owned(), "1".to_owned()), ("y".to_owned(), "2".to_owned())]);
    store.learn("r", Changes { tags, metadata, ..Changes::default() });
    assert!(store.flush(LONG).await);
    store.learn(
        "r",
        Changes { tags: BTreeMap::from([tag("a", 20, Some("new")), tag("b", 5, Some("older"))]), ..listing("second", 20) },
    );
    let forgotten = |name: &str| [name.to_owned()].into();
    store.learn("r", Changes { forgotten_tags: forgotten("c"), forgotten_metadata: forgotten("y"), ..Changes::default() });
    assert!(store.flush(LONG).await);
    let record = fixture.open().record("r").await.expect("readable").expect("stored");
    assert_eq!(record.listing, Some((at(20), "second".to_owned())));
    assert_eq!(record.tags, [("a".to_owned(), at(20), Some("new".to_owned())), ("b".to_owned(), at(10), Some("b".to_owned()))]);
    assert_eq!(record.metadata, [("x".to_owned(), "1".to_owned())]);
    // What lies in the future gives way; a tag that is gone is known to be.
    fixture.clock.move_by(SignedDuration::from_secs(-985));
    store.learn("r", Changes { tags: BTreeMap::from([tag("a", 14, None)]), ..listing("third", 14) });
    assert!(store.flush(LONG).await);
    let record = fixture.open().record("r").await.expect("readable").expect("stored");
    assert_eq!(record.listing, Some((at(14), "third".to_owned())));
    assert_eq!(record.tags[0], ("a".to_owned(), at(14), None));
}

#[tokio::test]
async fn a_listing_that_is_the_same_again_has_its_new_time() {
    let fixture = Fixture::new();
    for second in [10, 20] {
        let store = fixture.open();
        store.learn("r", listing("same", second));
        assert!(store.flush(LONG).await);
    }
    let record = fixture.open().record("r").await.expect("readable").expect("stored");
    assert_eq!(record.listing, Some((at(20), "same".to_owned())));
}

/// The JSON store wrote a file of more than 128 MiB, and set it aside as damaged at the next start.
#[tokio::test]
async fn a_store_of_more_than_128_mib_is_read_again() {
    let mut fixture = Fixture::new();
    fixture.most_bytes = 512 << 20;
    let store = fixture.open();
    for name in ["a", "b", "c"] {
        store.learn(name, listing(&name.repeat(45 << 20), 10));
        assert!(store.flush(LONG).await);
    }
    drop(store);
    assert!(fs::metadata(fixture.path()).expect("there").len() > 128 << 20);
    for name in ["a", "b", "c"] {
        let record = fixture.open().record(name).await.expect("readable").expect("stored");
        assert_eq!(record.listing.expect("a listing").1.len(), 45 << 20);
    }
}

#[tokio::test]
async fn several_processes_lose_nothing_of_each_others() {
    let fixture = Fixture::new();
    let stores: Vec<Store> = (0..4).map(|_| fixture.open()).collect();
    for number in 0..25 {
        for (writer, store) in stores.iter().enumerate() {
            store.put_pin(pin(&format!("{writer}-{number}"), "1", 10));
            let metadata = BTreeMap::from([(format!("{writer}-{number}"), "x".to_owned())]);
            store.learn("r", Changes { metadata, ..Changes::default() });
        }
    }
    for store in &stores {
        assert!(store.flush(LONG).await);
    }
    assert_eq!(fixture.open().pins().await.expect("readable").len(), 100);
    assert_eq!(fixture.open().record("r").await.expect("readable").expect("stored").metadata.len(), 100);
}

#[tokio::test]
async fn a_lock_that_another_process_holds_delays_nobody() {
    let fixture = Fixture::new();
    fixture.put(&[pin("a", "1.0", 10)]).await;
    let other = rusqlite::Connection::open(fixture.path()).expect("opened");
    other.execute_batch("PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; UPDATE pins SET at = at;").expect("locked");
    let store = fixture.open();
    let ticket = store.put_pin(pin("a", "1.1", 20));
    assert!(!store.written(ticket, Duration::from_millis(50)).await);
    assert!(!store.flush(Duration::from_millis(50)).await);
    other.execute_batch("COMMIT").expect("released");
    drop(other);
    assert!(store.written(ticket, LONG).await, "it is tried again");
    assert_eq!(fixture.pin("a").await.as_deref(), Some("1.1"));
}

/// Damages the file at each place in turn, and says how often a pin was there afterwards.
async fn survives(fixture: &Fixture, places: impl Iterator<Item = usize>, check: bool) -> (usize, usize) {
    let whole = fs::read(fixture.path()).expect("read");
    let (mut count, mut kept) = (0, 0);
    for place in places {
        let mut damaged = whole.clone();
        let end = (place + 16).min(damaged.len());
        damaged[place..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
        for entry in fs::read_dir(fixture.dir()).expect("listed").flatten() {
            if entry.path().extension().is_none_or(|end| end != "copy") {
                // The store before may be removing it, too.
                let _ = fs::remove_file(entry.path());
            }
        }
        fs::write(fixture.path(), damaged).expect("written");
        let store = fixture.open_with(check);
        let mut pin = store.pin("key-7").await.expect("readable");
        if pin.is_none() && store.look_for_damage().await {
            pin = store.pin("key-7").await.expect("readable");
        }
        count += 1;
        if let Some(pin) = pin {
            assert_eq!(pin.choice, "choice-7");
            kept += 1;
        }
        // Whatever was damaged, the store works.
        let ticket = store.put_pin(self::pin("new", "1", 10));
        assert!(store.written(ticket, LONG).await, "damage at {place}");
    }
    (count, kept)
}

fn whole_file(fixture: &Fixture) {
    let connection = rusqlite::Connection::open(fixture.path()).expect("opened");
    connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).expect("in the file");
}

#[tokio::test]
async fn bytes_that_are_damaged_at_random_lose_no_pin_that_was_copied() {
    let fixture = Fixture::new();
    let pins: Vec<PinRow> = (0..40).map(|number| pin(&format!("key-{number}"), &format!("choice-{number}"), 10)).collect();
    fixture.put(&pins).await;
    whole_file(&fixture);
    rescue::copy(&fixture.path()).expect("a copy");
    let length = fs::metadata(fixture.path()).expect("there").len() as usize;
    for check in [true, false] {
        let (count, kept) = survives(&fixture, (0..length).step_by(997), check).await;
        assert_eq!(kept, count);
    }
}

#[tokio::test]
async fn what_is_no_database_is_set_aside() {
    let fixture = Fixture::new();
    for damage in [&b""[..], b"nonsense", &[0; 10_000], b"SQLite format 3\0 and nothing more"] {
        fs::create_dir_all(fixture.dir()).expect("made");
        fs::write(fixture.path(), damage).expect("written");
        fixture.put(&[pin("a", "1.0", 10)]).await;
        assert_eq!(fixture.pin("a").await.as_deref(), Some("1.0"));
        fs::remove_dir_all(fixture.dir()).expect("removed");
    }
}

#[tokio::test]
async fn a_rescue_that_was_killed_is_finished() {
    let fixture = Fixture::new();
    fixture.put(&[pin("a", "1.0", 10)]).await;
    whole_file(&fixture);
    fs::rename(fixture.path(), database::beside(&fixture.path(), ".rescue")).expect("renamed");
    fs::write(database::beside(&fixture.path(), "-wal"), "of another one").expect("written");
    assert_eq!(fixture.pin("a").await.as_deref(), Some("1.0"));
}

#[tokio::test]
async fn a_file_that_is_removed_is_made_again() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let first = store.put_pin(pin("a", "1.0", 10));
    assert!(store.written(first, LONG).await && store.flush(LONG).await);
    fs::remove_dir_all(fixture.dir()).expect("removed");
    let second = store.put_pin(pin("b", "1.0", 10));
    assert!(store.written(second, LONG).await);
    assert_eq!(fixture.pin("b").await.as_deref(), Some("1.0"));
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_alone() {
    let fixture = Fixture::new();
    fixture.put(&[pin("a", "1.0", 10)]).await;
    let connection = rusqlite::Connection::open(fixture.path()).expect("opened");
    connection.execute_batch("PRAGMA user_version = 99; UPDATE facts SET value = '99' WHERE name = 'schema'").expect("written");
    drop(connection);
    let store = fixture.open();
    assert_eq!(store.pin("a").await.expect("readable").map(|pin| pin.choice).as_deref(), Some("1.0"), "as far as it is the same");
    store.put_pin(pin("a", "1.1", 20));
    assert!(!store.flush(LONG).await);
    assert!(!store.flush(LONG).await, "nothing waits any more, but it was given up");
    let connection = rusqlite::Connection::open(fixture.path()).expect("opened");
    let choice: String = connection.query_row("SELECT choice FROM pins", [], |row| row.get(0)).expect("a row");
    assert_eq!(choice, "1.0");
}

#[tokio::test]
async fn what_is_in_the_files_place_stops_nobody() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.dir()).expect("made");
    rustix::fs::mknodat(rustix::fs::CWD, fixture.path(), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a pipe");
    let store = fixture.open();
    assert_eq!(store.pin("a").await, Err(Unreadable));
    store.put_pin(pin("a", "1.1", 20));
    assert!(!store.flush(Duration::from_millis(100)).await);
    fs::remove_file(fixture.path()).expect("removed");
    assert!(store.flush(LONG).await, "it is tried again");
    let lost =
        Store::open(Settings { dir: "/proc/nothing/here".into(), most_bytes: 1 << 20, check: true, clock: Clock::default() });
    assert_eq!(lost.pin("a").await, Ok(None));
}

#[tokio::test]
async fn files_are_for_this_user_alone() {
    let fixture = Fixture::new();
    fixture.put(&[pin("a", "1.0", 10)]).await;
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&fixture.dir()), 0o700);
    for entry in fs::read_dir(fixture.dir()).expect("listed").flatten() {
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
    }
}

#[tokio::test]
async fn a_full_store_evicts_from_the_largest_tenant() {
    let mut fixture = Fixture::new();
    fixture.most_bytes = 4 << 20;
    let honest = |number: i64| owned("honest", &format!("honest-{number}"), "1.0", number);
    fixture.put(&(0..50).map(honest).collect::<Vec<_>>()).await;
    let store = fixture.open();
    store.learn("honest", Changes { askers: BTreeMap::from([("honest".to_owned(), at(1))]), ..listing(&"h".repeat(10_000), 1) });
    assert!(store.flush(LONG).await);
    for number in 0..200 {
        let askers = BTreeMap::from([("greedy".to_owned(), at(100 + number))]);
        store
            .learn(&format!("greedy-{number}"), Changes { askers, ..listing(&format!("{number} {}", "g".repeat(100_000)), 100) });
        store.put_pin(owned("greedy", &format!("{number} {}", "long ".repeat(4000)), "1.0", 100 + number));
        assert!(store.flush(LONG).await, "{number}");
        assert!(fs::metadata(fixture.path()).expect("there").len() <= fixture.most_bytes);
    }
    let pins = store.pins().await.expect("readable");
    assert_eq!(pins.iter().filter(|pin| pin.tenant == "honest").count(), 50);
    let record = async |key: &str| store.record(key).await.expect("readable");
    assert!(record("honest").await.is_some() && record("greedy-199").await.is_some());
    assert!(record("greedy-0").await.is_none());
    assert!(pins.iter().any(|pin| pin.key.starts_with("199 ")) && !pins.iter().any(|pin| pin.key.starts_with("0 ")));
}

#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path()).expect("a directory in its place");
    let store = fixture.open();
    let changes = |bytes: usize| {
        let listing = NewListing { at: at(1), bytes, text: Arc::new(String::new) };
        Changes { listing: Some(listing), ..Changes::default() }
    };
    store.learn("small", changes(1000));
    for number in 0..20 {
        store.learn(&format!("large-{number}"), changes(MAX_PENDING / 10));
        assert!(store.shared.lock().bytes <= MAX_PENDING);
    }
    for number in 0..30_000 {
        store.put_pin(pin(&number.to_string(), "1", 1));
    }
    fs::remove_dir(fixture.path()).expect("removed");
    assert!(store.flush(LONG).await);
    assert!(store.record("small").await.expect("readable").is_some(), "the largest is dropped, not the others");
    assert!(store.pins().await.expect("readable").len() >= MAX_PENDING_PINS);
}

#[tokio::test]
async fn a_thread_that_ends_is_told() {
    let fixture = Fixture::new();
    let store = fixture.open();
    assert!(tokio::time::timeout(Duration::from_millis(50), store.ended()).await.is_err());
    let job = |_: &mut Reader| panic!("on purpose");
    store.reads.send(Box::new(job)).expect("it runs");
    store.ended().await;
}

/// A store as version 0.1 wrote it.
fn write_json_store(dir: &Path) {
    let digest = format!("sha256:{}", "a".repeat(64));
    let repository = serde_json::json!({
        "key": "r",
        "listing": {"at": "1970-01-01T00:00:10Z", "value": {"tags": [{"tag": "1.0.0"}], "dropped": 0}},
        "tags": {"1.0.0": {"at": "1970-01-01T00:00:10Z", "value": digest}},
        "manifests": {digest.clone(): {"digest": digest, "content": {"other": {"mediaType": "x"}}}},
        "configs": {},
    });
    let pin = serde_json::json!({
        "key": "q", "pin": format!("1.0.0@{digest}"), "created": null, "at": "1970-01-01T00:00:10Z",
        "considered": {"tags": 1, "permitted": 1, "rejected": []},
    });
    for (section, value) in [("repositories", repository), ("pins", pin)] {
        fs::create_dir_all(dir.join("v1").join(section)).expect("made");
        fs::write(dir.join("v1").join(section).join("1.json"), value.to_string()).expect("written");
        fs::write(dir.join("v1").join(section).join("2.json"), "damaged").expect("written");
    }
}

#[tokio::test]
async fn the_json_store_is_taken_over_once() {
    let fixture = Fixture::new();
    write_json_store(&fixture.dir());
    let choice: crate::pin::Choice = serde_json::from_str(&fixture.pin("q").await.expect("a pin")).expect("a choice");
    assert_eq!(choice.pinned.tag.as_str(), "1.0.0");
    assert!(choice.pinned.digest.is_some() && choice.listed == Some(at(10)) && choice.considered.is_some());
    let record = fixture.open().record("r").await.expect("readable").expect("stored");
    assert_eq!(record.listing, Some((at(10), r#"{"tags":[{"tag":"1.0.0"}],"dropped":0}"#.to_owned())));
    assert_eq!((record.tags.len(), record.metadata.len()), (1, 1));
    assert!(record.metadata[0].1.starts_with(r#"{"manifest":{"#));
    assert!(!fixture.dir().join("v1").exists() && fixture.dir().join("v1.taken-over").exists());
    // Killed before the directory was renamed: what is newer here is not replaced.
    fixture.put(&[owned("", "q", "newer", 20)]).await;
    write_json_store(&fixture.dir());
    assert_eq!(fixture.pin("q").await.as_deref(), Some("newer"));
}

#[test]
fn network_file_systems_are_known_by_name() {
    // NFS and FUSE; ext4, tmpfs and overlayfs.
    assert_eq!([0x6969, 0x6573_5546].map(database::network_file_system), [Some("NFS"), Some("FUSE")]);
    assert_eq!([0xef53, 0x0102_1994, 0x794c_7630].map(database::network_file_system), [None; 3]);
    let error = StoreError::Network("NFS");
    assert!(error.is_permanent() && error.to_string().contains("NFS"));
}

#[tokio::test]
async fn a_copy_is_made_and_a_damaged_store_does_not_replace_it() {
    let fixture = Fixture::new();
    // The process that makes the store copies nothing.
    for _ in 0..2 {
        fixture.put(&[pin("a", "1.0", 10)]).await;
    }
    let copy = rescue::copy_path(&fixture.path());
    let is_due = |hours| rescue::is_copy_due(&fixture.path(), Timestamp::now() + SignedDuration::from_hours(hours));
    assert!(copy.is_file() && !is_due(0));
    assert!(is_due(1) && is_due(-1), "it is old, or of the future");
    whole_file(&fixture);
    let good = fs::read(&copy).expect("read");
    let mut bytes = fs::read(fixture.path()).expect("read");
    bytes[100..4000].fill(0x55);
    fs::write(fixture.path(), bytes).expect("written");
    assert!(rescue::copy(&fixture.path()).is_err());
    assert_eq!(fs::read(&copy).expect("read"), good);
}
