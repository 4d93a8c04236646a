//! What the kernel answers: one datagram of netlink. Whatever it holds, no parser panics or goes on for ever.

#![no_main]

use bridgehead::net::netlink::{Header, messages, parse_error};
use bridgehead::net::nft::{ChainState, Rule, expr, set, userdata};
use bridgehead::net::rtnl::{Link, address, link, route, vlan};
use libfuzzer_sys::fuzz_target;

/// Length of struct nfgenmsg, which stands before the attributes of an answer of nf_tables.
const NFGENMSG: usize = 4;

fuzz_target!(|data: &[u8]| {
    for (header, body) in messages(data) {
        read(&header, body);
    }
});

fn read(header: &Header, body: &[u8]) {
    let _ = parse_error("read", header, body).map(|error| error.to_string());
    let _ = link::event(header.kind, body);
    let _ = Link::parse(body);
    let _ = address::parse(body);
    for (_, route) in route::parse(body) {
        assert!(route.is_served_by(&route), "{route}");
    }
    let _ = vlan::parse(body).count();
    let attributes = body.get(NFGENMSG..).unwrap_or_default();
    let _ = ChainState::parse(attributes);
    let _ = set::parse_name(attributes);
    let _ = set::parse_elements(attributes);
    let _ = userdata::decode(attributes);
    if let Some(rule) = Rule::parse(attributes) {
        let _ = rule.expressions().count() + rule.verdicts().count();
        let _ = rule.consists_of(&[expr::masquerade()]) || rule.looks_up("m") || rule.leads_to("c");
    }
}
