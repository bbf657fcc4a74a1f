{{- define "coe.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "coe.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "coe.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Annotations of pods. The checksum changes with what is read at the start only, so that pods start again. */}}
{{- define "coe.annotations" -}}
{{- $declared := fromYaml .Values.experts }}
{{- $read := list $declared.log $declared.artifacts ($declared.access | default dict).counters }}
{{- toJson (merge (dict "checksum/start" (toJson $read | sha256sum)) .Values.podAnnotations) }}
{{- end }}

{{- define "coe.pod" -}}
{{- if or .Values.serviceAccount.create .Values.serviceAccount.name }}
serviceAccountName: {{ .Values.serviceAccount.name | default (include "coe.name" .) }}
{{- end }}
securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "coe.container" -}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- with .Values.environmentSecret }}
envFrom: [{secretRef: {name: {{ . | quote }}}}]
{{- end }}
volumeMounts:
  - {name: declaration, mountPath: /etc/coe}
  - {name: state, mountPath: /var/lib/coe}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{- define "coe.volumes" -}}
- name: declaration                  # a folder, not subPath, which would not update on a change
  configMap: {name: {{ include "coe.name" . }}}
- name: state
{{- if or .Values.state.existingClaim .Values.state.storageClass }}
  persistentVolumeClaim: {claimName: {{ .Values.state.existingClaim | default (include "coe.name" .) }}}
{{- else }}
  emptyDir: {}
{{- end }}
- {name: tmp, emptyDir: {}}
{{- with .Values.extraVolumes }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{- define "coe.image" -}}
{{ .image.repository }}:{{ .image.tag | default .version }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}
