# The sidecar of Argo CD's repo-server: Pinion, and the Helm and Kustomize that Argo CD 3.5 bundles. Its `helm` is helm-worker: Helm's
# own commands, which `pinion serve` also keeps warm.
#
#   docker build -t registry.example.com/pinion:0.1.0 .
#
# The images below are arguments, to take them from a mirror or from stand-ins on the machine, also by digest. What each stage needs of its
# image: Go; Rust and a C compiler; a Debian with apt, or with git, ssh and certificates already there. Other arguments:
#
#   GOPROXY                       where Go's modules come from
#   VERSION, REVISION             for the labels
#
# `--target runtime` builds the image without the three programs, for binaries that were built elsewhere, such as for another processor:
# add `pinion`, `helm` and `kustomize` to /usr/local/bin.
#
# Where the programs come from is checked: crates by Cargo.lock, Helm's modules by helm-worker/go.sum, Kustomize by the sum below, and
# Debian's packages by apt.
ARG BASE_IMAGE=debian:bookworm-slim
ARG GO_IMAGE=golang:1.26-bookworm
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${BASE_IMAGE} AS runtime
# Git and ssh are for Kustomize's remote bases.
RUN if ! { command -v git && command -v ssh && test -s /etc/ssl/certs/ca-certificates.crt; } >/dev/null; then \
        apt-get update \
        && apt-get install --no-install-recommends --yes ca-certificates git openssh-client \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    # The repo-server's own user, so that each can use the other's socket.
    && { getent passwd 999 >/dev/null || { groupadd --gid 999 argocd && useradd --system --uid 999 --gid 999 --create-home --home-dir /home/argocd argocd; }; }
COPY plugin.yaml /home/argocd/cmp-server/config/plugin.yaml
ENV HOME=/home/argocd
USER 999
WORKDIR /home/argocd
# As a sidecar the command is `pinion serve`; or Argo CD's own /var/run/argocd/argocd-cmp-server, which a volume of the repo-server's pod
# brings, and which reads plugin.yaml and runs `pinion generate`.
ENTRYPOINT ["pinion"]
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Pinion" \
      org.opencontainers.image.description="Argo CD config management plugin that resolves image tags while rendering" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM ${GO_IMAGE} AS tools
ARG GOPROXY
ARG KUSTOMIZE_VERSION=v5.8.1
ARG KUSTOMIZE_SUM=h1:Pgsg5psubpVEy7Nf6S89PARg5VmmWUC1l9dC6Dl4PG0=
ENV CGO_ENABLED=0 GOBIN=/out
RUN module=sigs.k8s.io/kustomize/kustomize/v5@${KUSTOMIZE_VERSION} \
    && sum=$(go mod download -json "$module" | sed -n 's/^.*"Sum": "\(.*\)".*$/\1/p') \
    && if [ "$sum" != "${KUSTOMIZE_SUM}" ]; then echo "$module has the sum $sum, not ${KUSTOMIZE_SUM}" >&2; exit 1; fi \
    && go install -trimpath -ldflags "-s -w" "$module"
WORKDIR /src
COPY helm-worker .
RUN version=$(go list -m -f '{{.Version}}' helm.sh/helm/v4) \
    && go build -trimpath -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" -o /out/helm .

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin pinion

FROM runtime
COPY --from=tools /out/helm /out/kustomize /usr/local/bin/
COPY --from=build /src/target/release/pinion /usr/local/bin/
