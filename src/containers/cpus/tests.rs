//! The ledger on a directory of files that stand for the kernel's.

use std::path::{Path, PathBuf};

use super::{
    ledger::{Error, Ledger, Step},
    masks::Format,
};
use crate::config::{CpuIsolation, CpuSet};

struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("wharf-cpus-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let machine = Self { dir };
        machine.set("mask", "0f");
        machine.set("irqbalance", "IRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"8\"\n");
        machine.set("governor", "powersave\n");
        machine.set("exclusive", "\n");
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn set(&self, name: &str, content: &str) {
        std::fs::write(self.at(name), content).unwrap();
    }

    fn get(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap().trim().to_owned()
    }

    fn ledger(&self, boot: &str) -> Ledger {
        let settings = CpuIsolation {
            irq_affinity_file: self.at("mask"),
            irqbalance_config: self.at("irqbalance"),
            ..Default::default()
        };
        Ledger::open(&self.dir, boot, &settings).unwrap()
    }

    fn value(&self, name: &str, value: &str) -> Step {
        Step::Value {
            file: self.at(name),
            value: value.into(),
        }
    }

    fn cpus(&self, name: &str, list: &str, add: bool) -> Step {
        Step::Cpus {
            file: self.at(name),
            format: if add { Format::List } else { Format::Mask },
            cpus: CpuSet::parse(list).unwrap(),
            add,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[test]
fn what_the_last_owner_gives_up_is_as_before_the_first() {
    let machine = Machine::new("owners");
    let ledger = machine.ledger("boot");
    let steps = |cpus: &str, governor: &str| {
        [
            machine.cpus("mask", cpus, false),
            machine.cpus("exclusive", cpus, true),
            machine.value("governor", governor),
        ]
    };
    assert!(ledger.claim("a", &steps("1-2", "performance")).unwrap());
    assert_eq!(machine.get("mask"), "00000009");
    assert_eq!(
        machine.get("irqbalance"),
        "IRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"fffffff6\""
    );
    ledger.claim("b", &steps("2-3", "schedutil")).unwrap();
    assert_eq!(
        (machine.get("mask"), machine.get("exclusive"), machine.get("governor")),
        ("00000001".into(), "1-3".into(), "schedutil".into())
    );
    // CPU 2 is still the other's.
    assert!(ledger.release("a").unwrap());
    assert_eq!(
        (machine.get("mask"), machine.get("exclusive"), machine.get("governor")),
        ("00000003".into(), "2-3".into(), "schedutil".into())
    );
    ledger.release("b").unwrap();
    assert_eq!(
        (machine.get("mask"), machine.get("exclusive"), machine.get("governor")),
        ("0000000f".into(), String::new(), "powersave".into())
    );
    assert_eq!(
        machine.get("irqbalance"),
        "IRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"8\""
    );
    assert!(!exists(&machine.at("cpus.json")), "nothing is claimed, nothing is kept");
    assert!(!ledger.release("b").unwrap());
}

#[test]
fn cpus_that_were_excluded_before_stay_so() {
    let machine = Machine::new("before");
    machine.set("mask", "b");
    let ledger = machine.ledger("boot");
    ledger.claim("a", &[machine.cpus("mask", "2-3", false)]).unwrap();
    assert_eq!(machine.get("mask"), "00000003");
    ledger.release("a").unwrap();
    assert_eq!(machine.get("mask"), "0000000b");
}

#[test]
fn a_change_that_fails_takes_the_earlier_ones_back() {
    let machine = Machine::new("fails");
    let ledger = machine.ledger("boot");
    let governor = machine.value("governor", "performance");
    let absent = machine.value("absent", "1");
    let error = ledger.claim("a", &[governor.clone(), absent]).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    let error = ledger
        .claim("a", &[governor, machine.cpus("mask", "0-7", false)])
        .unwrap_err();
    assert!(matches!(error, Error::NoneLeft { .. }), "{error}");
    assert_eq!(
        (machine.get("governor"), machine.get("mask")),
        ("powersave".into(), "0f".into())
    );
    assert!(!exists(&machine.at("cpus.json")));
}

#[test]
fn a_daemon_that_was_killed_takes_back_what_it_finds_of_those_that_are_gone() {
    let machine = Machine::new("killed");
    let before = machine.ledger("boot");
    before.claim("gone", &[machine.cpus("mask", "0", false)]).unwrap();
    before
        .claim("runs", &[machine.value("governor", "performance")])
        .unwrap();
    drop(before);
    let after = machine.ledger("boot");
    assert!(after.release_others(&["runs", "other"]).unwrap());
    assert_eq!(
        (machine.get("governor"), machine.get("mask")),
        ("performance".into(), "0000000f".into())
    );
    after.release("runs").unwrap();
    assert_eq!(machine.get("governor"), "powersave");
}

#[test]
fn after_a_reboot_only_what_lies_on_disk_is_set_back() {
    let machine = Machine::new("reboot");
    machine
        .ledger("one")
        .claim(
            "a",
            &[
                machine.cpus("mask", "0", false),
                machine.value("governor", "performance"),
            ],
        )
        .unwrap();
    // The kernel begins anew, with what somebody set since.
    machine.set("mask", "f");
    machine.set("governor", "schedutil");
    let after = machine.ledger("two");
    assert_eq!(
        machine.get("irqbalance"),
        "IRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"8\""
    );
    assert!(!after.release_others(&[]).unwrap());
    assert_eq!(
        (machine.get("mask"), machine.get("governor")),
        ("f".into(), "schedutil".into())
    );
    assert!(!exists(&machine.at("cpus.json")));
}

#[test]
fn a_file_that_has_gone_does_not_keep_the_rest() {
    let machine = Machine::new("gone");
    let ledger = machine.ledger("boot");
    let steps = [
        machine.value("governor", "performance"),
        machine.cpus("mask", "0", false),
    ];
    ledger.claim("a", &steps).unwrap();
    std::fs::remove_file(machine.at("governor")).unwrap();
    ledger.release("a").unwrap();
    assert_eq!(machine.get("mask"), "0000000f");
    assert!(!exists(&machine.at("cpus.json")) && !exists(&machine.at("governor")));
}
