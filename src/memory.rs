// SPDX-License-Identifier: Apache-2.0
//! Giving free memory back to the system.
//!
//! The C library keeps what is freed. A cold start frees much more than a steady state ever needs
//! again, and on a node everybody counts it as ours.

/// Gives back what is free at the moment. Takes milliseconds: for use after exceptional work only.
pub fn release() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the C library has no safe way to it")]
    // SAFETY: it takes no pointer, touches free memory only and may be called by any thread
    // (MT-Safe in malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
