//! What stands by while one transaction replaces a table by another.
//!
//! Each chain that a packet enters, and each lookup it makes there, sees the generation of its moment
//! (`nft_do_chain`, `nft_genmask_cur`). A packet that the commit overtakes within a hook has passed
//! the new base chain while that was not in force, for a new hook comes before those of equal priority
//! (`nf_hook_entries_grow`), and finds the sets of the old one empty. Nobody would translate it: seen
//! with kernel 6.18 about once in 250 replacements under load. So every base chain has a twin one
//! priority later for as long as the replacement takes, which is in force when the packet gets there.

use super::{Chain, Hooked, Name, Rule};

/// How a twin's name ends.
const SUFFIX: &str = "-handover";

impl Chain {
    /// The twin of a base chain; `None` of a regular chain, and of a twin.
    pub fn handover(&self) -> Option<Chain> {
        let hooked = self.hooked.filter(|_| !self.is_handover())?;
        Some(Chain {
            name: Name::new(format!("{}{SUFFIX}", self.name)),
            hooked: Some(Hooked { priority: hooked.priority + 1, ..hooked }),
            comment: Some("while a table is replaced".to_owned()),
        })
    }

    /// Whether this is a twin.
    pub fn is_handover(&self) -> bool {
        self.hooked.is_some() && self.name.as_str().ends_with(SUFFIX)
    }
}

/// The twins of the base chains among these, each with its rules.
pub fn handover<'a>(
    chains: impl IntoIterator<Item = &'a (Chain, Vec<Rule>)>,
) -> impl Iterator<Item = (Chain, &'a [Rule])> {
    chains.into_iter().filter_map(|(chain, rules)| Some((chain.handover()?, &rules[..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::program::{RuleOptions, program};

    #[test]
    fn a_twin_comes_right_after_its_chain_and_has_none_itself() {
        let program = program(Family::V4, &RuleOptions::nftables());
        for (chain, _) in &program.base_chains {
            let twin = chain.handover().unwrap();
            let (hooked, of_twin) = (chain.hooked.unwrap(), twin.hooked.unwrap());
            assert_eq!(Hooked { priority: of_twin.priority - 1, ..of_twin }, hooked);
            assert!(twin.is_handover() && !chain.is_handover());
            assert_eq!(twin.handover(), None);
        }
        assert_eq!(handover(&program.chains).count(), 0);
        assert_eq!(handover(&program.base_chains).count(), program.base_chains.len());
    }
}
