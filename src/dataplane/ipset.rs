// SPDX-License-Identifier: Apache-2.0
//! ipset over nfnetlink: messages and client.
