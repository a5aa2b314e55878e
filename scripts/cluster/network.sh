#!/usr/bin/env bash
# The network namespace that holds the whole cluster: a bridge with the nodes'
# addresses and a default route (the API server and the kubelets look for one).
# The host's own network stays as it is, and ports don't clash.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

echo "$DIR" >$OWNER
ip netns add $NETNS
inside ip link set lo up
inside ip link add kube0 type bridge
inside ip addr add $HOST_IP/32 dev kube0
inside ip addr add $NODE2_IP/32 dev kube0
inside ip link set kube0 up
inside ip route replace default dev kube0
inside sysctl -qw net.ipv4.ip_forward=1
