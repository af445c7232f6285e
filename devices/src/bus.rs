//! Who answers at which port or address.

use thiserror::Error;

/// Two owners claim the same addresses.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{space} {:#x}..={:#x} of {new_owner} overlaps {:#x}..={:#x} of {old_owner}",
    new.0, new.1, old.0, old.1
)]
pub struct Overlap {
    /// "port" or "address".
    pub space: &'static str,
    /// Who asked second.
    pub new_owner: &'static str,
    /// First and last address that it asked for.
    pub new: (u64, u64),
    /// Who was there.
    pub old_owner: &'static str,
    /// First and last address it has.
    pub old: (u64, u64),
}

/// One claimed range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<T> {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// Owner, for messages.
    pub owner: &'static str,
    /// Accesses that fit are handed over whole; otherwise they are split into bytes.
    pub wide: bool,
    /// Whom to ask.
    pub target: T,
}

/// Ranges in order of address, found by bisection.
#[derive(Clone, Debug)]
pub struct AddressMap<T> {
    space: &'static str,
    ranges: Vec<Range<T>>,
}

impl<T: Copy> AddressMap<T> {
    /// An empty map; `space` names it in messages.
    pub fn new(space: &'static str) -> AddressMap<T> {
        AddressMap {
            space,
            ranges: Vec::new(),
        }
    }

    /// Claims a range.
    pub fn insert(&mut self, range: Range<T>) -> Result<(), Overlap> {
        let at = self
            .ranges
            .partition_point(|other| other.last < range.first);
        if let Some(other) = self.ranges.get(at)
            && other.first <= range.last
        {
            return Err(Overlap {
                space: self.space,
                new_owner: range.owner,
                new: (range.first, range.last),
                old_owner: other.owner,
                old: (other.first, other.last),
            });
        }
        self.ranges.insert(at, range);
        Ok(())
    }

    /// The range that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Range<T>> {
        let at = self.ranges.partition_point(|range| range.last < address);
        self.ranges.get(at).filter(|range| range.first <= address)
    }

    /// All ranges in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Range<T>> {
        self.ranges.iter()
    }
}

/// The 64 Ki ports: a byte each says which range answers, so that a look-up is
/// one load.
#[derive(Clone, Debug)]
pub struct PortMap<T> {
    map: AddressMap<T>,
    dense: Vec<Range<T>>,
    index: Box<[u8; 0x1_0000]>,
}

const UNCLAIMED: u8 = 0xFF;

impl<T: Copy> PortMap<T> {
    /// Ports nobody answers at.
    pub fn new() -> PortMap<T> {
        let index = Box::new([UNCLAIMED; 0x1_0000]);
        PortMap {
            map: AddressMap::new("port"),
            dense: Vec::new(),
            index,
        }
    }

    /// Claims ports `first` to `last`. A board has fewer than 255 ranges.
    pub fn insert(&mut self, range: Range<T>) -> Result<(), Overlap> {
        self.map.insert(range)?;
        let number = self.dense.len() as u8;
        debug_assert!(number != UNCLAIMED);
        self.dense.push(range);
        self.index[range.first as usize..=range.last as usize].fill(number);
        Ok(())
    }

    /// The range that holds `port`.
    #[inline]
    pub fn find(&self, port: u16) -> Option<&Range<T>> {
        self.dense.get(usize::from(self.index[usize::from(port)]))
    }

    /// All ranges in order of port.
    pub fn iter(&self) -> impl Iterator<Item = &Range<T>> {
        self.map.iter()
    }
}

impl<T: Copy> Default for PortMap<T> {
    fn default() -> PortMap<T> {
        PortMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(owner: &'static str, first: u64, last: u64) -> Range<&'static str> {
        Range {
            first,
            last,
            owner,
            wide: false,
            target: owner,
        }
    }

    #[test]
    fn overlap_names_both() {
        let mut map = PortMap::new();
        map.insert(range("COM1", 0x3F8, 0x3FF)).unwrap();
        map.insert(range("floppy", 0x3F0, 0x3F7)).unwrap();
        let error = map.insert(range("debug exit", 0x3F4, 0x3F8)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "port 0x3f4..=0x3f8 of debug exit overlaps 0x3f0..=0x3f7 of floppy"
        );
        assert!(map.insert(range("whole", 0, 0xFFFF)).is_err());
    }

    #[test]
    fn look_ups() {
        let mut map = AddressMap::new("address");
        for (owner, first, last) in [("b", 0x100, 0x1FF), ("a", 0x10, 0x1F), ("c", 0x200, 0x200)] {
            map.insert(range(owner, first, last)).unwrap();
        }
        let owner = |address| map.find(address).map(|range| range.target);
        assert_eq!(owner(0x0F), None);
        assert_eq!(owner(0x10), Some("a"));
        assert_eq!(owner(0x20), None);
        assert_eq!(owner(0x1FF), Some("b"));
        assert_eq!(owner(0x200), Some("c"));
        assert_eq!(owner(0x201), None);
        let order: Vec<_> = map.iter().map(|range| range.target).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }
}
