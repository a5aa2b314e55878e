#!/usr/bin/env bash
# Writes what a user of the running cluster needs to know: $KILN_CLUSTER_DIR/env
# (KEY=VALUE lines) and Kiln's configuration made from deploy/kiln-cluster.toml.in,
# in which @KEY@ stands for a value of that file; lines without their value are left out.
# shellcheck disable=SC2034 # the values are read by name below
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What Kiln encrypts secrets with.
KILN_TEST_SECRETS_KEY=$DIR/secrets.key
[[ -s $KILN_TEST_SECRETS_KEY ]] || (umask 077 && openssl rand -base64 32 >"$KILN_TEST_SECRETS_KEY")

# A cluster that was not started here (adopt.sh) is described by the environment.
if [[ ${KILN_TEST_CLUSTER:-own} == own ]]; then
    KILN_TEST_CLUSTER=own
    KUBECONFIG=$RUN/admin.kubeconfig
    KILN_TEST_KUBECONFIG=$RUN/kiln.kubeconfig
    KILN_TEST_REGISTRY=$REGISTRY
    KILN_TEST_AUTH_REGISTRY=$AUTH_REGISTRY
    KILN_TEST_TLS_REGISTRY=$TLS_REGISTRY
    KILN_TEST_TLS_CA=$TLS_CA
    KILN_TEST_GIT=$GIT_URL
    KILN_TEST_GIT_DIR=$GIT_DIR_ROOT
    KILN_TEST_GIT_SSH=ssh://root@$HOST_IP:2222$GIT_DIR_ROOT
    KILN_TEST_GIT_SSH_KEY=$RUN/git-ssh/user
    KILN_TEST_GIT_KNOWN_HOSTS=$RUN/git-ssh/known_hosts
    KILN_TEST_USER=$TEST_USER
    KILN_TEST_PASSWORD=$TEST_PASSWORD
    KILN_TEST_HOST_IP=$HOST_IP
    KILN_TEST_BUILDKIT_IMAGE=$BUILDKIT_IMAGE
    KILN_TEST_BUILDAH_IMAGE=$BUILDAH_IMAGE
    KILN_TEST_GIT_IMAGE=$GIT_IMAGE
    KILN_TEST_BASE_IMAGE=$BASE_IMAGE
    KILN_TEST_BUSYBOX_IMAGE=$BUSYBOX_IMAGE
    KILN_TEST_POSTGRES_IMAGE=$POSTGRES_IMAGE
    KILN_TEST_S3_SERVER=$BIN/versitygw
    KILN_TEST_AGENT_BINARY=$DIR/kiln-agent
    KILN_TEST_AGENT_IMAGE=$(cat "$DIR/agent-image" 2>/dev/null || true)
fi
KILN_CONFIG=
[[ ! -e $REPO/deploy/kiln-cluster.toml.in ]] || KILN_CONFIG=$DIR/kiln.toml

for name in KUBECONFIG KILN_CONFIG "${!KILN_TEST_@}"; do
    [[ ! ${!name} ]] || printf '%s=%q\n' "$name" "${!name}"
done >"$DIR/env.new"
mv "$DIR/env.new" "$DIR/env"

if [[ -e $REPO/deploy/kiln-cluster.toml.in ]]; then
    text=$(<"$REPO/deploy/kiln-cluster.toml.in")
    for name in "${!KILN_TEST_@}"; do
        text=${text//@$name@/${!name}}
    done
    grep -v '@KILN_TEST_[A-Z_]*@' <<<"$text" >"$DIR/kiln.toml"
fi
