// SPDX-License-Identifier: Apache-2.0
//! Flags and the KubeProxyConfiguration file.
