//! A Helm repository over HTTP with one chart.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::support::driver::tool;

/// A server of files, for as long as the program runs.
pub struct Files {
    port: u16,
}

impl Files {
    /// Packs a chart under this version, and serves it.
    pub fn of_chart(chart: &Path, version: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let files = Self { port };
        let directory = tempfile::tempdir().expect("a directory");
        let helm = |arguments: &[&str]| {
            let output = Command::new(tool("helm").expect("helm is there")).args(arguments).output().expect("helm starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let place = directory.path().display().to_string();
        helm(&["package", &chart.display().to_string(), "--version", version, "--destination", &place]);
        helm(&["repo", "index", &place, "--url", &files.url()]);
        let directory = Arc::new(directory);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let directory = Arc::clone(&directory);
                std::thread::spawn(move || answer(stream, &directory));
            }
        });
        files
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, directory: &TempDir) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let name = head.split_whitespace().nth(1).unwrap_or("/").trim_start_matches('/');
    let found = if name.contains('/') { None } else { std::fs::read(directory.path().join(name)).ok() };
    let (status, body) = found.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}
