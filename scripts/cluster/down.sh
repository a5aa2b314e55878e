#!/usr/bin/env bash
# Stops the test cluster from whatever state it is in and leaves the caches
# (binaries, images). Kubelets first, so that nobody starts containers again;
# containerd last, as it is needed to remove them.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ ! ${KILN_CLUSTER_LOCKED:-} ]]; then # up.sh holds the lock already
    exec 9>"$DIR/.lock"
    flock 9
fi

if grep -qs '^KILN_TEST_CLUSTER=kind' "$DIR/env"; then
    kind delete cluster --name kiln
    docker rm -f kiln-registry >/dev/null
fi

# Removes a node's containers, so that its image store can be used again.
empty() {
    local node=$1 list ids
    alive "containerd-$node" || return 0
    ctr() { timeout 20 ctr -a "$RUN/$node/containerd.sock" -n k8s.io "$@"; }
    list=$(ctr tasks list -q) || return 0
    mapfile -t ids <<<"$list"
    [[ ! $list ]] || ctr tasks delete --force "${ids[@]}" >/dev/null 2>&1 || true
    list=$(ctr containers list -q) || return 0
    mapfile -t ids <<<"$list"
    [[ ! $list ]] || ctr containers delete "${ids[@]}" >/dev/null 2>&1 || return 0
    # Images that tests have made; nobody wants them again.
    mapfile -t ids < <(ctr images list -q | grep /test-)
    ((!${#ids[@]})) || ctr images delete "${ids[@]}" >/dev/null 2>&1 || true
    rm -f "$DIR/$node/dirty"
}

# Shims outlive containerd; ours carry our containerd's socket as an argument.
kill_shims() {
    local cmdline pid
    for cmdline in /proc/[0-9]*/cmdline; do
        if { tr '\0' ' ' <"$cmdline"; } 2>/dev/null | grep -q "containerd-shim.* -address $RUN/"; then
            pid=${cmdline#/proc/}
            pid=${pid%/cmdline}
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
}

# What is left of pods: processes in our cgroups, then the cgroups.
remove_cgroups() {
    local cgroup pid
    for _ in {1..10}; do
        for cgroup in /sys/fs/cgroup/*/kiln-node[12]; do
            [[ -d $cgroup ]] || continue
            find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | while read -r pid; do
                kill -KILL "$pid" 2>/dev/null || true
            done
            find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        done
        compgen -G "/sys/fs/cgroup/*/kiln-node[12]" >/dev/null || break
        sleep 0.1
    done
}

unmount() {
    local target
    awk -v run="$RUN/" 'index($5, run) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r target; do
        umount "$target" 2>/dev/null || umount --lazy "$target" 2>/dev/null || true
    done
}

if [[ -d $RUN ]]; then
    for node in node1 node2; do stop "kubelet-$node" & done
    wait
    for name in kwok kube-proxy kube-scheduler kube-controller-manager; do stop $name & done
    wait
    stop kube-apiserver 2 # its data is thrown away, no need to drain
    stop etcd
    for node in node1 node2; do empty $node & done
    wait
    for node in node1 node2; do stop "containerd-$node" & done
    wait
    kill_shims
    remove_cgroups
    for name in git-ssh-server git-server auth-registry tls-registry registry; do stop $name & done
    wait
    if compgen -G "$DIR/registry/docker/registry/v2/repositories/test-*" >/dev/null; then
        rm -rf "$DIR/registry/docker/registry/v2/repositories/"test-*
        docker-registry garbage-collect "$RUN/registry.yaml" >/dev/null 2>&1 || true
    fi
    unmount
fi

# Anything else that still lives in the namespace would keep it alive.
if [[ -e /run/netns/$NETNS && $(owner) == "$DIR" ]]; then
    for pid in $(ip netns pids $NETNS); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    ip netns delete $NETNS
    rm -f $OWNER
fi
rm -rf --one-file-system "$RUN"
rm -f "$DIR/env" "$DIR/kiln.toml"
