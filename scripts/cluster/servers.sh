#!/usr/bin/env bash
# The servers that builds talk to: a registry (its storage is a cache and
# survives `down`), a registry that wants a password, one over TLS with a
# certificate authority of its own, and git servers: over smart HTTP with a
# public and a private part, and over ssh.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

registry_config() { # ADDRESS STORAGE
    cat <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $2}
  delete: {enabled: true}
http: {addr: "$1"}
EOF
}

mkdir -p "$DIR/registry" "$RUN/auth-registry"
registry_config 0.0.0.0:5000 "$DIR/registry" >"$RUN/registry.yaml"
start registry docker-registry serve "$RUN/registry.yaml"

htpasswd -Bbn $TEST_USER $TEST_PASSWORD >"$RUN/htpasswd"
{
    registry_config $HOST_IP:5001 "$RUN/auth-registry"
    echo "auth: {htpasswd: {realm: kiln, path: $RUN/htpasswd}}"
} >"$RUN/auth-registry.yaml"
start auth-registry docker-registry serve "$RUN/auth-registry.yaml"

tls_ca() { # TLS_CA and the registry's certificate
    local folder=$RUN/tls-registry
    mkdir -p "$folder/data"
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=Kiln test CA" \
        -keyout "$folder/ca.key" -out "$TLS_CA" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj "/CN=registry" \
        -keyout "$folder/registry.key" -out "$folder/registry.csr" 2>/dev/null
    openssl x509 -req -in "$folder/registry.csr" -CA "$TLS_CA" -CAkey "$folder/ca.key" -CAcreateserial -days 30 \
        -extfile <(echo "subjectAltName=IP:$HOST_IP") -out "$folder/registry.crt" 2>/dev/null
}
tls_ca
{
    registry_config $HOST_IP:5002 "$RUN/tls-registry/data" | grep -v ^http:
    echo "http: {addr: \"$HOST_IP:5002\", tls: {certificate: $RUN/tls-registry/registry.crt, key: $RUN/tls-registry/registry.key}}"
} >"$RUN/tls-registry.yaml"
start tls-registry docker-registry serve "$RUN/tls-registry.yaml"

# Repositories are pushed by file system. Any commit can be fetched by its id,
# as a build wants it; who owns the files is of no interest here.
rm -rf "$GIT_DIR_ROOT"
mkdir -p "$GIT_DIR_ROOT/private"
cat >"$RUN/gitconfig" <<EOF
[safe]
    directory = *
[uploadpack]
    allowAnySHA1InWant = true
    allowFilter = true
EOF
echo "$TEST_USER:$TEST_PASSWORD" >"$RUN/git-users"
cat >"$RUN/lighttpd.conf" <<EOF
server.modules = ("mod_auth", "mod_authn_file", "mod_setenv", "mod_alias", "mod_cgi")
server.document-root = "$GIT_DIR_ROOT"
server.bind = "$HOST_IP"
server.port = 3000
server.errorlog = "$LOGS/git-server-errors.log"
server.upload-dirs = ("$RUN")
alias.url = ("/" => "/usr/lib/git-core/git-http-backend/")
\$HTTP["url"] =~ "/info/lfs/" { alias.url := ("/" => "$HERE/git-lfs.sh/") }
cgi.assign = ("" => "")
setenv.add-environment = (
    "GIT_PROJECT_ROOT" => "$GIT_DIR_ROOT",
    "GIT_HTTP_EXPORT_ALL" => "1",
    "GIT_CONFIG_GLOBAL" => "$RUN/gitconfig"
)
auth.backend = "plain"
auth.backend.plain.userfile = "$RUN/git-users"
auth.require = ("/private/" => ("method" => "basic", "realm" => "kiln", "require" => "valid-user"))
EOF
start git-server lighttpd -D -f "$RUN/lighttpd.conf"

# The same repositories by ssh, for one key that can do nothing else.
SSH=$RUN/git-ssh
mkdir -p "$SSH" /run/sshd
ssh-keygen -q -t ed25519 -N '' -C host -f "$SSH/host"
ssh-keygen -q -t ed25519 -N '' -C user -f "$SSH/user"
echo "[$HOST_IP]:2222 $(cut -d' ' -f1,2 "$SSH/host.pub")" >"$SSH/known_hosts"
cat >"$SSH/authorized_keys" <<EOF
restrict,command="git-shell -c \\"\$SSH_ORIGINAL_COMMAND\\"" $(cat "$SSH/user.pub")
EOF
cat >"$SSH/config" <<EOF
ListenAddress $HOST_IP:2222
HostKey $SSH/host
PidFile none
AuthorizedKeysFile $SSH/authorized_keys
StrictModes no
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
SetEnv GIT_CONFIG_GLOBAL=$RUN/gitconfig
EOF
start git-ssh-server /usr/sbin/sshd -D -e -f "$SSH/config"

answers() { # any HTTP answer will do
    inside curl -s -o /dev/null --max-time 1 "$1"
}
wait_for 10 "the registry" "$LOGS/registry.log" answers http://$REGISTRY/v2/
wait_for 10 "the registry with a password" "$LOGS/auth-registry.log" answers http://$AUTH_REGISTRY/v2/
wait_for 10 "the registry over TLS" "$LOGS/tls-registry.log" inside curl -s -o /dev/null --max-time 1 --cacert "$TLS_CA" https://$TLS_REGISTRY/v2/
wait_for 10 "the git server" "$LOGS/git-server.log" answers $GIT_URL/
wait_for 10 "the git server by ssh" "$LOGS/git-ssh-server.log" inside ssh-keyscan -T 1 -p 2222 $HOST_IP
