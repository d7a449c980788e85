//! Counts the bytes of memory that several owners share, each once.

use std::collections::HashMap;

/// A piece of memory that may have several owners.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where it stands, as long as somebody owns it.
    pub address: usize,
    /// Its size.
    pub bytes: usize,
}

/// The pieces owned, and how often each.
#[derive(Debug, Default)]
pub struct Ledger {
    owners: HashMap<usize, usize>,
    bytes: usize,
}

impl Ledger {
    /// Bytes of all pieces.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of `part` if somebody owns it already, else 0.
    pub fn shared(&self, part: Part) -> usize {
        if self.owners.contains_key(&part.address) { part.bytes } else { 0 }
    }

    /// Counts one more owner.
    pub fn add(&mut self, part: Part) {
        let owners = self.owners.entry(part.address).or_insert(0);
        if *owners == 0 {
            self.bytes += part.bytes;
        }
        *owners += 1;
    }

    /// Counts one owner less.
    pub fn remove(&mut self, part: Part) {
        let Some(owners) = self.owners.get_mut(&part.address) else { return };
        *owners -= 1;
        if *owners == 0 {
            self.owners.remove(&part.address);
            self.bytes -= part.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_counts_once() {
        let (a, b) = (Part { address: 1, bytes: 10 }, Part { address: 2, bytes: 5 });
        let mut ledger = Ledger::default();
        for part in [a, b, a] {
            ledger.add(part);
        }
        assert_eq!((ledger.bytes(), ledger.shared(a)), (15, 10));
        ledger.remove(a);
        assert_eq!((ledger.bytes(), ledger.shared(a)), (15, 10));
        ledger.remove(a);
        assert_eq!((ledger.bytes(), ledger.shared(a)), (5, 0));
        ledger.remove(b);
        assert_eq!(ledger.bytes(), 0);
    }
}
