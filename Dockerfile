# The sidecar of Argo CD's repo-server: Pinion, and the Helm and Kustomize that Argo CD 3.5 bundles. Its `helm` is helm-worker: Helm's
# own commands, which `pinion serve` also keeps warm.

FROM golang:1.26-bookworm AS tools
ENV CGO_ENABLED=0 GOBIN=/out
RUN go install -ldflags "-s -w" sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
WORKDIR /src
COPY helm-worker .
RUN version=$(go list -m -f '{{.Version}}' helm.sh/helm/v4) \
    && go build -trimpath -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" -o /out/helm .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin pinion

FROM debian:bookworm-slim
# Git and ssh are for Kustomize's remote bases.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    # The repo-server's own user, so that each can use the other's socket.
    && useradd --uid 999 --user-group --create-home --home-dir /home/argocd argocd
COPY --from=tools /out/helm /out/kustomize /usr/local/bin/
COPY --from=build /src/target/release/pinion /usr/local/bin/
COPY plugin.yaml /home/argocd/cmp-server/config/plugin.yaml
USER 999
WORKDIR /home/argocd
# As a sidecar the command is `pinion serve`; or Argo CD's own /var/run/argocd/argocd-cmp-server, which a volume of the repo-server's pod
# brings, and which reads plugin.yaml and runs `pinion generate`.
ENTRYPOINT ["pinion"]
