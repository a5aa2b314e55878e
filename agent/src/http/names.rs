//! Looking up names as the C library would: `/etc/hosts`, then the name servers of `/etc/resolv.conf` with its search
//! list, which is how names of a cluster are found.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE, rdata::RData};
use ureq::{
    Error,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

/// Most name servers that are asked; what the C library takes, too.
const MAX_SERVERS: usize = 3;
/// Most addresses that are handed on.
const MAX_ADDRESSES: usize = 16;
const DNS_PORT: u16 = 53;

/// Names as this system's files say.
#[derive(Debug)]
pub(crate) struct SystemNames;

impl Resolver for SystemNames {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or_else(|| Error::BadUri(uri.to_string()))?;
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let settings = Settings::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let found = look_up(host, &hosts, &settings).map_err(Error::Io)?;
        if found.is_empty() {
            return Err(Error::HostNotFound);
        }
        let mut addresses = self.empty();
        for address in found.into_iter().take(MAX_ADDRESSES) {
            addresses.push(SocketAddr::new(address, port));
        }
        Ok(addresses)
    }
}

/// What `/etc/resolv.conf` says (resolv.conf(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone behind the address means nothing for the servers there are in practice.
                    let address = words.next().and_then(|word| word.split('%').next()?.parse().ok());
                    if settings.servers.len() < MAX_SERVERS {
                        settings
                            .servers
                            .extend(address.map(|address: IpAddr| SocketAddr::new(address, DNS_PORT)));
                    }
                }
                // The last of them counts.
                Some("search" | "domain") => settings.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| settings.option(word)),
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings
                .servers
                .push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        settings
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else {
            return;
        };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = value.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30).into()),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The full names that a name may stand for, in the order in which they are tried.
    fn candidates(&self, host: &str) -> Vec<String> {
        if let Some(full) = host.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        let searched = self
            .search
            .iter()
            .map(|domain| format!("{host}.{}", domain.trim_matches('.')));
        let as_it_is = std::iter::once(host.to_owned());
        if host.matches('.').count() >= self.ndots {
            as_it_is.chain(searched).collect()
        } else {
            searched.chain(as_it_is).collect()
        }
    }
}

/// The addresses of a host; none when nobody knows it. An error means that nobody could be asked.
fn look_up(host: &str, hosts: &str, settings: &Settings) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    let known = in_hosts(host, hosts);
    if !known.is_empty() {
        return Ok(known);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let mut failure = None;
    for name in settings.candidates(host) {
        let mut found = Vec::new();
        for kind in [TYPE::A, TYPE::AAAA] {
            match ask(&name, kind, settings) {
                Ok(addresses) => found.extend(addresses),
                Err(error) => failure = Some(error),
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    failure.map_or(Ok(Vec::new()), Err)
}

/// Addresses by the format of hosts(5).
fn in_hosts(host: &str, hosts: &str) -> Vec<IpAddr> {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    hosts.lines().filter_map(entry).collect()
}

/// Asks the servers in turn until one has an answer.
fn ask(name: &str, kind: TYPE, settings: &Settings) -> io::Result<Vec<IpAddr>> {
    let id = u16::try_from(RandomState::new().hash_one(name) & 0xffff).unwrap_or_default();
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    // What can't be a name has no address.
    let Ok(asked) = Name::new(name) else {
        return Ok(Vec::new());
    };
    query
        .questions
        .push(Question::new(asked, kind.into(), CLASS::IN.into(), false));
    let query = query.build_bytes_vec().map_err(io::Error::other)?;
    let mut failure = None;
    for _ in 0..settings.attempts {
        for server in &settings.servers {
            match exchange(&query, id, name, *server, settings.timeout) {
                Ok(addresses) => return Ok(addresses),
                Err(error) => failure = Some(error),
            }
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::other("there is no name server")))
}

fn exchange(query: &[u8], id: u16, name: &str, server: SocketAddr, timeout: Duration) -> io::Result<Vec<IpAddr>> {
    let deadline = Instant::now() + timeout;
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    // What comes from elsewhere isn't received.
    socket.connect(server)?;
    socket.send(query)?;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let words = format!("the name server {} does not answer", server.ip());
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
        socket.set_read_timeout(Some(left))?;
        let received = match socket.recv(&mut buffer) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        match read_answer(&buffer[..received], id, name) {
            // Somebody else's, or garbage.
            None => {}
            Some(Answer::Addresses(addresses)) => return Ok(addresses),
            Some(Answer::Refused(code)) => {
                let words = format!("the name server {} answers {code:?} for `{name}`", server.ip());
                return Err(io::Error::other(words));
            }
            Some(Answer::Truncated) => return exchange_by_tcp(query, id, name, server, timeout),
        }
    }
}

fn exchange_by_tcp(
    query: &[u8],
    id: u16,
    name: &str,
    server: SocketAddr,
    timeout: Duration,
) -> io::Result<Vec<IpAddr>> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    match read_answer(&answer, id, name) {
        Some(Answer::Addresses(addresses)) => Ok(addresses),
        _ => Err(io::Error::other(format!(
            "the name server {} gives no usable answer for `{name}`",
            server.ip()
        ))),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Refused(RCODE),
    Truncated,
}

/// What a packet says; `None` when it is no answer to the question.
fn read_answer(packet: &[u8], id: u16, name: &str) -> Option<Answer> {
    let packet = Packet::parse(packet).ok()?;
    let question = packet.questions.first()?;
    if packet.id() != id
        || !packet.has_flags(PacketFlag::RESPONSE)
        || !question.qname.to_string().eq_ignore_ascii_case(name)
    {
        return None;
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Some(Answer::Addresses(Vec::new())),
        code => return Some(Answer::Refused(code)),
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Answer::Truncated);
    }
    // Servers that recurse put what an alias leads to behind it.
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(address) => Some(Ipv4Addr::from(address.address).into()),
        RData::AAAA(address) => Some(Ipv6Addr::from(address.address).into()),
        _ => None,
    });
    Some(Answer::Addresses(addresses.collect()))
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        sync::{Arc, Mutex},
        thread,
    };

    use proptest::prelude::*;
    use simple_dns::{
        QTYPE, ResourceRecord,
        rdata::{A, AAAA, CNAME},
    };

    use super::*;

    const CLUSTER: &str = "# made by the kubelet\nsearch builds.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5 timeout:2 rotate\n";

    #[test]
    fn resolv_conf_is_read_as_the_c_library_does() {
        let settings = Settings::parse(CLUSTER);
        assert_eq!(settings.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(settings.timeout, Duration::from_secs(2));
        assert_eq!(
            settings.candidates("kiln.kiln.svc"),
            [
                "kiln.kiln.svc.builds.svc.cluster.local",
                "kiln.kiln.svc.svc.cluster.local",
                "kiln.kiln.svc.cluster.local",
                "kiln.kiln.svc"
            ]
        );
        assert_eq!(settings.candidates("files.example."), ["files.example"]);
        let plain = Settings::parse("nameserver 2001:db8::1%eth0\nnameserver x\ndomain a.example\n");
        assert_eq!(plain.servers, ["[2001:db8::1]:53".parse().unwrap()]);
        assert_eq!(plain.candidates("b.example"), ["b.example", "b.example.a.example"]);
        assert_eq!(Settings::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn addresses_and_hosts_need_no_server() {
        let nobody = Settings::parse("nameserver 192.0.2.1\n");
        let hosts = "127.0.0.1 localhost\n10.0.0.7\tGit.example git # ours\n::1 localhost\nx y\n";
        let found = |host: &str| look_up(host, hosts, &nobody).unwrap();
        assert_eq!(found("git.EXAMPLE"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(found("localhost").len(), 2);
        assert_eq!(found("[::1]"), ["::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(found("192.0.2.7"), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    /// A name server that knows a few names, and remembers what it was asked. Ends with its socket's last clone.
    fn server(first_is_lost: bool) -> (Settings, Arc<Mutex<Vec<String>>>) {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            let mut lost = first_is_lost;
            let mut buffer = [0; 512];
            while let Ok((received, from)) = udp.recv_from(&mut buffer) {
                if std::mem::take(&mut lost) {
                    continue;
                }
                let stray = UdpSocket::bind("127.0.0.1:0").unwrap();
                drop(stray.send_to(&buffer[..received], from));
                drop(udp.send_to(b"garbage", from));
                drop(udp.send_to(&reply(&buffer[..received], &seen, false), from));
            }
        });
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let reply = reply(&query, &seen, true);
                stream
                    .write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes())
                    .unwrap();
                stream.write_all(&reply).unwrap();
            }
        });
        let settings = Settings {
            servers: vec![address],
            search: vec!["svc.local".to_owned()],
            ndots: 2,
            timeout: Duration::from_millis(300),
            attempts: 3,
        };
        (settings, asked)
    }

    fn reply(query: &[u8], seen: &Mutex<Vec<String>>, by_tcp: bool) -> Vec<u8> {
        let query = Packet::parse(query).unwrap();
        let question = &query.questions[0];
        let name = question.qname.to_string();
        seen.lock().unwrap().push(name.clone());
        let mut reply = Packet::new_reply(query.id());
        reply.questions = query.questions.clone();
        let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, 1, data);
        let four = record(RData::A(A { address: 0x0a00_0001 }));
        match (name.as_str(), question.qtype) {
            ("app.svc.local", QTYPE::TYPE(TYPE::A)) => {
                let alias = CNAME(Name::new_unchecked("real.svc.local"));
                reply.answers = vec![record(RData::CNAME(alias)), four];
            }
            ("app.svc.local", _) => reply.answers = vec![record(RData::AAAA(AAAA { address: 1 }))],
            ("many.example.org", QTYPE::TYPE(TYPE::A)) if by_tcp => reply.answers = vec![four; 20],
            ("many.example.org", _) => reply.set_flags(PacketFlag::TRUNCATION),
            ("broken.example.org", _) => *reply.rcode_mut() = RCODE::ServerFailure,
            _ => *reply.rcode_mut() = RCODE::NameError,
        }
        reply.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn names_are_asked_for() {
        for first_is_lost in [false, true] {
            let (settings, asked) = server(first_is_lost);
            let found = look_up("app", "", &settings).unwrap();
            assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
            assert_eq!(asked.lock().unwrap().first().unwrap(), "app.svc.local");
        }
        let (settings, asked) = server(false);
        assert_eq!(look_up("gone.example.org", "", &settings).unwrap(), [] as [IpAddr; 0]);
        assert_eq!(asked.lock().unwrap().last().unwrap(), "gone.example.org.svc.local");
        assert_eq!(look_up("many.example.org", "", &settings).unwrap().len(), 20);
        let error = look_up("broken.example.org", "", &settings).unwrap_err();
        assert!(error.to_string().contains("ServerFailure"), "{error}");
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            servers: vec![silent.local_addr().unwrap()],
            attempts: 1,
            ..settings
        };
        let error = look_up("x.y.z", "", &settings).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(packet in proptest::collection::vec(any::<u8>(), 0..200), id: u16) {
            drop(read_answer(&packet, id, "a.example"));
        }
    }
}
