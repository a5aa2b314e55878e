# Kiln's two images:
#
#   docker build -t kiln .                         the service
#   docker build -t kiln-agent --target agent .    what runs in build pods
#
# Both get their programs from the stage that BINARIES names: `compiled` compiles this source, `prebuilt` takes
# dist/kiln and dist/kiln-agent, compiled elsewhere on a Debian no newer than the base here (the latter linked statically:
# RUSTFLAGS="-C target-feature=+crt-static"), for builds that can't reach the package registry.
ARG BINARIES=compiled
ARG RUST=rust:1.95-slim-bookworm
ARG DEBIAN=debian:bookworm-slim
# May have git, git-lfs and ssh already, and then no package is installed.
ARG AGENT_BASE=debian:bookworm-slim

FROM ${RUST} AS compile
WORKDIR /src
COPY . .
ENV SQLX_OFFLINE=true CARGO_PROFILE_RELEASE_STRIP=debuginfo
# The agent goes into other people's images: it brings everything along.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    set -eu; \
    host=$(rustc -vV | sed -n 's/^host: //p'); \
    cargo build --locked --release --bin kiln; \
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile agent --package kiln-agent --target "$host"; \
    [ "$(stat -c %s "target/$host/agent/kiln-agent")" -le 5000000 ]; \
    mkdir /out; \
    cp target/release/kiln "target/$host/agent/kiln-agent" /out/

FROM scratch AS compiled
COPY --from=compile /out/ /

FROM scratch AS prebuilt
COPY dist/ /

FROM ${BINARIES} AS binaries

FROM ${AGENT_BASE} AS agent
# git asks ssh, and ssh wants its user to have a name.
RUN set -eu; \
    for program in git git-lfs ssh; do command -v "$program" >/dev/null || missing=yes; done; \
    if [ "${missing:-}" ] || [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update -q; \
        apt-get install -q -y --no-install-recommends ca-certificates git git-lfs openssh-client; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    id 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home user
COPY --from=binaries --chmod=755 /kiln-agent /kiln-agent
ARG VERSION=dev
LABEL org.opencontainers.image.title="kiln-agent" \
      org.opencontainers.image.description="Runs inside Kiln's build pods: fetches the source, carries out the steps" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 1000:1000
ENTRYPOINT ["/kiln-agent"]

# What the service needs of a system: glibc, certificates, users and a resolver.
FROM ${DEBIAN} AS files
RUN set -eu; \
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update -q; \
        apt-get install -q -y --no-install-recommends ca-certificates; \
    fi
COPY --from=binaries --chmod=755 /kiln /image/kiln
RUN set -eu; \
    cd /image; \
    ldd kiln | grep -o '/[^ ]*' | xargs cp --dereference --parents --target-directory=.; \
    mkdir -p etc/ssl/certs; \
    cp --dereference /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/; \
    echo 'hosts: files dns' >etc/nsswitch.conf; \
    echo 'kiln:x:65532:65532:Kiln:/:/kiln' >etc/passwd; \
    echo 'kiln:x:65532:' >etc/group; \
    mkdir -m 1777 tmp

FROM scratch
COPY --from=files /image/ /
ARG VERSION=dev
LABEL org.opencontainers.image.title="kiln" \
      org.opencontainers.image.description="A container-image build service: one pod per build, logs and status over SSE" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/kiln"]
CMD ["serve"]
