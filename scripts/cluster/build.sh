#!/usr/bin/env bash
# Builds the binaries of the test cluster from the Go modules pinned in the
# folders next to this script. Debian packages none of them, and nothing
# prebuilt belongs in git. A set is built again only when its go.mod, its go.sum
# or the compiler changed.
#
#   build.sh [kubernetes] [buildkit] [kwok] [coredns]
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

command -v go >/dev/null || die "Go is needed to build the test cluster; see https://go.dev/dl"

inputs() {
    { cat "$HERE/$1/go.mod" "$HERE/$1/go.sum" "$HERE/build.sh"; go version; } | sha256sum | cut -d' ' -f1
}

# build SET OUTPUT PACKAGE [FLAG…]
build() {
    local set=$1 output=$2 package=$3
    shift 3
    (cd "$HERE/$set" && CGO_ENABLED=0 nice go build -trimpath "$@" -o "$BIN/$output.new" "$package")
    mv "$BIN/$output.new" "$BIN/$output"
}

build_kubernetes() {
    local version=v1.34.4 v=k8s.io/component-base/version name
    local ldflags="-s -w -X $v.gitVersion=$version -X $v.gitMajor=1 -X $v.gitMinor=34"
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl kube-proxy; do
        build kubernetes $name k8s.io/kubernetes/cmd/$name -ldflags "$ldflags"
    done
    build kubernetes etcd go.etcd.io/etcd/server/v3 -ldflags "-s -w"
}

build_buildkit() {
    local ldflags="-s -w -X github.com/moby/buildkit/version.Version=$BUILDKIT_VERSION"
    build buildkit buildkitd github.com/moby/buildkit/cmd/buildkitd -tags "osusergo netgo" -ldflags "$ldflags"
    build buildkit buildctl github.com/moby/buildkit/cmd/buildctl -ldflags "$ldflags"
    build buildkit rootlesskit github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit -ldflags "-s -w"
}

build_kwok() {
    build kwok kwok sigs.k8s.io/kwok/cmd/kwok -ldflags "-s -w"
    # The stages that make fake nodes Ready come with the module.
    local module
    module=$(cd "$HERE/kwok" && go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)
    rm -rf "$BIN/kwok-stage"
    cp -r --no-preserve=mode "$module/kustomize/stage" "$BIN/kwok-stage"
}

build_coredns() {
    build coredns coredns github.com/coredns/coredns -ldflags "-s -w"
}

mkdir -p "$BIN"
# Two scripts that share a cache must not build the same thing at once.
exec 8>"$BIN/.lock"
flock 8

(($#)) || set -- kubernetes buildkit
for set; do
    now=$(inputs "$set")
    [[ $(cat "$BIN/.$set" 2>/dev/null) == "$now" ]] && continue
    "build_$set"
    echo "$now" >"$BIN/.$set"
done
