//! Pictures to encode, and prompts in which they stand.

use std::ops::Range;
use std::sync::Arc;

use edgewise::config::VisionConfig;
use edgewise::error::Result;
use edgewise::model::vision::{Features, Grid};
use edgewise::model::{Engine, Prompt, Span};

use crate::models::text;

/// A disc before a slope of grey, `[patches, values]`: 8-bit levels from -1 to 1. Each seed has its own place and colour.
pub fn picture(config: &VisionConfig, grid: Grid, seed: usize) -> Vec<f32> {
    let side = config.patch_size;
    let (height, width) = (grid.rows() * side, grid.columns() * side);
    let centre = (height * (1 + seed % 3) / 4, width * (1 + seed / 3 % 3) / 4);
    let radius = height.min(width) / 4;
    let colour = [37 + 90 * seed % 219, 80 * seed % 256, 255 - 60 * seed % 256];
    let level = |channel: usize, y: usize, x: usize| {
        let inside = y.abs_diff(centre.0).pow(2) + x.abs_diff(centre.1).pow(2) <= radius * radius;
        if inside { colour[channel] } else { 255 - 100 * y / height - 50 * x / width }
    };
    let mut out = Vec::with_capacity(grid.patches() * config.patch_values());
    for patch in 0..grid.patches() {
        let (row, column) = grid.place(patch);
        for channel in 0..3 {
            // Both frames are the same picture.
            for at in (0..side * side).chain(0..side * side) {
                let level = level(channel, row * side + at / side, column * side + at % side);
                out.push(level as f32 / 127.5 - 1.0);
            }
        }
    }
    out
}

/// What `engine` sees of picture `seed`, or why it does not.
pub fn try_see(engine: &Engine, [rows, columns]: [usize; 2], seed: usize) -> Result<Features> {
    let config = &engine.vision()?.config;
    let pixels = picture(config, Grid::new(config, rows, columns)?, seed);
    engine.encode(pixels, [rows, columns], &mut |_| Ok(()), &mut |_, _| {})
}

/// What `engine` sees of picture `seed`.
pub fn see(engine: &Engine, grid: [usize; 2], seed: usize) -> Arc<Features> {
    Arc::new(try_see(engine, grid, seed).unwrap())
}

/// A text with images in it.
pub struct Seen {
    pub ids: Vec<u32>,
    pub spans: Vec<Span>,
}

impl Seen {
    /// `texts[0]` tokens of text, the first image, `texts[1]` tokens, the second image, and so on.
    pub fn new(engine: &Engine, texts: &[usize], images: &[Arc<Features>], seed: u32) -> Self {
        let placeholder = engine.vision().unwrap().tokens.image;
        let mut words = text(engine, texts.iter().sum(), seed).into_iter();
        let (mut ids, mut spans) = (Vec::new(), Vec::new());
        for (i, &tokens) in texts.iter().enumerate() {
            ids.extend(words.by_ref().take(tokens));
            let Some(features) = images.get(i) else { continue };
            spans.push(Span { start: ids.len(), features: Arc::clone(features) });
            ids.extend(std::iter::repeat_n(placeholder, features.tokens()));
        }
        Self { ids, spans }
    }

    pub fn prompt<'a>(&'a self, engine: &Engine) -> Prompt<'a> {
        engine.prompt(&self.ids, &self.spans).unwrap()
    }

    /// Tokens `range`, which holds each image whole or not at all.
    pub fn part(&self, range: Range<usize>) -> Self {
        let inside = self.spans.iter().filter(|span| range.contains(&span.start));
        let spans =
            inside.map(|span| Span { start: span.start - range.start, features: Arc::clone(&span.features) });
        Self { ids: self.ids[range.clone()].to_vec(), spans: spans.collect() }
    }

    /// The nearest cut from `at` on that goes through no image.
    pub fn whole(&self, at: usize) -> usize {
        let cut = self.spans.iter().map(Span::range).find(|range| range.start < at && at < range.end);
        cut.map_or(at, |range| range.end)
    }
}
