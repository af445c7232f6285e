//! The page guards: which mappings of code have been confirmed since a flush.

use mmu::{FetchNews, SPACES, View};

use super::block_state::GUARD_ENTRIES;

/// The words behind GS, by [`View`]: a kernel executes its routines for copying with user pages within
/// reach, and their neighbours without, and either mode has mappings of its own.
type Tables = [[u32; GUARD_ENTRIES]; 3];

/// The guards that are set, and those of address spaces that are not the current one.
#[derive(Default)]
pub(super) struct Guards {
    /// Slots whose word is not 0, some of them perhaps no longer.
    set: [Vec<u16>; 3],
    /// The user's slots and words, by the number that the TLBs give a space.
    kept: [Vec<(u16, u32)>; SPACES],
}

impl Guards {
    /// Notes that a page is mapped as a mapping says.
    pub(super) fn confirm(&mut self, tables: &mut Tables, view: View, page: u64, mapping: u32) {
        let slot = page as usize % GUARD_ENTRIES;
        let table = view as usize;
        let word = std::mem::replace(&mut tables[table][slot], mapping);
        // A word that was cleared alone may be in the list already: once more does no harm, but
        // it is not to grow for ever.
        if word == 0 {
            if self.set[table].len() >= 2 * GUARD_ENTRIES {
                self.set[table].sort_unstable();
                self.set[table].dedup();
            }
            self.set[table].push(slot as u16);
        }
    }

    /// Clears all guards: every mapping is to be confirmed again.
    pub(super) fn forget(&mut self, tables: &mut Tables) {
        for table in 0..tables.len() {
            self.clear(tables, table);
        }
    }

    fn clear(&mut self, tables: &mut Tables, table: usize) {
        for slot in self.set[table].drain(..) {
            tables[table][usize::from(slot)] = 0;
        }
    }

    /// Does with the guards what was done with the fetch translations.
    pub(super) fn follow(&mut self, tables: &mut Tables, news: &FetchNews) {
        const USER: usize = View::User as usize;
        if let Some(kept) = usize::from(news.left)
            .checked_sub(1)
            .and_then(|left| self.kept.get_mut(left))
        {
            kept.clear();
            let words = self.set[USER].iter().map(|&slot| {
                let word = std::mem::take(&mut tables[USER][usize::from(slot)]);
                (slot, word)
            });
            kept.extend(words.filter(|&(_, word)| word != 0));
            self.set[USER].clear();
        }
        for (view, all) in [
            (View::User, news.user),
            (View::Supervisor, news.supervisor),
            (View::SupervisorOpen, news.supervisor),
        ] {
            if all {
                self.clear(tables, view as usize);
            }
        }
        if let Some(kept) = usize::from(news.entered)
            .checked_sub(1)
            .and_then(|entered| self.kept.get_mut(entered))
        {
            for (slot, word) in kept.drain(..) {
                tables[USER][usize::from(slot)] = word;
                self.set[USER].push(slot);
            }
        }
        for &page in &news.pages[..news.count as usize] {
            for table in tables.iter_mut() {
                table[page as usize % GUARD_ENTRIES] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: usize = View::User as usize;
    const KERNEL: usize = View::Supervisor as usize;

    fn tables() -> Box<Tables> {
        Box::new([[0; GUARD_ENTRIES]; 3])
    }

    fn switch(left: u8, entered: u8) -> FetchNews {
        FetchNews {
            user: true,
            left,
            entered,
            ..FetchNews::default()
        }
    }

    #[test]
    fn come_back_with_their_space_only() {
        let (mut guards, mut tables) = (Guards::default(), tables());
        guards.confirm(&mut tables, View::Supervisor, 7, 70);
        guards.confirm(&mut tables, View::User, 7, 71);
        guards.confirm(&mut tables, View::User, 8, 81);
        guards.follow(&mut tables, &switch(1, 0));
        assert_eq!(
            (tables[KERNEL][7], tables[USER][7], tables[USER][8]),
            (70, 0, 0)
        );
        guards.confirm(&mut tables, View::User, 8, 82);
        guards.follow(&mut tables, &switch(2, 1));
        assert_eq!((tables[USER][7], tables[USER][8]), (71, 81));
        // One page is invalidated, then the space is left and comes back.
        let mut page = FetchNews::default();
        (page.pages[0], page.count) = (8, 1);
        guards.follow(&mut tables, &page);
        guards.follow(&mut tables, &switch(1, 2));
        assert_eq!((tables[USER][7], tables[USER][8]), (0, 82));
        guards.follow(&mut tables, &switch(2, 1));
        assert_eq!((tables[USER][7], tables[USER][8]), (71, 0));
        // What a list held before is gone where another space is kept in it.
        guards.follow(&mut tables, &switch(3, 0));
        guards.confirm(&mut tables, View::User, 9, 90);
        guards.follow(&mut tables, &switch(3, 0));
        guards.follow(&mut tables, &switch(1, 3));
        assert_eq!(
            (tables[USER][7], tables[USER][8], tables[USER][9]),
            (0, 0, 90)
        );
        guards.confirm(&mut tables, View::User, 7, 71);
        // A flush takes all of this space.
        let all = FetchNews {
            user: true,
            ..FetchNews::default()
        };
        guards.follow(&mut tables, &all);
        guards.follow(&mut tables, &switch(1, 2));
        guards.follow(&mut tables, &switch(2, 1));
        assert_eq!(
            (tables[KERNEL][7], tables[USER][7], tables[USER][8]),
            (70, 0, 0)
        );
    }

    #[test]
    fn kernel_code_keeps_its_guards_whether_user_pages_are_open_or_not() {
        let (mut guards, mut tables) = (Guards::default(), tables());
        let open = View::SupervisorOpen as usize;
        guards.confirm(&mut tables, View::Supervisor, 7, 70);
        guards.confirm(&mut tables, View::SupervisorOpen, 7, 72);
        assert_eq!((tables[KERNEL][7], tables[open][7]), (70, 72));
        let user = FetchNews {
            user: true,
            ..FetchNews::default()
        };
        guards.follow(&mut tables, &user);
        assert_eq!((tables[KERNEL][7], tables[open][7]), (70, 72));
        let supervisor = FetchNews {
            supervisor: true,
            ..FetchNews::default()
        };
        guards.follow(&mut tables, &supervisor);
        assert_eq!((tables[KERNEL][7], tables[open][7]), (0, 0));
        guards.confirm(&mut tables, View::SupervisorOpen, 7, 72);
        let mut page = FetchNews::default();
        (page.pages[0], page.count) = (7, 1);
        guards.follow(&mut tables, &page);
        assert_eq!(tables[open][7], 0);
    }

    #[test]
    fn the_list_of_set_guards_stays_bounded() {
        let (mut guards, mut tables) = (Guards::default(), tables());
        for round in 0..100_000 {
            guards.confirm(&mut tables, View::User, round % 50, 1);
            tables[USER][round as usize % 50] = 0;
        }
        assert!(guards.set[USER].len() <= 2 * GUARD_ENTRIES);
        guards.confirm(&mut tables, View::User, 3, 1);
        guards.forget(&mut tables);
        assert!(tables.iter().flatten().all(|&word| word == 0));
    }
}
