// SPDX-License-Identifier: Apache-2.0
//! Links and addresses over route netlink.
