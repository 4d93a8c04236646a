//! The kernel: namespaces, netlink, nf_tables, iptables, sysctl. Knows nothing of CNI.
