//! Which hosts may be asked, and over which connection.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

#[tokio::test]
async fn hosts_that_nobody_declared_must_be_public_names() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let client = Client::new(RegistriesConfig::default(), limits());
    let port = registry.port();
    for host in [
        registry.host(),
        format!("localhost:{port}"),
        format!("127.1:{port}"),
        format!("0x7f.1:{port}"),
        "169.254.169.254".to_owned(),
    ] {
        let repository: Repository = format!("{host}/acme/web").parse().expect("a repository");
        let error = client.tags(&repository, &OPERATOR).await.expect_err(&host);
        assert!(matches!(error, RegistryError::HostRefused { .. }), "{host}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("registries.conf")));
    }
    assert_eq!(registry.connections(), 0);
}

#[tokio::test]
async fn operators_can_list_the_hosts_that_may_be_asked() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let allowed = vec!["ghcr.io".parse().expect("a host")];
    let client = client_with(&registry, "", Limits { allowed_hosts: Some(allowed), ..limits() });
    tags(&client, &registry).await.expect("declared");
    for image in ["quay.io/acme/web", "nginx", "ghcr.io.example/a"] {
        let error = client.tags(&image.parse().expect(image), &OPERATOR).await.expect_err(image);
        assert!(matches!(error, RegistryError::HostRefused { .. }), "{image}: {error}");
    }
}

#[tokio::test]
async fn a_new_configuration_is_used_from_the_next_question_on() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    let client = client(&registry);
    assert!(denied(&tags(&client, &registry).await.expect_err("anonymous")));
    let script = Script::printing("alice:s3cret");
    client.replace(config(&registry, &script.line()));
    tags(&client, &registry).await.expect("a listing");
}

// TLS. The certificates in `tls/` were made for these tests: an authority, and a server at 127.0.0.1.

const AUTHORITY: &str = include_str!("../tls/ca.pem");

/// A registry over TLS that says the same to everybody: `{"tags":["1.0"]}`. Counts connections, and stops with the test.
fn tls_registry() -> (u16, Arc<AtomicUsize>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pem = |text: &str| text.as_bytes().to_vec();
    let chain =
        CertificateDer::pem_slice_iter(&pem(include_str!("../tls/server.pem"))).map(|one| one.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_slice(&pem(include_str!("../tls/server.key"))).expect("a key");
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key");
    let config = Arc::new(config);
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            counter.fetch_add(1, Ordering::SeqCst);
            let mut session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut tls = rustls::Stream::new(&mut session, &mut stream);
            let mut request = [0; 4096];
            // A client that does not trust us is gone by now.
            let Ok(1..) = tls.read(&mut request) else { continue };
            let body = r#"{"tags":["1.0"]}"#;
            let _ = write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            session.send_close_notify();
            let _ = session.complete_io(&mut stream);
        }
    });
    (port, connections)
}

async fn over_tls(port: u16, lines: &str) -> Result<Arc<Listing>, RegistryError> {
    let text = format!("registries:\n- name: tls\n  prefix: '127.0.0.1:{port}'\n  api_url: https://127.0.0.1:{port}\n{lines}");
    let config = RegistriesConfig::parse(&text, Path::new("registries.conf")).expect("a configuration");
    let repository: Repository = format!("127.0.0.1:{port}/acme/web").parse().expect("a repository");
    Client::new(config, limits()).tags(&repository, &OPERATOR).await
}

#[tokio::test]
async fn certificates_are_verified_with_the_operators_authorities() {
    let (port, connections) = tls_registry();
    let data: String = AUTHORITY.lines().map(|line| format!("    {line}\n")).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), AUTHORITY).expect("written");
    for lines in
        [format!("  ca_data: |\n{data}"), format!("  ca_file: {}\n", file.path().display()), "  insecure: yes\n".to_owned()]
    {
        let listing = over_tls(port, &lines).await;
        assert_eq!(names(&listing.unwrap_or_else(|error| panic!("{lines}: {}", shown(&error)))), ["1.0"]);
    }
    let asked = connections.load(Ordering::SeqCst);
    let error = over_tls(port, "").await.expect_err("an unknown authority");
    assert!(matches!(error, RegistryError::Tls { .. }), "{}", shown(&error));
    assert!(error.hint().is_some_and(|hint| hint.contains("ca_file")));
    assert!(connections.load(Ordering::SeqCst) <= asked + 1, "an untrusted registry is asked once");
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_is_named() {
    let garbage = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(garbage.path(), "no certificate").expect("written");
    for path in [Path::new("/no/such/file.pem"), garbage.path()] {
        let error = over_tls(1, &format!("  ca_file: {}\n", path.display())).await.expect_err("unreadable");
        assert!(
            matches!(error, RegistryError::Tls { .. }) && shown(&error).contains(&path.display().to_string()),
            "{}",
            shown(&error)
        );
    }
}

#[tokio::test]
async fn https_to_a_port_without_tls_says_which_setting_is_wrong() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let host = registry.host();
    let error = over_tls(registry.port(), "").await.expect_err("no TLS");
    assert!(matches!(error, RegistryError::PlainHttp { .. }), "{}", shown(&error));
    assert_eq!(error.to_string(), format!("registry `{host}` answers without TLS at `https://{host}`"));
    let hint = error.hint().expect("a hint");
    assert!(hint.contains(&format!("api_url: http://{host}")) && !hint.contains("ca_file"), "{hint}");
}

#[tokio::test]
async fn http_to_a_port_with_tls_says_which_setting_is_wrong() {
    for body in ["Client sent an HTTP request to an HTTPS server.\n", "<h1>400</h1>The plain HTTP request was sent to HTTPS port"]
    {
        let registry = FakeRegistry::start().await;
        registry.fault(Fault::Status { status: 400, headers: Vec::new(), body: body.as_bytes().to_vec() });
        let host = registry.host();
        let error = tags(&client(&registry), &registry).await.expect_err("TLS is wanted");
        assert!(matches!(error, RegistryError::WantsTls { .. }), "{}", shown(&error));
        assert_eq!(error.to_string(), format!("registry `{host}` wants TLS at `http://{host}`"));
        let hint = error.hint().expect("a hint");
        assert!(hint.contains(&format!("api_url: https://{host}")), "{hint}");
    }
}
