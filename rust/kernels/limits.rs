//! What this machine can do at most: the speeds that those of the model are held against.
//!
//! ```text
//! memory   each thread reads pieces of a buffer that no cache holds, along 1, 2, 4 or 8 streams at a time
//! int8     each thread repeats the tier's dot products of a tile with weights that stay in registers
//! f32      each thread runs chains of fused multiply-adds that never leave the registers
//! ```
//!
//! A limit is the best of all passes: whatever else ran on the machine can only have made a pass slower. Work is shared
//! out by the same pool as the model's.

use std::hint::black_box;
use std::time::Instant;

use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::tier::Tier;
use crate::error::{Error, Result, try_with_capacity};
use crate::large_pages;
use crate::tensor::Bytes;

/// The limits of so many threads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// That share the work.
    pub threads: usize,
    /// Bytes read per second from memory of this process.
    pub memory: f64,
    /// Bytes read per second from a mapped file in the page cache; none if no file is large enough.
    pub mapped: Option<f64>,
    /// INT8 multiplications and additions, counted apart, per second.
    pub int8: f64,
    /// The same in f32.
    pub f32: f64,
}

/// What is read to measure memory.
#[derive(Debug)]
pub struct Buffers {
    memory: Vec<u8>,
    mapped: Option<Bytes>,
}

/// The buffer is so many times as large as the last-level cache, so that what one pass leaves there is no help to the next.
const CACHES: usize = 16;
/// Of weights, which are what they are, this many times as much is enough: a pass finds at most a quarter of it in the cache.
const FEW_CACHES: usize = 4;
/// Bytes of the buffer at least and at most.
const BUFFER: [usize; 2] = [128 << 20, 2 << 30];
/// What a thread claims of the buffer at a time.
const PIECE: usize = 1 << 20;

impl Buffers {
    /// A buffer far larger than `cache` bytes, and of `file`, a mapping, as much; none of it if the file is smaller.
    pub fn new(cache: usize, file: Option<Bytes>) -> Result<Self> {
        let len = cache.saturating_mul(CACHES).clamp(BUFFER[0], BUFFER[1]).next_multiple_of(PIECE);
        let mut memory = try_with_capacity::<u8>(len)?;
        large_pages::advise(memory.as_mut_ptr(), len);
        // Not zeros: all pages of zeros may be one and the same.
        memory.resize(len, 1);
        Ok(Self { memory, mapped: file.and_then(|file| file.slice(0..len)) })
    }

    /// Bytes of a pass.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}

/// Measures 1, 2, 4, ... and `threads` threads of `tier`, each limit for about `seconds` and at least one pass. `proceed` is asked
/// before each and stops the work with an error.
pub fn measure(
    tier: Tier,
    threads: usize,
    buffers: &Buffers,
    seconds: f64,
    proceed: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Limits>> {
    if !(seconds.is_finite() && seconds >= 0.0) {
        return Err(Error::argument("seconds", format!("{seconds} is no length of time")));
    }
    let counts = (0..).map(|i| 1 << i).take_while(|count| *count < threads).chain([threads]);
    let measure = |count| {
        let cpu = Cpu::new(tier, count);
        let bench = Bench { cpu: &cpu, seconds };
        proceed()?;
        let memory = bench.memory(&pieces(&buffers.memory));
        proceed()?;
        let mapped = buffers.mapped.as_ref().map(|bytes| bench.memory(&pieces(bytes)));
        proceed()?;
        let (int8, f32) = (bench.int8(), bench.f32());
        Ok(Limits { threads: count, memory, mapped, int8, f32 })
    };
    counts.map(measure).collect()
}

/// Bytes read per second from `parts` of memory, whole pieces of them, in about `seconds` and at least one pass; none if
/// they are not far more than `cache` bytes. A limit for the minute in which it is measured: other guests of a machine use
/// its memory too.
pub fn read_speed(cpu: &Cpu, parts: &[&[u8]], cache: usize, seconds: f64) -> Option<f64> {
    let pieces: Vec<_> = parts.iter().flat_map(|part| pieces(part)).collect();
    (pieces.len() * PIECE >= FEW_CACHES * cache).then(|| Bench { cpu, seconds }.memory(&pieces))
}

/// `bytes` but for the last ones, which are no whole piece.
fn pieces(bytes: &[u8]) -> Vec<&[u8; PIECE]> {
    bytes.as_chunks().0.iter().collect()
}

/// One number of threads.
struct Bench<'a> {
    cpu: &'a Cpu,
    seconds: f64,
}

/// Rounds of arithmetic in one work item: some microseconds on a fast tier.
const ROUNDS: usize = 512;
/// Seconds of a pass of arithmetic: long beside the time that a sleeping thread takes to come.
const PASS: f64 = 2e-3;

impl Bench<'_> {
    /// Work per second of the fastest pass of some, where one pass calls `task` for each of `items` items. A limit is looked
    /// for in `ways` ways, which share the time.
    fn best(&self, ways: usize, items: usize, work: usize, task: &(dyn Fn(usize) + Sync)) -> f64 {
        let seconds = self.seconds / ways as f64;
        self.cpu.pool.run(items, task);
        let (begin, mut shortest) = (Instant::now(), f64::INFINITY);
        loop {
            let start = Instant::now();
            self.cpu.pool.run(items, task);
            shortest = start.elapsed().as_secs_f64().max(1e-9).min(shortest);
            if begin.elapsed().as_secs_f64() >= seconds {
                return work as f64 / shortest;
            }
        }
    }

    /// Bytes per second, by the number of streams that suits the memory best.
    fn memory(&self, pieces: &[&[u8; PIECE]]) -> f64 {
        let speed = |task: &(dyn Fn(usize) + Sync)| self.best(4, pieces.len(), pieces.len() * PIECE, task);
        [
            speed(&|i| self.cpu.run(Read::<1>(pieces[i]))),
            speed(&|i| self.cpu.run(Read::<2>(pieces[i]))),
            speed(&|i| self.cpu.run(Read::<4>(pieces[i]))),
            speed(&|i| self.cpu.run(Read::<8>(pieces[i]))),
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }

    /// INT8 operations per second, by the kind of weights whose dot product is faster.
    fn int8(&self) -> f64 {
        let work = ROUNDS * self.cpu.run(DotOperations);
        let nibbles = self.arithmetic(work, &|_| self.cpu.run(Dots { nibbles: true }));
        let bytes = self.arithmetic(work, &|_| self.cpu.run(Dots { nibbles: false }));
        nibbles.max(bytes)
    }

    /// f32 operations per second, by the number of chains that suits the registers best.
    fn f32(&self) -> f64 {
        let work = ROUNDS * LANES * 2;
        let few = self.arithmetic(5 * work, &|_| self.cpu.run(Fmas::<5>));
        let many = self.arithmetic(10 * work, &|_| self.cpu.run(Fmas::<10>));
        few.max(many)
    }

    /// The best of passes of so many items as take [`PASS`], each of `work` operations; one of two ways.
    fn arithmetic(&self, work: usize, task: &(dyn Fn(usize) + Sync)) -> f64 {
        task(0);
        let start = Instant::now();
        task(0);
        let item = start.elapsed().as_secs_f64().max(1e-7);
        let items = self.cpu.pool.threads() * (PASS / item).ceil() as usize;
        self.best(2, items, items * work, task)
    }
}

/// Reads a piece along `N` streams.
struct Read<'a, const N: usize>(&'a [u8; PIECE]);

impl<const N: usize> Op for Read<'_, N> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lines = self.0.as_chunks::<64>().0;
        let stride = lines.len() / N;
        // The largest number met: unlike a sum it takes no longer over subnormal numbers, which a file may hold.
        let mut largest = [s.splat(0.0); N];
        for line in 0..stride {
            for n in 0..N {
                largest[n] = s.max(largest[n], s.load_f32_bytes(&lines[n * stride + line]));
            }
        }
        black_box(&largest);
    }
}

/// Tokens whose sums [`Dots`] keeps: those of a larger tile are not all kept at once.
const fn dot_tokens<S: Simd>() -> usize {
    if S::TILE > 8 { 4 } else { S::TILE }
}

/// Operations of one round of [`Dots`].
struct DotOperations;

impl Op for DotOperations {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        dot_tokens::<S>() * LANES * 32 * 2
    }
}

/// [`ROUNDS`] times the dot products of one block of weights with a tile of tokens.
struct Dots {
    nibbles: bool,
}

impl Op for Dots {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match dot_tokens::<S>() {
            8 => dots::<S, 8>(s, self.nibbles),
            4 => dots::<S, 4>(s, self.nibbles),
            2 => dots::<S, 2>(s, self.nibbles),
            1 => dots::<S, 1>(s, self.nibbles),
            tile => unreachable!("products have no tile of {tile} tokens"),
        }
    }
}

#[inline(always)]
fn dots<S: Simd, const T: usize>(s: S, nibbles: bool) {
    let block = black_box([0x5a; 512]);
    let activations = [[3; 32]; T];
    let w = if nibbles { s.load_u4(block.first_chunk().expect("512 bytes")) } else { s.load_i8(&block) };
    for _ in 0..ROUNDS {
        // Hidden from the compiler, which would else compute the first round only.
        let a = black_box(&activations).each_ref();
        let sums = if nibbles { s.dots_u4(&w, a, [0; T]) } else { s.dots_i8(&w, a, [0; T]) };
        black_box(&sums);
    }
}

/// [`ROUNDS`] steps of `N` chains of multiply-adds.
struct Fmas<const N: usize>;

impl<const N: usize> Op for Fmas<N> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (factor, term) = (s.splat(black_box(0.5)), s.splat(black_box(1.0)));
        // Hidden, or the compiler would see that all chains are one.
        let starts = black_box([1.0; N]);
        let mut chains = [s.splat(0.0); N];
        for n in 0..N {
            chains[n] = s.splat(starts[n]);
        }
        for _ in 0..ROUNDS {
            for n in 0..N {
                chains[n] = s.fma(chains[n], factor, term);
            }
        }
        black_box(&chains);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: usize) -> Bytes {
        Bytes::new(vec![7; bytes])
    }

    #[test]
    fn the_buffer_is_larger_than_the_cache() {
        assert_eq!(Buffers::new(0, None).unwrap().bytes(), BUFFER[0]);
        assert_eq!(
            Buffers::new(10_000_000, None).unwrap().bytes(),
            160_000_000_usize.next_multiple_of(PIECE)
        );
    }

    #[test]
    fn a_small_file_is_not_measured() {
        assert!(Buffers::new(0, Some(file(BUFFER[0] - 1))).unwrap().mapped.is_none());
        let large = Buffers::new(0, Some(file(BUFFER[0] + 1))).unwrap();
        assert_eq!(large.mapped.unwrap().len(), BUFFER[0]);
    }

    #[test]
    fn every_tier_has_limits() {
        let buffers = Buffers::new(0, Some(file(BUFFER[0]))).unwrap();
        for tier in Tier::available() {
            let limits = measure(tier, 3, &buffers, 0.0, &mut || Ok(())).unwrap();
            assert_eq!(limits.iter().map(|limits| limits.threads).collect::<Vec<_>>(), [1, 2, 3]);
            for limits in limits {
                // A loop that the compiler had taken out would come to the limit of the clock.
                for speed in [limits.memory, limits.mapped.unwrap(), limits.int8, limits.f32] {
                    assert!(speed > 1e6 && speed < 1e15, "{limits:?}");
                }
            }
        }
    }

    #[test]
    fn speed_of_reading_what_no_cache_holds() {
        let part = vec![1; 3 * PIECE + 1];
        let parts = [&part[..], &part[..PIECE - 1], &part[..PIECE]];
        let cpu = Cpu::new(Tier::available()[0], 2);
        assert!(read_speed(&cpu, &parts, PIECE, 0.0).unwrap() > 1e6);
        assert!(read_speed(&cpu, &parts, PIECE + 1, 0.0).is_none());
    }

    #[test]
    fn stops_when_told() {
        let buffers = Buffers::new(0, None).unwrap();
        let tier = Tier::available()[0];
        assert!(matches!(
            measure(tier, 1, &buffers, 0.0, &mut || Err(Error::Interrupted)),
            Err(Error::Interrupted)
        ));
        assert!(measure(tier, 1, &buffers, f64::NAN, &mut || Ok(())).is_err());
    }
}
