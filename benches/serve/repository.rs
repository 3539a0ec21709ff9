//! The repositories that the benchmark sends: made in memory, always the same, archived as repo-server does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// Where the chart is.
pub const APP: &str = "teams/team-25/web";

/// A file that no application reads.
pub const UNRELATED: &str = "teams/team-24/service-10/file-07.yaml";

/// Files of a repository by their paths, in the order in which Go's `filepath.Walk` meets them.
#[derive(Clone)]
pub struct Repository(BTreeMap<PathBuf, Vec<u8>>);

impl Repository {
    /// The chart that `helm create` makes, with an ingress and an autoscaler, and one file beside it.
    pub fn small(helm: &Path, tag: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let status = Command::new(helm).args(["create", "web"]).current_dir(dir.path()).output().expect("a program").status;
        assert!(status.success());
        let mut repository = Self(BTreeMap::new());
        repository.add(&dir.path().join("web"), Path::new(APP));
        repository.0.insert(UNRELATED.into(), Text::new(1).take(5000));
        repository.replace("values.yaml", "repository: nginx", "repository: ghcr.io/acme/web");
        repository.replace("values.yaml", "  tag: \"\"", &format!("  tag: \"{tag}\""));
        repository.replace("values.yaml", "ingress:\n  enabled: false", "ingress:\n  enabled: true");
        repository.replace("values.yaml", "autoscaling:\n  enabled: false", "autoscaling:\n  enabled: true");
        repository
    }

    /// The same chart among 20,000 files in 1,000 directories, 100 MB together, that compress to a quarter.
    pub fn monorepo(helm: &Path, tag: &str) -> Self {
        let mut repository = Self::small(helm, tag);
        let mut text = Text::new(2);
        for number in 0..20_000 {
            let (team, service, file) = (number / 400, number / 20 % 20, number % 20);
            // From 1 to 9 kB, 5 kB on average.
            let length = 1000 + number * 7919 % 8001;
            let path = format!("teams/team-{team:02}/service-{service:02}/file-{file:02}.yaml");
            repository.0.insert(path.into(), text.take(length));
        }
        repository
    }

    /// Changes a template of the chart, and nothing that it renders.
    pub fn change_chart(&mut self, serial: usize) {
        let template = self.0.get_mut(&Path::new(APP).join("templates/service.yaml")).expect("a template");
        template.extend(format!("{{{{- /* {serial} */ -}}}}\n").bytes());
    }

    /// Changes one byte of a file that has nothing to do with the chart.
    pub fn change_unrelated(&mut self, serial: usize) {
        let file = self.0.get_mut(Path::new(UNRELATED)).expect("a file");
        file[serial] ^= 1;
    }

    /// The archive, with gzip's default level.
    pub fn archive(&self) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let mut entry = |path: &Path, kind: EntryType, mode: u32, content: &[u8]| {
            let mut header = Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content).expect("an entry");
        };
        let mut open = PathBuf::from(".");
        entry(&open, EntryType::Directory, 0o755, b"");
        for (path, content) in &self.0 {
            let parent = path.parent().expect("a directory");
            if parent != open {
                let mut new: Vec<&Path> = parent.ancestors().take_while(|dir| !open.starts_with(dir)).collect();
                while let Some(dir) = new.pop() {
                    entry(dir, EntryType::Directory, 0o755, b"");
                }
                parent.clone_into(&mut open);
            }
            entry(path, EntryType::Regular, 0o644, content);
        }
        builder.into_inner().and_then(GzEncoder::finish).expect("an archive")
    }

    fn add(&mut self, from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = to.join(path.file_name().expect("a name"));
            if path.is_dir() {
                self.add(&path, &name);
            } else {
                self.0.insert(name, std::fs::read(path).expect("a file"));
            }
        }
    }

    fn replace(&mut self, file: &str, from: &str, to: &str) {
        let content = self.0.get_mut(&Path::new(APP).join(file)).expect("a file");
        let text = String::from_utf8(std::mem::take(content)).expect("text");
        assert!(text.contains(from), "{file}: {from}");
        *content = text.replacen(from, to, 1).into();
    }
}

/// What people might have written into their repositories: lines of words, some words more often than others.
struct Text {
    words: Vec<String>,
    random: u64,
}

impl Text {
    fn new(seed: u64) -> Self {
        let mut text = Self { words: Vec::new(), random: seed };
        let syllables = ["ba", "con", "de", "fi", "gra", "ho", "ki", "lo", "me", "ne", "per", "qu", "ri", "ser", "ta", "ver"];
        for _ in 0..400 {
            let count = 1 + text.below(3) + text.below(2);
            let word = (0..count).map(|_| syllables[text.below(syllables.len())]).collect();
            text.words.push(word);
        }
        text
    }

    /// The next so many bytes, which are YAML.
    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut text = String::with_capacity(length + 64);
        while text.len() < length {
            let number = self.below(10);
            text += &format!("  {}-{number}:", self.word());
            for _ in 0..1 + self.below(6) {
                text.push(' ');
                let word = self.word().to_owned();
                text += &word;
            }
            text.push('\n');
        }
        let mut bytes = text.into_bytes();
        bytes.truncate(length - 1);
        bytes.push(b'\n');
        bytes
    }

    fn word(&mut self) -> &str {
        // Squared twice: the first words are met most.
        let place = (0..2).fold(self.below(self.words.len()), |place, _| place * self.below(self.words.len()) / self.words.len());
        &self.words[place]
    }

    /// Marsaglia's xorshift.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).expect("31 bits") % bound
    }
}
