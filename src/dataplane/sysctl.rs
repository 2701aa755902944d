// SPDX-License-Identifier: Apache-2.0
//! Kernel settings under /proc/sys.
