{{/* The stages, in the order of the flow. */}}
{{- define "penstock.stages" -}}ingest fetch parse dedupe route deliver{{- end -}}

{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes for a part, so that selectors may have it: dict root part. */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .part }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of an object: dict root part. */}}
{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* The settings of a part over the defaults, as YAML: dict root part. */}}
{{- define "penstock.settings" -}}
{{- $own := dict -}}
{{- if eq .part "console" -}}
{{- $own = .root.Values.console -}}
{{- else -}}
{{- $own = get .root.Values.stages .part | default dict -}}
{{- end -}}
{{- $all := mergeOverwrite (deepCopy .root.Values.defaults) (deepCopy $own) -}}
{{- if not (get $own "serviceAccount") -}}{{- $_ := set $all "serviceAccount" (deepCopy .root.Values.defaults.serviceAccount) -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* The NATS user of a part. */}}
{{- define "penstock.role" -}}
{{- if eq . "console" -}}operate{{- else if eq . "topology" -}}admin{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Name of the ServiceAccount: dict root part settings. */}}
{{- define "penstock.serviceAccount" -}}
{{- $name := printf "%s-%s" (include "penstock.fullname" .root) .part -}}
{{- with .settings.serviceAccount -}}
{{- if and .name (ne .name "") -}}{{ .name }}{{- else if eq (toString .create) "false" -}}default{{- else -}}{{ $name }}{{- end -}}
{{- else -}}{{ $name }}{{- end -}}
{{- end -}}

{{/* Whether a part runs at all: without sources there is nothing to ingest. */}}
{{- define "penstock.runs" -}}
{{- if eq .part "ingest" -}}{{- if .root.Values.config.sources -}}yes{{- end -}}
{{- else if eq .part "console" -}}{{- if .root.Values.console.enabled -}}yes{{- end -}}
{{- else -}}yes{{- end -}}
{{- end -}}

{{/* Who may log in to the console decides whether others than the pod reach it. */}}
{{- define "penstock.console.login" -}}
{{- $c := .Values.config.console | default dict -}}
{{- if or $c.users ($c.oidc | default dict).issuer -}}yes{{- end -}}
{{- end -}}

{{- define "penstock.console.address" -}}
{{- if .Values.console.address -}}{{ .Values.console.address }}
{{- else if include "penstock.console.login" . -}}:{{ .Values.console.service.port }}
{{- else -}}127.0.0.1:{{ .Values.console.service.port }}
{{- end -}}
{{- end -}}

{{/* The configuration of penstock. */}}
{{- define "penstock.config" -}}
{{- $bus := dict "url" .Values.nats.url "replicas" (int .Values.nats.replicas) "drain_timeout" (printf "%ds" (int .Values.drainSeconds)) -}}
{{- $telemetry := dict "address" ":8080" "log_format" "json" -}}
{{- $base := dict "bus" $bus "telemetry" $telemetry "ledger" (dict "store" "/var/lib/penstock/ledger") "console" (dict "address" (include "penstock.console.address" .)) -}}
{{- $own := deepCopy .Values.config -}}
{{- range $section, $keys := dict "bus" (dict "url" "nats.url" "replicas" "nats.replicas" "drain_timeout" "drainSeconds" "user" "nats.users" "password" "nats.users" "ca_file" "nats.tls" "cert_file" "nats.tls" "key_file" "nats.tls" "store" "nothing: NATS runs by itself here" "listen" "nothing: NATS runs by itself here") "telemetry" (dict "address" "nothing: probes and metrics need :8080") "console" (dict "address" "console.address") "ledger" (dict "store" "console.persistence") -}}
{{- range $key, $instead := $keys -}}
{{- if hasKey (get $own $section | default dict) $key -}}
{{- fail (printf "config.%s.%s: the chart sets it; use %s" $section $key $instead) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key := list "sources" "destinations" "routes" -}}
{{- if and (hasKey $own $key) (not (get $own $key)) -}}{{- $_ := unset $own $key -}}{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $base $own) -}}
{{- end -}}

{{/* 90 % of 512Mi in bytes: dict limit percent. Empty where there is no limit. */}}
{{- define "penstock.goMemory" -}}
{{- $limit := toString (.limit | default "") -}}
{{- if and $limit (gt (int .percent) 0) -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $limit -}}
{{- $unit := trimPrefix $number $limit -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "resources.limits.memory: %q is not understood; use e.g. 512Mi or 1Gi" $limit) -}}
{{- end -}}
{{- /* In thousandths, since limits may be 1.5Gi. */ -}}
{{- $milli := mulf (float64 $number) 1000.0 | int64 -}}
{{- div (mul $milli (int64 (get $units $unit)) (int64 .percent)) 100000 -}}
{{- end -}}
{{- end -}}

{{/* host:port of the monitoring of NATS. */}}
{{- define "penstock.nats.monitoring" -}}
{{- if .Values.nats.monitoring.endpoint -}}{{ .Values.nats.monitoring.endpoint }}
{{- else -}}
{{- $first := first (splitList "," .Values.nats.url) -}}
{{- $host := regexReplaceAll "^[a-z]+://([^@/]*@)?" $first "" -}}
{{- printf "%s:8222" (regexReplaceAll ":[0-9]+/?$" $host "") -}}
{{- end -}}
{{- end -}}

{{/* Whether a part gets a secret: dict for part. */}}
{{- define "penstock.gets" -}}
{{- if or (not .for) (has .part .for) -}}yes{{- end -}}
{{- end -}}

{{/* The environment of a container: dict root part settings. */}}
{{- define "penstock.env" -}}
{{- $part := .part -}}
{{- $role := include "penstock.role" .part -}}
{{- with include "penstock.goMemory" (dict "limit" (dig "resources" "limits" "memory" "" .settings) "percent" .root.Values.memoryLimitPercent) }}
- name: GOMEMLIMIT
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.aws.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.otel.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ $.root.Values.otel.protocol | quote }}
{{- end }}
{{- if .root.Values.nats.users.enabled }}
- name: PENSTOCK_BUS_USER
  value: {{ $role }}
- name: PENSTOCK_BUS_PASSWORD_FILE
  value: /etc/penstock/nats-user/password
{{- end }}
{{- with .root.Values.nats.tls }}
{{- if or .caSecret .caConfigMap }}
- name: PENSTOCK_BUS_CA_FILE
  value: /etc/penstock/nats-ca/ca.crt
{{- end }}
{{- if .clientSecret }}
- name: PENSTOCK_BUS_CERT_FILE
  value: /etc/penstock/nats-client/tls.crt
- name: PENSTOCK_BUS_KEY_FILE
  value: /etc/penstock/nats-client/tls.key
{{- end }}
{{- end }}
{{- range .root.Values.secrets.env }}
- name: {{ .name }}
{{- if include "penstock.gets" (dict "for" .for "part" $part) }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- else }}
  value: {{ default "not-for-this-pod" .placeholder | quote }} # the configuration names it; only others use it
{{- end }}
{{- end }}
{{- with .settings.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* dict root part settings config: config is the name of the ConfigMap. */}}
{{- define "penstock.volumes" -}}
{{- $part := .part -}}
{{- $role := include "penstock.role" .part -}}
- name: config
  configMap:
    name: {{ .config }}
    items:
      - {key: penstock.yaml, path: penstock.yaml}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if .root.Values.nats.users.enabled }}
- name: nats-user
  secret:
    secretName: {{ .root.Values.nats.users.secret | replace "{role}" $role }}
    defaultMode: 0440
    items:
      - {key: {{ .root.Values.nats.users.key | quote }}, path: password}
{{- end }}
{{- with .root.Values.nats.tls }}
{{- if .caSecret }}
- name: nats-ca
  secret:
    secretName: {{ .caSecret }}
    items:
      - {key: {{ .caKey | quote }}, path: ca.crt}
{{- else if .caConfigMap }}
- name: nats-ca
  configMap:
    name: {{ .caConfigMap }}
    items:
      - {key: {{ .caKey | quote }}, path: ca.crt}
{{- end }}
{{- if .clientSecret }}
- name: nats-client
  secret:
    secretName: {{ .clientSecret | replace "{role}" $role }}
    defaultMode: 0440
    items:
      - {key: {{ .certKey | quote }}, path: tls.crt}
      - {key: {{ .keyKey | quote }}, path: tls.key}
{{- end }}
{{- end }}
{{- $config := .config }}
{{- range $i, $f := .root.Values.secrets.files }}
- name: secret-{{ $i }}
{{- if include "penstock.gets" (dict "for" $f.for "part" $part) }}
  secret:
    secretName: {{ $f.secret }}
    defaultMode: 0440
    items:
    {{- range $f.keys }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
    {{- end }}
{{- else }}
  configMap: # the configuration names it; only others use it
    name: {{ $config }}
    items:
    {{- range $f.keys }}
      - {key: placeholder, path: {{ . | quote }}}
    {{- end }}
{{- end }}
{{- end }}
{{- with .settings.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.mounts" -}}
- {name: config, mountPath: /etc/penstock/config, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.nats.users.enabled }}
- {name: nats-user, mountPath: /etc/penstock/nats-user, readOnly: true}
{{- end }}
{{- with .root.Values.nats.tls }}
{{- if or .caSecret .caConfigMap }}
- {name: nats-ca, mountPath: /etc/penstock/nats-ca, readOnly: true}
{{- end }}
{{- if .clientSecret }}
- {name: nats-client, mountPath: /etc/penstock/nats-client, readOnly: true}
{{- end }}
{{- end }}
{{- range $i, $f := .root.Values.secrets.files }}
- {name: secret-{{ $i }}, mountPath: /etc/penstock/secrets/{{ $f.path }}, readOnly: true}
{{- end }}
{{- with .settings.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What a pod is but for its container: dict root part settings. */}}
{{- define "penstock.pod" -}}
serviceAccountName: {{ include "penstock.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add (int .root.Values.drainSeconds) 15 }}
securityContext:
  {{- include "penstock.podSecurity" . | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .settings.topologySpreadConstraints }}
  {{- toYaml .settings.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "penstock.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Probes of a part. Health is served from the first moment on; a stage that waits for
     NATS is alive. */}}
{{- define "penstock.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: {{ if eq .part "console" }}/healthz{{ else }}/readyz{{ end }}, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}
