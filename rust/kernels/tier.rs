//! Which vector instructions to use, decided once at start-up from what the CPU has.

use std::env::VarError;

#[cfg(target_arch = "aarch64")]
use super::aarch64::{dotprod::DotProd, i8mm::I8mm, neon::Neon, widening::Widening};
use super::lanes::{Op, Simd as _};
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86_64::{
    avx2::Avx2,
    avx512::{Avx512Bf16, Avx512Vnni},
    maddubs::Maddubs,
    vnni::Vnni,
};
use crate::error::{Error, Result};

/// The environment variable that forces a tier by name.
pub const ISA_VARIABLE: &str = "EDGEWISE_ISA";

/// A set of vector instructions this CPU has.
#[derive(Clone, Copy, Debug)]
pub enum Tier {
    /// Plain Rust; the definition of what all others compute.
    Portable(Portable),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<Maddubs>),
    /// The same and VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<Vnni<false>>),
    /// The same instructions in the encoding of AVX-512, for tests on processors that have them in that one only.
    #[cfg(all(target_arch = "x86_64", feature = "evex"))]
    AvxVnniEvex(Avx2<Vnni<true>>),
    /// AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// The same and BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// NEON, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<Widening>),
    /// NEON with `sdot`.
    #[cfg(target_arch = "aarch64")]
    DotProd(Neon<DotProd>),
    /// NEON with `sdot` and `smmla`.
    #[cfg(target_arch = "aarch64")]
    I8mm(Neon<I8mm>),
}

impl Tier {
    /// All tiers of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other architectures have only the portable tier")]
        let mut tiers = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(Avx2::<Maddubs>::detect().map(Self::Avx2));
            tiers.extend(Avx2::<Vnni<false>>::detect().map(Self::AvxVnni));
            #[cfg(feature = "evex")]
            tiers.extend(Avx2::<Vnni<true>>::detect().map(Self::AvxVnniEvex));
            tiers.extend(Avx512Vnni::detect().map(Self::Avx512Vnni));
            tiers.extend(Avx512Bf16::detect().map(Self::Avx512Bf16));
        }
        #[cfg(target_arch = "aarch64")]
        {
            tiers.push(Self::Neon(Neon::baseline()));
            tiers.extend(Neon::<DotProd>::detect().map(Self::DotProd));
            tiers.extend(Neon::<I8mm>::detect().map(Self::I8mm));
        }
        tiers
    }

    /// The tier named by `EDGEWISE_ISA`, or else the fastest one.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::by_name(&name),
            Err(VarError::NotUnicode(name)) => Self::by_name(&name.to_string_lossy()),
            _ => Ok(Self::available().pop().unwrap_or(Self::Portable(Portable))),
        }
    }

    /// The tier with this name, if this CPU has it.
    pub fn by_name(name: &str) -> Result<Self> {
        let tiers = Self::available();
        tiers.iter().copied().find(|tier| tier.name() == name).ok_or_else(|| {
            let names: Vec<_> = tiers.iter().map(|tier| tier.name()).collect();
            let reason = format!("'{name}' is not a tier of this CPU, which has: {}", names.join(", "));
            Error::argument(ISA_VARIABLE, reason)
        })
    }

    /// The name used in reports and in `EDGEWISE_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avxvnni",
            #[cfg(all(target_arch = "x86_64", feature = "evex"))]
            Self::AvxVnniEvex(_) => "avxvnni-evex",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(_) => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::I8mm(_) => "i8mm",
        }
    }

    /// Runs `op` with this tier's instructions.
    #[inline]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        match self {
            Self::Portable(tier) => tier.apart(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(tier) => tier.run(op),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(tier) => tier.run(op),
            #[cfg(all(target_arch = "x86_64", feature = "evex"))]
            Self::AvxVnniEvex(tier) => tier.run(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(tier) => tier.run(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(tier) => tier.run(op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(tier) => tier.run(op),
            #[cfg(target_arch = "aarch64")]
            Self::DotProd(tier) => tier.run(op),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm(tier) => tier.run(op),
        }
    }
}
