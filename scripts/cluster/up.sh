#!/usr/bin/env bash
# Starts the cluster that the tests run on.
#
#   up.sh                    a real Kubernetes with two nodes on this machine, built
#                            from source, in a network namespace of its own
#   CLUSTER=kind up.sh       kind and docker, with a local registry
#   CLUSTER=existing up.sh   the cluster of $KUBECONFIG
#
# It can be run again at any time; what is built or running already is kept.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${CLUSTER:-own} in
own) ;;
kind) exec "$HERE/kind.sh" ;;
existing) exec "$HERE/existing.sh" ;;
*) die "CLUSTER must be own, kind or existing, not '$CLUSTER'" ;;
esac

[[ $(id -u) == 0 ]] || die "the cluster needs root (namespaces, cgroups, containerd); or use CLUSTER=kind, CLUSTER=existing"
exec 9>"$DIR/.lock"
flock 9

next() {
    echo "  scripts/cluster/shell.sh             a shell in the cluster's network, kubectl at hand"
    echo "  scripts/cluster/images.sh agent      after a change of agent/"
    echo "  scripts/cluster/kwok.sh up 500       fake nodes for load"
    echo "  scripts/cluster/down.sh              stops it (make cluster-down)"
}

if [[ -e $DIR/env ]] && kubectl_admin wait --for condition=Ready node/node1 node/node2 --timeout 2s >/dev/null 2>&1; then
    echo "The test cluster is running already; its variables are in $DIR/env."
    next
    exit 0
fi

other=$(owner)
[[ ! $other || $other == "$DIR" ]] ||
    die "a test cluster runs from another folder; use it with KILN_CLUSTER_DIR=$other, or stop it with KILN_CLUSTER_DIR=$other $HERE/down.sh"

ulimit -n 65536 2>/dev/null || true

started=$SECONDS
apply() {
    kubectl_admin apply -k "$REPO/deploy/rbac"
    local token
    token=$(kubectl_admin -n kiln create token kiln --duration 8760h)
    sed "s/token: \".*\"/token: \"$token\"/" "$RUN/admin.kubeconfig" >"$RUN/kiln.kubeconfig"
    chmod 600 "$RUN/kiln.kubeconfig"
}
ready() {
    # The nodes don't exist at first, and `wait` fails on what doesn't exist.
    wait_for 60 "node1 and node2" "$LOGS/kubelet-node1.log" \
        kubectl_admin wait --for condition=Ready node/node1 node/node2 --timeout 1s
    # A pod is refused until the controller manager has made this one.
    wait_for 30 "the service account controller" "$LOGS/kube-controller-manager.log" \
        kubectl_admin -n kiln-builds get serviceaccount default
}
runtimes() {
    "$HERE/node.sh" runtime 1 &
    "$HERE/node.sh" runtime 2 &
    wait -n
    wait -n
}
kubelets() {
    "$HERE/node.sh" kubelet 1
    "$HERE/node.sh" kubelet 2
}

echo "Kiln's test cluster ($DIR)"
step "packages" "$HERE/packages.sh"
step "binaries (5 minutes when cold)" "$HERE/build.sh" kubernetes
step "S3 server (2 minutes when cold)" "$HERE/s3.sh"
step "what is left of an earlier one" env KILN_CLUSTER_LOCKED=1 "$HERE/down.sh"
step "network" "$HERE/network.sh"
step "registries and git server" "$HERE/servers.sh"
step "control plane" "$HERE/control-plane.sh"
step "container runtimes" runtimes
step "images (3 minutes when cold)" "$HERE/images.sh" base
step "kubelets" kubelets
step "namespaces and rights" apply
step "services and DNS" "$HERE/services.sh"
step "nodes ready" ready
"$HERE/env.sh"
# The agent is code under development: if it doesn't compile, the cluster is still of use.
if [[ -e $REPO/agent/Cargo.toml || ${KILN_AGENT_BINARY:-} || -s $DIR/agent-image ]]; then
    (step "agent image" "$HERE/images.sh" agent) || echo "  the cluster goes on without a new agent image" >&2
fi
"$HERE/env.sh"

echo "Up after $((SECONDS - started)) s. Variables are in $DIR/env, logs in $LOGS. Next:"
next
