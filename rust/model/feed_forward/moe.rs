//! A mixture of experts: a router scores all experts for each token, the best few work on it, and what they give is
//! added by weight. In some families a shared expert works on every token, behind a gate of its own.
//!
//! Source: sparse mixtures (Shazeer et al. 2017, arXiv 1701.06538); Qwen3-MoE, Qwen3-Next and Qwen3.5-MoE model code.

use crate::config::MoeConfig;
use crate::kernels::Cpu;
use crate::kernels::experts::{Experts, Shared, expert_feed_forward};
use crate::kernels::linear::{Input, Store, linear};
use crate::kernels::profile::Operation;
use crate::kernels::routing::route_top_k;
use crate::model::input::set;
use crate::model::scratch::MoeScratch;
use crate::weights::model::MoeWeights;

/// Most experts, counted once for each token, that are asked for from disk at once. A long prompt uses them all, one after
/// the other, and asking for a whole layer could push out of memory what is needed first.
const MAX_PREFETCH: usize = 32;

/// hidden += experts(input), both `[tokens, hidden]`. The router's scores and choices stay in `scratch`.
pub fn forward(
    cpu: &Cpu,
    config: &MoeConfig,
    weights: &MoeWeights,
    scratch: &mut MoeScratch,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let tokens = input.tokens;
    let MoeScratch { logits, routes, shared_gate, experts } = scratch;
    let logits = &mut logits[..tokens * config.experts];
    let router = set(&weights.router, logits);
    let shared = match &weights.shared {
        None => {
            linear(cpu, input, [router]);
            None
        }
        Some(shared) => {
            let gate = &mut shared_gate[..tokens];
            linear(cpu, input, [router, set(&shared.gate, gate)]);
            Some(Shared { weights: &shared.network, gate })
        }
    };
    route_top_k(cpu, logits, config.experts, config.per_token, config.renormalise, routes);
    cpu.profile.lap(Operation::Routing, weights.router.bytes().len());
    if routes.experts().len() <= MAX_PREFETCH {
        weights.will_need(routes.experts());
    }
    let all = Experts { routed: &weights.experts, shared };
    expert_feed_forward(cpu, all, input, routes, experts, hidden, Store::Add);
    cpu.profile.work(Operation::FeedForward, || weights.work(routes.experts(), tokens));
}
