// SPDX-License-Identifier: Apache-2.0
//! A pipelined netlink socket, independent of the netlink family.
