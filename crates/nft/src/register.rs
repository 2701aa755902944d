// SPDX-License-Identifier: Apache-2.0
//! Registers, through which the expressions of a rule pass values to each other.

use netlink_pipeline::attribute::{Attribute, DecodeError, Writer};

use crate::wire::Wire;

/// Registers of 4 bytes: `NFT_REG32_COUNT`.
const WORDS: u32 = 16;
/// `NFT_REG32_00`
const FIRST_WORD: u32 = 8;
/// Words of one of the four old registers, `NFT_REG_SIZE / NFT_REG32_SIZE`.
const WORDS_OF_OLD: u32 = 4;

/// A place in the 64 bytes in which a rule computes: sixteen words of 4 bytes, or the verdict.
///
/// A longer value lies in as many words as it needs, beginning with the named one. The kernel has
/// two numbers for every fourth word; this is always the lower one, as in the kernel's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(u32);

impl Register {
    /// Where the verdict goes (`NFT_REG_VERDICT`).
    pub const VERDICT: Self = Self(0);
    /// The first word (`NFT_REG_1`), with which keys begin.
    pub const FIRST: Self = Self(1);

    /// A word, 0 to 15. The kernel refuses rules that use others.
    pub const fn word(index: u32) -> Self {
        Self::from_number(FIRST_WORD.saturating_add(index))
    }

    /// `enum nft_registers`
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The register of a number of `enum nft_registers`.
    pub const fn from_number(number: u32) -> Self {
        match number {
            // Every fourth word has the number of an old register, too.
            FIRST_WORD.. if number < FIRST_WORD + WORDS && number % WORDS_OF_OLD == 0 => {
                Self(1 + (number - FIRST_WORD) / WORDS_OF_OLD)
            }
            number => Self(number),
        }
    }
}

impl Wire for Register {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
        u32::read(raw, name).map(Self::from_number)
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        self.0.write(kind, writer);
    }
}
