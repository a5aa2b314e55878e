# shellcheck shell=bash disable=SC2034
# Names, addresses and small helpers shared by every script in this folder.
# Sourced, never run.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)

# Everything that was built or downloaded, and everything the cluster writes.
# Several worktrees may share one by setting KILN_CLUSTER_DIR.
DIR=${KILN_CLUSTER_DIR:-$REPO/target/cluster}
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)

BIN=$DIR/bin          # binaries built from Go modules (cache)
RUN=$DIR/run          # state of the running cluster, fresh at each `up`
LOGS=$DIR/logs        # one log file a process
GIT_DIR_ROOT=$DIR/git # bare repositories served by the git server
NETNS=kiln
OWNER=/run/kiln-cluster.owner # whose namespace it is: names the folder

# node1's address is also where the API server and all other servers of the
# test cluster answer.
HOST_IP=10.89.0.1
NODE2_IP=10.89.0.2
REGISTRY=$HOST_IP:5000
AUTH_REGISTRY=$HOST_IP:5001
TLS_REGISTRY=$HOST_IP:5002
TLS_CA=$RUN/tls-registry/ca.pem
GIT_URL=http://$HOST_IP:3000
TEST_USER=kiln
TEST_PASSWORD=kiln-secret

BUILDKIT_VERSION=v0.34.2
BUILDKIT_IMAGE=$REGISTRY/kiln/buildkit:$BUILDKIT_VERSION-rootless
BUILDAH_IMAGE=$REGISTRY/kiln/buildah:1.28
GIT_IMAGE=$REGISTRY/kiln/git:latest
BASE_IMAGE=$REGISTRY/library/debian:bookworm-slim
BUSYBOX_IMAGE=$REGISTRY/library/busybox:latest
POSTGRES_IMAGE=$REGISTRY/kiln/postgres:15
COREDNS_IMAGE=$REGISTRY/kiln/coredns:v1.15.0
PAUSE_IMAGE=$REGISTRY/kiln/pause:1

die() {
    echo "error: $*" >&2
    exit 1
}

# There is one namespace on a machine, but there may be several cluster folders.
owner() {
    [[ ! -e /run/netns/$NETNS ]] || cat $OWNER 2>/dev/null || true
}

# step NAME COMMAND…: runs the command quietly, prints how long it took, and on
# failure names the log file that says why.
step() {
    local name=$1 log start end
    shift
    mkdir -p "$LOGS"
    log=$LOGS/step-${name//[^A-Za-z0-9]/-}.log
    start=$(date +%s%N)
    printf '  %-34s' "$name"
    if ! ("$@") >"$log" 2>&1; then
        echo "FAILED"
        tail -n 15 "$log" >&2
        die "$name failed; the whole output is in $log"
    fi
    end=$(date +%s%N)
    printf '%6d.%d s\n' $(((end - start) / 1000000000)) $(((end - start) / 100000000 % 10))
}

# Runs a command inside the cluster's network namespace. Not `ip netns exec`:
# that remounts /sys, and the kubelet then finds no cgroups.
inside() {
    nsenter --net=/run/netns/$NETNS -- "$@"
}

# wait_for SECONDS WHAT LOG COMMAND…: polls until the command succeeds.
wait_for() {
    local seconds=$1 what=$2 log=$3 deadline
    shift 3
    deadline=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            tail -n 5 "$log" >&2 || true
            die "$what did not answer within $seconds s; see $log"
        fi
        sleep 0.1
    done
}

# Whether a process runs; a dead one that nobody has waited for doesn't count.
running() {
    local state
    state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) && [[ $state && $state != Z ]]
}

alive() {
    local pid
    pid=$(cat "$RUN/$1.pid" 2>/dev/null) && running "$pid"
}

# start NAME COMMAND…: runs a server in the namespace, in a session of its own so
# that no terminal or calling script takes it down.
start() {
    local name=$1
    shift
    mkdir -p "$RUN" "$LOGS"
    nsenter --net=/run/netns/$NETNS -- setsid -- "$@" >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
    echo $! >"$RUN/$name.pid"
    disown
}

# stop NAME [SECONDS]: TERM, wait, then KILL.
stop() {
    local name=$1 seconds=${2:-10} pid tries
    pid=$(cat "$RUN/$name.pid" 2>/dev/null) || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < seconds * 20; tries++)); do
        running "$pid" || break
        sleep 0.05
    done
    while running "$pid"; do
        echo "  $name did not end within $seconds s; killing it"
        kill -KILL "$pid" 2>/dev/null || true
        sleep 0.1
    done
    rm -f "$RUN/$name.pid"
}

kubectl_admin() {
    inside "$BIN/kubectl" --kubeconfig "$RUN/admin.kubeconfig" "$@"
}
