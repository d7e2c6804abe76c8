//! Keeps the house in order: imports go downwards only, and no file grows beyond what one reads in one go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each room's floor. A room may import from its own floor's mechanisms (floor 1 only) and from lower floors.
const FLOORS: &[(&str, u8)] = &[
    ("sys", 0),
    ("memory", 0),
    ("failpoint", 0),
    ("telemetry", 0),
    ("config", 1),
    ("store", 1),
    ("cgroups", 1),
    ("netns", 1),
    ("images", 1),
    ("lsm", 1),
    ("runtime", 1),
    ("monitor", 1),
    ("nri", 1),
    ("sandbox", 2),
    ("containers", 2),
    ("node", 3),
    ("cri", 4),
    ("streaming", 4),
    ("observe", 4),
    ("cli", 4),
];

/// What a room may ask on its own floor, beside `config` and `store`. A container belongs to a pod, never the reverse.
const NEIGHBOURS: &[(&str, &[&str])] = &[
    ("monitor", &["runtime", "cgroups"]),
    ("runtime", &["cgroups"]),
    ("telemetry", &["memory"]),
    ("containers", &["sandbox"]),
    // Exec, Attach and PortForward answer with the URLs of the streaming server.
    ("cri", &["streaming"]),
];

/// `wharf serve` wires the rooms together; nothing else may reach across.
const WIRING: &[&str] = &["src/main.rs", "src/lib.rs", "src/serve.rs", "src/cli/serve.rs"];

const WARN_LINES: usize = 500;
const MOST_LINES: usize = 600;

#[test]
fn every_import_goes_downwards() {
    let floors: BTreeMap<&str, u8> = FLOORS.iter().copied().collect();
    let mut broken = Vec::new();
    for path in sources() {
        let name = path.display().to_string();
        let Some(room) = name.strip_prefix("src/").and_then(|rest| rest.split(['/', '.']).next()) else {
            continue;
        };
        if WIRING.contains(&name.as_str()) {
            continue;
        }
        let Some(own) = floors.get(room) else {
            panic!("{name}: the room `{room}` is on no floor, see {}", file!())
        };
        let text = std::fs::read_to_string(&path).expect("a source file can be read");
        for (number, line) in code(&text).lines().enumerate() {
            for other in imports(line) {
                let Some(floor) = floors.get(other.as_str()) else {
                    continue;
                };
                if other != room && !allowed(room, *own, &other, *floor) {
                    broken.push(format!(
                        "{name}:{}: `{room}` (floor {own}) imports from `{other}` (floor {floor}): {}",
                        number + 1,
                        if floor > own {
                            "imports go downwards only"
                        } else {
                            "neighbours of one floor don't know each other"
                        }
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "a floor was broken:\n  {}", broken.join("\n  "));
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for path in sources() {
        let lines = std::fs::read_to_string(&path)
            .expect("a source file can be read")
            .lines()
            .count();
        if lines > MOST_LINES {
            long.push(format!(
                "{}: {lines} lines, at most {MOST_LINES}: it holds more than one idea",
                path.display()
            ));
        } else if lines > WARN_LINES {
            println!("{}: {lines} lines, aim at {WARN_LINES}", path.display());
        }
    }
    assert!(long.is_empty(), "files that must be split:\n  {}", long.join("\n  "));
}

#[test]
fn every_room_says_what_it_is() {
    for (room, _) in FLOORS {
        let path = Path::new("src").join(room).join("mod.rs");
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        assert!(
            text.starts_with("//!"),
            "{} must begin with what the room owns",
            path.display()
        );
    }
}

fn allowed(room: &str, own: u8, other: &str, floor: u8) -> bool {
    if floor < own {
        return true;
    }
    let neighbours = NEIGHBOURS
        .iter()
        .find(|(name, _)| *name == room)
        .map_or(&[][..], |(_, list)| list);
    own == floor && (["config", "store"].contains(&other) || neighbours.contains(&other))
}

/// Rooms that a line of code names: `crate::room`, `crate::{room::x, other}`.
fn imports(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        if line[..at].ends_with("wharf_") {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                for part in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        found.push(word(part.trim()));
                    }
                    depth += part.matches('{').count();
                    depth = depth.saturating_sub(part.matches('}').count());
                }
            }
            None => found.push(word(rest)),
        }
    }
    found.retain(|room| !room.is_empty());
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The text with comments blanked and `use crate::{` lists of several lines joined; line numbers stay near.
fn code(text: &str) -> String {
    let mut out = String::new();
    let mut open = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        open = (open || line.contains("crate::{")) && !line.contains("};");
        out.push_str(line.trim());
        out.push(if open { ' ' } else { '\n' });
    }
    out
}

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = ["src", "tests", "proto/src", "e2e/src", "e2e/tests"]
        .map(|dir| root.join(dir))
        .into();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root).expect("sources lie below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn imports_are_found_in_lists() {
    assert_eq!(imports("use crate::node::Node;"), ["node"]);
    assert_eq!(imports("use crate::{config::{A, B}, store};"), ["config", "store"]);
    assert_eq!(imports("let x = crate::cri::code(wharf_crate::x);"), ["cri"]);
}
