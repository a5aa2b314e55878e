#!/usr/bin/env bash
# Runs a command (or a shell) as a user of the cluster: inside its network
# namespace, with KUBECONFIG and the values of $KILN_CLUSTER_DIR/env exported
# and the cluster's kubectl on the PATH.
#
#   shell.sh [COMMAND…]
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ -e $DIR/env ]] || die "no cluster is running: start one with scripts/cluster/up.sh (make cluster)"
set -a
# shellcheck disable=SC1091
source "$DIR/env"
set +a
export KILN_CLUSTER_DIR=$DIR PATH=$BIN:$PATH
(($#)) || set -- "${SHELL:-/bin/bash}"
# A kind cluster or one's own has no namespace.
[[ $KILN_TEST_CLUSTER == own ]] || exec "$@"
exec nsenter --net=/run/netns/$NETNS -- "$@"
