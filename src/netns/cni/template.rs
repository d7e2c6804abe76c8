//! A configuration made from a template and the node's pod CIDR: what bare clusters and tests use (row F12).
//!
//! The templates are those that containerd takes, which are Go's: `{{.PodCIDR}}`, and `{{range $i, $x := .PodCIDRRanges}}`
//! or `.Routes` with `{{$x}}` and `{{if $i}}...{{end}}` inside. Anything else is refused by name.

use std::net::IpAddr;

/// Fills in the template.
///
/// # Errors
/// A sentence that names what is not understood.
pub(super) fn render(template: &str, ranges: &[String]) -> Result<String, String> {
    let routes: Vec<String> = ["0.0.0.0/0", "::/0"]
        .into_iter()
        .zip([false, true])
        .filter(|(_, v6)| ranges.iter().any(|range| is_v6(range) == *v6))
        .map(|(route, _)| route.to_owned())
        .collect();
    let values = Values {
        ranges,
        routes: &routes,
    };
    let mut pieces = pieces(template)?.into_iter();
    let mut text = String::new();
    match block(&mut pieces, &values, None, true, &mut text)? {
        false => Ok(text),
        true => Err("{{end}} without a beginning".to_owned()),
    }
}

/// The ranges of kubelet's `pod_cidr`, which are separated by commas.
///
/// # Errors
/// Names the one that is no range.
pub(in crate::netns) fn ranges(cidr: &str) -> Result<Vec<String>, String> {
    let check = |range: &str| {
        let (address, length) = range.trim().split_once('/')?;
        let longest = if address.parse::<IpAddr>().ok()?.is_ipv4() {
            32
        } else {
            128
        };
        (length.parse::<u8>().ok()? <= longest).then(|| range.trim().to_owned())
    };
    cidr.split(',')
        .map(|range| check(range).ok_or_else(|| format!("pod CIDR {range:?} is not an address range")))
        .collect()
}

fn is_v6(range: &str) -> bool {
    range.contains(':')
}

struct Values<'a> {
    ranges: &'a [String],
    routes: &'a [String],
}

#[derive(Clone)]
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

/// What a loop has set.
#[derive(Clone, Copy)]
struct Turn<'a> {
    counter: &'a str,
    place: usize,
    name: &'a str,
    value: &'a str,
}

fn pieces(mut rest: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or("{{ without }}")?;
        pieces.extend([Piece::Text(text), Piece::Action(action.trim())]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Writes pieces up to the end of the block or of the template; tells whether it was a block's. `shown` is false in what
/// is passed over.
fn block<'a>(
    pieces: &mut std::vec::IntoIter<Piece<'a>>,
    values: &Values<'_>,
    turn: Option<Turn<'_>>,
    shown: bool,
    out: &mut String,
) -> Result<bool, String> {
    let ended = |ended: bool| {
        if ended {
            Ok(())
        } else {
            Err("a block has no {{end}}".to_owned())
        }
    };
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                if shown {
                    out.push_str(text);
                }
                continue;
            }
            Piece::Action("end") => return Ok(true),
            Piece::Action(action) => action,
        };
        if let Some(condition) = action.strip_prefix("if ") {
            let counter = turn.filter(|turn| turn.counter == condition.trim());
            let counter = counter.ok_or_else(|| unknown(action))?;
            ended(block(pieces, values, turn, shown && counter.place > 0, out)?)?;
        } else if let Some(range) = action.strip_prefix("range ") {
            let (names, list) = range.split_once(":=").ok_or_else(|| unknown(action))?;
            let (counter, name) = names.split_once(',').ok_or_else(|| unknown(action))?;
            let list = match list.trim() {
                ".PodCIDRRanges" => values.ranges,
                ".Routes" => values.routes,
                _ => return Err(unknown(action)),
            };
            let body = pieces.clone();
            for (place, value) in list.iter().enumerate() {
                *pieces = body.clone();
                let turn = Turn {
                    counter: counter.trim(),
                    place,
                    name: name.trim(),
                    value,
                };
                ended(block(pieces, values, Some(turn), shown, out)?)?;
            }
        } else {
            let value = match (action, turn) {
                (".PodCIDR", _) => values.ranges.first().map_or("", String::as_str),
                (name, Some(turn)) if name == turn.name => turn.value,
                _ => return Err(unknown(action)),
            };
            if shown {
                out.push_str(value);
            }
        }
    }
    Ok(false)
}

fn unknown(action: &str) -> String {
    format!("{{{{{action}}}}} is not understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_templates_are_filled_in() {
        let template = r#"{"subnet": "{{.PodCIDR}}", "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}], "routes": [{{range $i, $r := .Routes}}{{if $i}}, {{end}}{"dst": "{{$r}}"}{{end}}]}"#;
        let both = ranges("10.1.0.0/24,fd00::/64").unwrap();
        assert_eq!(
            render(template, &both).unwrap(),
            r#"{"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}"#
        );
        let v6 = ranges("fd00::/64").unwrap();
        assert!(
            render(template, &v6)
                .unwrap()
                .ends_with(r#""routes": [{"dst": "::/0"}]}"#)
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let one = ranges("10.1.0.0/24").unwrap();
        for (template, words) in [
            ("{{.Node}}", ".Node"),
            ("{{range $i, $x := .Nodes}}{{end}}", ".Nodes"),
            ("{{range $i, $x := .Routes}}", "{{end}}"),
            ("{{end}}", "{{end}}"),
            ("{{", "{{"),
            ("{{if $i}}{{end}}", "if $i"),
        ] {
            let error = render(template, &one).unwrap_err();
            assert!(error.contains(words), "{template}: {error}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/8,"] {
            assert!(ranges(bad).is_err(), "{bad}");
        }
    }
}
