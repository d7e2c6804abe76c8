//! The compiled programs are run by a small interpreter, and once by the kernel.

use super::*;
use emit::{AND, JA, JEQ, JGE, JGT, LD, RET};

/// What the kernel would answer for a call.
fn run(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_ne_bytes());
    data.extend_from_slice(&arch.to_ne_bytes());
    data.extend_from_slice(&0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend_from_slice(&arg.to_ne_bytes()));
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let i: &[u8] = &program[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([i[0], i[1]]);
        let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
        at += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { i[2] } else { i[3] });
        match code {
            LD => accumulator = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            AND => accumulator &= k,
            JA => at += k as usize,
            JEQ => branch(accumulator == k),
            JGT => branch(accumulator > k),
            JGE => branch(accumulator >= k),
            RET => return k,
            other => panic!("instruction {other:#x} at {at}"),
        }
    }
}

fn profile(json: &str) -> Vec<u8> {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// One rule on `read` (0) argument 1 with an operator.
fn compare(op: &str, value: u64, two: u64, argument: u64) -> bool {
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{{"names":["read"],
        "action":"SCMP_ACT_ALLOW","args":[{{"index":1,"value":{value},"valueTwo":{two},"op":"{op}"}}]}}]}}"#
    );
    run(&profile(&json), X86_64, 0, [0, argument, 0, 0, 0, 0]) == ALLOW
}

#[test]
fn each_comparison_agrees_with_64_bit_arithmetic() {
    let interesting = [
        0,
        1,
        2,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX.into(),
        1 << 32,
        (1 << 32) + 1,
        (2 << 32) + 1,
        u64::MAX,
    ];
    for value in interesting {
        for argument in interesting {
            let case = format!("{argument:#x} against {value:#x}");
            assert_eq!(
                compare("SCMP_CMP_EQ", value, 0, argument),
                argument == value,
                "eq {case}"
            );
            assert_eq!(
                compare("SCMP_CMP_NE", value, 0, argument),
                argument != value,
                "ne {case}"
            );
            assert_eq!(
                compare("SCMP_CMP_LT", value, 0, argument),
                argument < value,
                "lt {case}"
            );
            assert_eq!(
                compare("SCMP_CMP_LE", value, 0, argument),
                argument <= value,
                "le {case}"
            );
            assert_eq!(
                compare("SCMP_CMP_GT", value, 0, argument),
                argument > value,
                "gt {case}"
            );
            assert_eq!(
                compare("SCMP_CMP_GE", value, 0, argument),
                argument >= value,
                "ge {case}"
            );
            let masked = compare("SCMP_CMP_MASKED_EQ", value, 0, argument);
            assert_eq!(masked, argument & value == 0, "masked {case}");
            let masked = compare("SCMP_CMP_MASKED_EQ", value, value, argument);
            assert_eq!(masked, argument & value == value, "masked equal {case}");
        }
    }
}

#[test]
fn conditions_on_different_arguments_must_all_hold_and_on_one_argument_any() {
    let program = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["write"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":2,"value":9,"op":"SCMP_CMP_LT"}]},
        {"names":["close"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]},
        {"names":["mmap"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["mmap"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let ask = |number, args| run(&program, X86_64, number, args);
    assert_eq!(ask(1, [1, 0, 8, 0, 0, 0]), ALLOW);
    assert_eq!(ask(1, [1, 0, 9, 0, 0, 0]), EPERM);
    assert_eq!(ask(1, [2, 0, 8, 0, 0, 0]), EPERM);
    assert_eq!(ask(3, [7, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(3, [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(3, [2, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(ask(9, [1, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_ERRNO | 5);
    assert_eq!(ask(9, [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(9, [3, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn an_unconditional_rule_beats_conditional_ones() {
    let program = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_ALLOW"},
        {"names":["read"],"action":"SCMP_ACT_LOG"}]}"#,
    );
    assert_eq!(run(&program, X86_64, 0, [1, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn calls_newer_than_the_profile_answer_enosys_and_unknown_names_are_skipped() {
    let program = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read","no_such_call","openat2"],"action":"SCMP_ACT_ALLOW"},
        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
    );
    let ask = |number| run(&program, X86_64, number, [0; 6]);
    assert_eq!((ask(0), ask(1), ask(435), ask(437)), (ALLOW, EPERM, ENOSYS, ALLOW));
    assert_eq!((ask(438), ask(9999), ask(u32::MAX)), (ENOSYS, ENOSYS, EPERM));
    let allow =
        profile(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#);
    let ask = |number| run(&allow, X86_64, number, [0; 6]);
    assert_eq!((ask(165), ask(164), ask(9999)), (EPERM, ALLOW, ALLOW));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn other_architectures_end_the_process_unless_listed() {
    let rules = r#""syscalls":[{"names":["read","socket"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let alone = profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{rules}"#));
    assert_eq!(run(&alone, X86, 3, [0; 6]), KILL);
    assert_eq!(run(&alone, X86_64, 0x4000_0000, [0; 6]), KILL);
    let all = profile(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],{rules}"#
    ));
    assert_eq!(run(&all, X86, 3, [0; 6]), ALLOW);
    assert_eq!(run(&all, X86, 0, [0; 6]), EPERM);
    assert_eq!(run(&all, X86_64, 0x4000_0000, [0; 6]), ALLOW);
    assert_eq!(run(&all, X86_64, 0x4000_0001, [0; 6]), EPERM);
    // socket as operation 1 of socketcall (102), connect as operation 3.
    assert_eq!(run(&all, X86, 102, [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&all, X86, 102, [3, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(run(&all, 0xc000_00b7, 0, [0; 6]), KILL);
}

#[test]
fn a_large_profile_decides_every_number_as_written() {
    let table = tables::Abi::NATIVE.table();
    let mut names: Vec<_> = table.iter().map(|(name, number)| (*number, *name)).collect();
    names.sort_unstable();
    // Every second call with a condition: leaves too large for short jumps.
    let rules: Vec<String> = names
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 2 == 0)
        .map(|(at, (_, name))| {
            format!(
                r#"{{"names":["{name}"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{at},"op":"SCMP_CMP_EQ"}}]}}"#
            )
        })
        .collect();
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{}]}}"#,
        rules.join(",")
    );
    let program = profile(&json);
    for (at, (number, _)) in names.iter().enumerate() {
        let ask = |value| run(&program, tables::Abi::NATIVE.token(), *number, [value, 0, 0, 0, 0, 0]);
        assert_eq!(ask(at as u64) == ALLOW, at % 2 == 0, "call {number}");
        assert_ne!(ask(at as u64 + 1), ALLOW, "call {number}");
    }
}

#[test]
fn the_kernel_accepts_and_obeys_a_program() {
    let program = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ERRNO","errnoRet":77}]}"#,
    );
    // A thread of its own: filters cannot be taken off.
    let errno = std::thread::spawn(move || {
        crate::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
        crate::sys::seccomp_set_filter(&program, 0).unwrap();
        // SAFETY: no arguments.
        let result = unsafe { libc::syscall(libc::SYS_getppid) };
        (result, std::io::Error::last_os_error().raw_os_error())
    });
    assert_eq!(errno.join().unwrap(), (-1, Some(77)));
}

#[test]
fn a_saved_program_loads_and_junk_does_not() {
    let dir = std::env::temp_dir().join(format!("wharf-seccomp-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let program = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    save(&dir.join("a.bpf"), &program).unwrap();
    assert_eq!(load(&dir.join("a.bpf")).unwrap(), program);
    std::fs::write(dir.join("b.bpf"), b"junk").unwrap();
    assert!(load(&dir.join("b.bpf")).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}
