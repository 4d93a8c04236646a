//! What `--help` says.

use super::options::Deed;
use crate::spec::Command;

/// The help of the whole: one screen, with an example that works as it stands.
pub(super) const OVERVIEW: &str = r#"Attach a network namespace to a CNI network by hand, as a container runtime does for its containers.

Usage: bridgehead COMMAND NETWORK [NETNS] [OPTION]...

Commands:
  add      attach NETNS to NETWORK and print the result
  check    ask the plugins whether the attachment is still as add left it
  del      detach NETNS from NETWORK
  gc       remove what attachments left behind that are no more
  restore  put back rules and settings of running containers that a firewall has thrown away
  status   ask the plugins whether an add could be served now
  version  tell which versions of CNI each plugin speaks
  help     explain a command:  bridgehead help add

NETWORK is the "name" in one of the *.conflist files of the net directory.
NETNS is a path, or the name of a namespace that `ip netns` made.

Options (the variable in parentheses does the same, and the option wins):
      --net-dir DIR           where networks are described (NETCONFPATH) [/etc/cni/net.d]
      --plugin-dir DIR        where plugins are, may be repeated (CNI_PATH) [/opt/cni/bin]
  -i, --ifname NAME           name of the interface in NETNS (CNI_IFNAME) [eth0]
      --args 'K=V;K=V'        arguments for all plugins (CNI_ARGS)
      --capability-args JSON  arguments for the plugins with that capability (CAP_ARGS)
      --container-id ID       [cnitool- and a hash of NETNS's path, as cnitool has it]
      --cache-dir DIR         where results are kept for check, del and gc [/var/lib/cni]
      --timeout SECONDS       how long each plugin may take [240]
  -h, --help   -V, --version

Example, as root:
  mkdir -p /etc/cni/net.d
  cat > /etc/cni/net.d/10-demo.conflist <<'END'
  {"cniVersion": "1.0.0", "name": "demo", "plugins": [
    {"type": "bridge", "bridge": "demo0", "isGateway": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}]}
  END
  ip netns add web
  bridgehead add demo web
  ip netns exec web ping -c 1 10.99.0.1
  bridgehead del demo web

Results and error objects of plugins go to stdout, as a runtime sees them; words for people go to stderr.
Exit status: 0 done, 1 failed, 2 the command line makes no sense.
"#;

/// The help of a command.
pub(super) const fn of(deed: Deed) -> &'static str {
    match deed {
        Deed::Verb(Command::Add) => ADD,
        Deed::Verb(Command::Check) => CHECK,
        Deed::Verb(Command::Del) => DEL,
        Deed::Verb(Command::Gc) => GC,
        Deed::Verb(Command::Status) => STATUS,
        Deed::Verb(Command::Version) => VERSION,
        Deed::Restore => RESTORE,
    }
}

const ADD: &str = r#"Attach a network namespace to a network and print the result.

Usage: bridgehead add NETWORK NETNS [OPTION]...

Calls the plugins of NETWORK with ADD, one after another, and keeps the result for check and del. If one of them
fails, the others are called with DEL, so that nothing is left; unless the attachment was there before.

Examples:
  bridgehead add demo web
  bridgehead add demo web --ifname eth1
  bridgehead add demo /proc/4711/ns/net --container-id 4711
  bridgehead add demo web --args 'IP=10.99.0.7'
  bridgehead add demo web --capability-args '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'

The last one has an effect on plugins with  "capabilities": {"portMappings": true}  in the network's list.
All options: bridgehead --help
"#;

const CHECK: &str = r#"Ask the plugins whether an attachment is still as add left it.

Usage: bridgehead check NETWORK NETNS [OPTION]...
       bridgehead check NETWORK --container-id ID [OPTION]...

Calls the plugins of NETWORK with CHECK and the result of add. Says nothing if all is well. Arguments that are not
given are those of add, so the containers of a runtime can be checked too, if their ID is given.

Examples:
  bridgehead check demo web
  bridgehead check demo --container-id 3f2c9a

All options: bridgehead --help
"#;

const DEL: &str = r#"Detach a network namespace from a network.

Usage: bridgehead del NETWORK NETNS [OPTION]...
       bridgehead del NETWORK --container-id ID [OPTION]...

Calls the plugins of NETWORK with DEL, the last one first, and forgets the result of add. The namespace need not be
there any more, and it is no error if there is nothing to detach. Arguments that are not given are those of add.

Examples:
  bridgehead del demo web
  bridgehead del demo --container-id 3f2c9a --ifname eth1

All options: bridgehead --help
"#;

const GC: &str = r#"Remove what attachments left behind that are no more.

Usage: bridgehead gc NETWORK [--valid ID[/IFNAME]]... [OPTION]...
       bridgehead gc NETWORK --all [OPTION]...
       bridgehead gc

First detaches the attachments that are known and not valid, then calls the plugins of NETWORK with GC, which
plugins have since version 1.1.0. Valid are
  without --valid and --all   those whose namespace is there; plugins decide for themselves what is dead
  with --valid                those listed, and no others; without /IFNAME the interface is eth0
  with --all                  none: every container loses this network

Without NETWORK, removes what /run/bridgehead has on record of attachments to any network whose namespace is gone,
and names each. It needs neither the files of networks nor other plugins, and may run beside add and del.

Examples:
  bridgehead gc
  bridgehead gc demo
  bridgehead gc demo --valid 3f2c9a --valid 77ab01/eth1

All options: bridgehead --help
"#;

const RESTORE: &str = r#"Put back rules and settings of running containers that a firewall has thrown away.

Usage: bridgehead restore [NETWORK]

A flush of nf_tables or iptables (nft flush ruleset, iptables -t nat -F, a firewall that restarts) takes the rules
of running containers too, and they lose the way out of their network. This puts back what /run/bridgehead has on
record of them, for all networks or for one: masquerade, host ports, what firewall lets through or keeps apart,
the guards against false senders, forwarding. It names each attachment for which something was missing. It may
run at any time, also beside add and del, and as often as one likes: what is there stays as it is. It needs
neither the files of networks nor other plugins.

`make install-unit` has systemd do this whenever a firewall was restarted or reloaded.

Examples:
  bridgehead restore
  bridgehead restore demo

All options: bridgehead --help
"#;

const STATUS: &str = r#"Ask the plugins whether an add could be served now.

Usage: bridgehead status NETWORK [OPTION]...

Calls the plugins of NETWORK with STATUS, which plugins have since version 1.1.0. Says nothing if all are ready.

Example:
  bridgehead status demo && echo ready

All options: bridgehead --help
"#;

const VERSION: &str = r#"Tell which versions of CNI the plugins of a network speak.

Usage: bridgehead version NETWORK [OPTION]...

Prints a line for each plugin: its type, its file and its versions. Fails if one of them does not speak the version
of the network, or cannot be executed. The version of this program is told by bridgehead --version.

Example:
  bridgehead version demo

All options: bridgehead --help
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::NetworkList;
    use crate::runtime::scratch::Scratch;
    use crate::tool::options::COMMANDS;

    #[test]
    fn the_examples_network_can_be_loaded() {
        let (_, after) = OVERVIEW.split_once("<<'END'\n").unwrap();
        let (text, _) = after.split_once("  END\n").unwrap();
        let scratch = Scratch::new();
        scratch.file("10-demo.conflist", text);
        assert_eq!(NetworkList::load(scratch.path(), "demo").unwrap().list.plugins.len(), 1);
    }

    #[test]
    fn the_help_fits_on_a_screen() {
        assert!(OVERVIEW.lines().count() <= 50);
        let texts = COMMANDS.iter().map(|(_, deed)| of(*deed)).chain([OVERVIEW]);
        for line in texts.flat_map(str::lines).filter(|line| !line.contains("portMappings")) {
            assert!(line.len() <= 116, "{line}");
        }
    }

    #[test]
    fn every_command_is_in_the_overview_and_names_itself() {
        for (name, deed) in COMMANDS {
            assert!(OVERVIEW.contains(&format!("\n  {name} ")), "{name}");
            let network = if deed == Deed::Restore { "[NETWORK]" } else { "NETWORK" };
            assert!(of(deed).contains(&format!("Usage: bridgehead {name} {network}")), "{name}");
        }
    }
}
