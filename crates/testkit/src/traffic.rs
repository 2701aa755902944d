// SPDX-License-Identifier: Apache-2.0
//! Servers that say who they are and whom they see, and clients that report what they met. All of
//! it happens in this process: a socket belongs to the namespace in which it was made, whoever uses
//! it.
//!
//! An answer is one line: `NAME PORT SOURCE-ADDRESS`. A stream stays open after it and echoes.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::namespace::Namespace;
use crate::topology::{Family, Host, Topology};
use crate::wait;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As in manifests.
    pub const fn manifest_name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    const fn socket_type(self) -> Type {
        match self {
            Self::Udp => Type::DGRAM,
            // One-to-one SCTP sockets work like those of TCP.
            Self::Tcp | Self::Sctp => Type::STREAM,
        }
    }

    fn number(self) -> socket2::Protocol {
        match self {
            Self::Tcp => libc::IPPROTO_TCP.into(),
            Self::Udp => libc::IPPROTO_UDP.into(),
            Self::Sctp => libc::IPPROTO_SCTP.into(),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where web pods serve.
pub const WEB_PORTS: [u16; 2] = [8080, 9090];
/// Where they serve as well, so that few pods stand for many endpoints.
pub const MANY_PORTS: [u16; 12] = [
    7000, 7001, 7002, 7003, 7004, 7005, 7006, 7007, 7008, 7009, 7010, 7011,
];
/// Where the node itself serves, on all of its addresses: something that no Service may expose.
pub const HOST_PORT: u16 = 8888;

/// Whether this kernel has sockets of the protocol.
pub fn is_supported(protocol: Protocol) -> bool {
    new_socket(Family::V4, protocol).is_ok()
}

/// What a client met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(Answer),
    /// A ping came back.
    Echoed,
    /// At once: a reset, or an ICMP message that says that nobody listens.
    Refused,
    /// A stream that was open broke.
    Reset,
    /// There is no route.
    Unreachable,
    /// Nothing came back in time, or the packet could not leave.
    TimedOut,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the host.
    pub by: String,
    /// The port of the server itself.
    pub port: u16,
    /// The client's address, as the server saw it.
    pub source: IpAddr,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Answer { by, port, source }) => {
                write!(f, "answered by {by}:{port}, which saw {source}")
            }
            Self::Echoed => f.write_str("echoed"),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

// === servers ===

/// The servers of a topology: each web pod on [`WEB_PORTS`], the node on [`HOST_PORT`], with every
/// protocol that this kernel has. They end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    /// Runs the servers; never empty before it is dropped.
    runtime: Option<Runtime>,
}

impl Servers {
    pub fn new(topology: &Topology) -> Result<Self> {
        let web = Host::WEB.into_iter().flat_map(|host| {
            let ports = WEB_PORTS.into_iter().chain(MANY_PORTS);
            ports.map(move |port| (host, port))
        });
        let others = [(Host::Node, HOST_PORT), (Host::Lan, WEB_PORTS[0])];
        let all = web.chain(others);
        Self::at(all.map(|(host, port)| (host, topology.host(host), port)))
    }

    /// Servers of hosts that are in these namespaces, at these ports.
    pub fn at<'a>(hosts: impl IntoIterator<Item = (Host, &'a Namespace, u16)>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        for (host, namespace, port) in hosts {
            for protocol in Protocol::ALL.into_iter().filter(|p| is_supported(*p)) {
                for family in Family::ALL {
                    let at = SocketAddr::new(any(family), port);
                    serve(&runtime, namespace, host, protocol, at)
                        .with_context(|| format!("cannot serve {protocol} {port} on {host}"))?;
                }
            }
        }
        Ok(Self {
            runtime: Some(runtime),
        })
    }
}

impl Servers {
    /// One more server, at this address.
    pub fn add(
        &self,
        topology: &Topology,
        host: Host,
        protocol: Protocol,
        at: SocketAddr,
    ) -> Result<()> {
        let runtime = self.runtime.as_ref().context("no servers")?;
        serve(runtime, topology.host(host), host, protocol, at)
            .with_context(|| format!("cannot serve {protocol} at {at} on {host}"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) const fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

fn serve(
    runtime: &Runtime,
    namespace: &Namespace,
    host: Host,
    protocol: Protocol,
    at: SocketAddr,
) -> Result<()> {
    let (family, port) = (family_of(at), at.port());
    let socket = namespace.enter(|| new_socket(family, protocol))??;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.set_nonblocking(true)?;
    // Registering a socket needs the runtime's context.
    let _context = runtime.enter();
    if protocol == Protocol::Udp {
        let socket = tokio::net::UdpSocket::from_std(socket.into())?;
        runtime.spawn(serve_datagrams(socket, host, port));
    } else {
        socket.listen(128)?;
        let listener = tokio::net::TcpListener::from_std(socket.into())?;
        runtime.spawn(serve_streams(listener, host, port));
    }
    Ok(())
}

async fn serve_datagrams(socket: tokio::net::UdpSocket, host: Host, port: u16) {
    let mut buffer = [0; 64];
    // An ICMP error about an earlier answer is no reason to stop.
    loop {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let answer = answer(host, port, peer);
            drop(socket.send_to(answer.as_bytes(), peer).await);
        }
    }
}

async fn serve_streams(listener: tokio::net::TcpListener, host: Host, port: u16) {
    loop {
        if let Ok((mut stream, peer)) = listener.accept().await {
            tokio::spawn(async move {
                stream
                    .write_all(answer(host, port, peer).as_bytes())
                    .await?;
                let mut buffer = [0; 64];
                loop {
                    let length = stream.read(&mut buffer).await?;
                    let Some(read @ [_, ..]) = buffer.get(..length) else {
                        return io::Result::Ok(());
                    };
                    stream.write_all(read).await?;
                }
            });
        }
    }
}

fn answer(host: Host, port: u16, peer: SocketAddr) -> String {
    format!("{host} {port} {}\n", peer.ip())
}

fn read_answer(line: &str) -> Result<Answer> {
    let mut words = line.split_whitespace();
    let mut next = || {
        words
            .next()
            .with_context(|| format!("an answer {line:?} of too few words"))
    };
    Ok(Answer {
        by: next()?.to_owned(),
        port: next()?.parse()?,
        source: next()?.parse()?,
    })
}

// === clients ===

/// How long a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// An answer or a refusal is expected: only a failing test ever waits that long.
    Long,
    /// Silence is expected: longer than it takes to repeat the first packet.
    Short,
    /// The question is asked again anyway.
    Glance,
}

impl Patience {
    const fn limit(self) -> Duration {
        match self {
            Self::Long => Duration::from_mins(1),
            Self::Short => Duration::from_millis(1500),
            Self::Glance => Duration::from_millis(300),
        }
    }
}

/// An open stream whose server has answered.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    pub answer: Answer,
}

impl Connection {
    /// Opens a stream from a namespace.
    pub fn open(
        from: &Namespace,
        to: SocketAddr,
        protocol: Protocol,
        patience: Patience,
    ) -> Result<Result<Self, Outcome>> {
        Self::open_from(from, None, to, protocol, patience)
    }

    pub fn open_from(
        from: &Namespace,
        source: Option<SocketAddr>,
        to: SocketAddr,
        protocol: Protocol,
        patience: Patience,
    ) -> Result<Result<Self, Outcome>> {
        let socket = from.enter(|| new_socket(family_of(to), protocol))??;
        if let Some(source) = source {
            if source.port() != 0 {
                // It may be needed again at once.
                socket.set_reuse_address(true)?;
                socket.set_linger(Some(Duration::ZERO))?;
            }
            socket.bind(&source.into())?;
        }
        if let Err(error) = socket.connect_timeout(&SockAddr::from(to), patience.limit()) {
            return Ok(Err(classify(&error)?));
        }
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience.limit()))?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => Ok(Err(Outcome::Reset)),
            Ok(_) => Ok(Ok(Self {
                reader,
                answer: read_answer(&line)?,
            })),
            Err(error) => Ok(Err(classify(&error)?)),
        }
    }

    /// Sends something and reads it back. An error says that the connection is broken.
    pub fn echo(&mut self) -> Result<()> {
        let text = b"still there?\n";
        self.reader.get_mut().write_all(text)?;
        let mut back = [0; 13];
        self.reader
            .read_exact(&mut back)
            .context("the connection is broken")?;
        if &back != text {
            bail!("the echo came back as {:?}", String::from_utf8_lossy(&back));
        }
        Ok(())
    }

    /// Sends so many bytes, more than one packet takes, and reads them back.
    pub fn echo_much(&mut self, count: usize) -> Result<()> {
        let text = vec![b'x'; count];
        self.reader.get_mut().write_all(&text)?;
        let mut back = vec![0; count];
        self.reader
            .read_exact(&mut back)
            .context("the connection is broken")?;
        if back != text {
            bail!("the echo is another text");
        }
        Ok(())
    }

    /// Closes the connection with a reset, after which nothing remembers it for minutes.
    pub fn abort(self) -> Result<()> {
        let socket = Socket::from(self.reader.into_inner());
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// This side's address.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }
}

/// One new connection, or one datagram from a new port, from a namespace. The kernel chooses the
/// client's address where there is no `source`.
pub fn ask(
    from: &Namespace,
    source: Option<IpAddr>,
    to: SocketAddr,
    protocol: Protocol,
    patience: Patience,
) -> Result<Outcome> {
    let source = source.map(|source| SocketAddr::new(source, 0));
    ask_from(from, source, to, protocol, patience)
}

/// The same, from a port of the client's choice where there is a `source` with one.
pub fn ask_from(
    from: &Namespace,
    source: Option<SocketAddr>,
    to: SocketAddr,
    protocol: Protocol,
    patience: Patience,
) -> Result<Outcome> {
    if protocol == Protocol::Udp {
        let socket = datagram_socket_from(from, source, to)?;
        return ask_again(&socket, patience);
    }
    Ok(
        match Connection::open_from(from, source, to, protocol, patience)? {
            Ok(connection) => Outcome::Answered(connection.answer),
            Err(outcome) => outcome,
        },
    )
}

/// A datagram socket that is connected to a server; [`ask_again`] uses it.
pub fn datagram_socket(from: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    datagram_socket_from(from, None, to)
}

fn datagram_socket_from(
    from: &Namespace,
    source: Option<SocketAddr>,
    to: SocketAddr,
) -> Result<UdpSocket> {
    let socket = from.enter(|| new_socket(family_of(to), Protocol::Udp))??;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket
        .connect(&to.into())
        .or_else(|error| match classify(&error) {
            // `send` says it again.
            Ok(Outcome::Unreachable) => Ok(()),
            _ => Err(error),
        })?;
    Ok(socket.into())
}

/// Asks from the same port as before.
pub fn ask_again(socket: &UdpSocket, patience: Patience) -> Result<Outcome> {
    let limit = patience.limit();
    let start = wait::now();
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buffer = [0; 64];
    // Datagrams may be lost; a question is repeated like the first packet of a connection.
    loop {
        // What is dropped on its way out of the own machine may have been refused at the same time:
        // the refusal is read like an answer.
        let sent = socket.send(b"who is there?");
        let is_stuck = matches!(&sent, Err(error) if error.kind() == ErrorKind::PermissionDenied);
        let received = match sent {
            Err(error) if !is_stuck => Err(error),
            _ => uninterrupted(|| socket.recv(&mut buffer)),
        };
        match received {
            Ok(length) => {
                let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                return Ok(Outcome::Answered(read_answer(&line)?));
            }
            Err(error) => match classify(&error)? {
                Outcome::TimedOut if !is_stuck && start.elapsed() < limit => {}
                outcome => return Ok(outcome),
            },
        }
    }
}

/// Receiving with a time-out ends early where the process was stopped and goes on: signal(7).
fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// An ICMP echo request, as `ping` sends it.
pub fn ping(from: &Namespace, to: IpAddr, patience: Patience) -> Result<Outcome> {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REQUEST_V6: u8 = 128;
    let (domain, protocol, kind) = if to.is_ipv4() {
        (Domain::IPV4, libc::IPPROTO_ICMP, ECHO_REQUEST)
    } else {
        (Domain::IPV6, libc::IPPROTO_ICMPV6, ECHO_REQUEST_V6)
    };
    // Else the kernel lets nobody have such a socket.
    from.sysctl(&[("net/ipv4/ping_group_range", "0 0")])?;
    let socket = from.enter(|| Socket::new(domain, Type::DGRAM, Some(protocol.into())))??;
    let request = [kind, 0, 0, 0, 0, 0, 0, 1];
    let limit = Some(patience.limit());
    let asked = socket
        .connect(&SocketAddr::new(to, 0).into())
        .and_then(|()| socket.set_read_timeout(limit))
        .and_then(|()| socket.send(&request))
        .and_then(|_| uninterrupted(|| (&socket).read(&mut [0; 64])));
    match asked {
        Ok(_) => Ok(Outcome::Echoed),
        Err(error) => classify(&error),
    }
}

pub(crate) fn family_of(address: SocketAddr) -> Family {
    match address {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    }
}

fn new_socket(family: Family, protocol: Protocol) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    Socket::new(domain, protocol.socket_type(), Some(protocol.number()))
}

/// What an error of the kernel means for a client.
fn classify(error: &io::Error) -> Result<Outcome> {
    Ok(match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Outcome::Reset
        }
        // A connected datagram socket has no address to send from when there is no route.
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NotConnected
        | ErrorKind::AddrNotAvailable => Outcome::Unreachable,
        // What a rule drops on its way out of the own machine is not permitted.
        ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::PermissionDenied => {
            Outcome::TimedOut
        }
        _ if error.raw_os_error() == Some(libc::EDESTADDRREQ) => Outcome::Unreachable,
        _ => return Err(anyhow!("a client failed with {error} ({:?})", error.kind())),
    })
}
