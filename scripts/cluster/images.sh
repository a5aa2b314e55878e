#!/usr/bin/env bash
# Makes the container images the test cluster runs, pushes them to its registry
# and loads them on both nodes, so that the first build finds them warm. No
# outside registry is asked: the base comes from debootstrap, the rest from
# binaries built here. The registry's storage is part of the cache; an image is
# made again only when what it is made from changed.
#
#   images.sh          all images
#   images.sh base     all but the agent
#   images.sh agent    the agent only (the one that changes while developing)
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WORK=$DIR/images # buildah's storage and scratch space
STAMPS=$DIR/registry/.stamps
mkdir -p "$WORK/tmp" "$STAMPS"
export TMPDIR=$WORK/tmp
exec 7>"$WORK/.lock"
flock 7

alive registry || die "the registry is not running: start the cluster with scripts/cluster/up.sh"

buildah() {
    command buildah --root "$WORK/storage" --runroot "$WORK/runroot" --storage-driver overlay "$@" 7>&-
}

# changed IMAGE INPUTS: whether the image must be made; `made` notes that it was.
changed() { [[ $(cat "$STAMPS/${1//[\/:]/_}" 2>/dev/null) != "$2" ]]; }
made() { echo "$2" >"$STAMPS/${1//[\/:]/_}"; }

# publish CONTAINER IMAGE: commits a working container and pushes it.
publish() {
    buildah commit --quiet --rm "$1" "$2" >/dev/null
    push "$2"
}

push() {
    inside buildah --root "$WORK/storage" --runroot "$WORK/runroot" --storage-driver overlay \
        push --quiet --tls-verify=false "$1" "docker://${2:-$1}" 7>&-
}

in_chroot() {
    buildah run --isolation chroot "$@"
}

make_pause() {
    local inputs container
    inputs=$(sha256sum <"$HERE/pause.c")
    changed "$PAUSE_IMAGE" "$inputs" || return 0
    gcc -Os -static -o "$WORK/pause" "$HERE/pause.c"
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$WORK/pause" /pause >/dev/null
    buildah config --entrypoint '["/pause"]' --user 65535:65535 "$container"
    publish "$container" "$PAUSE_IMAGE"
    made "$PAUSE_IMAGE" "$inputs"
}

make_busybox() {
    local inputs container
    inputs=$(sha256sum </bin/busybox)
    changed "$BUSYBOX_IMAGE" "$inputs" || return 0
    rm -rf "$WORK/busybox"
    mkdir -p "$WORK/busybox"/{bin,etc,tmp}
    chmod 1777 "$WORK/busybox/tmp"
    cp /bin/busybox "$WORK/busybox/bin/"
    local applet
    for applet in $(/bin/busybox --list); do
        [[ $applet == busybox ]] || ln -s busybox "$WORK/busybox/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$WORK/busybox/etc/passwd"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$WORK/busybox" / >/dev/null
    buildah config --cmd /bin/sh --env PATH=/bin "$container"
    publish "$container" "$BUSYBOX_IMAGE"
    made "$BUSYBOX_IMAGE" "$inputs"
}

make_base() {
    local inputs=bookworm-minbase-1 container
    changed "$BASE_IMAGE" "$inputs" || return 0
    rm -rf "$WORK/rootfs"
    nice debootstrap --variant=minbase --include=ca-certificates bookworm "$WORK/rootfs"
    rm -rf "$WORK/rootfs/var/cache/apt/archives/"*.deb "$WORK/rootfs/usr/share/"{doc,man,locale}/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$WORK/rootfs" / >/dev/null
    buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    publish "$container" "$BASE_IMAGE"
    rm -rf "$WORK/rootfs"
    made "$BASE_IMAGE" "$inputs"
}

# The source step of a build: git, and what git itself calls.
make_git() {
    local inputs container
    inputs="2 $(buildah images --quiet --no-trunc "$BASE_IMAGE")"
    changed "$GIT_IMAGE" "$inputs" || return 0
    container=$(buildah from "$BASE_IMAGE")
    in_chroot "$container" -- sh -ec 'apt-get -qq update
        apt-get -qq install -y --no-install-recommends git git-lfs openssh-client >/dev/null
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
        useradd --uid 1000 --create-home user'
    publish "$container" "$GIT_IMAGE"
    made "$GIT_IMAGE" "$inputs"
}

# Laid out like moby/buildkit:*-rootless, so that a pod for one runs the other.
make_buildkit() {
    local inputs container root
    "$HERE/build.sh" buildkit
    inputs="3 $(cat "$BIN/.buildkit") $(buildah images --quiet --no-trunc "$GIT_IMAGE")"
    changed "$BUILDKIT_IMAGE" "$inputs" || return 0
    container=$(buildah from "$GIT_IMAGE")
    in_chroot "$container" -- sh -ec 'apt-get -qq update
        apt-get -qq install -y --no-install-recommends uidmap runc >/dev/null
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
        ln -s /usr/sbin/runc /usr/bin/buildkit-runc
        echo user:100000:65536 | tee /etc/subuid >/etc/subgid
        mkdir -p /run/user/1000 /home/user/.local/tmp /home/user/.local/share/buildkit
        chown -R 1000:1000 /run/user/1000 /home/user'
    root=$(buildah mount "$container")
    install -m 755 "$BIN"/{buildkitd,buildctl,rootlesskit} "$root/usr/bin/"
    local module
    module=$(cd "$HERE/buildkit" && go list -m -f '{{.Dir}}' github.com/moby/buildkit)
    install -m 755 "$module/examples/buildctl-daemonless/buildctl-daemonless.sh" "$root/usr/bin/"
    # Debian's setuid helpers may not write uid_map in an unprivileged pod; file
    # capabilities may.
    chmod u-s "$root/usr/bin/"{newuidmap,newgidmap}
    setcap cap_setuid=ep "$root/usr/bin/newuidmap"
    setcap cap_setgid=ep "$root/usr/bin/newgidmap"
    buildah unmount "$container" >/dev/null
    buildah config --user 1000:1000 --env HOME=/home/user --env USER=user \
        --env XDG_RUNTIME_DIR=/run/user/1000 --env TMPDIR=/home/user/.local/tmp \
        --env BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock \
        --volume /home/user/.local/share/buildkit \
        --entrypoint '["rootlesskit", "buildkitd"]' --cmd '' "$container"
    publish "$container" "$BUILDKIT_IMAGE"
    made "$BUILDKIT_IMAGE" "$inputs"
}

# As it comes from Debian. Layers are copies: overlay mounts need more than a pod
# may, and the file wins over buildah's environment variable.
make_buildah() {
    local inputs container root
    inputs="1 $(buildah images --quiet --no-trunc "$BASE_IMAGE")"
    changed "$BUILDAH_IMAGE" "$inputs" || return 0
    container=$(buildah from "$BASE_IMAGE")
    in_chroot "$container" -- sh -ec 'apt-get -qq update
        apt-get -qq install -y --no-install-recommends buildah >/dev/null
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb'
    root=$(buildah mount "$container")
    printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
        >"$root/etc/containers/storage.conf"
    buildah unmount "$container" >/dev/null
    buildah config --env BUILDAH_ISOLATION=chroot --cmd buildah "$container"
    publish "$container" "$BUILDAH_IMAGE"
    made "$BUILDAH_IMAGE" "$inputs"
}

# What the overlay deploy/overlays/postgres uses of the official image.
make_postgres() {
    local inputs container root
    inputs="1 $(sha256sum <"$HERE/postgres.sh") $(buildah images --quiet --no-trunc "$BASE_IMAGE")"
    changed "$POSTGRES_IMAGE" "$inputs" || return 0
    container=$(buildah from "$BASE_IMAGE")
    in_chroot "$container" -- sh -ec 'groupadd --gid 999 postgres
        useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres
        mkdir -p /etc/postgresql-common/createcluster.d
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/kiln.conf
        apt-get -qq update
        apt-get -qq install -y --no-install-recommends postgresql-15 >/dev/null
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb'
    root=$(buildah mount "$container")
    install -m 755 "$HERE/postgres.sh" "$root/usr/local/bin/docker-entrypoint.sh"
    buildah unmount "$container" >/dev/null
    buildah config --entrypoint '["docker-entrypoint.sh"]' --cmd '' --stop-signal SIGINT \
        --env PATH=/usr/local/bin:/usr/lib/postgresql/15/bin:/usr/bin:/bin "$container"
    publish "$container" "$POSTGRES_IMAGE"
    made "$POSTGRES_IMAGE" "$inputs"
}

make_coredns() {
    local inputs container
    "$HERE/build.sh" coredns
    inputs=$(cat "$BIN/.coredns")
    changed "$COREDNS_IMAGE" "$inputs" || return 0
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$BIN/coredns" /coredns >/dev/null
    buildah config --entrypoint '["/coredns"]' --cmd '' "$container"
    publish "$container" "$COREDNS_IMAGE"
    made "$COREDNS_IMAGE" "$inputs"
}

# Kiln's agent, also tagged by its content so that no node runs a stale one.
make_agent() {
    local target=x86_64-unknown-linux-gnu binary hash container
    if [[ ${KILN_AGENT_BINARY:-} ]]; then # a ready one, e.g. cross-compiled
        binary=$KILN_AGENT_BINARY
    elif [[ -e $REPO/agent/Cargo.toml ]]; then
        (cd "$REPO" && RUSTFLAGS="-C target-feature=+crt-static" nice cargo build --profile agent -p kiln-agent --target $target 7>&-)
        binary=${CARGO_TARGET_DIR:-$REPO/target}/$target/agent/kiln-agent
        # It is copied into every build pod (docs/agent.md).
        [[ $(stat -c %s "$binary") -le 5000000 ]] || die "$binary is larger than 5 MB"
    else
        return 0
    fi
    # With git, so that one container fetches the source and hands on the agent.
    hash=$({
        sha256sum <"$binary"
        buildah images --quiet --no-trunc "$GIT_IMAGE"
    } | sha256sum | cut -c1-16)
    if changed agent "$hash"; then
        container=$(buildah from "$GIT_IMAGE")
        buildah copy --quiet --chmod 755 "$container" "$binary" /kiln-agent >/dev/null
        buildah config --entrypoint '["/kiln-agent"]' --cmd '' "$container"
        publish "$container" "$REGISTRY/kiln/agent:$hash"
        push "$REGISTRY/kiln/agent:$hash" "$REGISTRY/kiln/agent:dev"
        made agent "$hash"
    fi
    echo "$REGISTRY/kiln/agent:$hash" >"$DIR/agent-image"
    install -m 755 "$binary" "$DIR/kiln-agent"
    [[ ! -e $DIR/env ]] || "$HERE/env.sh"
}

# Pulls the images into both nodes' containerd; quick when they are there.
load() {
    local node pid pids=()
    for node in node1 node2; do
        alive "containerd-$node" || continue
        load_on "$node" "$@" 7>&- &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

load_on() {
    local node=$1 image
    shift
    for image; do
        inside ctr -a "$RUN/$node/containerd.sock" -n k8s.io images pull \
            --hosts-dir "$RUN/$node/certs.d" "$image" >/dev/null || die "$node cannot pull $image"
    done
}

what=${1:-all}
if [[ $what == all || $what == base ]]; then
    make_pause
    make_busybox
    make_base
    make_git
    make_buildkit
    make_buildah
    make_coredns
    make_postgres
    load "$PAUSE_IMAGE" "$BUSYBOX_IMAGE" "$GIT_IMAGE" "$BUILDKIT_IMAGE" "$BUILDAH_IMAGE" "$COREDNS_IMAGE" "$POSTGRES_IMAGE"
fi
if [[ $what == all || $what == agent ]]; then
    make_agent
    [[ ! -s $DIR/agent-image ]] || load "$(cat "$DIR/agent-image")"
fi
