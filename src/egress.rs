//! Which hosts and addresses may be connected to: one policy for registries, token services, chart repositories, value files, and what
//! Kustomize and Git fetch.
//!
//! An image's name, a chart's repository and a base come from a tenant, and a redirect from a server that may be hostile; without a policy
//! either could make us talk to anything that this machine can reach. The default permits public DNS names: no IP literals in any
//! spelling, no local names, and no name that resolves to a loopback, link-local, private, shared (CGNAT), unique local, multicast,
//! documentation or metadata address. The addresses are those that the connection is made to, so a name cannot change its mind between
//! check and use. Ranges follow the IANA special-purpose registries for [IPv4] and [IPv6]. The operator changes it by the block `egress` of
//! the configuration file, and by declaring registries in `registries.conf`. Hosts are compared with their ports.
//!
//! **Proxies.** Hosts named in `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` may be connected to, since the operator named them, but not
//! asked. A proxy resolves the target's name itself, out of our sight. So with a proxy set we look the name up too and refuse it when our
//! resolver knows it and every address is forbidden; a name that only the proxy can resolve is left to the proxy's own rules. Operators
//! with a proxy inside the perimeter should set the list of hosts.
//!
//! [IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry/
//! [IPv6]: https://www.iana.org/assignments/iana-ipv6-special-registry/

pub mod fetch;
pub mod proxy;
pub mod ssh;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why a host may not be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is an IP address")]
    Literal,
    #[error("it is not a public DNS name")]
    LocalName,
    #[error("it resolves to a private or reserved address")]
    PrivateAddress,
    #[error("its name cannot be resolved")]
    Unresolved,
    #[error("it would be asked without TLS")]
    Insecure,
    #[error("it is the proxy")]
    Proxy,
    #[error("it is not in the list of allowed hosts")]
    NotAllowed,
    #[error("its port is not among the allowed ones")]
    Port,
    #[error("it is not a host name")]
    Unreadable,
}

impl Refusal {
    /// What an operator can do about it.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Literal => Some("an operator can permit the address with `egress.cidrs`"),
            Self::PrivateAddress => {
                Some("an operator can permit the address with `egress.cidrs`, or the name with `egress.hosts`")
            }
            Self::LocalName | Self::NotAllowed => Some("an operator can permit the name with `egress.hosts`"),
            Self::Port => Some("an operator can permit the port with `egress.ports`"),
            Self::Unresolved | Self::Insecure | Self::Proxy | Self::Unreadable => None,
        }
    }
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

    /// Is it an address, not a name?
    pub fn is_address(&self) -> bool {
        let name = self.host.split_once(':').map_or(&*self.host, |(name, _)| name);
        name.parse::<IpAddr>().is_ok()
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
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if name.is_empty() || !host.bytes().all(legal) || host.starts_with('.') || !is_port {
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

/// A range of addresses, such as `10.1.0.0/16` or `fd00::/8`. One address alone is a range of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    bits: u8,
}

impl Cidr {
    fn contains(&self, address: IpAddr) -> bool {
        let shifted = |bits: u128, width: u8| bits.checked_shr(u32::from(width - self.bits)).unwrap_or(0);
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                shifted(network.to_bits().into(), 32) == shifted(address.to_bits().into(), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => shifted(network.to_bits(), 128) == shifted(address.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is not a range of addresses: write `10.1.0.0/16` or `fd00::/8`", crate::image::printable(text));
        let (network, bits) = match text.split_once('/') {
            Some((network, bits)) => (network, Some(bits.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let network: IpAddr = network.parse().map_err(|_| wrong())?;
        let width = if network.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width { Err(wrong()) } else { Ok(Self { network, bits }) }
    }
}

/// A port, or a range of them, as in `8000-8999`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = first.trim().parse().ok().zip(last.trim().parse().ok()).map(|(first, last): (u16, u16)| first..=last);
        let range = range.filter(|range| !range.is_empty() && *range.start() > 0);
        range.map(Self).ok_or_else(|| format!("`{}` is not a port or a range such as `8000-8999`", crate::image::printable(text)))
    }
}

/// What the operator permits.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Hosts that may be connected to; None: every public name. One without a wildcard may have any address.
    pub hosts: Option<Vec<HostPattern>>,
    /// Addresses that are not public and may be connected to nevertheless, by any name or by themselves.
    pub cidrs: Vec<Cidr>,
    /// Ports that may be connected to. None at all: every one.
    pub ports: Vec<Ports>,
}

impl Policy {
    /// Checks a host and port by their text, without asking DNS. Says whether its address counts too.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn check(&self, host: &str, port: u16) -> Result<Addresses, Refusal> {
        if !self.ports.is_empty() && !self.ports.iter().any(|ports| ports.0.contains(&port)) {
            return Err(Refusal::Port);
        }
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return if self.is_declared(address) { Ok(Addresses::Any) } else { Err(Refusal::Literal) };
        }
        let authority = format!("{host}:{port}");
        match &self.hosts {
            Some(hosts) => {
                let fitting: Vec<&HostPattern> = hosts.iter().filter(|pattern| pattern.accepts(&authority)).collect();
                match fitting.iter().any(|pattern| !pattern.below) {
                    true => Ok(Addresses::Any),
                    false if fitting.is_empty() => Err(Refusal::NotAllowed),
                    false => check_name(host).map(|()| Addresses::Permitted),
                }
            }
            None => match check_name(host) {
                // A name of the cluster may lead to an address that is declared.
                Err(Refusal::LocalName) if !self.cidrs.is_empty() => Ok(Addresses::Declared),
                checked => checked.map(|()| Addresses::Permitted),
            },
        }
    }

    /// May this address be connected to?
    pub fn permits(&self, address: IpAddr, which: Addresses) -> bool {
        match which {
            Addresses::Any => true,
            Addresses::Permitted => is_public(address) || self.is_declared(address),
            Addresses::Declared => self.is_declared(address),
        }
    }

    fn is_declared(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.cidrs.iter().any(|range| range.contains(address))
    }

    /// The addresses of a host that may be connected to: at least one.
    ///
    /// # Errors
    ///
    /// [`Refusal`], also when the name leads nowhere.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
        let which = self.check(host, port)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(|_| Refusal::Unresolved)?.collect();
        let permitted: Vec<SocketAddr> = found.iter().copied().filter(|address| self.permits(address.ip(), which)).collect();
        match (found.is_empty(), permitted.is_empty()) {
            (true, _) => Err(Refusal::Unresolved),
            (false, true) => Err(Refusal::PrivateAddress),
            (false, false) => Ok(permitted),
        }
    }
}

/// Which of a host's addresses may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// The operator named the host.
    Any,
    /// Public ones, and those that are declared.
    Permitted,
    /// Only those that are declared.
    Declared,
}

/// The rules for one client of ours: the policy, and what was declared for it beside.
#[derive(Clone, Debug)]
pub struct Guard {
    policy: Arc<Policy>,
    /// Hosts with their ports that may be asked whatever their address: a registry's own and its token services', if the operator declared
    /// them.
    declared: Arc<BTreeSet<String>>,
    /// Is plain http allowed, because the operator declared it so?
    plain: bool,
    proxies: Arc<BTreeSet<String>>,
}

impl Guard {
    /// `declared` are URLs of the operator's; `plain` permits http.
    pub fn new<'u>(policy: Arc<Policy>, declared: impl IntoIterator<Item = &'u Url>, plain: bool) -> Self {
        Self {
            policy,
            declared: Arc::new(declared.into_iter().filter_map(authority).collect()),
            plain,
            proxies: Arc::new(proxies(|name| std::env::var(name).ok())),
        }
    }

    /// Checks what a URL says, without asking DNS. Everything that is sent passes here, and then a [`Guard::resolver`] for these addresses.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn check(&self, url: &Url) -> Result<Addresses, Refusal> {
        let host = url.host_str().ok_or(Refusal::Unreadable)?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain => {}
            _ => return Err(Refusal::Insecure),
        }
        if self.is_declared(url) {
            return Ok(Addresses::Any);
        }
        let which = self.policy.check(host, url.port_or_known_default().ok_or(Refusal::Unreadable)?)?;
        if self.proxies.contains(host) { Err(Refusal::Proxy) } else { Ok(which) }
    }

    fn is_declared(&self, url: &Url) -> bool {
        authority(url).is_some_and(|authority| self.declared.contains(&authority))
    }

    /// Checks the addresses of a host that a proxy will resolve. Without a proxy the connector does.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub async fn check_behind_proxy(&self, url: &Url) -> Result<(), Refusal> {
        if self.proxies.is_empty() || self.is_declared(url) {
            return Ok(());
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Ok(()) };
        match self.policy.resolve(host, port).await {
            Err(Refusal::Unresolved) => Ok(()),
            resolved => resolved.map(drop),
        }
    }

    /// What a connector resolves names with: nothing else gets an address.
    ///
    /// A connector tells its resolver no port, and the same host has other addresses on a port that is declared than on one that is not. So
    /// each kind of [`Addresses`] has a connector of its own, to be used for what [`Guard::check`] gives it.
    pub fn resolver(&self, which: Addresses) -> Resolver {
        Resolver { guard: self.clone(), which }
    }
}

/// A URL's host with its port, also where that is the scheme's own.
fn authority(url: &Url) -> Option<String> {
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

/// Resolves names for the connector and drops the addresses that may not be asked.
#[derive(Clone, Debug)]
pub struct Resolver {
    guard: Guard,
    which: Addresses,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { guard, which } = self.clone();
        Box::pin(async move {
            let host = name.as_str();
            // A proxy is connected to for others, and is not asked itself: `check` refuses that.
            let which = if guard.proxies.contains(host) { Addresses::Any } else { which };
            // The port is a placeholder; the connector sets its own.
            let found = tokio::net::lookup_host((host, 0)).await?;
            let addresses: Vec<SocketAddr> = found.filter(|address| guard.policy.permits(address.ip(), which)).collect();
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
fn is_public(address: IpAddr) -> bool {
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
            policy: Arc::default(),
            declared: Arc::new(["10.0.0.5:5000".to_owned(), "harbor.lan:443".to_owned(), "harbor.example:443".to_owned()].into()),
            plain: false,
            proxies: Arc::default(),
        }
    }

    fn check(guard: &Guard, host: &str) -> Result<Addresses, Refusal> {
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
            assert_eq!(check(&guard(), host), Ok(Addresses::Permitted), "{host}");
        }
    }

    #[test]
    fn declared_hosts_are_asked_whatever_their_address() {
        assert_eq!(check(&guard(), "10.0.0.5:5000"), Ok(Addresses::Any));
        assert_eq!(check(&guard(), "harbor.lan"), Ok(Addresses::Any));
        assert_eq!(check(&guard(), "harbor.example"), Ok(Addresses::Any));
        assert_eq!(check(&guard(), "harbor.example:8443"), Ok(Addresses::Permitted), "as for any name");
        assert_eq!(check(&guard(), "10.0.0.6"), Err(Refusal::Literal));
        assert_eq!(check(&guard(), "10.0.0.5:22"), Err(Refusal::Literal), "another port is another service");
        assert_eq!(check(&guard(), "harbor.lan:8443"), Err(Refusal::LocalName));
    }

    #[test]
    fn plain_http_is_for_registries_declared_so() {
        let url = Url::parse("http://harbor.lan/v2/").expect("a url");
        assert_eq!(guard().check(&url), Err(Refusal::Insecure));
        let declared = Arc::new(["harbor.lan:80".to_owned()].into());
        assert_eq!(Guard { plain: true, declared, ..guard() }.check(&url), Ok(Addresses::Any));
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

    fn policy(hosts: Option<&[&str]>, cidrs: &[&str], ports: &[&str]) -> Policy {
        Policy {
            hosts: hosts.map(|all| all.iter().map(|text| text.parse().expect(text)).collect()),
            cidrs: cidrs.iter().map(|text| text.parse().expect(text)).collect(),
            ports: ports.iter().map(|text| text.parse().expect(text)).collect(),
        }
    }

    #[test]
    fn what_the_operator_permits_may_be_connected_to() {
        let all = policy(None, &[], &[]);
        assert_eq!(all.check("example.com", 8443), Ok(Addresses::Permitted));
        assert_eq!(all.check("git.corp.internal", 443), Err(Refusal::LocalName));
        let two = policy(Some(&["*.example.com", "git.example.com:8443"]), &[], &[]);
        assert_eq!(two.check("git.example.com", 8443), Ok(Addresses::Any));
        assert_eq!(two.check("git.example.com", 443), Ok(Addresses::Permitted), "it is named with another port");
        let listed = policy(Some(&["git.corp.internal", "*.example.com", "charts.example.org:8443"]), &[], &["443", "8000-8999"]);
        assert_eq!(listed.check("git.corp.internal", 443), Ok(Addresses::Any));
        assert_eq!(listed.check("GIT.corp.internal", 443), Ok(Addresses::Any));
        assert_eq!(
            listed.check("a.example.com", 443),
            Ok(Addresses::Permitted),
            "not any address: who serves the domain decides"
        );
        assert_eq!(listed.check("example.net", 443), Err(Refusal::NotAllowed));
        assert_eq!(listed.check("charts.example.org", 8443), Ok(Addresses::Any));
        assert_eq!(listed.check("charts.example.org", 443), Err(Refusal::NotAllowed));
        assert_eq!(listed.check("git.corp.internal", 22), Err(Refusal::Port));
        let ranges = policy(None, &["10.1.0.0/16", "fd00::/8", "192.168.7.7"], &[]);
        assert_eq!(ranges.check("10.1.2.3", 443), Ok(Addresses::Any));
        assert_eq!(ranges.check("[fd00::1]", 443), Ok(Addresses::Any));
        assert_eq!(ranges.check("[::ffff:10.1.2.3]", 443), Ok(Addresses::Any));
        assert_eq!(ranges.check("10.2.2.3", 443), Err(Refusal::Literal));
        assert_eq!(ranges.check("git.corp.internal", 443), Ok(Addresses::Declared));
        let permits = |address: &str, which| ranges.permits(address.parse().expect(address), which);
        assert!(permits("10.1.255.255", Addresses::Permitted) && permits("192.168.7.7", Addresses::Declared));
        assert!(!permits("10.2.0.0", Addresses::Permitted) && !permits("1.1.1.1", Addresses::Declared));
        assert!(permits("1.1.1.1", Addresses::Permitted));
        let everything = policy(None, &["0.0.0.0/0", "::/0"], &[]);
        assert!(everything.permits("127.0.0.1".parse().expect("an address"), Addresses::Permitted));
        for text in ["10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/", "::/129"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        for text in ["0", "65536", "9-1", "x", ""] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn addresses_are_those_that_are_permitted() {
        assert_eq!(policy(None, &[], &[]).resolve("localhost", 1).await, Err(Refusal::LocalName));
        assert_eq!(policy(Some(&["*.localhost"]), &[], &[]).resolve("a.localhost", 1).await, Err(Refusal::LocalName));
        let declared = policy(Some(&["localhost"]), &[], &[]).resolve("localhost", 1).await.expect("declared");
        assert!(declared.iter().all(|address| address.ip().is_loopback() && address.port() == 1));
        let by_range = policy(None, &["127.0.0.0/8"], &[]).resolve("localhost", 1).await.expect("declared");
        assert!(by_range.iter().all(SocketAddr::is_ipv4));
        assert_eq!(policy(None, &["10.0.0.0/8"], &[]).resolve("localhost", 1).await, Err(Refusal::PrivateAddress));
    }

    #[tokio::test]
    async fn names_of_private_addresses_are_refused_while_connecting() {
        // `localhost` is the one name that resolves without a network. As a name it is refused before, unless some range is declared; here
        // the resolver must look at the address.
        let guard = || Guard { policy: Arc::new(policy(None, &["10.0.0.0/8"], &[])), ..guard() };
        let resolve = |guard: Guard, port: u16| async move {
            let which = check(&guard, &format!("localhost:{port}")).expect("a name for which the address decides");
            guard.resolver(which).resolve("localhost".parse().expect("a name")).await.map(Iterator::count)
        };
        let is_refused = |found: Result<usize, Box<dyn std::error::Error + Send + Sync>>| {
            found.is_err_and(|error| error.downcast_ref() == Some(&Refusal::PrivateAddress))
        };
        assert!(is_refused(resolve(guard(), 5000).await));
        // A host is declared with its port, by registries.conf as by the policy.
        let declared = Guard { declared: Arc::new(["localhost:5000".to_owned()].into()), ..guard() };
        assert!(resolve(declared.clone(), 5000).await.expect("declared") > 0);
        assert!(is_refused(resolve(declared, 5001).await));
    }

    #[tokio::test]
    async fn a_proxy_may_be_used_and_not_asked() {
        let environment = |name: &str| (name == "https_proxy").then(|| "http://user:pass@localhost:3128".to_owned());
        let guard = Guard { proxies: Arc::new(proxies(environment)), ..guard() };
        let found = guard.resolver(Addresses::Permitted).resolve("localhost".parse().expect("a name")).await;
        assert!(found.is_ok_and(|mut all| all.next().is_some()));
        let proxied = Guard { proxies: Arc::new(["proxy.example".to_owned()].into()), ..guard };
        assert_eq!(check(&proxied, "proxy.example:3128"), Err(Refusal::Proxy));
        let target = Url::parse("https://localhost/v2/").expect("a url");
        assert_eq!(proxied.check_behind_proxy(&target).await, Err(Refusal::LocalName));
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
