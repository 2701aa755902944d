// SPDX-License-Identifier: Apache-2.0
//! Changes to the tables, each one message.

use std::fmt;

use super::destination::{Destination, DestinationKey};
use super::message::{IpvsAttribute, IpvsCommand, IpvsMessage};
use super::service::{Service, ServiceKey};

/// One change of a service or a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Adds a service; `EEXIST` if there is one of its key.
    AddService(Service),
    /// Changes scheduler, flags and persistence; connections and destinations stay.
    SetService(Service),
    /// Deletes a service with its destinations; connections live on.
    DelService(ServiceKey),
    /// Adds a destination; `EEXIST` if the service has one of its key, `ESRCH` if there is no
    /// service.
    AddDestination(ServiceKey, Destination),
    /// Changes forwarding, weight and thresholds; connections stay. `ENOENT` if there is none.
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination; its connections live on until they expire.
    DelDestination(ServiceKey, DestinationKey),
}

impl Operation {
    /// The service that is changed.
    pub const fn service(&self) -> ServiceKey {
        match self {
            Self::AddService(service) | Self::SetService(service) => service.key,
            Self::DelService(key)
            | Self::AddDestination(key, _)
            | Self::SetDestination(key, _)
            | Self::DelDestination(key, _) => *key,
        }
    }

    /// The message for it. Where the kernel only looks an object up, only its key is sent.
    pub fn to_message(&self) -> IpvsMessage {
        let command = match self {
            Self::AddService(_) => IpvsCommand::NewService,
            Self::SetService(_) => IpvsCommand::SetService,
            Self::DelService(_) => IpvsCommand::DelService,
            Self::AddDestination(..) => IpvsCommand::NewDestination,
            Self::SetDestination(..) => IpvsCommand::SetDestination,
            Self::DelDestination(..) => IpvsCommand::DelDestination,
        };
        let service = IpvsAttribute::Service(match self {
            Self::AddService(service) | Self::SetService(service) => service.to_attributes(),
            Self::DelService(key)
            | Self::AddDestination(key, _)
            | Self::SetDestination(key, _)
            | Self::DelDestination(key, _) => key.to_attributes(),
        });
        let destination = match self {
            Self::AddDestination(_, destination) | Self::SetDestination(_, destination) => {
                Some(destination.to_attributes())
            }
            Self::DelDestination(_, key) => Some(key.to_attributes()),
            Self::AddService(_) | Self::SetService(_) | Self::DelService(_) => None,
        };
        let mut attributes = vec![service];
        attributes.extend(destination.map(IpvsAttribute::Destination));
        IpvsMessage::new(command, attributes)
    }
}

/// One line that names the object: `add destination 10.1.0.1:8080 Masq weight 1 to TCP
/// 10.0.0.1:80`.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add service {service}"),
            Self::SetService(service) => write!(f, "set service {service}"),
            Self::DelService(key) => write!(f, "delete service {key}"),
            Self::AddDestination(key, destination) => {
                write!(f, "add destination {destination} to {key}")
            }
            Self::SetDestination(key, destination) => {
                write!(f, "set destination {destination} of {key}")
            }
            Self::DelDestination(key, destination) => {
                write!(f, "delete destination {destination} of {key}")
            }
        }
    }
}
