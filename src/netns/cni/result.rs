//! What ADD answers.

use std::net::IpAddr;

use serde_json::Value;

use super::config::is_known;

/// An address of the pod, with the length of its prefix.
pub(in crate::netns) type Address = (IpAddr, u8);

/// The pod's addresses in an ADD result, in the plugin's order. Addresses of interfaces that are
/// not in the pod are left out.
///
/// # Errors
/// A sentence about what is wrong with the result.
pub(super) fn addresses(result: &Value) -> Result<Vec<Address>, String> {
    let mut addresses: Vec<Address> = Vec::new();
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        let interface = ip
            .get("interface")
            .and_then(Value::as_u64)
            .and_then(|index| result.get("interfaces")?.get(index as usize));
        if interface.is_some_and(|interface| {
            interface
                .get("sandbox")
                .and_then(Value::as_str)
                .unwrap_or("")
                .is_empty()
        }) {
            continue;
        }
        let text = ip
            .get("address")
            .and_then(Value::as_str)
            .ok_or("an address in the result is no text")?;
        let wrong = || format!("{text:?} in the result is no address");
        let (bare, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = bare.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv6() { 128 } else { 32 };
        let prefix = match prefix {
            "" => longest,
            number => number.parse().ok().filter(|p| *p <= longest).ok_or_else(wrong)?,
        };
        addresses.push((address, prefix));
    }
    if addresses.is_empty() {
        return Err("the result has no address for the pod".to_owned());
    }
    Ok(addresses)
}

/// The result in the words of `version`, which it was asked for in. One that names none is taken to be in it.
///
/// # Errors
/// A sentence when it is in a version that can't be translated.
pub(super) fn in_version(mut result: Value, version: &str) -> Result<Value, String> {
    let Some(object) = result.as_object_mut() else {
        return Ok(result);
    };
    let claimed = object.get("cniVersion").and_then(Value::as_str).unwrap_or(version);
    if claimed == version {
        object.insert("cniVersion".into(), version.into());
        return Ok(result);
    }
    if !is_known(claimed) {
        return Err(format!(
            "the answer claims to be of CNI version {claimed:?}; {version} was asked for"
        ));
    }
    object.insert("cniVersion".into(), version.into());
    // What later versions added is ignored by the earlier ones; the one thing that went away is an address's family.
    for ip in object
        .get_mut("ips")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Some(ip) = ip.as_object_mut() else { continue };
        ip.remove("version");
        if version.starts_with("0.") {
            let v6 = ip
                .get("address")
                .and_then(Value::as_str)
                .is_some_and(|a| a.contains(':'));
            ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hosts_own_are_left_out() {
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/ns"}],
            "ips": [
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "interface": 1},
                {"version": "4", "address": "10.0.0.3"},
            ],
        });
        let seen = addresses(&result).unwrap();
        let texts: Vec<_> = seen.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        assert_eq!(texts, ["fd00::2/64", "10.0.0.2/24", "10.0.0.3/32"]);
    }

    #[test]
    fn a_result_without_addresses_is_an_error() {
        for bad in [
            json!({}),
            json!({"ips": []}),
            json!({"ips": [{"address": "x"}]}),
            json!({"ips": [{"address": "10.0.0.1/33"}]}),
            json!({"ips": [{}]}),
            json!(1),
        ] {
            assert!(addresses(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_result_of_another_version_is_translated_or_refused() {
        let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::2/64"}]});
        let new = json!({"cniVersion": "1.1.0", "ips": [{"address": "fd00::2/64"}]});
        assert_eq!(in_version(old.clone(), "1.1.0").unwrap(), new);
        assert_eq!(in_version(new, "0.4.0").unwrap(), old);
        let silent = in_version(json!({"ips": []}), "1.0.0").unwrap();
        assert_eq!(silent["cniVersion"], "1.0.0");
        for claimed in ["9.0.0", "0.2.0", "x"] {
            let error = in_version(json!({"cniVersion": claimed}), "1.0.0").unwrap_err();
            assert!(error.contains(claimed), "{error}");
        }
    }
}
