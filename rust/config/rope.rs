//! The text model's rotary settings.

use super::family::Family;
use super::fields::Fields;
use super::{RopeConfig, YarnConfig};
use crate::checkpoint::json::quote;
use crate::error::Result;

/// Values of `rope_type`.
const TYPES: [&str; 2] = ["default", "yarn"];

/// Rotary settings for heads of `head_dim` in a model whose `max_position_embeddings` is `context`.
pub(super) fn parse(fields: &Fields, family: &Family, head_dim: usize, context: usize) -> Result<RopeConfig> {
    let settings = settings(fields)?;
    let inner = settings.as_ref().unwrap_or(fields);
    let stretched = settings.is_some() && rope_type(inner)? == "yarn";
    let theta = match inner.positive("rope_theta")? {
        Some(theta) => theta,
        None => inner.require("rope_theta", fields.positive("rope_theta")?.or(family.older_theta))?,
    };
    let rotary_dim = rotary_dim(inner, fields, head_dim, family.rotary_factor)?;
    let yarn = if stretched { Some(YarnConfig::parse(inner, context, theta, rotary_dim)?) } else { None };
    Ok(RopeConfig { theta, rotary_dim, sections: sections(inner, rotary_dim)?, yarn })
}

/// `rope_type`, or the older `type`.
fn rope_type<'a>(rope: &Fields<'a>) -> Result<&'a str> {
    let mut found = None;
    for key in ["rope_type", "type"] {
        let Some(name) = rope.text(key)? else { continue };
        if !TYPES.contains(&name) {
            let known = TYPES.join(", ");
            return Err(rope.error(key, format!("'{}' is not supported; known: {known}", quote(name))));
        }
        if found.is_some_and(|found| found != name) {
            return Err(rope.error(key, format!("'{name}' is not what rope_type says")));
        }
        found = Some(name);
    }
    Ok(found.unwrap_or("default"))
}

/// An image has three axes: a model that sees must say which frequencies are whose.
pub(super) fn require_sections(fields: &Fields) -> Result<()> {
    let settings = settings(fields)?;
    let inner = settings.as_ref().unwrap_or(fields);
    inner.require("mrope_section", inner.list("mrope_section")?)?;
    Ok(())
}

/// `rope_parameters`, or the older `rope_scaling` with `rope_theta` beside it.
fn settings<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>> {
    match (fields.object("rope_parameters")?, fields.object("rope_scaling")?) {
        (Some(_), Some(_)) => {
            Err(fields.error("rope_scaling", "stands beside rope_parameters; only one of them may"))
        }
        (parameters, scaling) => Ok(parameters.or(scaling)),
    }
}

/// `partial_rotary_factor` x `head_dim`, rounded down; `factor` where none stands.
fn rotary_dim(inner: &Fields, outer: &Fields, head_dim: usize, factor: f64) -> Result<usize> {
    let key = "partial_rotary_factor";
    let (place, factor) = match inner.positive(key)? {
        Some(factor) => (inner, factor),
        None => (outer, outer.positive(key)?.unwrap_or(factor)),
    };
    if factor > 1.0 {
        return Err(place.error(key, format!("must be at most 1, not {factor}")));
    }
    let dim = (head_dim as f64 * factor) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(place.error(
            key,
            format!("{factor} of head_dim {head_dim} gives {dim} channels, not an even number"),
        ));
    }
    Ok(dim)
}

/// Frequencies on each axis; all on the time axis where none are given.
fn sections(rope: &Fields, rotary_dim: usize) -> Result<[usize; 3]> {
    let key = "mrope_section";
    let half = rotary_dim / 2;
    let interleaved = rope.flag("mrope_interleaved")?.unwrap_or(true);
    let Some(listed) = rope.list(key)? else {
        return Ok([half, 0, 0]);
    };
    if !interleaved {
        return Err(rope.error("mrope_interleaved", "false is not supported"));
    }
    let wrong = || {
        rope.error(key, format!("must be three whole numbers with the sum {half}, half the rotary channels"))
    };
    let sizes: Option<Vec<u64>> =
        listed.iter().map(|value| value.as_u64().filter(|&x| x <= half as u64)).collect();
    match sizes.as_deref() {
        Some(&[t, h, w]) if t + h + w == half as u64 => Ok([t as usize, h as usize, w as usize]),
        _ => Err(wrong()),
    }
}
