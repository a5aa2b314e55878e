#!/usr/bin/env bash
# Service addresses and cluster DNS, for Deployments inside the cluster: one
# kube-proxy (both nodes share one network namespace, so one set of rules serves
# both) and CoreDNS. Nobody waits for CoreDNS: builds use addresses.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Masquerading everything makes answers between two pods of one bridge come back
# the way they went, without br_netfilter.
start kube-proxy "$BIN/kube-proxy" --kubeconfig "$RUN/kube-proxy.kubeconfig" --hostname-override node1 \
    --proxy-mode iptables --cluster-cidr 10.88.0.0/16 --masquerade-all \
    --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
    --bind-address 127.0.0.1 --healthz-bind-address 127.0.0.1:10256 --metrics-bind-address 127.0.0.1:10249

kubectl_admin apply -f "$HERE/coredns/coredns.yaml"
