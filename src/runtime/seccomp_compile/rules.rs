//! From a profile's rules to one leaf for each range of system call numbers.

use super::tables::{self, Abi, X32_BIT};
use crate::runtime::{Error, Result};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator};
use std::collections::BTreeMap;

/// A test of one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub operator: LinuxSeccompOperator,
    pub value: u64,
    /// For the masked comparison: what the masked argument must equal.
    pub value_two: u64,
    /// Compare 64 bits, not only the lower 32.
    pub wide: bool,
}

/// Conditions that must all hold, and what then happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    pub action: u32,
}

/// What happens to a range of calls: the first rule that holds, else the last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub rules: Vec<Rule>,
    pub otherwise: u32,
}

#[derive(Default)]
struct Call {
    unconditional: Option<u32>,
    rules: Vec<Rule>,
}

/// Leaves from their first number on; each reaches to the next.
pub type Leaves = Vec<(u32, Leaf)>;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// ARM's private calls lie far above the rest and say nothing about the profile's age.
const PRIVATE_CALLS: u32 = 0xf_0000;

/// Append the leaves of one ABI.
pub fn collect(profile: &LinuxSeccomp, abi: Abi, default: u32, leaves: &mut Leaves) -> Result<()> {
    let table = abi.table();
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    let mut newest = None;
    for entry in profile.syscalls().iter().flatten() {
        let action = super::action(entry.action(), entry.errno_ret())?;
        let conditions = conditions(entry.args().as_deref().unwrap_or_default(), abi)?;
        for name in entry.names() {
            let Some(&number) = table.get(name.as_str()) else {
                continue;
            };
            if number - abi.base() < PRIVATE_CALLS {
                newest = newest.max(Some(number));
            }
            if action == default {
                continue;
            }
            add(calls.entry(number).or_default(), &conditions, action);
            if abi == Abi::X86
                && conditions.is_empty()
                && let Some((through, operation)) = tables::multiplexed(name)
                && let Some(&number) = table.get(through)
            {
                let only = Condition {
                    argument: 0,
                    operator: LinuxSeccompOperator::ScmpCmpEq,
                    value: operation,
                    value_two: 0,
                    wide: false,
                };
                add(calls.entry(number).or_default(), &[vec![only]], action);
            }
        }
    }
    let plain = |action| Leaf {
        rules: Vec::new(),
        otherwise: action,
    };
    let mut next = abi.base();
    for (number, call) in calls {
        if number > next {
            leaves.push((next, plain(default)));
        }
        let leaf = match call.unconditional {
            Some(action) => plain(action),
            None => Leaf {
                rules: call.rules,
                otherwise: default,
            },
        };
        leaves.push((number, leaf));
        next = number + 1;
    }
    // Calls that the profile's author did not know: only where the default is a refusal.
    let refuses = !matches!(default, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG);
    match newest {
        Some(newest) if refuses && next <= newest + 1 => {
            if next <= newest {
                leaves.push((next, plain(default)));
            }
            leaves.push((newest + 1, plain(ENOSYS)));
        }
        _ => leaves.push((next, plain(default))),
    }
    Ok(())
}

fn add(call: &mut Call, alternatives: &[Vec<Condition>], action: u32) {
    if alternatives.is_empty() {
        call.unconditional.get_or_insert(action);
    }
    call.rules.extend(alternatives.iter().map(|conditions| Rule {
        conditions: conditions.clone(),
        action,
    }));
}

/// Alternatives of conditions; none means unconditional. Conditions on different arguments must all hold, several on
/// the same argument are alternatives, as runc reads them.
fn conditions(args: &[LinuxSeccompArg], abi: Abi) -> Result<Vec<Vec<Condition>>> {
    let mut all = Vec::new();
    for arg in args {
        if arg.index() > 5 {
            return Err(Error::InvalidSpec(format!(
                "seccomp argument index {} is above 5",
                arg.index()
            )));
        }
        all.push(Condition {
            argument: arg.index() as u32,
            operator: arg.op(),
            value: arg.value(),
            value_two: arg.value_two().unwrap_or(0),
            wide: abi.wide(),
        });
    }
    let repeated = (0..6).any(|i| all.iter().filter(|c| c.argument == i).count() > 1);
    Ok(match (all.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (_, true) => all.into_iter().map(|condition| vec![condition]).collect(),
        _ => vec![all],
    })
}

/// Complete a token's leaves: order them, close the space above, merge equal neighbours.
pub fn close(mut leaves: Leaves, abis: &[Abi], default: u32) -> Leaves {
    let plain = |action| Leaf {
        rules: Vec::new(),
        otherwise: action,
    };
    if abis.contains(&Abi::X86_64) && !abis.contains(&Abi::X32) {
        leaves.push((X32_BIT, plain(libc::SECCOMP_RET_KILL_PROCESS)));
    }
    // -1 is a call that a tracer has cancelled.
    leaves.push((u32::MAX, plain(default)));
    leaves.sort_by_key(|(number, _)| *number);
    leaves.dedup_by(|next, previous| next.1 == previous.1);
    leaves
}
