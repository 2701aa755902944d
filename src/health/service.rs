// SPDX-License-Identifier: Apache-2.0
//! The servers behind `healthCheckNodePort`: whether this node has endpoints of a Service.
//!
//! The loop publishes the wanted ports after successful rounds. A port that cannot be opened is
//! retried at the next [`ServiceHealthServers::sync`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fmt, io};

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use tokio::net::TcpListener;

use super::connections::{Limits, Places, serve};
use super::server::{Families, listen};
use super::state::ProxyHealth;
use super::{JSON, answer};
use crate::descriptors::{self, Cause};
use crate::task::{Task, end_some};
use kpr_core::model::ServiceName;
use kpr_core::model::net::IpFamily;

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the health check of Service {service}")]
pub struct HealthCheckPortError {
    /// The Service.
    pub service: ServiceName,
    /// Where.
    pub address: SocketAddr,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    service: ServiceName,
    address: SocketAddr,
}

/// Local ready endpoints of each Service that has a health check port, in each family: one may be
/// ready for IPv4 only.
type Counts = Arc<RwLock<BTreeMap<(IpFamily, ServiceName), usize>>>;

/// All health check ports that are open. Dropping it closes them.
#[derive(Debug)]
pub struct ServiceHealthServers {
    health: ProxyHealth,
    counts: Counts,
    open: BTreeMap<Key, Task>,
    /// For the clients of all ports together.
    places: Places,
}

impl ServiceHealthServers {
    /// No ports yet.
    pub fn new(health: ProxyHealth) -> Self {
        Self {
            health,
            counts: Counts::default(),
            open: BTreeMap::new(),
            places: Places::new(Limits::default()),
        }
    }

    /// Opens and closes ports of one family so that exactly `wanted` are open at `addresses`; the
    /// unspecified address is every one of its family. Ports that stay are not touched. Must be
    /// called within a tokio runtime.
    pub async fn sync(
        &mut self,
        family: IpFamily,
        addresses: &BTreeSet<IpAddr>,
        wanted: &BTreeMap<ServiceName, u16>,
    ) -> Vec<HealthCheckPortError> {
        let keys: BTreeSet<Key> = wanted
            .iter()
            .flat_map(|(service, &port)| {
                addresses.iter().map(move |&ip| Key {
                    service: service.clone(),
                    address: SocketAddr::new(ip, port),
                })
            })
            .collect();
        // One that a bug ended is opened again.
        self.open.retain(|_, task| !task.is_finished());
        let is_unwanted =
            |key: &Key| IpFamily::of(key.address.ip()) == family && !keys.contains(key);
        end_some(&mut self.open, is_unwanted).await;
        let mut failures = Vec::new();
        for key in keys {
            if self.open.contains_key(&key) {
                continue;
            }
            match listen_for_service(key.address) {
                Ok(listener) => {
                    let task = self.serve(listener, family, &key.service);
                    self.open.insert(key, task);
                }
                Err(source) => {
                    let Key { service, address } = key;
                    failures.push(HealthCheckPortError {
                        service,
                        address,
                        source,
                    });
                }
            }
        }
        failures
    }

    /// How many addresses of local ready endpoints each Service has; the others have none.
    pub fn set_local_endpoints(&self, counts: BTreeMap<(IpFamily, ServiceName), usize>) {
        *self.counts.write().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Where ports are open.
    pub fn open_ports(&self) -> impl Iterator<Item = (&ServiceName, SocketAddr)> {
        self.open.keys().map(|key| (&key.service, key.address))
    }

    fn serve(&self, listener: TcpListener, family: IpFamily, service: &ServiceName) -> Task {
        let (health, counts) = (self.health.clone(), Arc::clone(&self.counts));
        let key = (family, service.clone());
        let routes = Router::new().fallback(move || {
            let counts = counts.read().unwrap_or_else(PoisonError::into_inner);
            let count = counts.get(&key).copied().unwrap_or(0);
            let response = respond(&key.1, count, health.is_serving());
            async move { response }
        });
        let places = self.places.clone();
        Task::spawn(async move {
            // It ends only when the task is aborted.
            match serve(listener, routes, places).await {}
        })
    }
}

fn listen_for_service(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = listen(address, Families::One)?;
    descriptors::spare(&listener, Cause::Service)?;
    Ok(listener)
}

/// Text in JSON quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::Value::from(self.0).fmt(f)
    }
}

/// Upstream's bytes: indented by tabs, without a final newline.
fn respond(service: &ServiceName, endpoints: usize, proxy_healthy: bool) -> Response {
    let status = if endpoints > 0 && proxy_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}",
        Quoted(&service.namespace),
        Quoted(&service.name),
    );
    let mut response = answer(status, JSON, body);
    let name = HeaderName::from_static("x-load-balancing-endpoint-weight");
    response
        .headers_mut()
        .insert(name, HeaderValue::from(endpoints));
    response
}
