#!/usr/bin/env bash
# CLUSTER=kind: a cluster by kind and docker, for a developer's machine without
# root. The local registry follows https://kind.sigs.k8s.io/docs/user/local-registry/.
# Images come from the public registries, so none is built but the agent's. There
# is no git server: set KILN_TEST_GIT to one that both this machine and pods reach.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for tool in docker kind kubectl; do
    command -v $tool >/dev/null || die "CLUSTER=kind needs $tool on the PATH; without it use CLUSTER=own (as root) or CLUSTER=existing"
done
docker info >/dev/null 2>&1 || die "docker is installed, but its daemon doesn't answer; start it, or use CLUSTER=own (as root) or CLUSTER=existing"

name=kiln
registry=kiln-registry # pods, nodes and builds reach it by this name and port 5000
mkdir -p "$RUN"
export KUBECONFIG=$RUN/admin.kubeconfig

if [[ $(docker inspect -f '{{.State.Running}}' $registry 2>/dev/null) != true ]]; then
    docker rm -f $registry >/dev/null 2>&1 || true
    docker run -d --restart=always -p 127.0.0.1:5000:5000 -e REGISTRY_STORAGE_DELETE_ENABLED=true --name $registry registry:2
fi
if ! kind get clusters 2>/dev/null | grep -qx $name; then
    kind create cluster --name $name --config=- <<EOF
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
  - |-
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "/etc/containerd/certs.d"
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
EOF
fi
kind export kubeconfig --name $name
docker network connect kind $registry 2>/dev/null || true
for node in $(kind get nodes --name $name); do
    docker exec "$node" mkdir -p /etc/containerd/certs.d/$registry:5000
    printf '[host."http://%s:5000"]\n' $registry |
        docker exec -i "$node" cp /dev/stdin /etc/containerd/certs.d/$registry:5000/hosts.toml
done

export KILN_TEST_REGISTRY=${KILN_TEST_REGISTRY:-$registry:5000}
if [[ -e $REPO/agent/Cargo.toml ]]; then
    (cd "$REPO" && RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile agent -p kiln-agent --target x86_64-unknown-linux-gnu)
    binary=${CARGO_TARGET_DIR:-$REPO/target}/x86_64-unknown-linux-gnu/agent
    # With git, so that one container fetches the source and hands on the agent.
    hash=$(sha256sum "$binary/kiln-agent" | cut -c1-16)
    printf 'FROM alpine/git\nCOPY --chmod=755 kiln-agent /kiln-agent\nENTRYPOINT ["/kiln-agent"]\n' |
        docker build -q -t "127.0.0.1:5000/kiln/agent:$hash" -f - "$binary" >/dev/null
    docker push -q "127.0.0.1:5000/kiln/agent:$hash" >/dev/null
    export KILN_TEST_AGENT_IMAGE=$KILN_TEST_REGISTRY/kiln/agent:$hash KILN_TEST_AGENT_BINARY=$binary/kiln-agent
fi
export KILN_TEST_BUILDKIT_IMAGE=${KILN_TEST_BUILDKIT_IMAGE:-moby/buildkit:$BUILDKIT_VERSION-rootless}
export KILN_TEST_POSTGRES_IMAGE=${KILN_TEST_POSTGRES_IMAGE:-postgres:17}
export KILN_TEST_CLUSTER=kind
exec "$HERE/adopt.sh"
