//! Operations on a table, the transaction that groups them, and the seam to the kernel.
//!
//! Place in the flow: the engine lists operations; a [`Kernel`] commits them as one atomic batch.
//! Two kernels exist: [`crate::netlink`] and the fake in `testing`.

mod kernel;
mod op;

pub use kernel::{CommitError, Committed, DumpError, Kernel, Rejection};
pub use op::{Counts, Op, Transaction};
