//! Translations from earlier runs, and for later ones ([`CodeFile`]).

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use mmu::{GuestPhys, PAGE_SIZE, PhysMem};
use rustc_hash::FxHashMap;

use super::engine::EngineOptions;
use super::translating::Tier;
use super::vcpu::Vcpu;
use crate::cache::code_file::{self, Bytes, CodeFile, Kept, Rank, Record, START, Span};
use crate::cache::{Block, FETCHED, Key};
use crate::decode::{self, Manner};
use crate::x86_64;

/// Entries after which a trace is made of code that was hot in another run.
const KNOWN: u16 = 256;
/// Of what the host's CPUID says: leaves and subleaves.
const ABOUT_HOST: [(u32, u32); 6] = [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0x8000_0001, 0)];

impl Vcpu {
    /// Has translations read from a file in a directory, and [`Vcpu::keep_code`] write them there. To be called when the
    /// processor's model has been set.
    pub fn keep_code_in(&mut self, directory: &Path) {
        if self.options.interpret_only() {
            return;
        }
        let fingerprint = self.fingerprint();
        self.code_file = Some(CodeFile::open(directory, fingerprint));
    }

    /// What emitted code depends on besides the guest's: this program, the host, the guest's processor, how
    /// memory is laid out, and the options.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        env!("KMEMVISOR_SOURCES").hash(&mut hasher);
        for (leaf, subleaf) in ABOUT_HOST {
            let about = __cpuid_count(leaf, subleaf);
            // Leaf 1 says in EBX which of the processors this is.
            let all =
                [about.eax, about.ecx, about.edx].map(|word| word & !(u32::from(leaf == 1) << 27));
            all.hash(&mut hasher);
        }
        __cpuid(7).ebx.hash(&mut hasher);
        let (copies, stride) = (self.mem.copies(), self.mem.mirror_stride());
        (copies, stride).hash(&mut hasher);
        // Where shared code is.
        x86_64::emit_trampolines(0, 0, copies, stride)
            .0
            .hash(&mut hasher);
        let options = EngineOptions {
            code_bytes: 0,
            ..self.options.clone()
        };
        format!("{options:?} {:?}", self.cpu().model).hash(&mut hasher);
        hasher.finish()
    }

    /// Reads the translation of a key's code, which is at RIP, from the file, if it has one.
    pub(super) fn recall(&mut self, key: Key) -> Option<u32> {
        let mut kept = self.code_file.take()?;
        let id = self.recall_from(&mut kept, key);
        self.code_file = Some(kept);
        id
    }

    fn recall_from(&mut self, kept: &mut CodeFile, key: Key) -> Option<u32> {
        if kept.is_empty() || !code_file::keeps(&key) {
            return None;
        }
        let word = self.word(&key)?;
        let record = kept.find(word)?;
        let page = key.physical.page();
        let is_there = |span: &Span<'_>| {
            let at = page.add(u64::from(span.offset));
            is_there(&mut self.mem, at, span.bytes.0)
        };
        if !record.can_be_at(&key) || !record.spans.iter().all(is_there) {
            return None;
        }
        let jump_caches = self.jump_caches(key.mode, record.far_mode());
        let manner = Manner::of(self.cpu());
        let phase = record.base().0 % FETCHED;
        let id = self.arrive(key, phase, |cache, arrival, code| {
            record.block(cache.next_id(), arrival, jump_caches, manner, code)
        });
        self.mem.mark_code(key.physical);
        if let Some(block) = id.and_then(|id| self.cache.block(id)) {
            if block.counts {
                self.count_entries(key, KNOWN);
            }
            self.cache.statistics.recalled += 1;
            kept.note_use(word);
        }
        self.settle();
        id.filter(|&id| self.cache.block(id).is_some())
    }

    /// Adds the translations that the file does not have to it, for later runs, if there are so many, and notes which of
    /// those that it has were of use. Returns how many were added.
    ///
    /// # Errors
    ///
    /// The host's, if the file cannot be written. What was there is there still.
    pub fn keep_code(&mut self, enough: usize) -> io::Result<usize> {
        let Some(mut file) = self.code_file.take() else {
            return Ok(0);
        };
        let mut blocks = Vec::new();
        if self.candidates() >= enough {
            self.prepare_heads(&file);
            blocks = self.new_to(&file);
        }
        if blocks.len() < enough {
            blocks.clear();
        }
        let written = file.write(&blocks);
        self.code_file = Some(file);
        written
    }

    /// What is kept of the blocks that a file does not have, in the order in which they were made, which is that in which
    /// they will be wanted.
    fn new_to(&mut self, file: &CodeFile) -> Vec<Kept> {
        let mut blocks: Vec<Kept> = Vec::new();
        let mut known: FxHashMap<u32, usize> = FxHashMap::default();
        for id in self.cache.ids() {
            let Some((word, rank)) = self.worth_keeping(id) else {
                continue;
            };
            let other = known.get(&word).copied();
            let better = other.is_none_or(|other| blocks[other].rank < rank);
            if !better || file.has(word, rank) {
                continue;
            }
            let Some(record) = self.kept_record(id) else {
                continue;
            };
            let kept = Kept { word, rank, record };
            match other {
                Some(other) => blocks[other] = kept,
                None => {
                    known.insert(word, blocks.len());
                    blocks.push(kept);
                }
            }
        }
        blocks
    }

    /// How many blocks may be such as the file does not have.
    fn candidates(&self) -> usize {
        let blocks = self.cache.ids();
        let blocks = blocks.into_iter().filter_map(|id| self.cache.block(id));
        blocks.filter(|block| !block.kept || block.settled).count()
    }

    /// Traces of several pages cannot be kept, nor can those whose checks predict, but what is known of them: their heads become
    /// blocks again that count how often they are entered, or loops that may come to predict, unless the file has such.
    fn prepare_heads(&mut self, file: &CodeFile) {
        for id in self.cache.ids() {
            let Some(block) = self.cache.block(id) else {
                continue;
            };
            let (key, predicting) = (block.key, block.predicting);
            let several = !block.further.is_empty() && !block.crosses();
            let usual = key.grouped == self.options.grouping;
            if !block.settled || !usual || !(several || predicting) {
                continue;
            }
            let rank = if several { Rank::Counting } else { Rank::Hot };
            if self.word(&key).is_none_or(|word| file.has(word, rank)) {
                continue;
            }
            if several {
                self.begin_again(id, key);
            } else {
                self.replace(id, Tier::Hot { predicting: false });
            }
        }
    }

    /// Puts a block that counts its entries in the place of a trace.
    fn begin_again(&mut self, trace: u32, key: Key) {
        if key.mode.code_size() != self.cpu().mode.code_size() {
            return;
        }
        if let Some(gone) = self.cache.remove(trace) {
            self.drop_blocks(&[gone]);
        }
        let mut insns = Vec::new();
        let rip = std::mem::replace(&mut self.cpu_mut().rip, key.rip);
        let decoded = decode::block_at(&mut self.context(), key.physical, &mut insns);
        self.cpu_mut().rip = rip;
        if let Some(decoded) = decoded.filter(|decoded| decoded.second.is_none()) {
            let range = (key.physical, decoded.len);
            self.place(key, &insns, range, &[], Tier::Sampled);
        }
    }

    /// What a block is found by, if it can be kept, and how much went into it.
    fn worth_keeping(&mut self, id: u32) -> Option<(u32, Rank)> {
        let block = self.cache.block(id)?;
        if block.kept || block.made.marks.is_none() {
            return None;
        }
        let rank = match block {
            Block { counts: true, .. } => Rank::Counting,
            Block { settled: true, .. } => Rank::Hot,
            _ => Rank::First,
        };
        let key = block.key;
        Some((self.word(&key)?, rank))
    }

    /// What a block of a key is found by.
    fn word(&mut self, key: &Key) -> Option<u32> {
        let room = START.min(PAGE_SIZE as usize - key.physical.page_offset());
        let start = &mut [0; START][..room];
        self.mem.load(key.physical, start).ok()?;
        Some(code_file::word(key, start))
    }

    /// A block's record.
    fn kept_record(&mut self, id: u32) -> Option<Vec<u8>> {
        let block = self.cache.block(id)?;
        let far = block.far_mode;
        let far = far.and_then(|far| self.jump_modes.iter().position(|&known| known == far));
        if far.is_none() && block.far_mode.is_some() {
            return None;
        }
        let page = block.key.physical.page();
        let mem = &mut self.mem;
        let spans = code_file::spans_of(block);
        let bytes = spans.iter().map(|&(offset, len)| {
            let mut bytes = vec![0; len.into()];
            mem.load(page.add(offset.into()), &mut bytes).ok()?;
            Some(bytes)
        });
        let bytes: Option<Vec<Vec<u8>>> = bytes.collect();
        let bytes = bytes?;
        let spans = spans.iter().zip(&bytes).map(|(&(offset, _), bytes)| Span {
            offset,
            bytes: Bytes(bytes),
        });
        let code = &mut self.workshop.code;
        self.cache.read_code(block, code);
        let record = Record::of(block, spans.collect(), far, code);
        postcard::to_stdvec(&record).ok()
    }
}

/// Whether the guest's memory holds these bytes.
fn is_there(mem: &mut PhysMem, mut at: GuestPhys, bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| {
        let mut found = [0; 64];
        let found = &mut found[..chunk.len()];
        let loaded = mem.load(at, found);
        at = at.add(chunk.len() as u64);
        loaded.is_ok() && found == chunk
    })
}
