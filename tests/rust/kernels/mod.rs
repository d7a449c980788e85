//! Every kernel on every tier of this CPU: the same bits as the portable tier on one thread, close to the reference.

mod lanes;
mod support;
