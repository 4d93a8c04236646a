use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::netavark::network::{decode, object};

/// What netavark 1.17 writes, letter for letter.
const RECORDED: &str = r#"{"container_id":"8d1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8","container_name":"a","port_mappings":[{"container_port":80,"host_ip":"","host_port":8080,"protocol":"tcp","range":1}],"network":{"dns_enabled":true,"driver":"rtdrv","id":"2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9","internal":false,"ipv6_enabled":false,"name":"n1","network_interface":null,"options":null,"ipam_options":null,"subnets":[{"gateway":"10.80.0.1","lease_range":null,"subnet":"10.80.0.0/24"}],"routes":null,"network_dns_servers":null},"network_options":{"aliases":["d6dca205c5ff"],"interface_name":"eth0","static_ips":["10.80.0.50"],"static_mac":"02:00:00:00:00:99","options":null}}"#;

fn read(text: &str) -> Attaching {
    decode(&object(text.as_bytes()).unwrap()).unwrap()
}

/// The recorded one with other values, by JSON pointer.
fn with(changes: &[(&str, Value)]) -> Attaching {
    let mut value: Value = serde_json::from_str(RECORDED).unwrap();
    for (pointer, to) in changes {
        *value.pointer_mut(pointer).unwrap() = to.clone();
    }
    read(&value.to_string())
}

fn setup(changes: &[(&str, Value)]) -> Value {
    for_setup(&with(changes), "").unwrap()
}

fn refusal(changes: &[(&str, Value)]) -> CniError {
    for_setup(&with(changes), "").unwrap_err()
}

#[test]
fn what_is_recorded_becomes_one_entry() {
    assert_eq!(
        for_setup(&read(RECORDED), "nftables").unwrap(),
        json!({
            "cniVersion": "1.1.0", "name": "n1", "type": "bridgehead", "bridge": "bh2f259bab", "isGateway": true,
            "hairpinMode": true, "spoofGuard": true, "portIsolation": false, "firewall": true, "internal": false,
            "ipMasq": true, "ipMasqBackend": "nftables", "backend": "nftables",
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.80.0.50/24", "gateway": "10.80.0.1"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.80.0.1", "priority": 100}],
            },
            "runtimeConfig": {
                "mac": "02:00:00:00:00:99",
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            },
        })
    );
}

#[test]
fn without_addresses_of_podman_they_come_out_of_the_ranges() {
    let subnets = json!([
        {"subnet": "10.80.0.0/24", "lease_range": {"start_ip": "10.80.0.100", "end_ip": null}},
        {"subnet": "fd80::/64", "gateway": "fd80::9"},
    ]);
    let config = setup(&[("/network/subnets", subnets), ("/network_options/static_ips", Value::Null)]);
    assert_eq!(
        config["ipam"],
        json!({"type": "host-local", "ranges": [
            [{"subnet": "10.80.0.0/24", "gateway": "10.80.0.1", "rangeStart": "10.80.0.100"}],
            [{"subnet": "fd80::/64", "gateway": "fd80::9"}],
        ], "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.80.0.1", "priority": 100}, {"dst": "::/0", "gw": "fd80::9", "priority": 100},
        ]})
    );
}

#[test]
fn a_range_has_addresses_of_hosts_only() {
    let range = json!({"start_ip": "10.80.0.0", "end_ip": "10.80.0.255"});
    let subnets = json!([{"subnet": "10.80.0.0/24", "lease_range": range}]);
    let config = setup(&[("/network/subnets", subnets), ("/network_options/static_ips", Value::Null)]);
    assert_eq!(config["ipam"]["ranges"], json!([[{"subnet": "10.80.0.0/24", "gateway": "10.80.0.1"}]]));
}

#[test]
fn ports_stand_each_for_itself() {
    let list = json!([{"container_port": 53, "host_ip": "192.0.2.1", "host_port": 5300, "protocol": "tcp,udp", "range": 2}]);
    let config = setup(&[("/port_mappings", list)]);
    let ports: Vec<String> = config["runtimeConfig"]["portMappings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| format!("{} {} {} {}", it["protocol"], it["hostIP"], it["hostPort"], it["containerPort"]))
        .collect();
    let wanted = [
        r#""tcp" "192.0.2.1" 5300 53"#,
        r#""tcp" "192.0.2.1" 5301 54"#,
        r#""udp" "192.0.2.1" 5300 53"#,
        r#""udp" "192.0.2.1" 5301 54"#,
    ];
    assert_eq!(ports, wanted);
}

#[test]
fn an_internal_network_leads_nowhere() {
    for driver in ["", "iptables", "nftables", "firewalld"] {
        let internal = with(&[("/network/internal", json!(true))]);
        let config = for_setup(&internal, driver).unwrap();
        assert_eq!((&config["internal"], &config["ipMasq"]), (&json!(true), &json!(false)));
        assert_eq!((&config["ipam"]["routes"], &config["backend"]), (&json!([]), &json!("nftables")));
        assert!(config["runtimeConfig"].get("portMappings").is_none(), "{config}");
        assert_eq!(config["isGateway"], json!(true));
    }
    let subnets = json!([{"subnet": "10.80.0.0/24"}]);
    let config = setup(&[("/network/internal", json!(true)), ("/network/subnets", subnets)]);
    assert_eq!(config["isGateway"], json!(false));
    assert_eq!(config["ipam"]["addresses"], json!([{"address": "10.80.0.50/24"}]));
}

#[test]
fn options_become_keys() {
    let options = json!({
        "mtu": "1400", "metric": "7", "vlan": "5", "isolate": "true", "port_isolation": "true", "spoof_guard": "false",
        "open_forward": "true", "backend": "iptables",
    });
    let config = setup(&[("/network/options", options)]);
    for (key, value) in [
        ("mtu", json!(1400)),
        ("vlan", json!(5)),
        ("ingressPolicy", json!("same-bridge")),
        ("portIsolation", json!(true)),
        ("spoofGuard", json!(false)),
        ("openForward", json!(true)),
        ("backend", json!("iptables")),
        ("ipMasqBackend", json!("iptables")),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["ipam"]["routes"][0]["priority"], json!(7));
    let config = setup(&[("/network/options", json!({"no_default_route": "true"}))]);
    assert_eq!(config["ipam"]["routes"], json!([]));
}

#[test]
fn the_environment_names_the_back_end() {
    let key = |driver: &str, key: &str| for_setup(&read(RECORDED), driver).unwrap()[key].clone();
    assert_eq!(
        (key("firewalld", "backend"), key("firewalld", "ipMasqBackend")),
        (json!("firewalld"), Value::Null)
    );
    assert_eq!((key("", "backend"), key("", "ipMasq")), (Value::Null, json!(true)));
    assert_eq!(
        (key("none", "firewall"), key("none", "runtimeConfig")["portMappings"].clone()),
        (Value::Null, Value::Null)
    );
    assert!(
        for_setup(&read(RECORDED), "ipfw")
            .unwrap_err()
            .msg
            .starts_with("NETAVARK_FW: unknown back end \"ipfw\"")
    );
}

#[test]
fn a_bridge_of_somebody_else_is_left_alone() {
    let options = ("/network/options", json!({"mode": "unmanaged"}));
    let config = setup(&[options.clone(), ("/network/network_interface", json!("br0"))]);
    assert_eq!(
        (&config["bridge"], &config["isGateway"], &config["spoofGuard"]),
        (&json!("br0"), &json!(false), &json!(false))
    );
    assert!(config.get("ipMasq").is_none() && config["runtimeConfig"].get("portMappings").is_none());
    assert_eq!(config["ipam"]["routes"][0]["gw"], json!("10.80.0.1"));
    let dhcp = json!({"driver": "dhcp"});
    let config = setup(&[options, ("/network/subnets", Value::Null), ("/network/ipam_options", dhcp)]);
    assert_eq!(config["ipam"], json!({"type": "dhcp", "priority": 100}));
}

#[test]
fn further_interfaces_answer_by_themselves() {
    let config = setup(&[("/network_options/interface_name", json!("eth1"))]);
    assert_eq!(
        (&config["keepMainRoutes"], &config["ipam"]["routes"][0]["priority"]),
        (&json!(true), &json!(101))
    );
    let config =
        setup(&[("/network_options/interface_name", json!("eth1")), ("/network/internal", json!(true))]);
    assert!(config.get("keepMainRoutes").is_none());
}

#[test]
fn what_is_wrong_is_named() {
    let subnet = |subnet: Value| ("/network/subnets", json!([subnet]));
    for (change, code, named) in [
        (("/container_id", json!("")), 7, "container_id: \"\" is empty"),
        (("/network/name", json!("../x")), 7, "network.name: \"../x\""),
        (("/network_options/interface_name", json!("a/b")), 7, "network_options.interface_name: \"a/b\""),
        (("/network/subnets", Value::Null), 7, "network.subnets: there are none"),
        (subnet(json!({})), 7, "subnets[0].subnet: missing"),
        (subnet(json!({"subnet": "10.80.0.0/31"})), 7, "subnets[0].subnet: 10.80.0.0/31"),
        (
            subnet(json!({"subnet": "10.80.0.0/24", "gateway": "10.81.0.1"})),
            7,
            "subnets[0].gateway: 10.81.0.1",
        ),
        (
            subnet(json!({"subnet": "10.81.0.0/24"})),
            7,
            "network_options.static_ips[0]: 10.80.0.50 is in no subnet",
        ),
        (
            subnet(json!({"subnet": "10.80.0.0/24", "gateway": "10.80.0.255"})),
            7,
            "subnets[0].gateway: 10.80.0.255 is no address of a host",
        ),
        (
            ("/network_options/static_ips", json!(["10.80.0.0"])),
            7,
            "network_options.static_ips[0]: 10.80.0.0 is no address of a host",
        ),
        (
            ("/network_options/static_ips", json!(["10.80.0.1"])),
            7,
            "network_options.static_ips[0]: 10.80.0.1 is the",
        ),
        (("/network_options/options", json!({"vrf": "x"})), 2, "network_options.options.vrf: "),
        (("/network/options", json!({"vrf": "x"})), 2, "options.vrf: "),
        (("/network/ipam_options", json!({"driver": "x"})), 2, "ipam_options.driver: \"x\""),
        (("/network/ipam_options", json!({"driver": "none"})), 7, "subnets: with the IPAM driver \"none\""),
        (("/network/routes", json!([{"destination": "10.0.0.0/8"}])), 7, "routes[0].gateway: missing"),
        (
            ("/network/routes", json!([{"destination": "10.0.0.0/8", "route_type": "blackhole"}])),
            2,
            "routes[0].route_type: \"blackhole\"",
        ),
        (("/port_mappings/0/host_port", json!(0)), 7, "port_mappings[0].host_port: "),
        (("/port_mappings/0/host_ip", json!("x")), 7, "port_mappings[0].host_ip: \"x\""),
        (
            ("/port_mappings/0/range", json!(60000)),
            7,
            "port_mappings[0].host_port: there are no 60000 ports from 8080",
        ),
        (
            ("/port_mappings/0/protocol", json!("tcp,icmp")),
            7,
            "port_mappings[0].protocol: unknown protocol \"icmp\"",
        ),
    ] {
        let error = refusal(&[change]);
        assert!(error.code == code && error.msg.starts_with(named), "{error}");
    }
}

#[test]
fn the_answer_has_what_netavark_reads() {
    let result = CniResult::from_value(
        &json!({"cniVersion": "1.1.0", "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"}, {"name": "eth0", "mac": "02:00:00:00:00:99", "sandbox": "/n"},
        ], "ips": [
            {"interface": 1, "address": "10.80.0.50/24", "gateway": "10.80.0.1"}, {"interface": 1, "address": "fd80::2/64"},
        ]}),
        Version::V1_1_0,
        "x",
    )
    .unwrap();
    assert_eq!(
        status_block("eth0", &result),
        json!({"dns_search_domains": [], "dns_server_ips": [], "interfaces": {"eth0": {
            "mac_address": "02:00:00:00:00:99",
            "subnets": [{"ipnet": "10.80.0.50/24", "gateway": "10.80.0.1"}, {"ipnet": "fd80::2/64"}],
        }}})
    );
}

#[test]
fn teardown_does_with_what_there_is() {
    let config = for_teardown(&read(RECORDED));
    assert_eq!((&config["name"], &config["ipam"]["type"]), (&json!("n1"), &json!("host-local")));
    assert_eq!(config["prevResult"]["ips"][0]["address"], json!("10.80.0.50/24"));
    let broken = with(&[
        ("/network/subnets", Value::Null),
        ("/network/options", json!({"x": "y"})),
        ("/network/id", json!("")),
    ]);
    assert_eq!(for_teardown(&broken)["prevResult"]["ips"], json!([]));
}

/// Values that stand where others belong.
fn anything() -> impl Strategy<Value = Value> {
    proptest::sample::select(vec![
        Value::Null,
        json!(""),
        json!("x"),
        json!(0),
        json!(65535),
        json!(-1),
        json!([]),
        json!({}),
        json!([{}]),
        json!(["10.80.0.2"]),
        json!("10.80.0.0/24"),
        json!("::ffff:10.80.0.1"),
        json!(true),
        json!({"driver": "dhcp"}),
        json!({"metric": "4294967295"}),
        json!("eth99999999999"),
    ])
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(changes in proptest::collection::vec((0usize..64, anything()), 1..4)) {
        let mut value: Value = serde_json::from_str(RECORDED).unwrap();
        let mut places = Vec::new();
        collect("", &value, &mut places);
        for (index, to) in changes {
            if let Some(place) = value.pointer_mut(&places[index % places.len()]) {
                *place = to;
            }
        }
        let read = object(value.to_string().as_bytes()).and_then(|it| decode::<Attaching>(&it));
        if let Ok(attaching) = read {
            let _ = for_setup(&attaching, "nftables");
            let _ = for_teardown(&attaching);
        }
    }
}

fn collect(at: &str, value: &Value, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| collect(&format!("{at}/{key}"), value, places))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| collect(&format!("{at}/{i}"), value, places))
        }
        _ => {}
    }
}

#[test]
fn ports_that_lead_nowhere_are_told() {
    let why = |changes: &[(&str, Value)], ipam, backend| {
        let attaching = with(changes);
        let options = Options::parse(&attaching.network.options).unwrap();
        Wish { attaching: &attaching, options, backend, ipam }.why_unpublished()
    };
    assert_eq!(why(&[], Ipam::HostLocal, None), None);
    let none = [("/port_mappings", Value::Null)];
    assert_eq!(why(&none, Ipam::None, None), None);
    for (changes, ipam, backend, words) in [
        (vec![("/network/internal", json!(true))], Ipam::HostLocal, None, "n1, which is internal"),
        (vec![("/network/options", json!({"mode": "unmanaged"}))], Ipam::HostLocal, None, "mode=unmanaged"),
        (vec![], Ipam::None, None, "IPAM driver none"),
        (vec![], Ipam::Dhcp, None, "IPAM driver dhcp"),
        (vec![], Ipam::HostLocal, Some(Backend::None), "back end none"),
    ] {
        let why = why(&changes, ipam, backend).unwrap();
        assert!(why.starts_with("port_mappings: ") && why.contains(words), "{why}");
    }
}
