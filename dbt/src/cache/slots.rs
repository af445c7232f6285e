//! Where blocks are kept: in slots that stay where they are, so that an identifier leads to its block at once.

use std::collections::VecDeque;

use super::block::Block;

/// Bits of a block's identifier that name its slot; those above count how often the slot was
/// used, so that whoever remembers a block that is gone does not find another one.
const SLOT_BITS: u32 = 22;
/// Slots that memory is taken for at once.
const CHUNK: usize = 256;

fn slot_of(id: u32) -> u32 {
    id & ((1 << SLOT_BITS) - 1)
}

/// In which chunk a slot is, and where there.
fn place(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    (slot / CHUNK, slot % CHUNK)
}

#[derive(Default)]
#[repr(align(64))]
struct Slot {
    /// Of the block here, or of the last one.
    id: u32,
    block: Option<Block>,
}

/// The blocks, by identifier.
pub(super) struct Slots {
    chunks: Vec<Box<[Slot]>>,
    /// How many have ever been used.
    used: usize,
    /// Those without a block, the one that has been empty longest first.
    free: VecDeque<u32>,
}

impl Default for Slots {
    /// No blocks. No block has the identifier 0.
    fn default() -> Slots {
        Slots {
            chunks: Vec::new(),
            used: 1,
            free: VecDeque::new(),
        }
    }
}

impl Slots {
    fn slot(&self, id: u32) -> Option<&Slot> {
        let (chunk, slot) = place(slot_of(id));
        let slot = &self.chunks.get(chunk)?[slot];
        (slot.id == id).then_some(slot)
    }

    fn slot_mut(&mut self, id: u32) -> Option<&mut Slot> {
        let (chunk, slot) = place(slot_of(id));
        let slot = &mut self.chunks.get_mut(chunk)?[slot];
        (slot.id == id).then_some(slot)
    }

    /// A block that still exists.
    pub fn get(&self, id: u32) -> Option<&Block> {
        self.slot(id)?.block.as_ref()
    }

    /// A block that still exists, to change what is noted of it.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Block> {
        self.slot_mut(id)?.block.as_mut()
    }

    /// The identifier that the next block will have.
    pub fn next_id(&self) -> u32 {
        match self.free.front() {
            Some(&slot) => {
                let (chunk, slot) = place(slot);
                self.chunks[chunk][slot].id.wrapping_add(1 << SLOT_BITS)
            }
            None => self.used as u32,
        }
    }

    /// Keeps a block under the next identifier.
    pub fn insert(&mut self, block: Block) {
        let id = self.next_id();
        if self.free.pop_front().is_none() {
            self.used += 1;
            if self.used > self.chunks.len() * CHUNK {
                self.chunks
                    .push((0..CHUNK).map(|_| Slot::default()).collect());
            }
        }
        let (chunk, slot) = place(slot_of(id));
        let slot = &mut self.chunks[chunk][slot];
        slot.id = id;
        slot.block = Some(block);
    }

    /// Takes a block out.
    pub fn take(&mut self, id: u32) -> Option<Block> {
        let block = self.slot_mut(id)?.block.take()?;
        self.free.push_back(slot_of(id));
        Some(block)
    }

    /// All blocks, with their identifiers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Block)> {
        let slots = self.chunks.iter().flatten();
        slots.filter_map(|slot| Some((slot.id, slot.block.as_ref()?)))
    }
}
