//! Which CPUs the calling thread may run on.
#![allow(unsafe_code)] // One call of the C library's `sched_getaffinity`.

use std::mem::size_of;

/// Far more CPUs than any kernel is built for.
const MAX_CPUS: usize = 1 << 16;

/// The numbers of the CPUs in the calling thread's affinity mask, in increasing order; empty if the system does
/// not say.
pub(super) fn cpus() -> Vec<usize> {
    const WORD_BITS: usize = libc::c_ulong::BITS as usize;
    let mut bits = 1024;
    while bits <= MAX_CPUS {
        let mut mask = vec![0 as libc::c_ulong; bits / WORD_BITS];
        let bytes = mask.len() * size_of::<libc::c_ulong>();
        // SAFETY: the kernel writes at most `bytes` bytes, which is the length of `mask`, and needs the alignment
        // of `c_ulong` only. Thread 0 is the caller.
        let result = unsafe { libc::sched_getaffinity(0, bytes, mask.as_mut_ptr().cast()) };
        if result >= 0 {
            let set = |&cpu: &usize| (mask[cpu / WORD_BITS] >> (cpu % WORD_BITS)) & 1 == 1;
            return (0..bits).filter(set).collect();
        }
        // The kernel's own mask may be longer.
        bits *= 2;
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::cpus;

    #[test]
    fn follows_the_mask_of_the_calling_thread() {
        let all = cpus();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        for &cpu in &all {
            let seen = std::thread::spawn(move || {
                pin(cpu);
                cpus()
            });
            assert_eq!(seen.join().unwrap(), [cpu]);
        }
        assert_eq!(cpus(), all);
    }

    fn pin(cpu: usize) {
        let mut mask = [0_u64; 16];
        mask[cpu / 64] = 1 << (cpu % 64);
        // SAFETY: the kernel reads `size_of_val(&mask)` bytes of `mask`, which is aligned like a `cpu_set_t`.
        let result = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}
