//! Token ids to logits.
