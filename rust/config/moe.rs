//! Mixtures of experts: which layers have one, and their shapes.

use super::family::{Experts, Family};
use super::fields::{Fields, MAX_SIZE, describe};
use super::{FeedForwardKind, MoeConfig};
use crate::error::Result;
use crate::weights::matrix::BLOCK_ROWS;

/// Most experts of a layer.
const MAX_EXPERTS: usize = 1 << 16;

/// The kind of each layer's feed-forward network.
pub(super) fn kinds(fields: &Fields, family: &Family, layers: usize) -> Result<Vec<FeedForwardKind>> {
    match family.experts {
        Experts::Never => Ok(vec![FeedForwardKind::Dense; layers]),
        Experts::Always => Ok(vec![FeedForwardKind::Moe; layers]),
        Experts::Listed { .. } => {
            let step = fields.optional_size("decoder_sparse_step", MAX_SIZE)?.unwrap_or(1);
            let dense = dense_layers(fields, layers)?;
            let is_moe = |i: usize| (i + 1).is_multiple_of(step) && !dense.contains(&i);
            Ok((0..layers)
                .map(|i| if is_moe(i) { FeedForwardKind::Moe } else { FeedForwardKind::Dense })
                .collect())
        }
    }
}

/// `mlp_only_layers`: layers without experts.
fn dense_layers(fields: &Fields, layers: usize) -> Result<Vec<usize>> {
    let key = "mlp_only_layers";
    let listed = fields.list(key)?.unwrap_or_default().iter().enumerate();
    let indexes = listed.map(|(i, value)| {
        let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
        index.filter(|&index| index < layers).ok_or_else(|| {
            let reason = format!("must be a layer below {layers}, not {}", describe(value));
            fields.error(&format!("{key}[{i}]"), reason)
        })
    });
    indexes.collect()
}

/// The experts' shapes.
pub(super) fn parse(fields: &Fields, family: &Family) -> Result<MoeConfig> {
    let (shared, renormalise) = match family.experts {
        Experts::Listed { shared, renormalise } => {
            (shared, fields.flag("norm_topk_prob")?.unwrap_or(renormalise))
        }
        Experts::Never | Experts::Always => (true, true),
    };
    let experts = count(fields)?;
    let per_token = fields.size("num_experts_per_tok", MAX_EXPERTS)?;
    if per_token > experts {
        let reason = format!("{per_token} of {experts} experts cannot be chosen");
        return Err(fields.error("num_experts_per_tok", reason));
    }
    let shared_width =
        shared.then(|| fields.size("shared_expert_intermediate_size", MAX_SIZE)).transpose()?;
    let width = fields.size("moe_intermediate_size", MAX_SIZE)?;
    if !width.is_multiple_of(BLOCK_ROWS) {
        // Gate and up projection may stand in one tensor, which must come apart between two panels.
        let reason = format!("must be a multiple of {BLOCK_ROWS}, not {width}");
        return Err(fields.error("moe_intermediate_size", reason));
    }
    Ok(MoeConfig { experts, per_token, width, shared_width, renormalise })
}

/// `num_experts`, which newer files of some families call `num_local_experts`.
fn count(fields: &Fields) -> Result<usize> {
    let experts = match fields.optional_size("num_experts", MAX_EXPERTS)? {
        None => fields.optional_size("num_local_experts", MAX_EXPERTS)?,
        experts => experts,
    };
    fields.require("num_experts", experts)
}

#[cfg(test)]
mod tests;
