use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::net::nft::tests::{private_namespace, run};
use crate::spec::request::Environment;
use crate::spec::{Command, Request};

fn attachment(container_id: &str) -> Attachment {
    Attachment { network: "net".into(), container_id: container_id.into(), ifname: "eth0".into() }
}

fn make(container_id: &str) -> u32 {
    let attachment = attachment(container_id);
    let name = host_name(&attachment);
    run(&format!("ip link add {name} type veth peer name p{container_id}"));
    run(&format!("ip link set {name} alias {}", alias(&attachment)));
    Rtnl::open().unwrap().link(&name).unwrap().unwrap().index
}

fn gc_request() -> Request {
    let environment = Environment { command: "GC".into(), ..Environment::default() };
    let config = json!({"cniVersion": "1.1.0", "name": "net"});
    Request::parse(Command::Gc, &environment, config.to_string().into_bytes()).unwrap()
}

#[test]
fn a_link_that_came_after_a_stray_of_its_name_stays() {
    private_namespace();
    make("gone");
    let (old, kept_one) = (make("again"), make("kept"));
    let request = gc_request();
    let mut world = World::new(&request, PathBuf::from("/nowhere"));
    // An ADD comes between the look at what is there and its removal, and ends before the latter.
    let kept = || {
        run(&format!("ip link del {}", host_name(&attachment("again"))));
        assert_ne!(make("again"), old);
        Ok(vec![attachment("kept")])
    };
    assert!(collect("net", &kept, &mut world).is_empty());
    let index = |id: &str| Rtnl::open().unwrap().link(&host_name(&attachment(id))).unwrap().map(|l| l.index);
    assert_eq!(index("gone"), None);
    assert_eq!(index("kept"), Some(kept_one));
    assert!(index("again").is_some(), "the link of the new attachment is gone");
}

#[test]
fn the_mac_follows_the_address() {
    let attachment = Attachment { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() };
    let ipam = serde_json::json!({"ips": [{"address": "10.1.0.2/16"}]});
    let ipam = crate::spec::CniResult::from_value(&ipam, crate::spec::Version::V1_0_0, "x").unwrap();
    assert_eq!(pod_mac(&attachment, &ipam.ips).to_string(), "0a:58:0a:01:00:02");
    assert!(pod_mac(&attachment, &[]).is_valid());
}
