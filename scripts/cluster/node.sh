#!/usr/bin/env bash
# One real node: a containerd and a kubelet with folders, bridge, pod subnet and
# cgroup root of their own, so that two of them live on one machine. Ending that
# kubelet is a lost node.
#
#   node.sh runtime 1|2     starts containerd
#   node.sh kubelet 1|2     starts the kubelet (again)
#   node.sh lose 1|2        kills the kubelet: NotReady after 16 s, pods deleted 20 s later
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

number=$2
node=node$number
address=10.89.0.$number
ROOT=$DIR/$node # containerd's image store, a cache
STATE=$RUN/$node
mkdir -p "$ROOT" "$STATE"

runtime() {
    mkdir -p "$STATE/cni" "$STATE/certs.d"
    cat >"$STATE/cni/10-kiln.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "kiln-$node", "plugins": [
  {"type": "bridge", "bridge": "kiln$number", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$STATE/ipam",
            "ranges": [[{"subnet": "10.88.$number.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
    local host
    for host in docker.io $REGISTRY; do
        mkdir -p "$STATE/certs.d/$host"
        printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' \
            $REGISTRY $REGISTRY >"$STATE/certs.d/$host/hosts.toml"
    done
    mkdir -p "$STATE/certs.d/$AUTH_REGISTRY"
    printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' \
        $AUTH_REGISTRY $AUTH_REGISTRY >"$STATE/certs.d/$AUTH_REGISTRY/hosts.toml"
    cat >"$STATE/containerd.toml" <<EOF
version = 2
root = "$ROOT/containerd"
state = "$STATE/containerd"
[grpc]
  address = "$STATE/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$ROOT/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$STATE/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
EOF
    # A store that was not left clean (see down.sh) still knows dead containers.
    [[ ! -e $ROOT/dirty ]] || rm -rf "$ROOT/containerd"
    touch "$ROOT/dirty"
    start "containerd-$node" containerd --config "$STATE/containerd.toml"
    wait_for 20 "containerd of $node" "$LOGS/containerd-$node.log" \
        ctr -a "$STATE/containerd.sock" -n k8s.io version
}

# The kubelet makes only what lies below its cgroup root, and a new cpuset is
# unusable until it has CPUs and memory nodes.
cgroups() {
    local controller file
    for controller in /sys/fs/cgroup/*/; do
        [[ -e $controller/cgroup.procs ]] || continue
        mkdir -p "$controller/kiln-$node"
        for file in cpuset.cpus cpuset.mems; do
            [[ ! -e $controller/$file ]] || cat "$controller/$file" >"$controller/kiln-$node/$file"
        done
    done
}

kubelet() {
    cgroups
    cat >"$STATE/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
healthzPort: $((10248 + (number - 1) * 10))
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /kiln-$node
containerRuntimeEndpoint: unix://$STATE/containerd.sock
podLogsDir: $STATE/pod-logs
featureGates: {KubeletInUserNamespace: true}
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: $STATE/resolv.conf
# Fast pod starts.
serializeImagePulls: false
registryPullQPS: 0
kubeAPIQPS: 200
kubeAPIBurst: 400
eventRecordQPS: 0
# A lost node shows within seconds.
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
# Small logs make rotation testable: what isn't read in time is lost.
containerLogMaxSize: ${KILN_CLUSTER_LOG_MAX_SIZE:-1Mi}
containerLogMonitorInterval: 3s
# The disk is shared with the developer's own files: only an emptyDir's own limit evicts.
evictionHard: {memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
EOF
    echo "options ndots:1" >"$STATE/resolv.conf"
    start "kubelet-$node" "$BIN/kubelet" --config "$STATE/kubelet.yaml" --kubeconfig "$RUN/$node.kubeconfig" \
        --root-dir "$STATE/kubelet" --cert-dir "$STATE/pki" --hostname-override "$node" --node-ip "$address"
}

lose() {
    kill -KILL "$(cat "$RUN/kubelet-$node.pid")"
}

"$1"
