#!/usr/bin/env bash
# Shows what a network of pods is made of: makes a host, a network outside of it and two pods, attaches the pods with
# the plugins of a directory, and asserts every step. All in namespaces that end with it; `make demo` is the way in.
set -euo pipefail

readonly usage='usage: run.sh --plugins DIR [--network FILE]     as root; FILE is a conflist, 10-bridge-dual if not given'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly here
if [[ ${1:-} != --inside ]]; then
    exec bash "$here/private-host" bash "$here/run.sh" --inside "$@"
fi
shift

plugins=''
network_file=$here/../test-configs/10-bridge-dual.conflist
while [[ $# -gt 0 ]]; do
    case $1 in
    --plugins | --network)
        [[ $# -gt 1 ]] || { echo "$usage" >&2 && exit 2; }
        if [[ $1 = --plugins ]]; then plugins=$2; else network_file=$2; fi
        shift 2
        ;;
    *) echo "$usage" >&2 && exit 2 ;;
    esac
done
[[ -n $plugins ]] || { echo "$usage" >&2 && exit 2; }
plugins=$(cd "$plugins" && pwd -P)
network_file=$(realpath "$network_file")
readonly plugins network_file
if [[ $(ip -o link | wc -l) != 1 ]]; then
    echo 'run.sh: this is not a host of its own; leave out --inside' >&2
    exit 1
fi
# As the first process of its namespace, the shell would not hear of Ctrl-C otherwise.
trap 'exit 130' INT TERM
trap 'echo "run.sh: line $LINENO failed" >&2' ERR

#### What is printed

bold='' green='' red='' dim='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
fi
steps=0 assertions=0

heading() {
    steps=$((steps + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$steps" "$1" "$plain"
}

say() { printf '   %s\n' "$@"; }

give_up() {
    printf '   %sFAILED%s %s\n' "$red" "$plain" "$1"
    [[ -z ${2:-} ]] || printf '          %s\n' "${2//$'\n'/$'\n'          }"
    printf '\nThe demo failed at step %d.\n' "$steps"
    exit 1
}

# expect SENTENCE COMMAND...: the command must succeed; what it prints is shown only if it does not.
expect() {
    local sentence=$1 output
    shift
    output=$("$@" 2>&1) || give_up "$sentence" "$*"$'\n'"$output"
    assertions=$((assertions + 1))
    printf '   %sok%s  %s\n' "$green" "$plain" "$sentence"
}

# expect_failure SENTENCE COMMAND...: the command must fail.
expect_failure() {
    local sentence=$1 output
    shift
    if output=$("$@" 2>&1); then
        give_up "$sentence" "$*"$'\n'"$output"
    fi
    assertions=$((assertions + 1))
    printf '   %sok%s  %s\n' "$green" "$plain" "$sentence"
}

# try COMMAND...: shows the command and what it prints, which is in $output afterwards; it must succeed.
try() {
    printf '   %s$ %s%s\n' "$bold" "$*" "$plain"
    local status=0
    output=$("$@" 2>&1) || status=$?
    [[ -z $output ]] || printf '     %s\n' "${output//$'\n'/$'\n'     }"
    [[ $status = 0 ]] || give_up "exit status $status of" "$*"
    assertions=$((assertions + 1))
}

# try_in_vain COMMAND...: the same for a command that must fail.
try_in_vain() {
    printf '   %s$ %s%s\n' "$bold" "$*" "$plain"
    if output=$("$@" 2>&1); then
        give_up 'this should have failed' "$*"
    fi
    printf '     %s\n' "${output//$'\n'/$'\n'     }"
    assertions=$((assertions + 1))
}

#### What is asked of the kernel and the disk

# Global addresses with their prefix length, on one line: addresses LINK [NAMESPACE]
addresses() {
    local in=()
    [[ -z ${2:-} ]] || in=(-n "$2")
    ip "${in[@]}" -o addr show dev "$1" scope global | awk '{ printf "%s%s", sep, $4; sep = "  " }'
}

# The gateways of a namespace's default routes, IPv4 first.
gateways() { { ip -n "$1" -4 route show default && ip -n "$1" -6 route show default; } | awk '{ print $3 }'; }

# The link of the host that is the other end of a pod's eth0: the kernel numbers links, and tells a veth's peer.
host_end() {
    local number
    number=$(ip -n "$1" -o link show dev eth0 | sed -E 's/^[0-9]+: eth0@if([0-9]+):.*/\1/')
    ip -o link | awk -F '[:@ ]+' -v number="$number" '$1 == number { print $2 }'
}

alias_of() { ip link show dev "$1" | awk '$1 == "alias" { sub(/^ *alias /, ""); print }'; }

# Elements of a set of nftables, a line each: elements NAME FAMILY TABLE. None if there is no such thing.
elements() {
    { nft list set "$2" "$3" "$1" || true; } 2>/dev/null | tr -d '\n\t' |
        sed -nE 's/.*elements = \{ *([^}]*[^ }]) *\}.*/\1\n/p' | sed -E '/^$/d; s/, */\n/g'
}

# All rules and elements that were made for pods, a line each, without comments.
rules() {
    local save rest
    for save in iptables-save ip6tables-save; do
        command -v "$save" >/dev/null || continue
        rest=$("$save" -t nat 2>/dev/null) || continue
        sed -nE "/^-A .*CNI-/{s/ -m comment --comment (\"([^\"\\\\]|\\\\.)*\"|[^ ]+)//;s/^/${save%-save} -t nat /p}" <<<"$rest"
    done
    # In nftables, the pods of a subnet are elements of a set.
    for rest in $(nft list sets inet 2>/dev/null | grep -oE 'pods_[^ ]+'); do
        elements "$rest" inet bridgehead | sed "s|^|$rest: |"
    done
}

links() { ip -o link | awk -F '[:@ ]+' '$2 != "lo" && $2 != "uplink0" { print $2 }'; }

files() { [[ ! -d $1 ]] || find "$1" -type f -printf '%P\n' | sort; }

# Files of host-local that are named like an address: a reservation each.
reservations() { files "/var/lib/cni/networks/$network" | sed -nE '/^([0-9]+(\.[0-9]+){3}|[0-9a-f]*:[0-9a-f:]+)$/p'; }

# Pings until there is an answer, for 5 s at most: an IPv6 address of a bridge that has just been made is first tried
# for duplicates. ping_from NAMESPACE ADDRESS
ping_from() {
    local deadline=$((SECONDS + 5))
    until ip netns exec "$1" ping -c 1 -W 1 "$2"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# What the outside's witness has seen of a family: witness v4|v6
witness() {
    ip netns exec outside nft -j list set inet witness "$1" | grep -oE '"elem": .*' | grep -oE '[0-9a-f]*[.:][0-9a-f.:]+' || true
}

is_empty() { [[ -z $("$@") ]]; }
contains() { [[ $1 = *"$2"* ]]; }
equals() { [[ $1 = "$2" ]]; }

#### The steps

network=$(sed -nE 's/^ *"name": *"([^"]+)".*/\1/p' "$network_file" | head -n 1)
bridge=$(sed -nE 's/^ *"bridge": *"([^"]+)".*/\1/p' "$network_file" | head -n 1)
readonly network bridge
readonly outside_v4=203.0.113.2 outside_v6=2001:db8::2 host_v4=203.0.113.1 host_v6=2001:db8::1

printf '%sbridgehead: two pods on one host%s\n' "$bold" "$plain"
say '' 'Containers of a pod live in a network namespace: links, addresses and routes of their own, empty at first.' \
    'A container runtime calls CNI plugins to connect it. Here a tool does, by hand, what a runtime would do.' \
    'Everything happens in namespaces of its own; the network of this machine is not touched.'

heading 'A host, a network outside of it, and two pods'
ip netns add outside
ip link add uplink0 type veth peer name eth0 netns outside
ip addr add $host_v4/24 dev uplink0
ip addr add $host_v6/64 dev uplink0 nodad
ip link set uplink0 up
ip -n outside addr add $outside_v4/24 dev eth0
ip -n outside addr add $outside_v6/64 dev eth0 nodad
ip -n outside link set lo up
ip -n outside link set eth0 up
# The outside writes down who pings it.
ip netns exec outside nft -f - <<'END'
table inet witness {
    set v4 { type ipv4_addr; size 1024; flags dynamic; }
    set v6 { type ipv6_addr; size 1024; flags dynamic; }
    chain input {
        type filter hook input priority 0;
        icmp type echo-request add @v4 { ip saddr }
        icmpv6 type echo-request add @v6 { ip6 saddr }
    }
}
END
ip netns add pod-a
ip netns add pod-b
say "host     has the link uplink0 with $(addresses uplink0)" \
    "outside  is a machine behind that link: $(addresses eth0 outside)" \
    'pod-a and pod-b are empty network namespaces'
expect_failure 'pod-a reaches nothing yet' ip netns exec pod-a ping -c 1 -W 1 $outside_v4

heading 'The network that the pods are to join'
mkdir -p /etc/cni/net.d
cp "$network_file" /etc/cni/net.d/
export CNI_PATH=$plugins
# Last: a plugin has the name of a command of iproute2.
PATH=$PATH:$plugins
say 'The plugins are one program: the names are hard links to one file, as the number in front tells.'
try ls -i "$plugins"
for name in bridge host-local loopback static; do
    expect "$name is bridgehead" test "$plugins/$name" -ef "$plugins/bridgehead"
done
say 'The configuration, in /etc/cni/net.d, where runtimes look:'
try cat "/etc/cni/net.d/${network_file##*/}"

heading 'Attach the first pod: ADD'
say 'The runtime gets a result: the links that were made, the addresses of the pod, its routes.'
try bridgehead add "$network" pod-a
result=$output
for address in $(addresses eth0 pod-a); do
    expect "eth0 of pod-a has the address $address of the result" contains "$result" "\"address\": \"$address\""
done

heading 'Attach the second pod'
bridgehead add "$network" pod-b >/run/result-b || give_up 'bridgehead add' "$(cat /run/result-b)"
say "pod-b got $(addresses eth0 pod-b)"
read -ra of_a <<<"$(addresses eth0 pod-a)"
read -ra of_b <<<"$(addresses eth0 pod-b)"
expect 'each pod has addresses, as many as the other' equals "${#of_a[@]}" "${#of_b[@]}"
for index in "${!of_a[@]}"; do
    expect_failure "${of_a[index]} and ${of_b[index]} are different" equals "${of_a[index]}" "${of_b[index]}"
done

heading 'What was built, as the kernel has it'
printf '   host\n'
printf '   ├─ %-16s %s   to the outside\n' uplink0 "$(addresses uplink0)"
printf '   ├─ %-16s %s   bridge, the gateway of the pods\n' "$bridge" "$(addresses "$bridge")"
for pod in pod-a pod-b; do
    end=$(host_end "$pod")
    [[ $pod = pod-a ]] && turn='├─' line='│ ' || turn='└─' line='  '
    printf '   │  %s %-14s%shost link, alias "%s"%s\n' "$turn" "$end" "$dim" "$(alias_of "$end")" "$plain"
    printf '   │  %s └─ eth0 in %s    %s\n' "$line" "$pod" "$(addresses eth0 $pod)"
    printf '   │  %s               default route via %s\n' "$line" "$(gateways $pod | paste -sd ' ')"
done
printf '   ├─ %s: %s\n' "/var/lib/cni/networks/$network" "$(reservations | paste -sd ' ')"
printf '   └─ rules: what leaves the network of the pods gets the address of the host\n'
rules | sed 's/^/      /'
for pod in pod-a pod-b; do
    end=$(host_end "$pod")
    expect "$pod: $end is a port of $bridge" contains "$(ip link show dev "$end")" "master $bridge"
done
expect_failure 'there are rules for the pods' is_empty rules
for address in "${of_a[@]}" "${of_b[@]}"; do
    expect "${address%/*} is reserved" contains " $(reservations | paste -sd ' ') " " ${address%/*} "
done
expect 'there is a record of each pod in /run/bridgehead/attachments' equals "$(files /run/bridgehead/attachments | wc -l)" 2

heading 'Packets: pod to pod, pod to gateway, pod to the outside'
for address in "${of_b[@]}"; do
    expect "pod-a pings pod-b at ${address%/*}" ping_from pod-a "${address%/*}"
done
for address in "${of_a[@]}"; do
    expect "pod-b pings pod-a at ${address%/*}" ping_from pod-b "${address%/*}"
done
for gateway in $(gateways pod-a); do
    expect "pod-a pings its gateway $gateway" ping_from pod-a "$gateway"
done
outside_addresses=()
for address in "${of_a[@]}"; do
    [[ $address = *:* ]] && outside_addresses+=("$outside_v6") || outside_addresses+=("$outside_v4")
done
for address in "${outside_addresses[@]}"; do
    expect "pod-a pings the outside at $address" ping_from pod-a "$address"
    expect "pod-b pings the outside at $address" ping_from pod-b "$address"
done

heading 'Masquerade: the outside sees the host and no pod'
say 'The outside has no route to the pods, so it could not even answer them:'
for address in "${of_a[@]}"; do
    expect_failure "outside knows no way to ${address%/*}" ip -n outside route get "${address%/*}"
done
say 'It wrote down who pinged it:'
for address in "${outside_addresses[@]}"; do
    [[ $address = *:* ]] && family=v6 seen_as=$host_v6 || family=v4 seen_as=$host_v4
    seen=$(witness "$family")
    expect "outside was pinged by $seen: the host, and no other" equals "$seen" "$seen_as"
done

heading 'CHECK: is all as ADD left it?'
try bridgehead check "$network" pod-a
try bridgehead check "$network" pod-b
say 'No output: all is well. Now somebody breaks something, and CHECK tells what:'
try ip -n pod-b route del default
try_in_vain bridgehead check "$network" pod-b
expect 'the error names the route' contains "$output" 'route default'

heading 'Detach: DEL, even if the pod has gone before'
try bridgehead del "$network" pod-a
expect_failure 'pod-a has no eth0 any more' ip -n pod-a link show dev eth0
say 'The second pod crashes: its namespace is gone before anybody calls DEL.'
try ip netns del pod-b
try bridgehead del "$network" pod-b
try bridgehead del "$network" pod-b
say 'Twice is no error: a runtime that is not sure just calls again.'

heading 'Nothing is left'
expect "no host link; the bridge $bridge stays for the next pod" equals "$(links)" "$bridge"
expect 'no rule' is_empty rules
expect "no reserved address in /var/lib/cni/networks/$network" is_empty reservations
expect 'no record in /run/bridgehead/attachments' is_empty files /run/bridgehead/attachments
expect 'no result in /var/lib/cni/results' is_empty files /var/lib/cni/results

printf '\n%sThe demo is done: %d assertions, all held, %d s.%s\n' "$bold" "$assertions" "$SECONDS" "$plain"
