//! Memory that a large read-back leaves behind.
//!
//! It is here only because the C library has to be called for it, and calls into C stay in one module.

/// Gives free memory back to the kernel.
///
/// glibc keeps what was freed below anything that is still in use: after reading a table of 10 000
/// Services back, 40 MiB of holes for as long as the process lives. Takes milliseconds, so it is for
/// the quiet after a large sync. Does nothing with another C library.
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer, touches only free memory, and may be called by any
    // thread at any time (MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}
