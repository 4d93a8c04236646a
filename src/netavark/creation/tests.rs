use serde_json::json;

use super::super::occupied::Other;
use super::*;
use crate::net::Link;

/// What podman 5.8 writes, letter for letter.
const RECORDED: &str = r#"{"name":"n1","id":"2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9","driver":"rtdrv","created":"0001-01-01T00:00:00Z","subnets":[{"subnet":"10.80.0.0/24"}],"ipv6_enabled":false,"internal":false,"dns_enabled":true,"labels":{"x":"y"},"options":{"mtu":"1400"}}"#;

fn create(changes: &[(&str, Value)], occupied: &Occupied) -> Result<Value, CniError> {
    let mut document = network::object(RECORDED.as_bytes()).unwrap();
    for (key, value) in changes {
        document.insert((*key).to_owned(), value.clone());
    }
    let network: Network = network::decode(&document)?;
    network.check()?;
    let options = Options::parse(&network.options)?;
    fill(document, &network, &options, occupied)
}

fn alone(changes: &[(&str, Value)]) -> Result<Value, CniError> {
    create(changes, &Occupied::default())
}

#[test]
fn what_is_there_stays_and_what_is_missing_comes() {
    let before: Value = serde_json::from_str(RECORDED).unwrap();
    let created = alone(&[("more", json!([1]))]).unwrap();
    for key in ["name", "id", "driver", "created", "labels", "options", "internal", "ipv6_enabled"] {
        assert_eq!(created[key], before[key], "{key}");
    }
    assert_eq!(created["more"], json!([1]));
    assert_eq!(created["network_interface"], json!("bh2f259bab"));
    assert_eq!(created["dns_enabled"], json!(false));
    assert_eq!(created["subnets"], json!([{"subnet": "10.80.0.0/24", "gateway": "10.80.0.1"}]));
    // What was created is what a second time would give.
    let again: Vec<(&str, Value)> =
        created.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    assert_eq!(alone(&again).unwrap(), created);
}

#[test]
fn a_subnet_is_chosen_that_nobody_has() {
    let wish = [("subnets", Value::Null), ("ipv6_enabled", json!(true))];
    let subnets = |created: &Value| -> Vec<Prefix> {
        let list = created["subnets"].as_array().unwrap().iter();
        list.map(|it| it["subnet"].as_str().unwrap().parse().unwrap()).collect()
    };
    let first = subnets(&alone(&wish).unwrap());
    let pool: Prefix = "10.128.0.0/9".parse().unwrap();
    assert!(first.len() == 2 && pool.overlaps(first[0]) && first[0].prefix_len() == 24);
    assert!(first[1].is_ipv6() && first[1].prefix_len() == 64 && first[1].to_string().starts_with("fd"));
    let other = Other { name: "o".into(), bridge: "b".into(), subnets: first.clone() };
    let second = subnets(&create(&wish, &Occupied { networks: vec![other], ..Occupied::default() }).unwrap());
    assert!(second.iter().zip(&first).all(|(one, other)| !one.overlaps(*other)), "{first:?} {second:?}");
    let everything = vec![(pool, "eth0".to_owned())];
    let error = create(&wish, &Occupied { routes: everything, ..Occupied::default() }).unwrap_err();
    assert_eq!(error.code, 101);
}

#[test]
fn only_what_is_missing_is_chosen() {
    let created = alone(&[("ipv6_enabled", json!(true))]).unwrap();
    assert_eq!(created["subnets"].as_array().unwrap().len(), 2);
    let six = json!([{"subnet": "fd00:1::/64", "lease_range": {"start_ip": "fd00:1::10"}}]);
    let created = alone(&[("subnets", six)]).unwrap();
    assert_eq!(
        created["subnets"],
        json!([{"subnet": "fd00:1::/64", "gateway": "fd00:1::1", "lease_range": {"start_ip": "fd00:1::10"}}])
    );
    assert_eq!(created["ipv6_enabled"], json!(true));
    let created = alone(&[("internal", json!(true))]).unwrap();
    assert_eq!(created["subnets"], json!([{"subnet": "10.80.0.0/24"}]));
    let created = alone(&[("subnets", Value::Null), ("ipam_options", json!({"driver": "none"}))]).unwrap();
    assert_eq!(created["subnets"], Value::Null);
}

#[test]
fn what_others_have_is_not_taken() {
    let link = |name: &str, kind: &str| Link { name: name.into(), kind: kind.into(), ..Link::default() };
    let other =
        Other { name: "o".into(), bridge: "br1".into(), subnets: vec!["10.90.0.0/16".parse().unwrap()] };
    let occupied = Occupied {
        links: vec![link("bh2f259bab", "bridge"), link("eth0", ""), link("br0", "bridge")],
        networks: vec![other],
        routes: vec![("192.0.2.0/24".parse().unwrap(), "eth0".to_owned())],
    };
    let name = create(&[], &occupied).unwrap()["network_interface"].as_str().unwrap().to_owned();
    assert!(name.starts_with("bh") && name.len() == 10 && name != "bh2f259bab", "{name}");
    assert!(create(&[("network_interface", json!("br0"))], &occupied).is_ok());
    for (key, value, named) in [
        (
            "network_interface",
            json!("eth0"),
            "network_interface: \"eth0\" is a link of this host, and no bridge",
        ),
        ("network_interface", json!("br1"), "network_interface: \"br1\" is the bridge of network \"o\""),
        (
            "subnets",
            json!([{"subnet": "10.90.4.0/24"}]),
            "subnets[0].subnet: 10.90.4.0/24 has addresses in common with 10.90",
        ),
        (
            "subnets",
            json!([{"subnet": "192.0.2.128/25"}]),
            "subnets[0].subnet: 192.0.2.128/25 has addresses in common with 192",
        ),
    ] {
        let error = create(&[(key, value)], &occupied).unwrap_err();
        assert!(error.code == 102 && error.msg.starts_with(named), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (changes, code, named) in [
        (vec![("options", json!({"x": "y"}))], 2, "options.x: "),
        (vec![("network_dns_servers", json!(["1.1.1.1"]))], 2, "network_dns_servers: "),
        (vec![("network_interface", json!("a/b"))], 7, "network_interface: \"a/b\""),
        (vec![("options", json!({"mode": "unmanaged"}))], 7, "network_interface: mode=unmanaged"),
        (
            vec![("options", json!({"vlan": "100"})), ("network_interface", json!("longlonglong1"))],
            7,
            "network_interface, options.vlan: ",
        ),
        (
            vec![("subnets", json!([{"subnet": "10.80.0.0/24"}, {"subnet": "10.80.0.0/16"}]))],
            7,
            "subnets[1].subnet: 10.80.0.0/16 and subnets[0]",
        ),
        (vec![("subnets", json!([{"subnet": "10.80.0.0"}]))], 6, "subnets[0].subnet: "),
        (
            vec![(
                "subnets",
                json!([{"subnet": "10.80.0.0/24", "lease_range": {"start_ip": "10.80.0.9", "end_ip": "10.80.0.8"}}]),
            )],
            7,
            "subnets[0].lease_range: ",
        ),
    ] {
        let error = alone(&changes).unwrap_err();
        assert!(error.code == code && error.msg.starts_with(named), "{error}");
    }
}
