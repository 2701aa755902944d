// SPDX-License-Identifier: Apache-2.0
//! iptables rule sets through iptables-save and iptables-restore.
