//! Translations from earlier runs, and for later ones ([`CodeFile`]).

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::Arc;

use mmu::{GuestPhys, PAGE_SIZE, PhysMem};
use rustc_hash::FxHashMap;

use super::engine::EngineOptions;
use super::vcpu::Vcpu;
use crate::cache::code_file::{self, Bytes, CodeFile, Kept, Rank, Record, START, Span};
use crate::cache::{Block, BlockCache, FETCHED, Key, Source};
use crate::decode::Manner;
use crate::guest::Mode;
use crate::x86_64;

/// Bytes of what is kept of blocks that are gone before the end of a run, at the most.
const DROPPED: usize = 32 << 20;
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
        let mut blocks = std::mem::take(&mut self.dropped);
        for id in self.cache.ids() {
            if let Some(block) = self.cache.block(id) {
                let code = &mut self.workshop.code;
                blocks.add(block, (&self.cache, &self.jump_modes), Some(&file), code);
            }
        }
        let blocks = blocks.blocks;
        let worth_it = blocks.len() >= enough;
        let written = file.write(if worth_it { &blocks } else { &[] });
        self.code_file = Some(file);
        written
    }

    /// Notes what is to be kept of blocks that were removed, while their code is still there.
    pub(super) fn keep_dropped(&mut self, gone: &[Block]) {
        for block in gone.iter().filter(|block| block.source.is_some()) {
            if self.dropped.bytes < DROPPED {
                let mut code = std::mem::take(&mut self.workshop.code);
                let (own, file) = ((&self.cache, &*self.jump_modes), self.code_file.as_ref());
                self.dropped.add(block, own, file, &mut code);
                self.workshop.code = code;
            }
        }
    }

    /// What a block is made from, which is in memory still.
    pub(super) fn source(&mut self, block: &Block) -> Option<Arc<Source>> {
        let page = block.key.physical.page();
        let spans = code_file::spans_of(block);
        let len = spans.iter().map(|&(_, len)| usize::from(len)).sum();
        let mut bytes = vec![0; len].into_boxed_slice();
        let mut rest = &mut bytes[..];
        for (offset, len) in spans {
            let (span, behind) = rest.split_at_mut(len.into());
            self.mem.load(page.add(offset.into()), span).ok()?;
            rest = behind;
        }
        let word = self.word(&block.key)?;
        Some(Arc::new(Source { word, bytes }))
    }

    /// What a block of a key is found by.
    fn word(&mut self, key: &Key) -> Option<u32> {
        let room = START.min(PAGE_SIZE as usize - key.physical.page_offset());
        let start = &mut [0; START][..room];
        self.mem.load(key.physical, start).ok()?;
        Some(code_file::word(key, start))
    }
}

/// Blocks that are to be kept, in the order in which they come: of those with the same word the one into which most went.
#[derive(Default)]
pub(super) struct Keeping {
    blocks: Vec<Kept>,
    /// Where in these a word's is.
    places: FxHashMap<u32, usize>,
    /// Of all their records.
    bytes: usize,
}

impl Keeping {
    /// Adds a block, if it may be kept and a file has none as good.
    fn add(
        &mut self,
        block: &Block,
        (cache, jump_modes): (&BlockCache, &[Mode]),
        file: Option<&CodeFile>,
        code: &mut [Vec<u8>; 2],
    ) {
        let Some(source) = &block.source else {
            return;
        };
        let rank = match block {
            Block { counts: true, .. } => Rank::Counting,
            Block { settled: true, .. } => Rank::Hot,
            _ => Rank::First,
        };
        let word = source.word;
        let other = self.places.get(&word).copied();
        let better = other.is_none_or(|other| self.blocks[other].rank < rank);
        if !better || file.is_some_and(|file| file.has(word, rank)) {
            return;
        }
        let far = block.far_mode;
        let far = far.and_then(|far| jump_modes.iter().position(|&known| known == far));
        if far.is_none() && block.far_mode.is_some() {
            return;
        }
        cache.read_code(block, code);
        let Ok(record) =
            postcard::to_stdvec(&Record::of(block, spans(block, &source.bytes), far, code))
        else {
            return;
        };
        self.bytes += record.len();
        let kept = Kept { word, rank, record };
        match other {
            Some(other) => self.blocks[other] = kept,
            None => {
                self.places.insert(word, self.blocks.len());
                self.blocks.push(kept);
            }
        }
    }
}

/// A block's runs of instructions.
fn spans<'a>(block: &Block, mut bytes: &'a [u8]) -> Vec<Span<'a>> {
    let spans = code_file::spans_of(block).into_iter();
    let spans = spans.map(|(offset, len)| {
        let (own, rest) = bytes.split_at(len.into());
        bytes = rest;
        Span {
            offset,
            bytes: Bytes(own),
        }
    });
    spans.collect()
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
