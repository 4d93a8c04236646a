//! What CHECK and STATUS find, and what makes it good.

use anyhow::{Context, Result};

use super::{back_end, gone, nat, portmap, tcp};
use crate::cases::networks::{Attachment, gateway4, gateway46};
use crate::expect::contains;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

/// CHECK names what each command takes away, and ADD puts it back.
fn losses_are_found(host: &Sandbox, name: &str, losses: &[(&str, &str)]) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end(name));
    call.add().run(host)?.result()?;
    let chain =
        nat(host, "iptables")?.iter().find_map(|line| line.strip_prefix("-N CNI-DN-").map(str::to_owned));
    for (loss, part) in losses {
        let loss = loss.replace("CHAIN", &format!("CNI-DN-{}", chain.clone().unwrap_or_default()));
        host.run(&["sh", "-c", &loss])?;
        let refusal = call.check().run(host)?.refused_with(103).with_context(|| loss.clone())?;
        contains(format!("CHECK after {loss}"), &refusal.text(), part)?;
        call.add().run(host)?.result().with_context(|| format!("ADD after {loss}"))?;
        call.check().run(host)?.silence().with_context(|| format!("CHECK after ADD after {loss}"))?;
    }
    call.del().run(host)?.silence()?;
    gone(host, name)
}

pub(super) fn each_loss_is_found_in_iptables(host: &Sandbox) -> Result<()> {
    losses_are_found(
        host,
        "iptables",
        &[
            ("iptables -w -t nat -F PREROUTING", "-A PREROUTING -m addrtype"),
            ("iptables -w -t nat -F OUTPUT", "-A OUTPUT -m addrtype"),
            ("iptables -w -t nat -F POSTROUTING", "CNI portfwd requiring masquerade"),
            ("iptables -w -t nat -F CNI-HOSTPORT-SETMARK", "-A CNI-HOSTPORT-SETMARK"),
            ("iptables -w -t nat -F CNI-HOSTPORT-MASQ", "-A CNI-HOSTPORT-MASQ"),
            ("iptables -w -t nat -F CNI-HOSTPORT-DNAT", "multiport --dports 8080"),
            ("iptables -w -t nat -D CHAIN 1", "-s 10.20.0.0/24 -p tcp -m tcp --dport 8080"),
            ("iptables -w -t nat -D CHAIN 3", "-j DNAT --to-destination 10.20.0.2:80"),
            ("iptables -w -t nat -F CHAIN", "and 2 more differences"),
            ("iptables -w -t nat -F", "more differences"),
            ("iptables -w -t nat -F; iptables -w -t nat -X", "more differences"),
            ("echo 0 > /proc/sys/net/ipv4/conf/cni0/route_localnet", "route_localnet"),
        ],
    )
}

pub(super) fn each_loss_is_found_in_nftables(host: &Sandbox) -> Result<()> {
    losses_are_found(
        host,
        "nftables",
        &[
            (
                "nft delete element inet bridgehead hostports_ip '{ tcp . 8080 }'",
                "tcp . 8080 of map inet bridgehead",
            ),
            ("nft flush set inet bridgehead hairpin_10.20.0.0/24", "10.20.0.2 . tcp . 8080 of set"),
            ("nft flush set inet bridgehead from_localhost_ip", "10.20.0.2 of set"),
            ("nft flush chain inet bridgehead hostports", "rules of chain inet bridgehead hostports"),
            (
                "nft flush chain inet bridgehead hostports_prerouting",
                "a rule of chain inet bridgehead hostports_prerouting",
            ),
            (
                "nft flush chain inet bridgehead hostports_output",
                "a rule of chain inet bridgehead hostports_output",
            ),
            (
                "nft flush chain inet bridgehead hostports_postrouting",
                "rules of chain inet bridgehead hostports_postrouting",
            ),
            (
                "nft delete element inet bridgehead hostports_ip '{ tcp . 8080 }'; \
                 nft add element inet bridgehead hostports_ip '{ tcp . 8080 comment \"net/a/eth0\" : 10.9.9.9 . 1 }'",
                "should be 10.20.0.2 . 80 and is 10.9.9.9 . 1",
            ),
            ("nft flush table inet bridgehead; nft delete table inet bridgehead", "is missing"),
            ("nft flush ruleset", "is missing"),
        ],
    )
}

pub(super) fn a_flush_is_made_good(host: &Sandbox) -> Result<()> {
    for (name, id, port) in [("iptables", "a", 8080), ("nftables", "b", 8081)] {
        let one = Attachment::new(host, id, gateway46())?;
        let call = portmap(id, &one, tcp(port, 80), back_end(name));
        call.add().run(host)?.result()?;
        // What the other back end's pod has left does not come back.
        host.run(&["nft", "flush", "ruleset"])?;
        call.add().run(host)?.result()?;
        let before = Snapshot::take(host, &[])?.rules();
        host.run(&["nft", "flush", "ruleset"])?;
        call.check().run(host)?.refusal()?;
        let tool = host.plugins().join("bridgehead");
        let said = host.run(&[tool.to_str().unwrap_or_default(), "restore"])?;
        contains("restore", &said, "put back host ports")?;
        call.check().run(host)?.silence()?;
        Snapshot::take(host, &[])?.rules().unchanged_since(&before)?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

pub(super) fn a_flush_is_told(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    call.add().run(host)?.result()?;
    call.status().run(host)?.silence()?;
    host.run(&["nft", "flush", "ruleset"])?;
    call.status().run(host)?.refused_with(51).map(drop)
}
