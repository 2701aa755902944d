// SPDX-License-Identifier: Apache-2.0
//! An HTTP server: bound at start, run later, bound again after a failure.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use axum::Router;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::connections::{Limits, Places, serve};

/// Pause between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted. Under a flood a probe waits behind so many.
const BACKLOG: i32 = 1024;

/// A server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the {name} server")]
pub struct ServeError {
    /// What it serves.
    pub name: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// An HTTP server that is bound, or will be.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    address: SocketAddr,
    routes: Router,
    hard_fail: bool,
    listener: Option<TcpListener>,
    retry: Duration,
}

impl Server {
    /// Listens at `address`; an unspecified one of either family means both families. Failing to is
    /// an error with `hard_fail`, else [`Self::run`] tries again. Must be called within a tokio
    /// runtime.
    pub fn bind(
        name: &'static str,
        address: SocketAddr,
        routes: Router,
        hard_fail: bool,
    ) -> Result<Self, ServeError> {
        let mut server = Self {
            name,
            address,
            routes,
            hard_fail,
            listener: None,
            retry: RETRY,
        };
        match server.listen() {
            Ok(listener) => server.listener = Some(listener),
            Err(error) if hard_fail => return Err(error),
            Err(error) => server.warn(&error),
        }
        Ok(server)
    }

    #[cfg(test)]
    pub(super) fn retry_every(mut self, pause: Duration) -> Self {
        self.retry = pause;
        self
    }

    /// Where it listens, if it does.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until the future is dropped. Ends only with an error, and only with `hard_fail`.
    pub async fn run(mut self) -> Result<Infallible, ServeError> {
        loop {
            let listener = match self.listener.take() {
                Some(listener) => listener,
                None => match self.listen() {
                    Ok(listener) => listener,
                    Err(error) if self.hard_fail => return Err(error),
                    Err(error) => {
                        self.warn(&error);
                        tokio::time::sleep(self.retry).await;
                        continue;
                    }
                },
            };
            info!(server = self.name, address = %self.address, "listening");
            match serve(listener, self.routes, Places::new(Limits::default())).await {}
        }
    }

    fn listen(&self) -> Result<TcpListener, ServeError> {
        listen(self.address, Families::of(self.address.ip())).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> ServeError {
        ServeError {
            name: self.name,
            address: self.address,
            source,
        }
    }

    fn warn(&self, error: &ServeError) {
        warn!(
            server = self.name,
            address = %self.address,
            error = %error.source,
            retry_seconds = self.retry.as_secs_f64(),
            "cannot listen"
        );
    }
}

/// Which families a socket takes connections of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Families {
    /// That of its address.
    One,
    /// Both: a wildcard socket.
    Both,
}

impl Families {
    /// Go's rule: an unspecified address, of either family, takes both.
    fn of(ip: IpAddr) -> Self {
        if ip.is_unspecified() {
            Self::Both
        } else {
            Self::One
        }
    }
}

/// Opens a listening socket. Must be called within a tokio runtime.
pub(super) fn listen(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    let listener = match families {
        Families::One => open(address, true)?,
        Families::Both => {
            let wildcard = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
            open(wildcard, false).or_else(|error| {
                // A kernel without IPv6 has no such sockets or no such address.
                match error.raw_os_error() {
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
                        open(v4, true)
                    }
                    _ => Err(error),
                }
            })?
        }
    };
    TcpListener::from_std(listener)
}

fn open(address: SocketAddr, only_its_family: bool) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // Set either way, because the default is a sysctl (net.ipv6.bindv6only).
        socket.set_only_v6(only_its_family)?;
    }
    // So that a restarted proxy can listen while old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
