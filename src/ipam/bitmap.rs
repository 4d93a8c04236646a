//! Which of 65,536 neighbouring addresses are taken.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Addresses of one block: those that share all but their last 16 bits.
pub(super) const ADDRESSES: usize = 1 << 16;

/// Bytes of one block.
pub(super) const BYTES: usize = ADDRESSES / 8;

/// How much of a file is read at once: most blocks have few addresses that are taken, at their beginning.
const CHUNK: usize = 512;

/// A bit for each address of a block, least significant bit of the first byte first. It is as long as needed, and free
/// beyond that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// What a file says; what it has beyond a block is nothing.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        while bytes.len() < BYTES {
            let mut chunk = [0; CHUNK];
            let len = file.read_at(&mut chunk, bytes.len() as u64)?;
            bytes.extend_from_slice(&chunk[..len]);
            if len < CHUNK {
                break;
            }
        }
        Ok(Self(bytes))
    }

    /// The bits, to be read or written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Marks an address as taken and returns the byte that it is in, with its place.
    pub(super) fn set(&mut self, offset: u16) -> (usize, u8) {
        self.change(offset, |byte, bit| byte | bit)
    }

    /// Marks an address as free and returns the byte that it is in, with its place.
    pub(super) fn clear(&mut self, offset: u16) -> (usize, u8) {
        self.change(offset, |byte, bit| byte & !bit)
    }

    fn change(&mut self, offset: u16, change: impl Fn(u8, u8) -> u8) -> (usize, u8) {
        let place = usize::from(offset / 8);
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0.get_mut(place).map_or((place, 0), |byte| {
            *byte = change(*byte, 1 << (offset % 8));
            (place, *byte)
        })
    }

    /// Whether an address is taken.
    pub(super) fn is_set(&self, offset: u16) -> bool {
        self.0.get(usize::from(offset / 8)).is_some_and(|byte| byte & (1 << (offset % 8)) != 0)
    }

    /// Whether no address is taken.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The first free address from `first` to `last`, both included.
    pub(super) fn first_clear(&self, first: u16, last: u16) -> Option<u16> {
        let start = usize::from(first / 64);
        for (i, word) in self.words().enumerate().skip(start) {
            let before = if i == start { (1_u64 << (first % 64)) - 1 } else { 0 };
            let free = !(word | before);
            if free != 0 {
                // i < 1024 and the zeros are fewer than 64, so this is below 65,536.
                let found = (i * 64) as u32 + free.trailing_zeros();
                return u16::try_from(found).ok().filter(|found| *found <= last);
            }
            if i >= usize::from(last / 64) {
                break;
            }
        }
        None
    }

    /// How many addresses from `first` to `last`, both included, are taken.
    pub(super) fn count(&self, first: u16, last: u16) -> u32 {
        let (start, end) = (usize::from(first / 64), usize::from(last / 64));
        self.words()
            .enumerate()
            .take(end + 1)
            .skip(start)
            .map(|(i, word)| {
                let from = if i == start { u64::MAX << (first % 64) } else { u64::MAX };
                let to = if i == end { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                (word & from & to).count_ones()
            })
            .sum()
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let (words, rest) = self.0.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let rest = std::iter::once(u64::from_le_bytes(last)).chain(std::iter::repeat(0));
        words.iter().map(|bytes| u64::from_le_bytes(*bytes)).chain(rest).take(BYTES / 8)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            taken in proptest::collection::btree_set(0u16..400, 0..390),
            freed in proptest::collection::vec(0u16..400, 0..20),
            first in 0u16..450,
            len in 0u16..450,
        ) {
            let mut set: BTreeSet<u16> = taken;
            let mut bitmap = Bitmap::default();
            for &offset in &set {
                bitmap.set(offset);
            }
            for offset in freed {
                set.remove(&offset);
                let (place, byte) = bitmap.clear(offset);
                prop_assert_eq!(bitmap.bytes()[place], byte);
            }
            let last = first + len;
            prop_assert_eq!(bitmap.first_clear(first, last), (first..=last).find(|n| !set.contains(n)));
            prop_assert_eq!(bitmap.count(first, last) as usize, set.range(first..=last).count());
            prop_assert_eq!(bitmap.is_empty(), set.is_empty());
            prop_assert_eq!(bitmap.is_set(first), set.contains(&first));
        }
    }

    #[test]
    fn the_ends_of_a_block() {
        let mut bitmap = Bitmap::default();
        for offset in 0..u16::MAX {
            bitmap.set(offset);
        }
        assert_eq!(bitmap.first_clear(0, u16::MAX), Some(u16::MAX));
        assert_eq!(bitmap.first_clear(0, u16::MAX - 1), None);
        bitmap.set(u16::MAX);
        assert_eq!(bitmap.first_clear(0, u16::MAX), None);
        assert_eq!(bitmap.count(0, u16::MAX), 65_536);
    }
}
