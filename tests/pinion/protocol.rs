//! What the contract with Argo CD has in store for a server: hostile archives, large messages, old clients, long renders.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper_util::rt::TokioIo;
use pinion::server::proto::config_management_plugin_service_client::ConfigManagementPluginServiceClient as Client;
use tar::{Builder, EntryType, Header};
use tonic::Code;
use tonic::transport::{Endpoint, Uri};

use crate::serve::{Fixture, generate};
use crate::support::argocd::{Serving, messages};
use crate::support::driver::until;

/// Name, kind, target, content.
type Put<'a> = (&'a [u8], EntryType, &'a [u8], &'a [u8]);

/// An archive with entries that no honest client sends.
fn archive(entries: &[Put<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, kind, target, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        header.set_cksum();
        builder.append(&header, *content).expect("an entry");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("an archive")
}

const POD: &[u8] = b"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n";

async fn send(serving: &Serving, archive: &[u8]) -> Result<String, tonic::Status> {
    let environment = [("ARGOCD_APP_NAME".to_owned(), "web".to_owned())];
    generate(serving, messages(archive, "app", &environment, 1024)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&["--max-archive-bytes", "1000000", "--max-archive-entries", "50"]);
    let secret = fixture.checkout.path().join("secret");
    fs::write(&secret, POD).expect("written");
    let secret = secret.display().to_string();
    let pod = (&b"app/pod.yaml"[..], EntryType::Regular, &b""[..], POD);
    let zeros = vec![0; 1_100_000];
    let many: Vec<String> = (0..60).map(|n| format!("app/{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_bytes(), EntryType::Directory, &b""[..], &b""[..])).collect();
    for (entries, text) in [
        (vec![(&b"../../out"[..], EntryType::Regular, &b""[..], POD)], "illegal filepath in archive"),
        (vec![pod, (b"app/l", EntryType::Symlink, secret.as_bytes(), b"")], "illegal filepath in symlink"),
        (vec![pod, (b"app/l", EntryType::Symlink, b"../../../../etc", b"")], "illegal filepath in symlink"),
        (
            vec![pod, (b"app/a", EntryType::Symlink, b"..", b""), (b"app/a/b", EntryType::Symlink, b"..", b"")],
            "illegal filepath in symlink",
        ),
        (vec![pod, (b"app/bomb", EntryType::Regular, b"", &zeros)], "more than 1000000 bytes"),
        (vec![pod, (b"app/hidden-bomb", EntryType::Fifo, b"", &zeros)], "more than 1000000 bytes"),
        (vec![pod, (b"././@LongLink", EntryType::GNULongName, b"", &zeros), pod], "more than 1000000 bytes"),
        (many, "more than 50 entries"),
    ] {
        let status = send(&serving, &archive(&entries)).await.expect_err(text);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(text), "{text}: {status:?}");
        assert!(serving.left_behind().is_empty(), "{text}");
    }
    // Passed over, as Argo CD's own server does: what is neither file nor directory nor link.
    let odd = [
        pod,
        (b"app/hard.yaml", EntryType::Link, secret.as_bytes(), b""),
        (b"app/device.yaml", EntryType::Block, b"", b""),
        (b"app/pipe.yaml", EntryType::Fifo, b"", b""),
    ];
    let manifests = send(&serving, &archive(&odd)).await.expect("manifests");
    assert_eq!(manifests.matches("kind: Pod").count(), 1, "{manifests}");
    // A link to a directory above is inside, and a walk through it ends.
    let round = [pod, (b"app/round".as_slice(), EntryType::Symlink, b".".as_slice(), b"".as_slice())];
    assert!(send(&serving, &archive(&round)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_almost_a_hundred_mebibytes_go_both_ways() {
    let fixture = Fixture::new().await;
    // Noise, which stays as long as it is, in one message; and manifests of almost the bound.
    let mut noise = vec![0_u8; 90 << 20];
    let mut state = 1_u64;
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let chart = b"apiVersion: v2\nname: x\nversion: 0.1.0\n".as_slice();
    let archive =
        archive(&[(b"app/Chart.yaml", EntryType::Regular, b"", chart), (b"other/noise", EntryType::Regular, b"", &noise)]);
    assert!(archive.len() > 90 << 20);
    let tools = tempfile::tempdir().expect("a directory");
    let helm = tools.path().join("helm");
    let script = "#!/bin/sh\n[ $1 = serve ] && exit 1\nprintf 'apiVersion: v1\\nkind: ConfigMap\\ndata:\\n  a: \"'\nhead -c 95000000 /dev/zero | tr '\\0' x\nprintf '\"\\n'\n";
    fs::write(&helm, script).expect("written");
    fs::set_permissions(&helm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let serving = fixture.serve(&["--helm", &helm.display().to_string()]);
    let environment = [("ARGOCD_APP_NAME".to_owned(), "web".to_owned())];
    let whole = messages(&archive, "app", &environment, 100 << 20);
    assert_eq!(whole.len(), 2, "the archive is one message");
    let mut client = serving.client().await.max_encoding_message_size(100 << 20);
    let answer = client.generate_manifest(tokio_stream::iter(whole)).await.expect("manifests").into_inner();
    assert!(answer.manifests.concat().len() > 95_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_while_a_render_takes_its_time() {
    let fixture = Fixture::new().await;
    fs::write(fixture.checkout.path().join("app/Chart.yaml"), "apiVersion: v2\nname: x\nversion: 0.1.0\n").expect("written");
    let tools = tempfile::tempdir().expect("a directory");
    let helm = tools.path().join("helm");
    let wait = format!("while ! [ -e {}/release ]; do sleep 0.05; done", tools.path().display());
    fs::write(&helm, format!("#!/bin/sh\n[ $1 = serve ] && exit 1\n{wait}\nprintf 'apiVersion: v1\\nkind: Pod\\n'\n"))
        .expect("written");
    fs::set_permissions(&helm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let serving = fixture.serve(&["--helm", &helm.display().to_string(), "--renders-at-once", "1"]);
    let socket = serving.socket();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // Argo CD pings every 20 s and waits 20 s.
    let endpoint = Endpoint::from_static("http://plugin")
        .http2_keep_alive_interval(Duration::from_millis(200))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(connect).await.expect("a connection");
    let origin: Uri = "http://home%2Fplugins%2Fpinion@v1.sock".parse().expect("an authority");
    let mut client = Client::with_origin(channel.clone(), origin);
    let call = client.generate_manifest(tokio_stream::iter(fixture.messages(1024)));
    let (answer, health) = tokio::join!(call, async {
        until("the render does not run", async || serving.get("/metrics").await.contains("pinion_renders_running 1")).await;
        // The connection that waits for it is served meanwhile: calls on it, and pings that come between them.
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        for _ in 0..10 {
            let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
            assert_eq!(health.check(request).await.expect("an answer").into_inner().status, 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let health = serving.get("/healthz").await;
        fs::write(tools.path().join("release"), "").expect("written");
        health
    });
    assert!(answer.expect("manifests").into_inner().manifests.concat().contains("kind: Pod"));
    assert!(health.starts_with("HTTP/1.1 200"));
}

/// The frames are written by hand: Argo CD up to 2.9 sends the socket's path as it is, which is no authority by any library here. It
/// needs the per-render mode; the others' calls go on.
#[tokio::test(flavor = "multi_thread")]
async fn both_escaped_authorities_are_understood_and_the_raw_one_harms_nobody() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let is_answered = |text: &str| {
        let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
        let mut literal = |name: &[u8], value: &str| {
            block.extend_from_slice(name);
            block.push(u8::try_from(value.len()).expect("a short value"));
            block.extend_from_slice(value.as_bytes());
        };
        literal(&[0x04], "/plugin.ConfigManagementPluginService/CheckPluginConfiguration"); // :path
        literal(&[0x01], text); // :authority
        literal(&[0x0f, 0x10], "application/grpc"); // content-type
        literal(&[0x00, 0x02, b't', b'e'], "trailers");
        let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
            let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
            [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
        };
        let sent = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 0x4, 1, &block),
            frame(0, 0x1, 1, &[0; 5]),
        ];
        let mut stream = UnixStream::connect(serving.socket()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        stream.write_all(&sent.concat()).expect("sent");
        // Frames until ours: HEADERS, or RST_STREAM.
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).expect("its payload");
            match head[3] {
                1 => return payload.first() == Some(&0x88), // :status 200
                3 => return false,
                7 => panic!("the connection was closed: {payload:?}"),
                _ => {}
            }
        }
    };
    for _ in 0..2 {
        assert!(is_answered("home%2Fargocd%2Fcmp-server%2Fplugins%2Fpinion@v1.sock"));
        assert!(is_answered("%2Fhome%2Fargocd%2Fcmp-server%2Fplugins%2Fpinion@v1.sock"));
        assert!(!is_answered("/home/argocd/cmp-server/plugins/pinion@v1.sock"));
    }
}

/// The admin port is open to the cluster: whoever holds connections to it open keeps nobody from a render, nor from the port.
#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_connections_to_the_admin_port_change_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("raised");
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let mut idle = Vec::new();
    for number in 0..5000 {
        let mut stream = tokio::net::TcpStream::connect(&serving.admin).await.expect("a connection");
        // Some say nothing, some never end what they say.
        let start: &[u8] = if number % 2 == 0 { b"" } else { b"GET /metrics HTTP/1.1\r\nHost: x\r\n" };
        // It may be closed already, for a newer one.
        let _ = stream.write_all(start).await;
        idle.push(stream);
        if number % 1000 == 0 {
            let manifests = generate(&serving, fixture.messages(1024)).await.expect("manifests");
            assert!(manifests.contains("ghcr.io/acme/web:1.1.0"), "{manifests}");
            assert!(serving.get("/healthz").await.ends_with("ok\n"), "{number}");
        }
    }
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", serving.child.id())).expect("a directory").count();
    crate::support::driver::until("its connections are not closed", async || descriptors() < 150).await;
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    // What is never ended is closed, also without a newer one.
    let mut slow = tokio::net::TcpStream::connect(&serving.admin).await.expect("a connection");
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await.expect("sent");
    let mut answer = Vec::new();
    tokio::time::timeout(crate::support::driver::PATIENCE, slow.read_to_end(&mut answer))
        .await
        .expect("it ends")
        .expect("closed");
    // One connection can ask again and again.
    let mut kept = tokio::net::TcpStream::connect(&serving.admin).await.expect("a connection");
    for _ in 0..3 {
        kept.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        let mut answer = [0; 15];
        kept.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        let mut rest = [0; 1024];
        assert!(kept.read(&mut rest).await.expect("the rest") > 0);
    }
    drop(idle);
}
