//! Checkpoints whose weights another program has quantised: GPTQ, AWQ, compressed-tensors, FP8, MLX.
//!
//! There, a matrix `X.weight` is several tensors, such as `X.qweight`, `X.qzeros` and `X.scales`. Which matrices are packed shows in
//! the tensors; how, `quantization_config` says ([`Quantization`]). One module for each method reads shapes and small tensors
//! into a [`Packed`], and `repack` turns that into our blocks, exactly where the grids agree, or into f32.

mod awq;
mod compressed;
mod fp8;
mod gptq;
mod mlx;
mod packed;
mod repack;

pub use self::packed::Packed;
use super::fused;
use crate::checkpoint::Checkpoint;
use crate::config::{DeltaConfig, Method, Quantization};
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// The ending of a matrix's name.
const WEIGHT: &str = ".weight";

/// The packed weights of a checkpoint.
#[derive(Debug)]
pub struct Imports<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Quantization,
    /// How fused tensors come apart.
    delta: Option<DeltaConfig>,
}

/// The tensors of one packed matrix.
struct Module<'a> {
    checkpoint: &'a Checkpoint,
    /// Its name, without the ending of a tensor.
    name: &'a str,
}

impl<'a> Module<'a> {
    fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The tensor of this ending, if there is one.
    fn get(&self, part: &str) -> Result<Option<TensorView>> {
        self.checkpoint.get(&format!("{}.{part}", self.name))
    }

    /// The tensor of this ending, which must be there.
    fn require(&self, part: &str) -> Result<TensorView> {
        self.checkpoint.require(&format!("{}.{part}", self.name))
    }

    /// The name of the matrix in the model.
    fn weight(&self) -> String {
        format!("{}{WEIGHT}", self.name)
    }
}

/// A matrix in a checkpoint with packed ones, by the name it has in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// Packed.
    Packed(String),
    /// As it stands.
    Plain(String),
}

impl<'a> Imports<'a> {
    /// The packed weights of `checkpoint`; `None` if its configuration tells of none.
    pub fn read(checkpoint: &'a Checkpoint, delta: Option<&DeltaConfig>) -> Result<Option<Self>> {
        let quantization = Quantization::read(checkpoint)?;
        Ok(quantization.map(|quantization| Self { checkpoint, quantization, delta: delta.cloned() }))
    }

    /// The matrix `name` if it is packed, alone or as a part of a fused one.
    pub fn find(&self, name: &str) -> Result<Option<Packed>> {
        if let Some(module) = self.packed_module(name) {
            return self.open(name, module).map(Some);
        }
        let place = self.delta.as_ref().and_then(|delta| fused::place_of(name, delta));
        match place {
            Some((fused, rows, all)) if !self.checkpoint.contains(name) => match self.packed_module(&fused) {
                Some(module) => self.open(&fused, module)?.take(rows, all, name).map(Some),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// All that the model may read, each once: packed matrices instead of the tensors that make them up.
    pub fn names(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for name in self.checkpoint.names() {
            let Some(weight) = self.weight_of(name) else {
                names.push(Name::Plain(name.to_owned()));
                continue;
            };
            if !self.is_main(name) {
                continue;
            }
            let pieces: Vec<_> = fused::pieces(&weight).filter(|_| self.delta.is_some()).collect();
            if pieces.is_empty() {
                names.push(Name::Packed(weight));
            } else {
                names.extend(pieces.into_iter().map(Name::Packed));
            }
        }
        names
    }

    /// Bytes of all tensors that make up the packed matrix `name`.
    pub fn source_bytes(&self, packed: &Packed) -> usize {
        let parts = self.parts().iter().filter_map(|part| {
            let stem = packed.view.name.strip_suffix(self.main_part(&packed.view.name)?)?;
            self.checkpoint.get(&format!("{stem}{part}")).ok().flatten()
        });
        let [_, rows, _] = packed.stored;
        let all: usize = parts.map(|view| view.bytes.len()).sum();
        all / rows * packed.taken.as_ref().map_or(rows, Vec::len)
    }

    fn open(&self, name: &str, module: &str) -> Result<Packed> {
        let module = Module { checkpoint: self.checkpoint, name: module };
        let packed = match &self.quantization.method {
            Method::Gptq { zero_offset, grids } => gptq::open(&module, *zero_offset, grids),
            Method::Awq { grid } => awq::open(&module, *grid),
            Method::CompressedTensors(schemes) => compressed::open(&module, schemes),
            Method::Fp8 { block } => fp8::open(&module, self.checkpoint.require(name)?, *block),
            Method::Mlx { grid, modules } => match modules.get(&self.stored_module(module.name)) {
                Some(grid) => {
                    let path = self.checkpoint.path().join("config.json");
                    let grid = grid.ok_or_else(|| self.quantization.contradiction(&path, module.name))?;
                    mlx::open(&module, grid)
                }
                None => mlx::open(&module, *grid),
            },
        }?;
        self.quantization.check_packed(&self.checkpoint.path().join("config.json"), module.name)?;
        Ok(packed)
    }

    /// What the module is called in the files, and so in the configuration.
    fn stored_module(&self, module: &str) -> String {
        let weight = format!("{module}{WEIGHT}");
        let stored = self.checkpoint.stored_name(&weight);
        stored.strip_suffix(WEIGHT).unwrap_or(stored).to_owned()
    }

    /// The endings of the tensors that hold codes, each with the types it then has.
    fn main_parts(&self) -> &'static [(&'static str, &'static [DType])] {
        match self.quantization.method {
            Method::Gptq { .. } | Method::Awq { .. } => &[(".qweight", &[DType::I32])],
            Method::CompressedTensors(_) => {
                &[(".weight_packed", &[DType::I32]), (WEIGHT, &[DType::I8, DType::F8E4M3])]
            }
            // Stacks of experts are named without an ending.
            Method::Fp8 { .. } => &[(WEIGHT, &[DType::F8E4M3]), ("", &[DType::F8E4M3])],
            Method::Mlx { .. } => &[(WEIGHT, &[DType::U32])],
        }
    }

    /// The endings of all tensors of a packed matrix, longer ones first.
    fn parts(&self) -> &'static [&'static str] {
        match self.quantization.method {
            Method::Gptq { .. } | Method::Awq { .. } => &[".qweight", ".qzeros", ".scales", ".g_idx"],
            Method::CompressedTensors(_) => &[
                ".weight_zero_point",
                ".weight_packed",
                ".weight_shape",
                ".weight_scale",
                ".weight_g_idx",
                ".input_scale",
                ".input_zero_point",
                WEIGHT,
            ],
            Method::Fp8 { .. } => &[
                ".weight_scale_inv",
                ".weight_scale",
                ".activation_scale",
                ".input_scale",
                WEIGHT,
                "_scale_inv",
                "_scale",
                "",
            ],
            Method::Mlx { .. } => &[".scales", ".biases", WEIGHT],
        }
    }

    /// The ending of the tensor `name` if it holds codes.
    fn main_part(&self, name: &str) -> Option<&'static str> {
        let parts = self.main_parts().iter().filter(|(part, _)| name.ends_with(part));
        let (part, _) = parts
            .into_iter()
            .find(|(_, types)| self.checkpoint.dtype(name).is_some_and(|dtype| types.contains(&dtype)))?;
        Some(part)
    }

    fn is_main(&self, name: &str) -> bool {
        self.main_part(name).is_some()
    }

    /// The module of the matrix `name`, if it is packed.
    fn packed_module<'n>(&self, name: &'n str) -> Option<&'n str> {
        let module = name.strip_suffix(WEIGHT);
        let packed = self.main_parts().iter().any(|(part, _)| match (*part, module) {
            ("", None) => self.is_main(name),
            ("", Some(_)) | (_, None) => false,
            (part, Some(module)) => self.is_main(&format!("{module}{part}")),
        });
        packed.then_some(module.unwrap_or(name))
    }

    /// The matrix that the tensor `name` is a part of, if that is packed.
    fn weight_of(&self, name: &str) -> Option<String> {
        let stems = self.parts().iter().filter_map(|part| Some((name.strip_suffix(part)?, *part)));
        let mut weights = stems.map(|(stem, part)| {
            // What follows a matrix's own name, instead of its module's, belongs to a stack.
            let of_stack = part.is_empty() || part.starts_with('_');
            if of_stack { stem.to_owned() } else { format!("{stem}{WEIGHT}") }
        });
        weights.find(|weight| self.packed_module(weight).is_some())
    }
}
