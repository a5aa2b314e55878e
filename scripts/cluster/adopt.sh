#!/usr/bin/env bash
# What kind.sh and existing.sh have in common: takes the cluster of $KUBECONFIG,
# applies deploy/rbac, makes a kubeconfig for Kiln's own ServiceAccount and writes
# $KILN_CLUSTER_DIR/env from the KILN_TEST_* variables of the environment.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PATH=$PATH:$BIN
command -v kubectl >/dev/null || die "kubectl is not on the PATH"
kubectl version >/dev/null || die "the cluster of $KUBECONFIG doesn't answer"
mkdir -p "$RUN"
kubectl apply -k "$REPO/deploy/rbac"

# Only the cluster's address and CA are taken over, not the administrator's rights.
token=$(kubectl -n kiln create token kiln --duration 24h)
kubectl config view --raw --minify --flatten -o json |
    jq --arg token "$token" '.users[0].user = {token: $token}' >"$RUN/kiln.kubeconfig"
chmod 600 "$RUN/kiln.kubeconfig"

export KILN_TEST_BUILDAH_IMAGE=${KILN_TEST_BUILDAH_IMAGE:-quay.io/buildah/stable:v1.42}
export KILN_TEST_KUBECONFIG=$RUN/kiln.kubeconfig
"$HERE/env.sh"
echo "Ready. Variables are in $DIR/env; scripts/cluster/shell.sh runs a command with them."
