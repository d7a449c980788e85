//! The whole tower once more, from the plain forms of its operations, on shapes the recordings do not have.

use edgewise::config::{MediaTokens, VisionConfig};
use edgewise::error::Result;
use edgewise::kernels::reference::{self, AttentionShape};
use edgewise::model::vision::{Grid, VisionStage, VisionTower};
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::names::Source;
use edgewise::weights::vision::{Affine, BlockWeights, MergerWeights, NormWeights, load};

use crate::kernels::support::{Random, cpus, same_on_all};

const NORM_EPS: f32 = 1e-6;

/// Random weights that keep the size of what goes through them.
struct Noise(Random);

impl Source for Noise {
    fn has(&self, _: &str) -> bool {
        false
    }

    fn stack(&mut self, name: &str, _: [usize; 3]) -> Result<Vec<Matrix>> {
        unreachable!("a tower has no stack such as {name}")
    }

    fn matrix(&mut self, _: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let bound = (3.0 / cols as f32).sqrt();
        let numbers = self.0.between(rows * cols, -bound, bound);
        let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        Matrix::new(Format::F32, rows, cols, Bytes::new(data))
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let centre = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(self.0.between(shape.iter().product(), centre - 0.5, centre + 0.5))
    }
}

fn tower(config: VisionConfig, seed: u64) -> VisionTower {
    let weights = load(&config, &mut Noise(Random::new(seed))).unwrap();
    let tokens = MediaTokens { image: 1, video: 2, vision_start: 3, vision_end: 4 };
    VisionTower { config, tokens, weights }
}

/// `heads` heads of `head_dim`, two blocks.
fn config(heads: usize, head_dim: usize, position_side: usize) -> VisionConfig {
    VisionConfig {
        depth: 2,
        hidden_size: heads * head_dim,
        intermediate_size: 40,
        heads,
        out_hidden_size: 24,
        patch_size: 4,
        temporal_patch_size: 2,
        in_channels: 3,
        merge_size: 2,
        position_side,
        rope_theta: 10_000.0,
        deepstack_layers: Vec::new(),
    }
}

fn affine(layer: &Affine, x: &[f32]) -> Vec<f32> {
    let product = reference::matmul(x, &layer.weight.to_f32(), layer.weight.cols());
    reference::add_bias(&product, &layer.bias)
}

fn norm(weights: &NormWeights, x: &[f32]) -> Vec<f32> {
    reference::layer_norm(x, &weights.weight, &weights.bias, NORM_EPS)
}

fn map(x: &[f32], f: fn(f64) -> f64) -> Vec<f32> {
    x.iter().map(|&x| f(f64::from(x)) as f32).collect()
}

fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    reference::add_bias(x, y)
}

/// Row and column of each patch: tokens row by row, inside a token its four patches row by row.
fn places([rows, columns]: [usize; 2]) -> Vec<(usize, usize)> {
    let tokens = (0..rows / 2).flat_map(|row| (0..columns / 2).map(move |column| (2 * row, 2 * column)));
    tokens.flat_map(|(y, x)| [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]).collect()
}

fn block(config: &VisionConfig, weights: &BlockWeights, grid: [usize; 2], x: &[f32]) -> Vec<f32> {
    let (heads, head_dim, width) = (config.heads, config.head_dim(), config.hidden_size);
    let qkv = affine(&weights.qkv, &norm(&weights.norm1, x));
    let part = |i: usize| -> Vec<f32> {
        qkv.chunks(3 * width).flat_map(|row| &row[i * width..(i + 1) * width]).copied().collect()
    };
    let turn = |x: &[f32]| reference::rope_two_axes(config.rope_theta, x, &places(grid), heads, head_dim);
    let shape = AttentionShape { heads, kv_heads: heads, head_dim };
    let scale = 1.0 / (head_dim as f64).sqrt();
    let attended = reference::bidirectional(shape, &turn(&part(0)), &turn(&part(1)), &part(2), scale);
    let x = add(x, &affine(&weights.proj, &attended));
    let inner = map(&affine(&weights.fc1, &norm(&weights.norm2, &x)), reference::gelu_tanh);
    add(&x, &affine(&weights.fc2, &inner))
}

fn merge(weights: &MergerWeights, x: &[f32]) -> Vec<f32> {
    affine(&weights.fc2, &map(&affine(&weights.fc1, &norm(&weights.norm, x)), reference::gelu_erf))
}

/// Everything a watcher sees, in order, then the embeddings and what goes into the decoder.
fn expected(tower: &VisionTower, pixels: &[f32], grid: [usize; 2]) -> Vec<Vec<f32>> {
    let VisionTower { config, weights, .. } = tower;
    let table = weights.positions.to_f32();
    let stretched = reference::stretch(&table, config.position_side, config.hidden_size, grid);
    let position = |(row, column): (usize, usize)| {
        stretched[(row * grid[1] + column) * config.hidden_size..][..config.hidden_size].to_vec()
    };
    let mut out = vec![affine(&weights.patch_embed, pixels)];
    let positions: Vec<f32> = places(grid).into_iter().flat_map(position).collect();
    out.push(add(&out[0], &positions));
    let mut deepstack = Vec::new();
    for (i, weights) in tower.weights.blocks.iter().enumerate() {
        out.push(block(config, weights, grid, out.last().unwrap()));
        if let Some(j) = config.deepstack_layers.iter().position(|&layer| layer == i) {
            deepstack.push(merge(&tower.weights.deepstack[j], out.last().unwrap()));
        }
    }
    out.push(merge(&weights.merger, out.last().unwrap()));
    out.extend(deepstack);
    out
}

/// The same of the tower itself.
fn found(
    tower: &VisionTower,
    cpu: &edgewise::kernels::Cpu,
    pixels: &[f32],
    [rows, columns]: [usize; 2],
) -> Vec<Vec<f32>> {
    let grid = Grid::new(&tower.config, rows, columns).unwrap();
    let mut stages = Vec::new();
    let mut watch = |stage, x: &[f32]| stages.push((stage, x.to_vec()));
    let features = tower.encode(cpu, pixels.to_vec(), grid, &mut |_| Ok(()), &mut watch).unwrap();
    let names: Vec<VisionStage> = stages.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(names[..2], [VisionStage::PatchEmbedding, VisionStage::BlockInput]);
    assert!(names[2..].iter().copied().eq((0..tower.config.depth).map(VisionStage::Block)));
    let mut out: Vec<_> = stages.into_iter().map(|(_, x)| x).collect();
    out.push(features.embeddings);
    out.extend(features.deepstack);
    out
}

/// The largest difference, in parts of the largest expected number.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    found.iter().zip(expected).map(|(f, e)| (f - e).abs() / largest).fold(0.0, f32::max)
}

fn check(config: VisionConfig, grids: &[[usize; 2]], seed: u64) {
    let tower = tower(config, seed);
    let mut random = Random::new(seed + 1);
    for &grid in grids {
        let pixels = random.numbers(grid[0] * grid[1] * tower.config.patch_values());
        let name = format!("heads of {}, grid {grid:?}", tower.config.head_dim());
        let (cpus, expected) = (cpus(), expected(&tower, &pixels, grid));
        same_on_all(&name, &cpus, |cpu| found(&tower, cpu, &pixels, grid).concat());
        let found = found(&tower, &cpus[0], &pixels, grid);
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = difference(found, expected);
            assert!(difference <= 1e-5, "{name}: stage {i} is off by {difference:e}");
        }
    }
}

#[test]
fn heads_that_fill_no_vector() {
    for (heads, head_dim) in [(2, 4), (3, 12), (2, 20), (1, 72)] {
        check(config(heads, head_dim, 6), &[[2, 2], [4, 10], [8, 6]], head_dim as u64);
    }
}

#[test]
fn heads_of_whole_vectors() {
    for (heads, head_dim) in [(4, 16), (1, 64)] {
        check(config(heads, head_dim, 6), &[[2, 4], [10, 8]], head_dim as u64);
    }
}

/// Matrices see 256 patches at a time: a grid below, at and above that, and one of three such pieces.
#[test]
fn grids_around_the_pieces_of_the_matrices() {
    check(config(2, 8, 5), &[[14, 18], [16, 16], [2, 130], [26, 22]], 7);
}

#[test]
fn features_for_the_decoder() {
    let deep = VisionConfig { deepstack_layers: vec![0, 2], depth: 3, ..config(2, 20, 4) };
    check(deep, &[[4, 6], [16, 18]], 8);
}

/// Smaller and larger than the grid, as large, and of one entry, which is every patch's position.
#[test]
fn tables_of_positions() {
    for side in [1, 2, 3, 6, 48] {
        check(VisionConfig { depth: 1, ..config(1, 8, side) }, &[[6, 6], [2, 12]], 9 + side as u64);
    }
}

#[test]
fn grids_give_each_patch_one_place() {
    let config = config(1, 4, 2);
    for sides in [[2, 2], [2, 10], [6, 4]] {
        let grid = Grid::new(&config, sides[0], sides[1]).unwrap();
        let found: Vec<_> = (0..grid.patches()).map(|i| grid.place(i)).collect();
        assert_eq!(found, places(sides));
        assert_eq!(grid.tokens() * 4, grid.patches());
        assert_eq!((grid.merged_rows(), grid.merged_columns()), (sides[0] / 2, sides[1] / 2));
    }
}

#[test]
fn grids_that_cannot_be() {
    let config = config(1, 4, 2);
    for (rows, columns, reason) in [
        (0, 2, "(0, 2) must be multiples of 2, and not zero"),
        (2, 0, "must be multiples of 2"),
        (3, 4, "must be multiples of 2"),
        (4, 5, "must be multiples of 2"),
        (512, 514, "(512, 514) are more than 262144 patches"),
        (1 << 40, 1 << 40, "are more than 262144 patches"),
        (usize::MAX - 1, 2, "are more than 262144 patches"),
    ] {
        let message = Grid::new(&config, rows, columns).unwrap_err().to_string();
        assert!(message.starts_with("grid_hw: ") && message.contains(reason), "{message}");
    }
    assert_eq!(Grid::new(&config, 512, 512).unwrap().patches(), 1 << 18);
}
