{{/*
The sidecar: its container and its volumes, here alone. print.yaml brings them into the three forms.
*/}}
{{- define "pinion.container" -}}
name: {{ .Values.containerName }}
image: {{ include "pinion.image" . | quote }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- if eq .Values.mode "serve" }}
command: [pinion, serve]
ports:
  - name: pinion-admin
    containerPort: {{ .Values.admin.port }}
    protocol: TCP
{{- if .Values.readinessProbe.enabled }}
readinessProbe:
  httpGet: {path: /readyz, port: pinion-admin}
  {{- with .Values.readinessProbe.spec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- if .Values.livenessProbe.enabled }}
livenessProbe:
  httpGet: {path: /healthz, port: pinion-admin}
  {{- with .Values.livenessProbe.spec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- else }}
command: [/var/run/argocd/argocd-cmp-server]
{{- end }}
env:
  - name: PINION_CONFIG
    value: /etc/pinion/pinion.yaml
  - name: PINION_REGISTRIES_CONF
    value: /etc/pinion/registries.conf
  - name: PINION_STORE
    value: /var/lib/pinion
  {{- if ne (printf "%s:%v" .Values.admin.address .Values.admin.port) "0.0.0.0:8080" }}
  - name: PINION_ADMIN_ADDRESS
    value: {{ printf "%s:%v" .Values.admin.address .Values.admin.port | quote }}
  {{- end }}
  {{- if .Values.apiTokenSecret.name }}
  - name: PINION_API_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ .Values.apiTokenSecret.name }}
        key: {{ .Values.apiTokenSecret.key }}
  {{- end }}
  {{- if .Values.dockerConfigSecret }}
  - name: DOCKER_CONFIG
    value: /etc/pinion-docker
  {{- end }}
  {{- if .Values.sshSecret }}
  - name: PINION_SSH_CONFIG
    value: /etc/pinion-ssh/config
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- include "pinion.resources" . | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: {{ .Values.repoServer.volumes.plugins }}
    mountPath: /home/argocd/cmp-server/plugins
  {{- if eq .Values.mode "generate" }}
  - name: {{ .Values.repoServer.volumes.varFiles }}
    mountPath: /var/run/argocd
  {{- end }}
  {{- with .Values.repoServer.volumes.tlsCerts }}
  - name: {{ . }}
    mountPath: /app/config/tls
  {{- end }}
  - name: pinion-plugin
    mountPath: /home/argocd/cmp-server/config
  - name: pinion-config
    mountPath: /etc/pinion
  - name: pinion-store
    mountPath: /var/lib/pinion
  - name: pinion-work
    mountPath: /tmp
  {{- if .Values.dockerConfigSecret }}
  - name: pinion-docker
    mountPath: /etc/pinion-docker
    readOnly: true
  {{- end }}
  {{- if or .Values.scripts.configMap .Values.scripts.secret }}
  - name: pinion-scripts
    mountPath: /app/scripts
    readOnly: true
  {{- end }}
  {{- if .Values.sshSecret }}
  - name: pinion-ssh
    mountPath: /etc/pinion-ssh
    readOnly: true
  {{- end }}
  {{- if .Values.serviceAccountToken.enabled }}
  - name: pinion-token
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "pinion.volumes" -}}
- name: pinion-plugin
  configMap:
    name: {{ include "pinion.name" . }}-plugin
# A directory of both, so that a changed registries.conf arrives in the running sidecar.
- name: pinion-config
  projected:
    sources:
      - configMap:
          name: {{ include "pinion.name" . }}-config
          items:
            - {key: pinion.yaml, path: pinion.yaml}
      - configMap:
          name: {{ include "pinion.registriesConfigMap" . }}
          items:
            - {key: registries.conf, path: registries.conf}
# The last known good pins.
- name: pinion-store
  {{- if eq .Values.store.type "persistentVolumeClaim" }}
  persistentVolumeClaim:
    claimName: {{ include "pinion.claim" . }}
  {{- else }}
  emptyDir:
    {{- if eq .Values.store.type "memory" }}
    medium: Memory
    {{- end }}
    sizeLimit: {{ .Values.store.size }}
  {{- end }}
# A private temporary directory, not the repo-server's.
- name: pinion-work
  {{- if or .Values.workDir.medium .Values.workDir.sizeLimit }}
  emptyDir:
    {{- with .Values.workDir.medium }}
    medium: {{ . }}
    {{- end }}
    {{- with .Values.workDir.sizeLimit }}
    sizeLimit: {{ . }}
    {{- end }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with .Values.dockerConfigSecret }}
- name: pinion-docker
  secret:
    secretName: {{ . }}
    items:
      - {key: .dockerconfigjson, path: config.json}
{{- end }}
{{- with .Values.scripts.configMap }}
- name: pinion-scripts
  configMap:
    name: {{ . }}
    defaultMode: 365 # 0555
{{- end }}
{{- with .Values.scripts.secret }}
- name: pinion-scripts
  secret:
    secretName: {{ . }}
    defaultMode: 365 # 0555
{{- end }}
{{- with .Values.sshSecret }}
- name: pinion-ssh
  secret:
    secretName: {{ . }}
{{- end }}
{{- if .Values.serviceAccountToken.enabled }}
- name: pinion-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ .Values.serviceAccountToken.expirationSeconds }}
          {{- with .Values.serviceAccountToken.audience }}
          audience: {{ . }}
          {{- end }}
      - configMap:
          name: kube-root-ca.crt
          items:
            - {key: ca.crt, path: ca.crt}
      - downwardAPI:
          items:
            - path: namespace
              fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The part of the repo-server's Deployment that is Pinion's: for a strategic merge or a server-side apply. */}}
{{- define "pinion.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Values.repoServer.deployment }}
  namespace: {{ include "pinion.namespace" . }}
spec:
  template:
    metadata:
      annotations:
        kubectl.kubernetes.io/default-container: {{ .Values.repoServer.container }}
        pinion.dev/config-checksum: {{ include "pinion.checksum" . }}
    spec:
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if eq .Values.store.type "persistentVolumeClaim" }}
      # So that user 999 can write the claim's volume.
      securityContext:
        fsGroup: 999
        fsGroupChangePolicy: OnRootMismatch
      {{- end }}
      containers:
        - {{ include "pinion.container" . | indent 10 | trim }}
      volumes:
        {{- include "pinion.volumes" . | nindent 8 }}
{{- end }}
