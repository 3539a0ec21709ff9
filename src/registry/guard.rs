//! Which hosts may be asked.
//!
//! An image's name comes from a tenant, and a redirect from a registry that may be hostile; without a guard either could make us talk
//! to anything that this machine can reach. A host that the operator declares in `registries.conf` may be asked whatever its address.
//! Of all others only public DNS names over https may: no IP literals in any spelling, no local names, and no name that resolves to a
//! loopback, link-local, private, shared (CGNAT), unique local, multicast, documentation or metadata address. The addresses are those
//! that the connection is made to (`Resolver` filters them inside the connector), so a name cannot change its mind between check and
//! use. Ranges follow the IANA special-purpose registries for [IPv4] and [IPv6].
//!
//! **Proxies.** Hosts named in `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` may be connected to, since the operator named them, but not
//! asked as registries. A proxy resolves the target's name itself, out of our sight. So with a proxy set we look the name up too and
//! refuse it when our resolver knows it and every address is forbidden; a name that only the proxy can resolve is left to the proxy's
//! own rules. Operators with a proxy inside the perimeter should set the list of allowed hosts.
//!
//! [IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry/
//! [IPv6]: https://www.iana.org/assignments/iana-ipv6-special-registry/

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why a host may not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is an IP address")]
    Literal,
    #[error("it is not a public DNS name")]
    LocalName,
    #[error("it resolves to a private or reserved address")]
    PrivateAddress,
    #[error("it would be asked without TLS")]
    Insecure,
    #[error("it is the proxy")]
    Proxy,
    #[error("it is not in the list of allowed hosts")]
    NotAllowed,
    #[error("it is not a host name")]
    Unreadable,
}

/// A host, or `*.` and a domain for all hosts below it, as operators write them in their list of allowed hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    host: Box<str>,
    below: bool,
}

impl HostPattern {
    /// Does this host, perhaps with a port, fit? A pattern without a port fits any port.
    pub fn accepts(&self, host: &str) -> bool {
        let fits = |host: &str| match self.below {
            false => host.eq_ignore_ascii_case(&self.host),
            true => {
                host.len().checked_sub(self.host.len()).and_then(|start| host.get(start..).map(|tail| (start, tail))).is_some_and(
                    |(start, tail)| start > 1 && tail.eq_ignore_ascii_case(&self.host) && host[..start].ends_with('.'),
                )
            }
        };
        fits(host) || host.rsplit_once(':').is_some_and(|(host, _)| fits(host))
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, below) = match text.strip_prefix("*.") {
            Some(host) => (host, true),
            None => (text, false),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
        if host.is_empty() || !host.bytes().all(legal) || host.starts_with('.') {
            return Err(format!("`{}` is not a host: write `ghcr.io` or `*.example.com`", crate::image::printable(text)));
        }
        Ok(Self { host: host.to_ascii_lowercase().into(), below })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.host)
    }
}

/// The rules for one registry.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// Hosts that may be asked whatever their address: the registry's own and its token services', if the operator declared them.
    declared: Arc<BTreeSet<String>>,
    /// Is plain http allowed, because the operator declared the registry so?
    plain: bool,
    proxies: Arc<BTreeSet<String>>,
}

impl Guard {
    pub fn new(declared: impl IntoIterator<Item = String>, plain: bool) -> Self {
        Self {
            declared: Arc::new(declared.into_iter().collect()),
            plain,
            proxies: Arc::new(proxies(|name| std::env::var(name).ok())),
        }
    }

    /// Checks what a URL says, without asking DNS. Everything that is sent passes here.
    pub fn check(&self, url: &Url) -> Result<(), Refusal> {
        let host = url.host_str().ok_or(Refusal::Unreadable)?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain => {}
            _ => return Err(Refusal::Insecure),
        }
        if self.declared.contains(host) {
            return Ok(());
        }
        check_name(host)?;
        if self.proxies.contains(host) { Err(Refusal::Proxy) } else { Ok(()) }
    }

    /// Checks the addresses of a host that a proxy will resolve. Without a proxy the connector does.
    pub async fn check_behind_proxy(&self, url: &Url) -> Result<(), Refusal> {
        let Some(host) = url.host_str().filter(|host| !self.proxies.is_empty() && !self.declared.contains(*host)) else {
            return Ok(());
        };
        match tokio::net::lookup_host((host, url.port_or_known_default().unwrap_or(443))).await {
            Ok(addresses) => {
                let mut addresses = addresses.peekable();
                let known = addresses.peek().is_some();
                if known && !addresses.any(|address| is_public(address.ip())) { Err(Refusal::PrivateAddress) } else { Ok(()) }
            }
            Err(_) => Ok(()),
        }
    }

    pub fn resolver(&self) -> Resolver {
        Resolver { guard: self.clone() }
    }
}

/// Resolves names for the connector and drops the addresses that may not be asked.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    guard: Guard,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let exempt = self.guard.declared.contains(name.as_str()) || self.guard.proxies.contains(name.as_str());
        Box::pin(async move {
            // The port is a placeholder; the connector sets its own.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found.filter(|address| exempt || is_public(address.ip())).collect();
            if addresses.is_empty() {
                return Err(Refusal::PrivateAddress.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Checks a host in a URL's normal form, in which `127.1`, `0x7f.1` and `2130706433` have become `127.0.0.1`
/// ([WHATWG URL](https://url.spec.whatwg.org/#concept-ipv4-parser)).
fn check_name(host: &str) -> Result<(), Refusal> {
    /// Domains that are nobody's in public, and where clusters and clouds keep their own services.
    const LOCAL: [&str; 8] = ["localhost", "local", "internal", "svc", "lan", "home.arpa", "localdomain", "invalid"];
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return Err(Refusal::Literal);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if !name.contains('.') || LOCAL.into_iter().any(below) {
        return Err(Refusal::LocalName);
    }
    Ok(())
}

/// Is this an address of the public internet?
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    /// Networks that are not the internet, and how many leading bits name them.
    const RESERVED: [(Ipv4Addr, u32); 16] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 31, 196, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 3),
        // Azure's metadata and DNS service, on an address that looks public.
        (Ipv4Addr::new(168, 63, 129, 16), 32),
    ];
    !RESERVED.iter().any(|&(network, bits)| (address.to_bits() ^ network.to_bits()) >> (32 - bits) == 0)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let low = Ipv4Addr::from_bits(u32::from(parts[6]) << 16 | u32::from(parts[7]));
    match parts {
        // IPv4 in IPv6: mapped, and NAT64's well-known prefix, which clusters without IPv4 reach the internet by.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(low),
        // Protocol assignments and Teredo, documentation, 6to4, documentation again.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is all that is assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The hosts of the proxies that the environment names.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> BTreeSet<String> {
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
        .into_iter()
        .filter_map(|name| variable(name).filter(|value| !value.is_empty()))
        .filter_map(|value| {
            let url = if value.contains("://") { value } else { format!("http://{value}") };
            Some(Url::parse(&url).ok()?.host_str()?.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard {
            declared: Arc::new(["10.0.0.5".to_owned(), "harbor.lan".to_owned()].into()),
            plain: false,
            proxies: Arc::default(),
        }
    }

    fn check(guard: &Guard, host: &str) -> Result<(), Refusal> {
        guard.check(&Url::parse(&format!("https://{host}/v2/")).expect(host))
    }

    #[test]
    fn ip_literals_are_refused_however_they_are_spelt() {
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "127.0.0.1.",
            "1.1.1.1",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "169.254.169.254",
        ] {
            assert_eq!(check(&guard(), host), Err(Refusal::Literal), "{host}");
        }
    }

    #[test]
    fn local_names_are_refused() {
        for host in [
            "localhost",
            "localhost.",
            "a.localhost",
            "redis",
            "redis.argocd.svc",
            "kubernetes.default.svc.cluster.local",
            "metadata.google.internal",
            "nas.lan",
        ] {
            assert_eq!(check(&guard(), host), Err(Refusal::LocalName), "{host}");
        }
        for host in ["ghcr.io", "europe-docker.pkg.dev", "notlocalhost.example", "xn--bcher-kva.example", "ghcr.io:8443"] {
            assert_eq!(check(&guard(), host), Ok(()), "{host}");
        }
    }

    #[test]
    fn declared_hosts_are_asked_whatever_their_address() {
        assert_eq!(check(&guard(), "10.0.0.5:5000"), Ok(()));
        assert_eq!(check(&guard(), "harbor.lan"), Ok(()));
        assert_eq!(check(&guard(), "10.0.0.6"), Err(Refusal::Literal));
    }

    #[test]
    fn plain_http_is_for_registries_declared_so() {
        let url = Url::parse("http://harbor.lan/v2/").expect("a url");
        assert_eq!(guard().check(&url), Err(Refusal::Insecure));
        assert_eq!(Guard { plain: true, ..guard() }.check(&url), Ok(()));
        assert_eq!(guard().check(&Url::parse("ftp://ghcr.io/").expect("a url")), Err(Refusal::Insecure));
    }

    #[test]
    fn reserved_addresses_are_not_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.53",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "100::1",
        ] {
            assert!(!is_public(address.parse().expect(address)), "{address}");
        }
        for address in [
            "1.1.1.1",
            "140.82.121.34",
            "172.32.0.1",
            "100.128.0.1",
            "2606:50c0:8000::153",
            "64:ff9b::140.82.121.34",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(address.parse().expect(address)), "{address}");
        }
    }

    #[tokio::test]
    async fn names_of_private_addresses_are_refused_while_connecting() {
        // `localhost` is the one name that resolves without a network. `check` refuses it before; here the resolver must on its own.
        let resolve = |guard: Guard| async move {
            guard.resolver().resolve("localhost".parse().expect("a name")).await.map(Iterator::count)
        };
        let refused = resolve(guard()).await.expect_err("nothing is left");
        assert_eq!(refused.downcast_ref(), Some(&Refusal::PrivateAddress));
        let declared = Guard { declared: Arc::new(["localhost".to_owned()].into()), ..guard() };
        assert!(resolve(declared).await.expect("declared") > 0);
    }

    #[tokio::test]
    async fn a_proxy_may_be_used_and_not_asked() {
        let environment = |name: &str| (name == "https_proxy").then(|| "http://user:pass@localhost:3128".to_owned());
        let guard = Guard { proxies: Arc::new(proxies(environment)), ..guard() };
        let found = guard.resolver().resolve("localhost".parse().expect("a name")).await;
        assert!(found.is_ok_and(|mut all| all.next().is_some()));
        let proxied = Guard { proxies: Arc::new(["proxy.example".to_owned()].into()), ..guard };
        assert_eq!(check(&proxied, "proxy.example:3128"), Err(Refusal::Proxy));
        let target = Url::parse("https://localhost/v2/").expect("a url");
        assert_eq!(proxied.check_behind_proxy(&target).await, Err(Refusal::PrivateAddress));
    }

    #[test]
    fn patterns_of_hosts_end_at_dots() {
        let accepts = |pattern: &str, host: &str| pattern.parse::<HostPattern>().expect(pattern).accepts(host);
        for (pattern, host) in [
            ("ghcr.io", "ghcr.io"),
            ("ghcr.io", "GHCR.io:443"),
            ("*.example.com", "r.example.com"),
            ("*.example.com", "a.b.example.com:5000"),
            ("r.x:5000", "r.x:5000"),
        ] {
            assert!(accepts(pattern, host), "{pattern} {host}");
        }
        for (pattern, host) in [
            ("ghcr.io", "ghcr.i"),
            ("ghcr.io", "xghcr.io"),
            ("ghcr.io", "ghcr.io.evil.example"),
            ("*.example.com", "example.com"),
            ("*.example.com", "evilexample.com"),
            ("*.example.com", ".example.com"),
            ("r.x:5000", "r.x:5001"),
        ] {
            assert!(!accepts(pattern, host), "{pattern} {host}");
        }
        for text in ["", "*.", "*", "https://ghcr.io", "a b"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
