//! What ADD answers.

use std::net::IpAddr;

use serde_json::Value;

/// The pod's addresses in an ADD result, in the plugin's order. Addresses of interfaces that are
/// not in the pod are left out.
///
/// # Errors
/// A sentence about what is wrong with the result.
pub(super) fn addresses(result: &Value) -> Result<Vec<String>, String> {
    let mut addresses: Vec<IpAddr> = Vec::new();
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
        let bare = text.split('/').next().unwrap_or(text);
        addresses.push(
            bare.parse()
                .map_err(|_| format!("{text:?} in the result is no address"))?,
        );
    }
    if addresses.is_empty() {
        return Err("the result has no address for the pod".to_owned());
    }
    Ok(addresses.iter().map(IpAddr::to_string).collect())
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
                {"version": "4", "address": "10.0.0.3/24"},
            ],
        });
        assert_eq!(addresses(&result).unwrap(), ["fd00::2", "10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn a_result_without_addresses_is_an_error() {
        for bad in [
            json!({}),
            json!({"ips": []}),
            json!({"ips": [{"address": "x"}]}),
            json!({"ips": [{}]}),
            json!(1),
        ] {
            assert!(addresses(&bad).is_err(), "{bad}");
        }
    }
}
