// SPDX-License-Identifier: Apache-2.0
//! Bodies of answers as anybody could write them, for `fuzz/`.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::client::Body;

use super::PROTOBUF;
use super::all_nodes::Outline;
use super::event::{Change, event};
use super::failure::Failure;
use super::object::{Decode, Object, decode_item};
use super::pieces::{Incoming, Items};
use crate::source::Options;
use crate::source::convert::Converter;

/// Takes the bytes for an answer, whose form the first of them says: of a watch and of a list of
/// each kind. Neither objects nor errors are looked at.
pub fn fuzz(bytes: &[u8]) {
    let Some((form, body)) = bytes.split_first() else {
        return;
    };
    let mut headers = HeaderMap::new();
    if form & 1 == 0 {
        let value = http::HeaderValue::from_static(PROTOBUF);
        headers.insert(CONTENT_TYPE, value);
    }
    if form & 2 != 0 {
        let value = http::HeaderValue::from_static("gzip");
        headers.insert(CONTENT_ENCODING, value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let Ok(runtime) = runtime else {
        return;
    };
    let mut converter = Converter::new(&Options {
        node_name: "node".into(),
        allow_external_ips: true,
        annotations: crate::source::Annotations::unlimited(),
        cluster: crate::source::ClusterSize::default(),
    });
    runtime.block_on(async {
        let mut read = Reading { headers, body };
        read.all(|object: &Service| drop(converter.service(object)))
            .await;
        read.all(|object: &EndpointSlice| drop(converter.slice(object)))
            .await;
        read.all(|object: &Node| drop(converter.node(object))).await;
        read.all(|object: &ServiceCIDR| drop(converter.service_cidr(object)))
            .await;
        read.all(|object: &Outline| drop(object.claims())).await;
    });
}

struct Reading<'a> {
    headers: HeaderMap,
    body: &'a [u8],
}

impl Reading<'_> {
    fn incoming(&self) -> Result<Incoming, Failure> {
        let body = Body::from(self.body.to_vec());
        Incoming::new(&self.headers, body, Duration::from_secs(1))
    }

    async fn all<K: Decode>(&mut self, mut each: impl FnMut(&K)) {
        let mut take = |object: Object<K>| {
            if let Ok(object) = object {
                each(&object);
            }
        };
        if let Ok(mut incoming) = self.incoming() {
            while let Ok(Some(bytes)) = incoming.event().await {
                match event::<K>(incoming.encoding(), bytes) {
                    Ok(Change::Applied(object) | Change::Deleted(object)) => take(object),
                    Ok(Change::Bookmark { .. }) => {}
                    Err(failure) => drop(failure.to_string()),
                }
            }
        }
        if let Ok(incoming) = self.incoming() {
            let mut items = Items::new(incoming);
            while let Ok(Some(item)) = items.next().await {
                take(decode_item(items.encoding(), item));
            }
            drop(items.meta());
        }
        let body = bytes::Bytes::copy_from_slice(self.body);
        drop(Failure::refused(500, &self.headers, &body).to_string());
    }
}
