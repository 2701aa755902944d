// SPDX-License-Identifier: Apache-2.0
//! Composition root: build, bind, run, drain.
