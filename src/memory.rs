// SPDX-License-Identifier: Apache-2.0
//! Returns free memory to the system.
//!
//! The C library keeps freed memory. A cold start frees much more than a steady state ever needs
//! again, and monitoring counts it as ours.

/// Requests from this size on get memory of their own, which goes back to the system when it is
/// freed. It is the C library's first value; by itself it would raise it to 32 MiB as soon as
/// something large is freed, and the batches and answers of a large cluster would then lie between
/// small things that stay.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// Makes the C library keep large things apart. For the start of the process.
pub fn keep_large_apart() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the C library has no safe way to it")]
    // SAFETY: it takes two numbers (mallopt(3)).
    unsafe {
        // It fails only for a value out of range.
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

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
