#!/usr/bin/env bash
# Writes what a user of the running cluster needs to know: $KILN_CLUSTER_DIR/env
# (KEY=VALUE lines) and Kiln's configuration made from deploy/kiln-cluster.toml.in,
# in which @KEY@ stands for a value of that file.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

agent_image=$(cat "$DIR/agent-image" 2>/dev/null || true)
{
    echo "KILN_TEST_CLUSTER=own"
    echo "KUBECONFIG=$RUN/admin.kubeconfig"
    echo "KILN_TEST_KUBECONFIG=$RUN/kiln.kubeconfig"
    echo "KILN_TEST_REGISTRY=$REGISTRY"
    echo "KILN_TEST_AUTH_REGISTRY=$AUTH_REGISTRY"
    echo "KILN_TEST_GIT=$GIT_URL"
    echo "KILN_TEST_GIT_DIR=$GIT_DIR_ROOT"
    echo "KILN_TEST_USER=$TEST_USER"
    echo "KILN_TEST_PASSWORD=$TEST_PASSWORD"
    echo "KILN_TEST_HOST_IP=$HOST_IP"
    echo "KILN_TEST_BUILDKIT_IMAGE=$BUILDKIT_IMAGE"
    echo "KILN_TEST_GIT_IMAGE=$GIT_IMAGE"
    echo "KILN_TEST_BASE_IMAGE=$BASE_IMAGE"
    echo "KILN_TEST_BUSYBOX_IMAGE=$BUSYBOX_IMAGE"
    [[ ! $agent_image ]] || echo "KILN_TEST_AGENT_IMAGE=$agent_image"
    [[ ! -e $REPO/deploy/kiln-cluster.toml.in ]] || echo "KILN_CONFIG=$DIR/kiln.toml"
} >"$DIR/env.new"
mv "$DIR/env.new" "$DIR/env"

if [[ -e $REPO/deploy/kiln-cluster.toml.in ]]; then
    text=$(<"$REPO/deploy/kiln-cluster.toml.in")
    while IFS='=' read -r key value; do
        text=${text//@$key@/$value}
    done <"$DIR/env"
    printf '%s\n' "$text" >"$DIR/kiln.toml"
fi
