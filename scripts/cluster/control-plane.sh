#!/usr/bin/env bash
# etcd, API server, controller manager and scheduler, with a CA of their own and
# RBAC for real. Everything about a lost node happens within seconds instead of
# minutes, so that tests need not wait (KILN_CLUSTER_UNREACHABLE_SECONDS).
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PKI=$RUN/pki
API=https://$HOST_IP:6443
unreachable=${KILN_CLUSTER_UNREACHABLE_SECONDS:-20}
mkdir -p "$PKI" "$RUN/etcd"

certificates() {
    local key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 -days 3650 "${key[@]}" -keyout "$PKI/ca.key" -out "$PKI/ca.crt" -subj /CN=kiln-test-ca \
        -addext keyUsage=critical,keyCertSign,digitalSignature
    openssl req "${key[@]}" -keyout "$PKI/api.key" -out "$PKI/api.csr" -subj /CN=kube-apiserver
    openssl x509 -req -in "$PKI/api.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 \
        -out "$PKI/api.crt" -extfile <(
            echo "extendedKeyUsage=serverAuth"
            echo "subjectAltName=IP:127.0.0.1,IP:$HOST_IP,IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
        )
    openssl genrsa -out "$PKI/service-account.key" 2048
}

kubeconfig() { # FILE TOKEN
    cat >"$1" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: kiln-test, cluster: {server: "$API", certificate-authority-data: $(base64 -w0 <"$PKI/ca.crt")}}]
users: [{name: user, user: {token: "$2"}}]
contexts: [{name: kiln-test, context: {cluster: kiln-test, user: user}}]
current-context: kiln-test
EOF
    chmod 600 "$1"
}

certificates
token() { openssl rand -hex 16; }
: >"$RUN/tokens.csv"
account() { # FILE USER GROUP
    local secret
    secret=$(token)
    echo "$secret,$2,$2,$3" >>"$RUN/tokens.csv"
    kubeconfig "$RUN/$1.kubeconfig" "$secret"
}
account admin admin system:masters
account controller-manager system:kube-controller-manager ""
account scheduler system:kube-scheduler ""
account kube-proxy system:kube-proxy ""
account node1 system:node:node1 system:nodes
account node2 system:node:node2 system:nodes

start etcd "$BIN/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --quota-backend-bytes 8589934592

start kube-apiserver "$BIN/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
    --cert-dir "$PKI" --tls-cert-file "$PKI/api.crt" --tls-private-key-file "$PKI/api.key" \
    --secure-port 6443 --bind-address 0.0.0.0 --advertise-address $HOST_IP \
    --token-auth-file "$RUN/tokens.csv" --authorization-mode Node,RBAC \
    --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$PKI/service-account.key" --service-account-signing-key-file "$PKI/service-account.key" \
    --service-cluster-ip-range 10.96.0.0/16 --allow-privileged=true \
    --kubelet-preferred-address-types InternalIP \
    --default-unreachable-toleration-seconds "$unreachable" --default-not-ready-toleration-seconds "$unreachable"

# The other two back off for seconds when they come first; and their own limits
# of 20 and 50 requests a second are for clusters that do other work.
wait_for 60 "the API server" "$LOGS/kube-apiserver.log" kubectl_admin get --raw /readyz

start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig "$RUN/controller-manager.kubeconfig" \
    --leader-elect=false --bind-address 127.0.0.1 --cert-dir "$PKI" \
    --service-account-private-key-file "$PKI/service-account.key" --root-ca-file "$PKI/ca.crt" \
    --use-service-account-credentials --node-monitor-period 2s --node-monitor-grace-period 16s \
    --kube-api-qps 500 --kube-api-burst 1000

start kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$RUN/scheduler.kubeconfig" \
    --leader-elect=false --bind-address 127.0.0.1 --cert-dir "$PKI" \
    --kube-api-qps 1000 --kube-api-burst 2000
