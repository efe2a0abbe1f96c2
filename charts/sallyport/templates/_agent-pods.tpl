{{/*
The pods of the agents, as the operator's DaemonSet must have them, field by field and with the API server's defaults: its
admission policy compares. Not a parameter object of the policy: an API server (1.34) does not find one any more whose policy
was deleted and made again, as by an uninstallation and an installation. The argument is the root.
*/}}
{{- define "sallyport.agentPods" -}}
metadata:
  labels:
    app.kubernetes.io/name: sallyport-node-agent
    app.kubernetes.io/part-of: sallyport
    app.kubernetes.io/managed-by: sallyport-operator
spec:
  serviceAccountName: sallyport-node-agent
  serviceAccount: sallyport-node-agent
  restartPolicy: Always
  schedulerName: default-scheduler
  hostNetwork: true
  dnsPolicy: Default
  priorityClassName: system-node-critical
  nodeSelector:
    sallyport.dev/agent: ""
  tolerations:
    - operator: Exists
  terminationGracePeriodSeconds: 10
  securityContext:
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: agent
      image: {{ include "sallyport.image" (dict "root" . "image" .Values.agent.image) }}
      imagePullPolicy: {{ .Values.agent.image.pullPolicy }}
      terminationMessagePath: /dev/termination-log
      terminationMessagePolicy: File
      args:
        - run
        - --node-name=$(NODE_NAME)
        - --namespace=$(POD_NAMESPACE)
        - --state-dir=/var/lib/sallyport
        - --proc-sys=/host/proc/sys
        - --admin=127.0.0.1:9478
      env:
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              apiVersion: v1
              fieldPath: spec.nodeName
        - name: POD_NAMESPACE
          valueFrom:
            fieldRef:
              apiVersion: v1
              fieldPath: metadata.namespace
        - name: SALLYPORT_LOG_FORMAT
          value: {{ .Values.logFormat }}
      securityContext:
        runAsUser: 0
        readOnlyRootFilesystem: true
        {{- if .Values.agent.privileged }}
        privileged: true
        {{- else }}
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
          add: [NET_ADMIN, NET_RAW]
        {{- end }}
      readinessProbe:
        httpGet:
          host: 127.0.0.1
          port: 9478
          path: /readyz
          scheme: HTTP
        periodSeconds: 5
        timeoutSeconds: 1
        successThreshold: 1
        failureThreshold: 3
      resources:
        requests:
          cpu: 10m
          memory: 32Mi
        limits:
          memory: 256Mi
      volumeMounts:
        - name: proc-sys-net
          mountPath: /host/proc/sys/net
        - name: xtables-lock
          mountPath: /run/xtables.lock
        - name: state
          mountPath: /var/lib/sallyport
  volumes:
    - name: proc-sys-net
      hostPath:
        path: /proc/sys/net
        type: Directory
    - name: xtables-lock
      hostPath:
        path: /run/xtables.lock
        type: FileOrCreate
    - name: state
      hostPath:
        path: /var/lib/sallyport
        type: DirectoryOrCreate
{{- end }}

{{/*
A value as a CEL literal. Kubernetes takes only literals whose elements are of one type, so each is made dynamic.
*/}}
{{- define "sallyport.cel" -}}
{{- if kindIs "map" . -}}
dyn({ {{- $first := true }}{{ range $key, $value := . }}{{ if not $first }}, {{ end }}{{ $first = false }}{{ $key | quote }}: {{ include "sallyport.cel" $value }}{{ end -}} })
{{- else if kindIs "slice" . -}}
dyn([ {{- range $at, $value := . }}{{ if $at }}, {{ end }}{{ include "sallyport.cel" $value }}{{ end -}} ])
{{- else if kindIs "string" . -}}
dyn({{ . | quote }})
{{- else if kindIs "float64" . -}}
dyn({{ int . }})
{{- else -}}
dyn({{ . }})
{{- end -}}
{{- end }}
