// SPDX-License-Identifier: Apache-2.0
//! The time, as something that tests can own.
