{{- define "pinion.name" -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "pinion.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end }}

{{- define "pinion.selector" -}}
{{- toYaml .Values.repoServer.podLabels -}}
{{- end }}

{{/* metadata of an object: (list . "-suffix"), or (list . "-suffix" labels) with further labels */}}
{{- define "pinion.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "pinion.name" $root }}{{ index . 1 }}
namespace: {{ include "pinion.namespace" $root }}
labels:
  {{- $labels := dict
        "app.kubernetes.io/name" "pinion"
        "app.kubernetes.io/instance" $root.Release.Name
        "app.kubernetes.io/part-of" "argocd"
        "app.kubernetes.io/managed-by" $root.Release.Service
        "app.kubernetes.io/version" ($root.Values.image.tag | default $root.Chart.AppVersion | trunc 63 | trimSuffix "-" | trimSuffix ".")
        "helm.sh/chart" (printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_")) }}
  {{- $further := dict }}
  {{- if gt (len .) 2 }}{{ $further = index . 2 }}{{ end }}
  {{- toYaml (merge (deepCopy $further) $root.Values.commonLabels $labels) | nindent 2 }}
{{- end }}

{{- define "pinion.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end }}

{{/* pinion.yaml, the file of --config. */}}
{{- define "pinion.config" -}}
{{- toYaml .Values.config -}}
{{- end }}

{{- define "pinion.registries" -}}
registries:
  {{- toYaml .Values.registries | nindent 2 }}
{{- end }}

{{- define "pinion.registriesConfigMap" -}}
{{- .Values.existingRegistriesConfigMap | default (printf "%s-config" (include "pinion.name" .)) -}}
{{- end }}

{{- define "pinion.claim" -}}
{{- .Values.store.existingClaim | default (printf "%s-store" (include "pinion.name" .)) -}}
{{- end }}

{{/* What Pinion reads at its start only: if it changes, the pods must be replaced. It follows registries.conf by itself. */}}
{{- define "pinion.checksum" -}}
{{- printf "%s\n%s" (include "pinion.config" .) (.Files.Get "files/plugin.yaml") | sha256sum -}}
{{- end }}

{{/* Bytes of a quantity such as `512Mi`, as a whole number. */}}
{{- define "pinion.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "`%s` is no quantity of memory: write a number with Ki, Mi or Gi" $text) -}}
{{- end -}}
{{- mulf $number (get $units $unit) | ceil | int64 -}}
{{- end }}

{{/* Thousandths of a processor of a quantity such as `250m` or `1.5`. */}}
{{- define "pinion.millicores" -}}
{{- $text := toString . -}}
{{- if not (regexMatch "^[0-9]+([.][0-9]+)?m?$" $text) -}}
{{- fail (printf "`%s` is no quantity of processors: write a number such as `0.5` or `500m`" $text) -}}
{{- end -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | float64 | ceil | int64 -}}
{{- else -}}
{{- mulf $text 1000 | ceil | int64 -}}
{{- end -}}
{{- end }}

{{/*
Resources of the container: the server, one worker for each render at a time, and what is kept in memory instead of on disk.
*/}}
{{- define "pinion.resources" -}}
{{- if .Values.resources.override -}}
{{- toYaml .Values.resources.override -}}
{{- else -}}
{{- $workers := index .Values.config "renders-at-once" -}}
{{- if not $workers -}}
{{- fail "`resources` is a sum with one worker for each render at a time: set `config.renders-at-once`, or all resources with `resources.override`" -}}
{{- end -}}
{{- $inMemory := 0 -}}
{{- if eq .Values.workDir.medium "Memory" -}}
{{- $inMemory = add $inMemory (include "pinion.bytes" .Values.workDir.sizeLimit | int64) -}}
{{- end -}}
{{- if eq .Values.store.type "memory" -}}
{{- $inMemory = add $inMemory (include "pinion.bytes" .Values.store.size | int64) -}}
{{- end -}}
{{- $sums := dict -}}
{{- range $kind := list "requests" "limits" -}}
{{- $server := index $.Values.resources.server $kind | default dict -}}
{{- $worker := index $.Values.resources.worker $kind | default dict -}}
{{- range $name := list "cpu" "memory" -}}
{{- $base := get $server $name -}}
{{- $each := get $worker $name -}}
{{- if and (eq $kind "limits") (ne (empty $base) (empty $each)) -}}
{{- fail (printf "`resources`: `limits.%s` is given for one of `server` and `worker`: give both or none" $name) -}}
{{- end -}}
{{- if or $base $each -}}
{{- $sum := dict -}}
{{- if eq $name "cpu" -}}
{{- $total := add (include "pinion.millicores" ($base | default 0) | int64) (mul (include "pinion.millicores" ($each | default 0) | int64) (int64 $workers)) -}}
{{- $_ := set $sum "text" (printf "%dm" $total) -}}
{{- else -}}
{{- $total := add (include "pinion.bytes" ($base | default 0) | int64) (mul (include "pinion.bytes" ($each | default 0) | int64) (int64 $workers)) $inMemory -}}
{{- $_ := set $sum "text" (printf "%dMi" (divf $total 1048576 | ceil | int64)) -}}
{{- end -}}
{{- $_ := set $sums $kind (set (get $sums $kind | default dict) $name $sum.text) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $sums -}}
{{- end -}}
{{- end }}

{{/* Mistakes that a schema cannot tell. */}}
{{- define "pinion.check" -}}
{{- if and (eq .Values.mode "generate") (or .Values.metrics.serviceMonitor.enabled .Values.metrics.prometheusRule.enabled .Values.networkPolicy.enabled) -}}
{{- fail "`mode: generate` has no admin port: `metrics.serviceMonitor`, `metrics.prometheusRule` and `networkPolicy` need `mode: serve`" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) -}}
{{- fail "`metrics.serviceMonitor` needs `metrics.service`" -}}
{{- end -}}
{{- if and .Values.registries .Values.existingRegistriesConfigMap -}}
{{- fail "`registries` and `existingRegistriesConfigMap` are both given: there is one registries.conf" -}}
{{- end -}}
{{- if and .Values.scripts.configMap .Values.scripts.secret -}}
{{- fail "`scripts.configMap` and `scripts.secret` are both given: there is one directory of scripts" -}}
{{- end -}}
{{- $own := list "PINION_CONFIG" "PINION_REGISTRIES_CONF" "PINION_STORE" "PINION_ADMIN_ADDRESS" -}}
{{- if .Values.apiTokenSecret.name }}{{ $own = append $own "PINION_API_TOKEN" }}{{ end -}}
{{- if .Values.dockerConfigSecret }}{{ $own = append $own "DOCKER_CONFIG" }}{{ end -}}
{{- if .Values.sshSecret }}{{ $own = append $own "PINION_SSH_CONFIG" }}{{ end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $own -}}
{{- fail (printf "`extraEnv`: the chart sets `%s` itself" .name) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.workDir.medium "Memory" -}}
{{- if not .Values.workDir.sizeLimit -}}
{{- fail "`workDir.medium: Memory` needs `workDir.sizeLimit`, which counts as memory of the container" -}}
{{- end -}}
{{- $kept := int64 (index .Values.config "keep-archive-bytes" | default 2147483648) -}}
{{- if lt (include "pinion.bytes" .Values.workDir.sizeLimit | int64) $kept -}}
{{- fail (printf "`workDir.sizeLimit` %s is less than the archives that are kept there (%d bytes): raise it, or set `config.keep-archive-bytes`" .Values.workDir.sizeLimit $kept) -}}
{{- end -}}
{{- end -}}
{{- end }}
