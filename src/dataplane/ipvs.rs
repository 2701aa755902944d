// SPDX-License-Identifier: Apache-2.0
//! IPVS over generic netlink: messages and client.
