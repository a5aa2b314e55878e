#!/usr/bin/env bash
# Fake nodes for load without containers: KWOK plays the kubelet of nodes that
# carry the label kwok.x-k8s.io/node=fake and a taint of the same name, and
# takes their pods from Pending to Succeeded (kwok/pod-stages.yaml).
#
#   kwok.sh up N     starts KWOK and makes nodes fake-0 … fake-(N-1)
#   kwok.sh down     removes the nodes, their pods and the process
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ -e $RUN/admin.kubeconfig ]] || die "no cluster is running: start one with scripts/cluster/up.sh"

node() { # NAME
    cat <<EOF
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "$1",
  "labels": {"kwok.x-k8s.io/node": "fake", "kubernetes.io/hostname": "$1", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
 "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
 "status": {"capacity": {"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "4Ti"},
            "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "4Ti"}}}
EOF
}

up() {
    local count=${1:-10} i
    [[ $count =~ ^[0-9]+$ ]] || die "kwok.sh up wants a number of nodes, not '$count'"
    "$HERE/build.sh" kwok
    if ! alive kwok; then
        {
            cat "$BIN/kwok-stage/node/fast/node-initialize.yaml"
            echo ---
            cat "$BIN/kwok-stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml"
            echo ---
            cat "$HERE/kwok/pod-stages.yaml"
        } >"$RUN/kwok.yaml"
        start kwok "$BIN/kwok" --config "$RUN/kwok.yaml" --kubeconfig "$RUN/admin.kubeconfig" \
            --manage-nodes-with-label-selector kwok.x-k8s.io/node=fake \
            --node-lease-duration-seconds 40 --cidr 10.100.0.0/16 --node-ip $HOST_IP \
            --server-address 127.0.0.1:10247 --v WARN
    fi
    for ((i = 0; i < count; i++)); do node "fake-$i"; done | kubectl_admin apply -f - >/dev/null
    wait_for 60 "KWOK" "$LOGS/kwok.log" \
        kubectl_admin wait --for condition=Ready node -l kwok.x-k8s.io/node=fake --timeout 5s
    echo "$count fake nodes are ready."
}

down() {
    # While KWOK runs it lets go of the pods; without it they'd hang in Terminating.
    kubectl_admin get pods --all-namespaces -o json |
        jq -r '.items[] | select((.spec.nodeName // "") | startswith("fake-")) | "\(.metadata.namespace) \(.metadata.name)"' |
        while read -r namespace name; do
            echo "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"namespace\": \"$namespace\", \"name\": \"$name\"}}"
        done | kubectl_admin delete -f - --ignore-not-found --grace-period 0 --force --wait=false >/dev/null 2>&1 || true
    kubectl_admin delete nodes -l kwok.x-k8s.io/node=fake --wait=false >/dev/null
    stop kwok
}

case ${1:-} in
up) up "${2:-}" ;;
down) down ;;
*) die "usage: kwok.sh up N | down" ;;
esac
