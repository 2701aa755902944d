// SPDX-License-Identifier: Apache-2.0
//! Where Services and EndpointSlices come from.
