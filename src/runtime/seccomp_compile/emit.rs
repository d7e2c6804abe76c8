//! From leaves to instructions: a binary search over system call numbers for each architecture.

use super::rules::{Condition, Leaf, Leaves, Rule};
use oci_spec::runtime::LinuxSeccompOperator as Operator;

/// One `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

pub const LD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
pub const JA: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub const JGT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
pub const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
pub const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

impl Instruction {
    pub fn bytes(&self) -> [u8; 8] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [code[0], code[1], self.jt, self.jf, k[0], k[1], k[2], k[3]]
    }
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// The whole filter: one section for each architecture token; any other token ends the process.
pub fn program(sections: &[(u32, Leaves)]) -> Vec<Instruction> {
    let mut code = vec![plain(LD, ARCH)];
    for (token, leaves) in sections {
        let search = search(leaves);
        code.push(Instruction {
            code: JEQ,
            jt: 1,
            jf: 0,
            k: *token,
        });
        code.push(plain(JA, search.len() as u32 + 1));
        code.push(plain(LD, NUMBER));
        code.extend(search);
    }
    code.push(plain(RET, libc::SECCOMP_RET_KILL_PROCESS));
    code
}

/// The accumulator holds the number. Every path through the result ends with a return.
fn search(leaves: &[(u32, Leaf)]) -> Vec<Instruction> {
    if let [(_, only)] = leaves {
        return leaf(only);
    }
    let (low, high) = leaves.split_at(leaves.len() / 2);
    let (below, above) = (search(low), search(high));
    let from = high[0].0;
    let mut code = match u8::try_from(below.len()) {
        Ok(skip) => vec![Instruction {
            code: JGE,
            jt: skip,
            jf: 0,
            k: from,
        }],
        Err(_) => vec![
            Instruction {
                code: JGE,
                jt: 0,
                jf: 1,
                k: from,
            },
            plain(JA, below.len() as u32),
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

fn leaf(leaf: &Leaf) -> Vec<Instruction> {
    let mut code: Vec<Instruction> = leaf.rules.iter().flat_map(rule).collect();
    code.push(plain(RET, leaf.otherwise));
    code
}

/// Where a test goes: to the instruction behind it, on to the next condition, or past the rule.
#[derive(Clone, Copy)]
enum To {
    Here,
    Next,
    Fail,
}

/// A jump whose targets are not known yet; other instructions pass through.
enum Step {
    Do(Instruction),
    Test { code: u16, k: u32, yes: To, no: To },
}

fn rule(rule: &Rule) -> Vec<Instruction> {
    let blocks: Vec<Vec<Step>> = rule.conditions.iter().map(condition).collect();
    let mut left: usize = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(left);
    for block in blocks {
        let mut in_block = block.len();
        for step in block {
            // `in_block` and `left` count this step, so the jump to what follows is one less. At most 6 * 6 steps.
            let distance = |to| {
                (match to {
                    To::Here => 0,
                    To::Next => in_block - 1,
                    To::Fail => left - 1,
                }) as u8
            };
            code.push(match step {
                Step::Do(instruction) => instruction,
                Step::Test { code, k, yes, no } => Instruction {
                    code,
                    jt: distance(yes),
                    jf: distance(no),
                    k,
                },
            });
            in_block -= 1;
            left -= 1;
        }
    }
    code.push(plain(RET, rule.action));
    code
}

fn condition(condition: &Condition) -> Vec<Step> {
    use To::{Fail, Here, Next};
    let Condition {
        argument,
        operator,
        value,
        value_two,
        wide,
    } = *condition;
    let (low_at, high_at) = if cfg!(target_endian = "little") { (0, 4) } else { (4, 0) };
    let load = |half| Step::Do(plain(LD, ARGUMENTS + argument * 8 + half));
    let (low, high) = (value as u32, (value >> 32) as u32);
    let mut steps = Vec::new();
    // The upper half decides unless it is equal; then the lower half's load, right behind, comes next.
    let test = |code, k, yes, no| Step::Test { code, k, yes, no };
    match operator {
        Operator::ScmpCmpEq => {
            if wide {
                steps.extend([load(high_at), test(JEQ, high, Here, Fail)]);
            }
            steps.extend([load(low_at), test(JEQ, low, Next, Fail)]);
        }
        Operator::ScmpCmpNe => {
            if wide {
                steps.extend([load(high_at), test(JEQ, high, Here, Next)]);
            }
            steps.extend([load(low_at), test(JEQ, low, Fail, Next)]);
        }
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => {
            if wide {
                steps.extend([load(high_at), test(JGT, high, Next, Here), test(JEQ, high, Here, Fail)]);
            }
            let code = if operator == Operator::ScmpCmpGt { JGT } else { JGE };
            steps.extend([load(low_at), test(code, low, Next, Fail)]);
        }
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            if wide {
                steps.extend([load(high_at), test(JGT, high, Fail, Here), test(JEQ, high, Here, Next)]);
            }
            let code = if operator == Operator::ScmpCmpLt { JGE } else { JGT };
            steps.extend([load(low_at), test(code, low, Fail, Next)]);
        }
        Operator::ScmpCmpMaskedEq => {
            let (want_low, want_high) = ((value & value_two) as u32, ((value & value_two) >> 32) as u32);
            if wide {
                steps.extend([
                    load(high_at),
                    Step::Do(plain(AND, high)),
                    test(JEQ, want_high, Here, Fail),
                ]);
            }
            steps.extend([load(low_at), Step::Do(plain(AND, low)), test(JEQ, want_low, Next, Fail)]);
        }
    }
    steps
}
