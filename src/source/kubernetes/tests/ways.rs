// SPDX-License-Identifier: Apache-2.0
//! The ways to an API server: certificates, tokens, plugins, proxies and addresses, against a small
//! server with TLS.

use std::fs;
use std::path::PathBuf;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::server::Shown;
use super::*;

/// A file of `certificates`, which `make.sh` there makes.
pub(super) fn file(name: &str) -> PathBuf {
    let folder = "src/source/kubernetes/tests/certificates";
    [env!("CARGO_MANIFEST_DIR"), folder, name].iter().collect()
}

pub(super) fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file(&format!("{name}.crt"))).unwrap()
}

/// A server's side: its certificate, and whether it wants one of the client.
pub(super) fn shown(name: &str, wants_certificate: bool) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("ca")).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_certificate {
        builder.with_client_cert_verifier(verifier.unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(vec![certificate(name)], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A server with TLS, and a kubeconfig for it.
pub(super) struct Way {
    pub(super) fixture: Fixture,
    folder: TempDir,
    pub(super) tls: Shown,
}

/// The fields of a kubeconfig; `DIR` is the folder that it is in.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// With `{}` for the port.
    pub(super) server: &'a str,
    pub(super) cluster: &'a str,
    pub(super) user: &'a str,
}

pub(super) const PLAIN: Fields<'_> = Fields {
    server: "https://127.0.0.1:{}",
    cluster: "certificate-authority: ca.crt",
    user: "",
};

impl Way {
    pub(super) async fn new(server: Arc<rustls::ServerConfig>, fields: Fields<'_>) -> Self {
        Self::prepared(server, fields, |_| {}).await
    }

    async fn prepared(
        server: Arc<rustls::ServerConfig>,
        fields: Fields<'_>,
        prepare: impl FnOnce(&TempDir),
    ) -> Self {
        let tls: Shown = Arc::new(Mutex::new(server));
        let address = if fields.server.contains("[::1]") {
            "[::1]:0"
        } else {
            "127.0.0.1:0"
        };
        let started = Server::start_at(address, SERVICES, Some(tls.clone())).await;
        let folder = TempDir::new().unwrap();
        for name in [
            "ca",
            "client",
            "own-authority",
            "p521-ca",
            "p521-sha256",
            "server",
        ] {
            for ending in ["crt", "key"] {
                let name = format!("{name}.{ending}");
                if file(&name).exists() {
                    fs::copy(file(&name), folder.path().join(name)).unwrap();
                }
            }
        }
        prepare(&folder);
        let port = started.0.address().port().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: k, cluster: {{server: '{}', {}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             users: [{{name: u, user: {{{}}}}}]\n",
            fields.server.replace("{}", &port),
            fields.cluster,
            fields.user,
        );
        let text = text.replace("DIR", folder.path().to_str().unwrap());
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, text).unwrap();
        let config = Config {
            kubeconfig: Some(kubeconfig),
            ..Config::default()
        };
        let fixture = Fixture::with(started, config);
        Self {
            fixture,
            folder,
            tls,
        }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Puts a file of the certificates into the place of another.
    fn put(&self, name: &str, as_: &str) {
        fs::copy(file(name), self.folder.path().join(as_)).unwrap();
    }

    async fn authorization(&mut self) -> (String, server::Stream) {
        let asked = self.fixture.asked().await;
        let authorization = asked.header("authorization").to_owned();
        (authorization, asked.stream())
    }

    /// No request gets through; waits until some have failed.
    pub(super) async fn fails(&mut self) {
        let recorder = self.fixture.recorder.clone();
        within(async {
            while recorder.requests.lock().unwrap().len() < 4 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let requests = recorder.requests.lock().unwrap();
        assert!(requests.iter().all(|(.., code)| code.is_none()));
    }
}

#[tokio::test]
async fn all_watches_share_one_connection_where_the_server_speaks_http_2() {
    let mut way = Way::new(shown("server", false), PLAIN).await;
    for _ in 0..3 {
        let asked = way.fixture.asked().await;
        assert_eq!(asked.version, http::Version::HTTP_2);
        let watch = asked.stream();
        watch.send(&end_of_services(5));
        drop(watch);
    }
    let asked = way.fixture.asked().await;
    let connection = asked.peer.connection;
    // Those that were begun together at the start may be more than one.
    assert!(connection <= 4, "{connection}");
}

#[tokio::test]
async fn a_server_without_http_2_is_asked_with_http_1() {
    let mut config = Arc::unwrap_or_clone(shown("server", false));
    config.alpn_protocols = Vec::new();
    let mut way = Way::new(Arc::new(config), PLAIN).await;
    let asked = way.fixture.asked().await;
    assert_eq!(asked.version, http::Version::HTTP_11);
}

#[tokio::test]
async fn addresses_names_and_paths_of_urls_count() {
    for (server, cluster, path) in [
        ("https://[::1]:{}", "", SERVICES),
        (
            "https://127.0.0.1:{}/k8s/clusters/c-1",
            "",
            "/k8s/clusters/c-1/api/v1/services",
        ),
        (
            "https://127.0.0.1:{}/",
            ", tls-server-name: kubernetes",
            SERVICES,
        ),
        (
            "https://localhost:{}/",
            ", tls-server-name: 127.0.0.1",
            SERVICES,
        ),
    ] {
        let cluster = format!("certificate-authority: ca.crt{cluster}");
        let fields = Fields {
            server,
            cluster: &cluster,
            ..PLAIN
        };
        let mut way = Way::new(shown("server", false), fields).await;
        assert_eq!(way.fixture.asked().await.path, path, "{server}");
    }
}

#[tokio::test]
async fn a_server_with_another_name_or_authority_is_refused() {
    for (server, cluster) in [
        (
            "https://127.0.0.1:{}",
            "certificate-authority: ca.crt, tls-server-name: other",
        ),
        (
            "https://127.0.0.1:{}",
            "certificate-authority: own-authority.crt",
        ),
        // None at all: those of the system and of the public.
        ("https://127.0.0.1:{}", ""),
    ] {
        let fields = Fields {
            server,
            cluster,
            user: "",
        };
        Way::new(shown("server", false), fields).await.fails().await;
    }
}

#[tokio::test]
async fn a_server_may_be_its_own_authority_or_be_pinned() {
    let own = Fields {
        cluster: "certificate-authority: own-authority.crt",
        ..PLAIN
    };
    let mut way = Way::new(shown("own-authority", false), own).await;
    way.fixture.asked().await;
    let pinned = Fields {
        cluster: "certificate-authority: server.crt",
        ..PLAIN
    };
    let mut way = Way::new(shown("server", false), pinned).await;
    way.fixture.asked().await;
    // It has no such name.
    let elsewhere = Fields {
        cluster: "certificate-authority: own-authority.crt, tls-server-name: other",
        ..PLAIN
    };
    let mut way = Way::new(shown("own-authority", false), elsewhere).await;
    way.fails().await;
}

#[tokio::test]
async fn insecure_takes_any_server_and_needs_no_authorities() {
    let fields = Fields {
        cluster: "insecure-skip-tls-verify: true",
        ..PLAIN
    };
    let mut way = Way::new(shown("other-server", false), fields).await;
    way.fixture.asked().await;
}

const WITH_CERTIFICATE: Fields<'_> = Fields {
    user: "client-certificate: client.crt, client-key: client.key",
    ..PLAIN
};

#[tokio::test]
async fn a_client_certificate_of_version_1_is_shown() {
    let mut way = Way::prepared(shown("server", false), WITH_CERTIFICATE, |folder| {
        for ending in ["crt", "key"] {
            let to = folder.path().join(format!("client.{ending}"));
            fs::copy(file(&format!("client-v1.{ending}")), to).unwrap();
        }
    })
    .await;
    // This server cannot read it, and does not ask; the start is what failed.
    way.fixture.asked().await;
}

#[tokio::test]
async fn a_renewed_client_certificate_is_used_at_once_and_old_connections_end() {
    let mut way = Way::new(shown("server", true), WITH_CERTIFICATE).await;
    let asked = way.fixture.asked().await;
    assert_eq!(asked.peer.certificate, Some(certificate("client")));
    let before = asked.peer.connection;
    let watch = asked.stream();
    watch.send(&event("ADDED", &service("a", "10.96.0.1", 1)));
    watch.send(&end_of_services(5));
    way.fixture.services().await;

    // Half of it is there: the old pair stays.
    way.put("renewed-client.crt", "client.crt");
    pass(40).await;
    watch.send(&event("MODIFIED", &service("a", "10.96.0.2", 6)));
    way.fixture.services().await;
    way.put("renewed-client.key", "client.key");
    let (asked, seconds) = asked_after(&mut way.fixture.asked, |_| {}).await;
    assert!(seconds <= 40, "{seconds}");
    assert_eq!(asked.peer.certificate, Some(certificate("renewed-client")));
    assert!(asked.peer.connection > before);
    assert_eq!(query(&asked, "resourceVersion"), Some("6".to_owned()));
    drop(watch);
}

#[tokio::test]
async fn a_renewed_authority_is_followed() {
    let mut way = Way::new(shown("server", false), PLAIN).await;
    let watch = way.fixture.asked().await.stream();
    watch.send(&end_of_services(5));
    way.fixture.services().await;
    let both = [file("ca.crt"), file("other-ca.crt")].map(|path| fs::read(path).unwrap());
    way.write("ca.crt", both.concat());
    let (asked, _) = asked_after(&mut way.fixture.asked, |_| {}).await;
    let renewed = asked.stream();
    *way.tls.lock().unwrap() = shown("other-server", false);
    way.put("other-ca.crt", "ca.crt");
    let (asked, _) = asked_after(&mut way.fixture.asked, |_| {}).await;
    drop(renewed);
    assert_eq!(query(&asked, "resourceVersion"), Some("5".to_owned()));
    drop(watch);
}

#[tokio::test]
async fn a_token_file_is_trimmed_and_read_again() {
    let fields = Fields {
        user: "token: inline, tokenFile: token",
        ..PLAIN
    };
    let mut way = Way::prepared(shown("server", false), fields, |folder| {
        fs::write(folder.path().join("token"), " first\r\n\n").unwrap();
    })
    .await;
    let (authorization, watch) = way.authorization().await;
    assert_eq!(authorization, "Bearer first");
    // Empty while it is written.
    way.write("token", "");
    pass(15).await;
    drop(watch);
    let (authorization, watch) = way.authorization().await;
    assert_eq!(authorization, "Bearer first");
    way.write("token", "\u{feff}second\n");
    pass(15).await;
    drop(watch);
    assert_eq!(way.authorization().await.0, "Bearer second");
}

#[tokio::test]
async fn a_token_file_that_is_empty_at_first_is_waited_for() {
    let fields = Fields {
        user: "tokenFile: token",
        ..PLAIN
    };
    let mut way = Way::prepared(shown("server", false), fields, |folder| {
        fs::write(folder.path().join("token"), "\n").unwrap();
    })
    .await;
    way.fails().await;
    way.write("token", "late");
    assert_eq!(way.authorization().await.0, "Bearer late");
}

#[tokio::test]
async fn a_refused_token_is_read_again_before_the_next_request() {
    let fields = Fields {
        user: "tokenFile: token",
        ..PLAIN
    };
    let mut way = Way::prepared(shown("server", false), fields, |folder| {
        fs::write(folder.path().join("token"), "old").unwrap();
    })
    .await;
    let asked = way.fixture.asked().await;
    assert_eq!(asked.header("authorization"), "Bearer old");
    way.write("token", "new");
    let refused = status(401, "Unauthorized", "no");
    pass(2).await;
    asked.answer(Answer::json(401, &refused));
    assert_eq!(way.authorization().await.0, "Bearer new");
}

/// A plugin that prints what a file holds.
fn plugin(folder: &TempDir, status: &Value) {
    let answer = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": status,
    });
    fs::write(folder.path().join("answer"), answer.to_string()).unwrap();
}

const WITH_PLUGIN: Fields<'_> = Fields {
    user: "exec: {apiVersion: client.authentication.k8s.io/v1, command: cat, args: [DIR/answer], \
           interactiveMode: Never}",
    ..PLAIN
};

/// A time so many seconds from now.
fn after(seconds: i64) -> String {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    time.to_string()
}

#[tokio::test]
async fn a_plugins_certificate_is_renewed_before_it_expires() {
    let pair = |name: &str, expires: &str| {
        let text = |ending: &str| fs::read_to_string(file(&format!("{name}.{ending}"))).unwrap();
        json!({
            "clientCertificateData": text("crt"), "clientKeyData": text("key"),
            "expirationTimestamp": expires,
        })
    };
    let mut way = Way::prepared(shown("server", true), WITH_PLUGIN, |folder| {
        plugin(folder, &pair("client", &after(30)));
    })
    .await;
    let asked = way.fixture.asked().await;
    assert_eq!(asked.peer.certificate, Some(certificate("client")));
    plugin(&way.folder, &pair("renewed-client", &after(3600)));
    // The next request finds the old one about to expire.
    asked.answer(Answer::json(503, &status(503, "ServiceUnavailable", "no")));
    let asked = way.fixture.asked().await;
    assert_eq!(asked.peer.certificate, Some(certificate("renewed-client")));
}

#[tokio::test]
async fn a_plugins_token_is_used() {
    let mut way = Way::prepared(shown("server", false), WITH_PLUGIN, |folder| {
        plugin(folder, &json!({"token": "from-plugin"}));
    })
    .await;
    assert_eq!(way.authorization().await.0, "Bearer from-plugin");
}

/// A proxy that takes one kind of greeting and passes bytes on. Says what it was asked for.
async fn proxy(is_socks: bool) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, asked) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let target = if is_socks {
                    socks(&mut stream).await
                } else {
                    connect(&mut stream, &sender).await
                };
                sender.send(target.clone()).await.ok();
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::io::copy_bidirectional(&mut stream, &mut server)
                    .await
                    .ok();
            });
        }
    });
    (port, asked)
}

/// The target of an HTTP proxy's `CONNECT`; its password is said, too.
async fn connect(stream: &mut BufReader<TcpStream>, said: &mpsc::Sender<String>) -> String {
    let mut target = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let lower = line.to_lowercase();
        if let Some(rest) = line.strip_prefix("CONNECT ") {
            rest.split(' ').next().unwrap().clone_into(&mut target);
        } else if lower.starts_with("proxy-authorization:") {
            let (_, value) = line.split_once(':').unwrap();
            said.send(value.trim().to_owned()).await.unwrap();
        } else if line.trim().is_empty() {
            break;
        }
    }
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    stream.get_mut().write_all(established).await.unwrap();
    target
}

/// The target of SOCKS 5 without a password: an IPv4 address.
async fn socks(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.unwrap();
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods).await.unwrap();
    stream.get_mut().write_all(&[5, 0]).await.unwrap();
    let mut request = [0; 10];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request[..4], [5, 1, 0, 1]);
    let answer = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    stream.get_mut().write_all(&answer).await.unwrap();
    let address = std::net::Ipv4Addr::new(request[4], request[5], request[6], request[7]);
    let port = u16::from_be_bytes([request[8], request[9]]);
    format!("{address}:{port}")
}

#[tokio::test]
async fn proxies_are_used() {
    for (is_socks, url) in [
        (false, "http://user:pass@127.0.0.1"),
        (true, "socks5://127.0.0.1"),
    ] {
        let (port, mut asked) = proxy(is_socks).await;
        let cluster = format!("certificate-authority: ca.crt, proxy-url: '{url}:{port}'");
        let fields = Fields {
            cluster: &cluster,
            ..PLAIN
        };
        let mut way = Way::new(shown("server", false), fields).await;
        way.fixture.asked().await;
        if !is_socks {
            assert_eq!(within(asked.recv()).await.unwrap(), "Basic dXNlcjpwYXNz");
        }
        let target = way.fixture.server.address().to_string();
        let mut seen = within(asked.recv()).await.unwrap();
        // The four watches begin together.
        while seen.starts_with("Basic") {
            seen = within(asked.recv()).await.unwrap();
        }
        assert_eq!(seen, target);
    }
}
