// SPDX-License-Identifier: Apache-2.0
//! The proxy's metrics, one prometheus Registry handed down.
