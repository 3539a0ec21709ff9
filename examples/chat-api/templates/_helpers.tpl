{{- define "chat-api.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "chat-api.image" -}}
{{ .Values.image.repository }}:{{ required "image.tag is not set" .Values.image.tag }}
{{- end }}
