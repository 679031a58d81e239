{{- define "walherd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "walherd.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "walherd.labels" -}}
{{ include "walherd.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "walherd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "walherd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The name the NATS chart gives its own objects in this release. */ -}}
{{- define "walherd.brokerName" -}}
{{- if contains "nats" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-nats" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "walherd.brokerURL" -}}
{{- if .Values.broker.url -}}
{{- .Values.broker.url -}}
{{- else if .Values.nats.enabled -}}
nats://{{ include "walherd.brokerName" . }}.{{ .Release.Namespace }}.svc:4222
{{- else -}}
{{- fail "broker.url is empty: give the address of a broker, or set nats.enabled to install one" -}}
{{- end -}}
{{- end -}}

{{- define "walherd.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- /* A map of settings as the env of a container. */ -}}
{{- define "walherd.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end -}}
{{- end -}}

{{- /*
What every process needs to reach the broker, of a map: root; auth, one of
broker.auth; mode, that of the files. The first is env, the next two are where
the files are.
*/ -}}
{{- define "walherd.brokerEnv" -}}
- name: WALHERD_CLUSTER
  value: {{ .root.Values.cluster | quote }}
- name: WALHERD_NATS_URL
  value: {{ include "walherd.brokerURL" .root | quote }}
- name: WALHERD_REPLICAS
  value: {{ .root.Values.broker.replicas | quote }}
{{- if .auth.credsSecret }}
- name: WALHERD_NATS_CREDS
  value: /etc/walherd/broker-login/{{ .auth.credsKey }}
{{- end }}
{{- if .root.Values.broker.tls.secretName }}
- name: WALHERD_NATS_CA
  value: /etc/walherd/broker-tls/ca.crt
{{- if .root.Values.broker.tls.clientCertificate }}
- name: WALHERD_NATS_CERT
  value: /etc/walherd/broker-tls/tls.crt
- name: WALHERD_NATS_KEY
  value: /etc/walherd/broker-tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{- define "walherd.brokerMounts" -}}
{{- if .auth.credsSecret }}
- name: broker-login
  mountPath: /etc/walherd/broker-login
  readOnly: true
{{- end }}
{{- if .root.Values.broker.tls.secretName }}
- name: broker-tls
  mountPath: /etc/walherd/broker-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "walherd.brokerVolumes" -}}
{{- if .auth.credsSecret }}
- name: broker-login
  secret:
    secretName: {{ .auth.credsSecret }}
    defaultMode: {{ .mode }}
{{- end }}
{{- if .root.Values.broker.tls.secretName }}
- name: broker-tls
  secret:
    secretName: {{ .root.Values.broker.tls.secretName }}
    defaultMode: {{ .mode }}
{{- end }}
{{- end -}}

{{- define "walherd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "walherd.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 20
  timeoutSeconds: 5
# Not ready means that the broker or the storage is away. That is no reason to
# restart: the process goes on trying.
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 20
  timeoutSeconds: 7
{{- end -}}

{{- /* The agent's container, the same in a sidecar and in a daemonset. */ -}}
{{- define "walherd.agentContainer" -}}
{{- $auth := dict "root" . "auth" .Values.broker.auth.agent -}}
{{- $v := .Values.agent -}}
name: walherd-agent
image: {{ include "walherd.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [agent, --drain, 30s]
env:
  {{- include "walherd.brokerEnv" $auth | nindent 2 }}
  - name: PGDATA
    value: {{ $v.dataDir }}
  - name: PGHOST
    value: {{ $v.pgHost }}
  - name: PGUSER
    value: {{ $v.pgUser }}
  - name: WALHERD_SOCKET
    value: {{ $v.socketDir }}/archive.sock
  - name: WALHERD_HEALTH_LISTEN
    value: ":{{ $v.healthPort }}"
  {{- if $v.backupSchedule }}
  - name: WALHERD_BACKUP_SCHEDULE
    value: {{ $v.backupSchedule | quote }}
  {{- end }}
  {{- if $v.verifySchedule }}
  - name: WALHERD_VERIFY_SCHEDULE
    value: {{ $v.verifySchedule | quote }}
  {{- end }}
  {{- with include "walherd.env" .Values.settings | trim }}{{ nindent 2 . }}{{ end }}
  {{- with include "walherd.env" $v.settings | trim }}{{ nindent 2 . }}{{ end }}
{{- if or .Values.broker.auth.agent.envSecret $v.pgSecret }}
envFrom:
  {{- with .Values.broker.auth.agent.envSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
  {{- with $v.pgSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
ports:
  - {name: health, containerPort: {{ $v.healthPort }}}
{{ include "walherd.probes" . }}
resources:
  {{- toYaml $v.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $v.runAsUser }}
  runAsGroup: {{ $v.runAsGroup }}
  {{- include "walherd.containerSecurity" . | nindent 2 }}
volumeMounts:
  # Written to: marks of what is archived, and fetched segments, in pg_wal.
  - {name: {{ $v.sidecar.dataVolume }}, mountPath: {{ $v.dataDir }}}
  {{- if hasPrefix "/" $v.pgHost }}
  - {name: {{ $v.sidecar.socketVolume }}, mountPath: {{ $v.pgHost }}}
  {{- end }}
  - {name: {{ $v.sidecar.archiveVolume }}, mountPath: {{ $v.socketDir }}}
  {{- with $v.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
  {{- with include "walherd.brokerMounts" $auth | trim }}{{ nindent 2 . }}{{ end }}
{{- end -}}
