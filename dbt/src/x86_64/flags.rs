//! The guest's arithmetic flags in emitted code: where they are, how they get from one place to
//! another, and when it pays to leave them to a recipe.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Register};
use serde::{Deserialize, Serialize};

use super::emitter::Emitter;
use super::plain::Need;
use super::registers::{T2, number};
use crate::record::classify::{Class, Kind};
use crate::record::liveness;
use crate::record::recipe::Recipe;
use crate::run::{FlagsAt, at};

/// Where the guest's arithmetic flags are at a point of the code: perhaps in several places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlagsPlace {
    /// In EFLAGS.
    pub host: bool,
    /// In `exchange.saved_flags`.
    pub saved: bool,
    /// What is saved are the flags that the block found at its entry, maybe as a recipe, or one
    /// that this block has put there: only Rust can read them.
    pub arrived: bool,
    /// This block has, and it needs no register.
    pub sealed: bool,
    /// They follow from registers.
    pub recipe: Option<Recipe>,
    /// Nowhere: nobody needs them any more, and EFLAGS is as good as any.
    pub lost: bool,
}

impl FlagsPlace {
    /// In EFLAGS only.
    pub const HOST: FlagsPlace = FlagsPlace {
        host: true,
        saved: false,
        arrived: false,
        sealed: false,
        recipe: None,
        lost: false,
    };
    /// Overwritten before they are needed.
    pub const LOST: FlagsPlace = FlagsPlace {
        lost: true,
        ..FlagsPlace::HOST
    };
    /// Saved only.
    pub const SAVED: FlagsPlace = FlagsPlace {
        host: false,
        saved: true,
        ..FlagsPlace::HOST
    };
    /// In both places.
    pub const BOTH: FlagsPlace = FlagsPlace {
        saved: true,
        ..FlagsPlace::HOST
    };
    /// As a block finds them that does not need them in EFLAGS.
    pub const ARRIVED: FlagsPlace = FlagsPlace {
        arrived: true,
        ..FlagsPlace::SAVED
    };
}

/// How the flags leave by a jump to a known address, other than in EFLAGS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ExitFlags {
    /// In no other way.
    Host,
    /// Saved as well.
    Saved,
    /// Where saved ones would be there is a recipe that needs these registers, a bit each.
    Recipe(u16),
    /// As they arrived at the block, and not in EFLAGS.
    Arrived,
    /// As a recipe that needs no register, and not in EFLAGS.
    Sealed,
}

/// The instructions of a block, and the flags between them.
#[derive(Clone, Copy, Default)]
pub(super) struct Flow<'a> {
    pub classes: &'a [Class],
    /// Flags that have to be right before each.
    pub needed: &'a [u32],
    /// Instructions, a bit each, that need them in EFLAGS.
    pub in_host: u64,
}

impl Flow<'_> {
    /// What an instruction needs to survive.
    pub fn need(&self, index: usize) -> Need {
        Need {
            before: self.needed[index],
            after: *self.needed.get(index + 1).unwrap_or(&liveness::ALL),
        }
    }
}

/// What an instruction does with the flags that it finds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    /// General-purpose registers that it changes.
    pub writes: u16,
    /// Some of these flags have to be right behind it.
    pub keeps: bool,
    /// It has a memory check, which spoils EFLAGS.
    pub checks: bool,
    /// It wants them in EFLAGS.
    pub host: bool,
    /// It wants them saved.
    pub saved: bool,
    /// It ends the block, and passes on a recipe that needs no register as well.
    pub passes_on: bool,
    /// If it neither changes them nor needs them in EFLAGS it leaves them where they are.
    pub leaves_alone: bool,
}

impl Effect {
    /// Of an instruction behind which the flags `after` have to be right.
    /// `checks`: it has a check.
    fn of(class: &Class, (after, in_host): (u32, bool), checks: bool, lazy: bool) -> Effect {
        Effect {
            writes: class.writes,
            keeps: after & !class.flags.overwritten() != 0,
            checks,
            host: in_host || class.kind == Kind::Branch,
            saved: matches!(
                class.kind,
                Kind::Return
                    | Kind::JumpIndirect
                    | Kind::CallIndirect
                    | Kind::PushFlags
                    | Kind::SystemCall
                    | Kind::SoftwareInterrupt
                    | Kind::SystemReturn
                    | Kind::InterruptReturn
            ),
            // The targets of indirect jumps, in interpreters, want the flags more often than callers
            // and functions do.
            passes_on: lazy && matches!(class.kind, Kind::Call | Kind::Return | Kind::CallIndirect),
            leaves_alone: liveness::leaves_alone(class.kind),
        }
    }
}

/// Puts the flags in EFLAGS into `exchange.saved_flags`. Uses T2 only.
pub(super) fn save_eflags(ops: &mut impl DynasmApi) {
    dynasm!(ops
        ; .arch x64
        ; mov r8, rax
        ; lahf
        ; seto al
        ; gs mov [at::SAVED_FLAGS], eax
        ; mov rax, r8
    );
}

impl Emitter<'_> {
    /// Whether an instruction makes a memory check, which spoils EFLAGS.
    pub(super) fn checks(&self, index: usize) -> bool {
        let unsure = self.sure >> index & 1 == 0;
        unsure && liveness::checks_access(self.flow.classes[index].kind)
    }

    /// What an instruction does with the flags, if it is one of a block's.
    fn effect(&self, index: usize) -> Option<Effect> {
        let class = self.flow.classes.get(index)?;
        let in_host = self.flow.in_host >> index & 1 != 0;
        let needs = (self.flow.need(index).after, in_host);
        let lazy = self.target.lazy_flags;
        Some(Effect::of(class, needs, self.checks(index), lazy))
    }

    /// What the instructions from one on do with them.
    fn effects(&self, first: usize) -> impl Iterator<Item = Effect> {
        (first..).map_while(|index| self.effect(index))
    }

    /// Makes sure that the flags are in `exchange.saved_flags`, and that EFLAGS may be spoilt.
    /// Uses T2 only.
    pub(super) fn save_flags(&mut self) {
        if !self.flags.saved {
            self.restore_flags();
            save_eflags(self.ops);
            self.flags.saved = true;
        }
    }

    /// Makes sure that the flags are in EFLAGS. Uses T2 only.
    pub(super) fn restore_flags(&mut self) {
        if self.flags.host {
            return;
        }
        if let Some(recipe) = self.flags.recipe {
            self.recompute(recipe);
        } else {
            debug_assert!(self.flags.saved, "flags are nowhere");
            debug_assert!(!self.flags.arrived, "flags that only Rust can read");
            dynasm!(self.ops
                ; .arch x64
                ; mov r8, rax
                ; gs mov eax, [at::SAVED_FLAGS]
                ; add al, 0x7f
                ; sahf
                ; mov rax, r8
            );
        }
        self.flags.host = true;
    }

    /// EFLAGS is about to be spoilt by a check. If the guest's flags are still needed they are
    /// saved first, unless a recipe is as good; otherwise they are forgotten.
    pub(super) fn spoil_flags(&mut self, needed: bool) {
        if !needed {
            // Nobody can see them any more: what is in EFLAGS will do.
            self.flags = FlagsPlace::LOST;
            return;
        }
        if !self.flags.recipe.is_some_and(|recipe| self.pays(recipe)) {
            self.put_flags_away();
        }
        self.flags.host = false;
    }

    /// As [`Emitter::spoil_flags`], where the instruction may call up after it has changed these
    /// registers, a bit each.
    pub(super) fn spoil_flags_and(&mut self, writes: u16, needed: bool) {
        let recipe = self.flags.recipe;
        if needed && recipe.is_some_and(|recipe| recipe.registers() & writes != 0) {
            self.put_flags_away();
            self.flags.host = false;
        } else {
            self.spoil_flags(needed);
        }
    }

    /// Makes sure that the flags are in `exchange.saved_flags`, as a recipe if that will do, and that
    /// EFLAGS may be spoilt. Uses T2 only.
    pub(super) fn put_flags_away(&mut self) {
        self.seal_or_save(Self::may_seal);
    }

    /// Likewise, on the way out of the middle of a block to a place that is not known.
    pub(super) fn put_flags_out(&mut self) {
        self.seal_or_save(Self::seals);
    }

    fn seal_or_save(&mut self, may_seal: impl FnOnce(&Self) -> bool) {
        match self.flags.recipe {
            Some(recipe) if !self.flags.saved && may_seal(self) => self.seal(recipe),
            _ => self.save_flags(),
        }
    }

    /// Whether recipes are sealed at all here.
    fn seals(&self) -> bool {
        self.target.lazy_flags && self.places.are_usual()
    }

    /// Whether nobody needs the flags, as they are before the current instruction, in EFLAGS or as
    /// LAHF leaves them, up to where they are overwritten or leave with a call or return.
    fn may_seal(&self) -> bool {
        if !self.seals() {
            return false;
        }
        for effect in self.effects(self.current) {
            if effect.host {
                return false;
            }
            if !effect.keeps || effect.passes_on {
                return true;
            }
            if !effect.leaves_alone {
                return false;
            }
        }
        false
    }

    /// Puts a recipe that needs no register where saved flags would be, for flags that have a recipe.
    /// EFLAGS stay. Uses T2 only.
    fn seal(&mut self, recipe: Recipe) {
        let (recipe, put) = recipe.sealed();
        for (register, place) in put.into_iter().zip([at::STASH, at::SECOND]) {
            let Some(register) = register.map(usize::from) else {
                continue;
            };
            let host = self.places.pinned(register).unwrap_or_else(|| {
                self.load_guest(T2, register);
                Self::scratch(T2)
            });
            dynasm!(self.ops ; .arch x64 ; gs mov [place], Rq(host));
        }
        self.write_recipe(recipe);
        self.flags = FlagsPlace {
            host: self.flags.host,
            sealed: true,
            ..FlagsPlace::ARRIVED
        };
    }

    /// Puts the flags where the next block looks for them behind a jump to a known address, and says
    /// where that is. Uses T2 only.
    pub(super) fn flags_for_exit(&mut self) -> ExitFlags {
        let away = !self.flags.host;
        if away && self.flags.sealed {
            return ExitFlags::Sealed;
        }
        if away && self.flags.arrived {
            return ExitFlags::Arrived;
        }
        self.restore_flags();
        self.describe_flags()
    }

    /// Whether the flags can be left to a recipe at a check of the current instruction: it holds
    /// until they are overwritten or wanted in EFLAGS, or loses its registers where they are
    /// wanted soon.
    fn pays(&self, recipe: Recipe) -> bool {
        let mut dead = false;
        for (index, effect) in (self.current..).zip(self.effects(self.current)) {
            if effect.saved || (dead && effect.checks) {
                return false;
            }
            if effect.host || !effect.keeps {
                return true;
            }
            if effect.writes & recipe.registers() != 0 && !dead {
                // It is followed before the registers change: `keep_flags`.
                if index == self.current && !effect.checks {
                    return false;
                }
                dead = true;
            }
        }
        true
    }

    /// Follows a recipe whose registers the current instruction is about to change, if the flags
    /// are nowhere else and somebody can still see them. Uses T2 only.
    pub(super) fn keep_flags(&mut self) {
        let only = !self.flags.host && !self.flags.saved;
        if let Some(recipe) = self.flags.recipe
            && only
            && let Some(effect) = self.effect(self.current)
            && effect.keeps
            && effect.writes & recipe.registers() != 0
        {
            self.restore_flags();
        }
    }

    /// What is known behind the current instruction.
    pub(super) fn follow_flags(&mut self, insn: &Instruction, class: &Class) {
        let computes = matches!(
            class.kind,
            Kind::Plain(_) | Kind::Element(_) | Kind::ElementPair(_)
        );
        if computes && class.flags.changed() != 0 {
            self.flags.recipe = self.stashed.take().or_else(|| Recipe::of(insn));
        } else {
            self.registers_changed(class.writes);
        }
    }

    /// These registers, a bit each, do not hold any more what a recipe may need. Who still can see the flags has been
    /// thought of: [`Emitter::keep_flags`].
    pub(super) fn registers_changed(&mut self, writes: u16) {
        let Some(recipe) = self.flags.recipe else {
            return;
        };
        if writes & recipe.registers() != 0 {
            self.flags.recipe = None;
            if !self.flags.host && !self.flags.saved {
                let keeps = |effect: Effect| effect.keeps;
                debug_assert!(
                    !self.effect(self.current).is_some_and(keeps),
                    "flags are lost"
                );
                self.flags = FlagsPlace::LOST;
            }
        }
    }

    /// Whether the flags that the current instruction leaves meet a check, or the block's end,
    /// before they are overwritten: then one store to the stash, which a recipe needs, is cheaper
    /// than saving them.
    pub(super) fn worth_stashing(&self) -> bool {
        if !self.target.precise_flags {
            return false;
        }
        for effect in self.effects(self.current + 1) {
            if effect.saved {
                return effect.passes_on;
            }
            if effect.checks || !effect.keeps {
                return effect.checks;
            }
        }
        true
    }

    /// Puts a host register into the stash.
    pub(super) fn stash(&mut self, register: Register, recipe: Recipe) {
        self.put_into_stash(register);
        self.stashed = Some(recipe);
        self.stashes |= 1 << self.current;
    }

    /// Puts it there where it is known already that it is.
    pub(super) fn put_into_stash(&mut self, register: Register) {
        let register = number(register) as u8;
        dynasm!(self.ops ; .arch x64 ; gs mov [at::STASH], Rq(register));
    }

    /// Puts CF, which is in EFLAGS, into the stash.
    pub(super) fn stash_carry(&mut self, recipe: Recipe) {
        dynasm!(self.ops ; .arch x64 ; gs setc BYTE [at::STASH]);
        self.stashed = Some(recipe);
        self.stashes |= 1 << self.current;
    }

    /// Puts a recipe for the flags, which are in EFLAGS, where saved ones would be, if there is
    /// one: a block that does not need them in EFLAGS is content with that.
    pub(super) fn describe_flags(&mut self) -> ExitFlags {
        if self.flags.saved {
            return ExitFlags::Saved;
        }
        let Some(recipe) = self.flags.recipe.filter(|_| self.target.precise_flags) else {
            return ExitFlags::Host;
        };
        self.write_recipe(recipe);
        ExitFlags::Recipe(recipe.registers())
    }

    /// Writes a recipe where saved flags would be.
    fn write_recipe(&mut self, recipe: Recipe) {
        let (word, constant) = recipe.word();
        dynasm!(self.ops ; .arch x64 ; gs mov DWORD [at::SAVED_FLAGS], word as i32);
        if let Some(constant) = constant {
            dynasm!(self.ops ; .arch x64 ; gs mov DWORD [at::CONSTANT], constant);
        }
    }

    /// The place to look for the flags when the block is left here, before an instruction.
    pub(super) fn flags_at(&mut self, insn: usize) -> FlagsAt {
        if self.flags.host {
            return if self.flags.lost {
                FlagsAt::Lost
            } else {
                FlagsAt::Host
            };
        }
        match self.flags.recipe {
            _ if self.flags.saved => FlagsAt::Saved,
            Some(recipe) => {
                if self.recipes.last() != Some(&(insn as u16, recipe)) {
                    self.recipes.push((insn as u16, recipe));
                }
                FlagsAt::Recipe
            }
            None => FlagsAt::Host,
        }
    }

    /// Notes where the flags are for an instruction that may fault on the host, just before
    /// it is emitted.
    pub(super) fn note_flags(&mut self, insn: usize) {
        match self.flags_at(insn) {
            FlagsAt::Saved => self.flags_away |= 1 << insn,
            FlagsAt::Lost => self.flags_lost |= 1 << insn,
            FlagsAt::Host | FlagsAt::Recipe => {}
        }
    }
}
