//! scratch
use edgewise::config::*;
use edgewise::kernels::*;
use edgewise::model::*;
use edgewise::weights::{matrix::Format, names, random};
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
fn main() {
    let threads: usize = std::env::args().nth(1).map_or(2, |x| x.parse().unwrap());
    let kinds =
        (0..24).map(|i| if i % 4 == 3 { LayerKind::Attention } else { LayerKind::GatedDelta }).collect();
    let c = TextConfig {
        vocab_size: 248320,
        hidden_size: 1024,
        intermediate_size: 3584,
        max_position_embeddings: 262144,
        layers: kinds,
        rms_norm_eps: 1e-6,
        delta: DeltaConfig { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, conv_kernel: 4 },
        attention: AttentionConfig { heads: 8, kv_heads: 2, head_dim: 256, output_gate: true },
        rope: RopeConfig { theta: 1e7, rotary_dim: 64, sections: [11, 11, 10] },
        tie_word_embeddings: true,
    };
    let mut src = random::RandomSource::new(
        |n: &str, _s| {
            if n.contains("in_proj_a") || n.contains("in_proj_b") { Format::Int8 } else { Format::Int4 }
        },
        1,
    );
    let w = names::load(&c, &mut src).unwrap();
    let tier = Tier::from_environment().unwrap();
    println!("{}", tier.name());
    let e = Engine::new(
        Model { config: c, weights: w },
        Cpu::new(tier, threads),
        edgewise::kernels::kv_cache::KvType::F16,
    );
    let ids: Vec<u32> = (0..512).map(|i| (i * 7919) % 248320).collect();
    for _ in 0..3 {
        let mut s = e.state();
        let t = std::time::Instant::now();
        e.append(&mut s, &ids, &mut || Ok(())).unwrap();
        let p = t.elapsed().as_secs_f64();
        let mut l = vec![0.0; 248320];
        let t = std::time::Instant::now();
        let n = 30;
        for i in 0..n {
            e.append(&mut s, &[i * 31 + 5], &mut || Ok(())).unwrap();
            e.logits(&s, &mut l).unwrap();
        }
        let d = t.elapsed().as_secs_f64();
        println!("prefill {:.1} tok/s  decode {:.1} tok/s", 512.0 / p, n as f64 / d);
    }
}
