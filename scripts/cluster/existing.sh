#!/usr/bin/env bash
# CLUSTER=existing: a cluster, a registry and a git server that are there already.
# Wants KUBECONFIG, KILN_TEST_REGISTRY (host:port) and KILN_TEST_GIT (URL) in the
# environment, checks that they answer, and applies deploy/rbac.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for variable in KUBECONFIG KILN_TEST_REGISTRY KILN_TEST_GIT; do
    [[ ${!variable:-} ]] || die "CLUSTER=existing needs $variable in the environment"
done
[[ ! -e $RUN/kube-apiserver.pid ]] || die "a cluster of our own runs in $DIR; stop it with scripts/cluster/down.sh or set KILN_CLUSTER_DIR"

answers() { # any HTTP answer will do
    curl -s -o /dev/null --max-time 10 "$1"
}
answers "http://$KILN_TEST_REGISTRY/v2/" || answers "https://$KILN_TEST_REGISTRY/v2/" ||
    die "the registry $KILN_TEST_REGISTRY doesn't answer"
answers "$KILN_TEST_GIT/" || die "the git server $KILN_TEST_GIT doesn't answer"

export KILN_TEST_CLUSTER=existing
exec "$HERE/adopt.sh"
