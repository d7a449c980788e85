//! What follows the mixer in a layer: a feed-forward network.

pub mod dense;
