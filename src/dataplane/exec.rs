// SPDX-License-Identifier: Apache-2.0
//! The one door to external programs.
