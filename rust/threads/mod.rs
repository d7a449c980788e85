//! The thread pool and how many threads it should have.
mod count;
mod pool;
pub use count::available_threads;
pub use pool::Pool;
