//! The one table of what GGUF calls and orders differently: its tensors' names beside those of the original checkpoints.
//!
//! What llama.cpp's converter changes, and is taken back when a tensor is read:
//!
//! - Hybrid architectures: 1 is added to the norms of the residual stream, queries and keys (not to the gated norm).
//! - `A_log` is stored as `-e^A_log`, the convolution `[C, 1, 4]` as `[C, 4]`, the shared expert's gate `[1, H]` as `[H]`.
//! - Experts stand in stacks `[E, X, H]`.
//! - `qwen35` and `qwen35moe`, where r value heads share each of K key heads: value heads stand *tiled*, head j of key head k at place
//!   `j K + k`, not at `k r + j`. That concerns rows of the projections that make values, output gates, rates and decays, channels
//!   of the convolution, and columns of the output projection. `qwen3next` keeps the original order.
//! - `llama`: of each query and key head, the two rows that turn together stand beside each other, channel i of the first half at
//!   place 2 i and channel i of the second at 2 i + 1.
//! - Qwen3-Next's fused projections come apart, or stay fused (`ssm_ba`, in older files `ssm_in`).
//! - Layers that predict further tokens (`mtp.` in the original) are the last blocks, with `nextn` tensors beside the usual ones.
//!
//! Source: `conversion/qwen.py`, `conversion/llama.py` and `gguf-py/gguf/constants.py` of llama.cpp.

use super::architecture::Facts;

/// How a tensor differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    Same,
    /// 1 was added, in hybrid architectures.
    Norm,
    /// Its rows are value heads, `value_dim` rows each, tiled.
    ValueRows,
    /// Its rows are value heads, one row each, tiled.
    ValueHeads,
    /// Its rows are all queries, all keys, and values tiled.
    QueryKeyValueRows,
    /// The same, and one dimension of size 1 was left out.
    Convolution,
    /// As `ValueHeads`, and `-e^x` stands for `x`.
    Decay,
    /// Its rows are query heads, in `llama` with the rows that turn together beside each other.
    QueryRows,
    /// The same of key heads.
    KeyRows,
    /// Its columns are value heads, `value_dim` columns each, tiled.
    ValueColumns,
    /// A first dimension of size 1 was left out.
    OneRow,
    /// A convolution `[W, 3, 2, P, P]` over two frames, of which this is the first frame's part.
    Frames,
    /// A stack of matrices, each of them a tensor of its own in the original; `{}` is its number.
    Stack,
}

use Change::{
    Convolution, Decay, KeyRows, Norm, OneRow, QueryKeyValueRows, QueryRows, Same, Stack, ValueColumns,
    ValueHeads, ValueRows,
};

type Row = (&'static str, &'static str, Change);

/// Outside layers.
const TOP: [Row; 3] = [
    ("token_embd.weight", "model.embed_tokens.weight", Same),
    ("output_norm.weight", "model.norm.weight", Norm),
    ("output.weight", "lm_head.weight", Same),
];

/// In layer N: behind `blk.N.`, and behind `model.layers.N.`.
const LAYER: [Row; 31] = [
    ("attn_norm.weight", "input_layernorm.weight", Norm),
    ("post_attention_norm.weight", "post_attention_layernorm.weight", Norm),
    ("ffn_norm.weight", "post_attention_layernorm.weight", Norm),
    ("attn_q.weight", "self_attn.q_proj.weight", QueryRows),
    ("attn_k.weight", "self_attn.k_proj.weight", KeyRows),
    ("attn_v.weight", "self_attn.v_proj.weight", Same),
    ("attn_output.weight", "self_attn.o_proj.weight", Same),
    ("attn_q_norm.weight", "self_attn.q_norm.weight", Norm),
    ("attn_k_norm.weight", "self_attn.k_norm.weight", Norm),
    ("attn_qkv.weight", "linear_attn.in_proj_qkv.weight", QueryKeyValueRows),
    ("attn_gate.weight", "linear_attn.in_proj_z.weight", ValueRows),
    ("ssm_alpha.weight", "linear_attn.in_proj_a.weight", ValueHeads),
    ("ssm_beta.weight", "linear_attn.in_proj_b.weight", ValueHeads),
    ("ssm_ba.weight", "linear_attn.in_proj_ba.weight", Same),
    ("ssm_in.weight", "linear_attn.in_proj_qkvz.weight", Same),
    ("ssm_conv1d.weight", "linear_attn.conv1d.weight", Convolution),
    ("ssm_dt.bias", "linear_attn.dt_bias", ValueHeads),
    ("ssm_a", "linear_attn.A_log", Decay),
    ("ssm_norm.weight", "linear_attn.norm.weight", Same),
    ("ssm_out.weight", "linear_attn.out_proj.weight", ValueColumns),
    ("ffn_gate.weight", "mlp.gate_proj.weight", Same),
    ("ffn_up.weight", "mlp.up_proj.weight", Same),
    ("ffn_down.weight", "mlp.down_proj.weight", Same),
    ("ffn_gate_inp.weight", "mlp.gate.weight", Same),
    ("ffn_gate_exps.weight", "mlp.experts.{}.gate_proj.weight", Stack),
    ("ffn_up_exps.weight", "mlp.experts.{}.up_proj.weight", Stack),
    ("ffn_down_exps.weight", "mlp.experts.{}.down_proj.weight", Stack),
    ("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", OneRow),
    ("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", Same),
    ("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", Same),
    ("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", Same),
];

/// Beside them in the layers that predict further tokens, and behind `mtp.`.
const NEXTN: [Row; 6] = [
    ("nextn.eh_proj.weight", "fc.weight", Same),
    ("nextn.enorm.weight", "pre_fc_norm_embedding.weight", Norm),
    ("nextn.hnorm.weight", "pre_fc_norm_hidden.weight", Norm),
    ("nextn.shared_head_norm.weight", "norm.weight", Norm),
    ("nextn.embed_tokens.weight", "embed_tokens.weight", Same),
    ("nextn.shared_head_head.weight", "lm_head.weight", Same),
];

/// What a tensor of a GGUF file is called in the original checkpoint, with `{}` for the number in a stack, and how it differs;
/// `None` for a tensor that no known architecture has.
pub fn original(name: &str, facts: &Facts) -> Option<(String, Change)> {
    let find = |rows: &[Row], name: &str| rows.iter().find(|row| row.0 == name).map(|row| (row.1, row.2));
    let Some(rest) = name.strip_prefix("blk.") else {
        return find(&TOP, name).map(|(ours, change)| (ours.to_owned(), change));
    };
    let (number, rest) = rest.split_once('.')?;
    let layer = number.parse::<usize>().ok().filter(|layer| layer.to_string() == number)?;
    let Some(extra) = layer.checked_sub(facts.layers) else {
        return find(&LAYER, rest).map(|(ours, change)| (format!("model.layers.{layer}.{ours}"), change));
    };
    if extra >= facts.extra {
        return None;
    }
    if let Some((ours, change)) = find(&NEXTN, rest) {
        return (extra == 0).then(|| (format!("mtp.{ours}"), change));
    }
    find(&LAYER, rest).map(|(ours, change)| (format!("mtp.layers.{extra}.{ours}"), change))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { layers: 4, extra: 2, ..Facts::default() }
    }

    #[test]
    fn names() {
        for (gguf, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.ssm_a", "model.layers.0.linear_attn.A_log"),
            ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
            ("blk.4.attn_q.weight", "mtp.layers.0.self_attn.q_proj.weight"),
            ("blk.4.nextn.eh_proj.weight", "mtp.fc.weight"),
            ("blk.5.ffn_up.weight", "mtp.layers.1.mlp.up_proj.weight"),
        ] {
            assert_eq!(original(gguf, &facts()).unwrap().0, ours);
        }
    }

    #[test]
    fn unknown_names() {
        for name in [
            "",
            "blk.",
            "blk.0",
            "blk.0.",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.x.attn_q.weight",
            "blk.0.nextn.eh_proj.weight",
            "blk.5.nextn.eh_proj.weight",
            "rope_freqs.weight",
            "blk.6.attn_q.weight",
            "blk.0.attn_sinks",
            "blk.0.attn_q.bias",
        ] {
            assert_eq!(original(name, &facts()), None, "{name}");
        }
    }

    #[test]
    fn no_row_stands_twice() {
        for rows in [&TOP[..], &LAYER, &NEXTN] {
            for (i, row) in rows.iter().enumerate() {
                assert!(rows[..i].iter().all(|other| other.0 != row.0), "{}", row.0);
            }
        }
    }
}
