# The pods that scripts/vm-kubelet.sh has kubelet run; to be sourced. Each is a static pod, as no API server is there.
# shellcheck shell=bash disable=SC2154

# Every name of these is on the registry of the test.
B='image: registry.k8s.io/e2e-test-images/busybox:1.29-2, imagePullPolicy: IfNotPresent'
N='image: registry.k8s.io/e2e-test-images/nginx:1.14-2, imagePullPolicy: IfNotPresent'
# The same for block style.
B_BLOCK=${B/, /$'\n    '}
N_BLOCK=${N/, /$'\n    '}
REST='command: [sh, -c, "trap exit TERM; while :; do sleep 1; done"]'

# pod NAME [METADATA]: a static pod with the spec on stdin; kubelet sees it whole, by a rename.
pod() {
  {
    printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default%s}\nspec:\n' "$1" "${2:+, $2}"
    sed 's/^/  /'
  } >"$kubernetes/$1.yaml"
  mv "$kubernetes/$1.yaml" "$manifests/"
}

# Classes of quality of service, and what a node gives out.
resource_pods() {
  pod guaranteed <<END
containers: [{name: c, $B, $REST, resources: {limits: {cpu: 100m, memory: 32Mi}}}]
END
  pod burstable <<END
containers: [{name: c, $B, $REST, resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {memory: 64Mi}}}]
END
  pod besteffort <<END
containers: [{name: c, $B, $REST}]
END
  pod exclusive <<END
containers: [{name: c, $B, $REST, resources: {limits: {cpu: 1, memory: 32Mi}}}]
END
  pod hugepages <<END
containers:
  - {name: c, $B, $REST, resources: {limits: {cpu: 10m, memory: 16Mi, hugepages-2Mi: 4Mi}}, volumeMounts: [{name: h, mountPath: /h}]}
volumes: [{name: h, emptyDir: {medium: HugePages}}]
END
  pod podlevel <<END
resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
containers: [{name: a, $B, $REST}, {name: b, $B, $REST}]
END
  pod oom <<END
containers: [{name: c, $B, command: [sh, -c, "tail /dev/zero"], resources: {limits: {memory: 16Mi}}}]
restartPolicy: Never
END
}

# The order in which containers of a pod come and go, probes and hooks.
order_pods() {
  pod init <<END
initContainers:
  - {name: one, $B, command: [sh, -c, "echo one >>/v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: two, $B, command: [sh, -c, "echo two >>/v/f"], volumeMounts: [{name: v, mountPath: /v}]}
containers: [{name: c, $B, command: [sh, -c, "cat /v/f; exec sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}]
volumes: [{name: v, emptyDir: {}}]
END
  pod sidecar <<END
initContainers:
  - name: side
    $N_BLOCK
    restartPolicy: Always
    startupProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, failureThreshold: 60}
containers: [{name: c, $B, command: [sh, -c, "wget -qO- http://127.0.0.1/ >/dev/null && echo served"]}]
restartPolicy: Never
END
  pod several <<END
containers:
  - {name: server, $N}
  - {name: client, $B, command: [sh, -c, "until wget -qO- http://127.0.0.1/ >/dev/null; do sleep 1; done; echo served; exec sleep 100000"]}
  - {name: third, $B, $REST}
END
  pod probes <<END
containers:
  - name: c
    $N_BLOCK
    ports: [{name: http, containerPort: 80}]
    startupProbe: {exec: {command: [sh, -c, "test -d /proc"]}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 10}
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 2, timeoutSeconds: 5}
    livenessProbe: {tcpSocket: {port: http}, periodSeconds: 2, timeoutSeconds: 5}
  - name: grpc
    $B_BLOCK
    command: [/payload/bin/lab, grpc-health, "0.0.0.0:5051"]
    readinessProbe: {grpc: {port: 5051}, periodSeconds: 2, timeoutSeconds: 5}
    volumeMounts:
      - {name: payload, mountPath: /payload, readOnly: true}
      - {name: lib, mountPath: /lib, readOnly: true}
      - {name: lib, mountPath: /lib64, subPath: x86_64-linux-gnu, readOnly: true}
volumes:
  - {name: payload, hostPath: {path: /payload}}
  - {name: lib, hostPath: {path: /usr/lib}}
END
  pod unwell <<END
terminationGracePeriodSeconds: 1
containers: [{name: c, $B, $REST, livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10}}]
END
  pod slowprobe <<END
containers: [{name: c, $B, $REST, readinessProbe: {exec: {command: [sleep, "100"]}, periodSeconds: 5, timeoutSeconds: 1}}]
END
  pod hooks <<END
terminationGracePeriodSeconds: 30
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "trap 'echo TERM >>/v/hooks; exit' TERM; while :; do sleep 0.2; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo postStart >>/v/hooks"]}}
      preStop: {exec: {command: [sh, -c, "echo preStop >>/v/hooks; sleep 1; echo stopped >>/v/hooks"]}}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: sleeps, $B, $REST, lifecycle: {preStop: {sleep: {seconds: 1}}}}
  - {name: bad, $B, $REST, lifecycle: {postStart: {exec: {command: [/no/such]}}}}
volumes: [{name: v, hostPath: {path: $shared, type: DirectoryOrCreate}}]
END
  pod stopsignal <<END
os: {name: linux}
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "trap 'echo USR1 >>/v/signal; exit' USR1; trap 'echo TERM >>/v/signal; exit' TERM; echo ready; while :; do sleep 0.2; done"]
    lifecycle: {stopSignal: SIGUSR1}
    volumeMounts: [{name: v, mountPath: /v}]
volumes: [{name: v, hostPath: {path: $shared, type: DirectoryOrCreate}}]
END
  pod crash <<END
containers: [{name: c, $B, command: [sh, -c, "echo crashing; exit 3"]}]
END
  pod deadline <<END
activeDeadlineSeconds: 5
containers: [{name: c, $B, $REST}]
END
  pod ended <<END
containers: [{name: c, $B, command: [sh, -c, "echo said; echo -n told >/msg"], terminationMessagePath: /msg}]
restartPolicy: Never
END
  pod fallback <<END
containers: [{name: c, $B, command: [sh, -c, "echo last words; exit 7"], terminationMessagePolicy: FallbackToLogsOnError}]
restartPolicy: Never
END
}

# Who a container's process is, and what it sees of the node.
security_pods() {
  pod user <<END
securityContext:
  {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000, supplementalGroups: [4000], supplementalGroupsPolicy: Strict, runAsNonRoot: true,
   seccompProfile: {type: RuntimeDefault}, sysctls: [{name: net.ipv4.ping_group_range, value: "0 100"}, {name: kernel.shm_rmid_forced, value: "1"}]}
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "echo id \$(id -u):\$(id -g):\$(id -G); grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status; touch /no 2>/dev/null || echo readonly; echo owner \$(stat -c %g:%a /v); touch /v/f && echo group \$(stat -c %g /v/f); cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced; exec sleep 100000"]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
    volumeMounts: [{name: v, mountPath: /v}]
volumes: [{name: v, emptyDir: {}}]
END
  pod apparmor <<END
containers:
  - {name: default, $B, command: [sh, -c, "cat /proc/self/attr/current; exec sleep 100000"]}
  - {name: runtime, $B, command: [sh, -c, "cat /proc/self/attr/current; exec sleep 100000"], securityContext: {appArmorProfile: {type: RuntimeDefault}}}
  - {name: unconfined, $B, command: [sh, -c, "cat /proc/self/attr/current; exec sleep 100000"], securityContext: {appArmorProfile: {type: Unconfined}}}
  - {name: local, $B, command: [sh, -c, "cat /proc/self/attr/current; touch /denied || echo denied; exec sleep 100000"], securityContext: {appArmorProfile: {type: Localhost, localhostProfile: wharf-vm-test}}}
END
  pod seccomp <<END
containers:
  - {name: c, $B, command: [sh, -c, "mkdir /d || echo forbidden; exec sleep 100000"], securityContext: {seccompProfile: {type: Localhost, localhostProfile: nomkdir.json}}}
END
  pod privileged <<END
containers:
  - {name: c, $B, command: [sh, -c, "grep CapEff /proc/self/status; test -c /dev/kmsg && echo devices; mount -t tmpfs t /tmp && echo mounted; exec sleep 100000"], securityContext: {privileged: true}}
END
  pod host <<END
hostNetwork: true
hostPID: true
hostIPC: true
containers: [{name: c, $B, command: [sh, -c, "for n in net pid ipc uts; do readlink /proc/self/ns/\$n; done; hostname; exec sleep 100000"]}]
END
  pod shared <<END
shareProcessNamespace: true
containers:
  - {name: a, $B, command: [sh, -c, "exec sleep 54321"]}
  - {name: b, $B, command: [sh, -c, "until grep -aq '[5]4321' /proc/[0-9]*/cmdline 2>/dev/null; do sleep 1; done; echo sees; exec sleep 100000"]}
END
  pod userns <<END
hostUsers: false
securityContext: {fsGroup: 3000}
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "cat /proc/self/uid_map; echo owner \$(stat -c %u:%g /v); touch /v/f && echo writes; exec sleep 100000"]
    volumeMounts: [{name: v, mountPath: /v}]
    securityContext: {procMount: Unmasked}
volumes: [{name: v, emptyDir: {}}]
END
  pod tty <<END
containers: [{name: c, $B, stdin: true, tty: true, command: [sh, -c, "tty; while read line; do echo got \$line; done"]}]
END
  pod stdin <<END
containers: [{name: c, $B, stdin: true, stdinOnce: true, command: [sh, -c, "while read line; do echo got \$line; done; echo over"]}]
restartPolicy: Never
END
}

# Volumes, names, ports, logs.
world_pods() {
  pod volumes <<END
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "for m in /disk /mem /sub /ro /image /down; do grep \" \$m \" /proc/self/mounts | cut -d' ' -f2-4; done; touch /ro/x || echo ro; cat /sub /image/marker /down/labels; echo; df -k /mem | tail -1; exec sleep 100000"]
    volumeMounts:
      - {name: disk, mountPath: /disk}
      - {name: mem, mountPath: /mem}
      - {name: host, mountPath: /sub, subPath: file}
      - {name: host, mountPath: /ro, readOnly: true}
      # "Enabled" is refused by a kubelet without an API server: it does not look at the handlers then.
      - {name: tree, mountPath: /rro, readOnly: true, recursiveReadOnly: IfPossible}
      - {name: image, mountPath: /image}
      - {name: down, mountPath: /down}
volumes:
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - {name: host, hostPath: {path: $shared}}
  - {name: tree, hostPath: {path: $tree}}
  - {name: image, image: {reference: "gcr.io/k8s-staging-cri-tools/test-image-1:latest", pullPolicy: IfNotPresent}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: "metadata.labels"}}]}}
END
  pod propagation <<END
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "mkdir -p /two/made && mount -t tmpfs made /two/made && touch /two/made/here; until test -e /to/below/late/here; do sleep 1; done; echo arrived; exec sleep 100000"]
    securityContext: {privileged: true}
    volumeMounts:
      - {name: two, mountPath: /two, mountPropagation: Bidirectional}
      - {name: tree, mountPath: /to, mountPropagation: HostToContainer}
volumes: [{name: two, hostPath: {path: $two}}, {name: tree, hostPath: {path: $tree}}]
END
  pod names 'labels: {app: names}, annotations: {a: "1"}' <<END
hostname: given
subdomain: sub
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [example.test], options: [{name: ndots, value: "3"}]}
hostAliases: [{ip: 192.0.2.7, hostnames: [alias.test]}]
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "hostname; cat /etc/resolv.conf /etc/hosts; echo env \$NAME \$NODE \$LIMIT; exec sleep 100000"]
    resources: {limits: {memory: 32Mi}}
    env:
      - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
      - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
      - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
END
  pod port <<END
containers: [{name: c, $N, ports: [{containerPort: 80, hostPort: 18080}]}]
END
  pod flood <<END
containers: [{name: c, $B, command: [sh, -c, "i=0; while [ \$i -lt 40000 ]; do echo line \$i; i=\$((i + 1)); done; while :; do echo end; sleep 1; done"]}]
END
  pod nosuchimage <<END
containers: [{name: c, image: "registry.k8s.io/no/such:image", imagePullPolicy: IfNotPresent}]
END
  pod noregistry <<END
containers: [{name: c, image: "127.0.0.1:5999/no/such:image", imagePullPolicy: IfNotPresent}]
END
  pod never <<END
containers: [{name: c, image: "registry.k8s.io/no/such:never", imagePullPolicy: Never}]
END
  pod badname <<END
containers: [{name: c, image: "registry.k8s.io/Bad/NAME", imagePullPolicy: IfNotPresent}]
END
  pod nocommand <<END
containers: [{name: c, $B, command: [/no/such]}]
restartPolicy: Never
END
  pod nonroot <<END
containers: [{name: c, $B, $REST, securityContext: {runAsNonRoot: true}}]
END
  pod nohostpath <<END
containers: [{name: c, $B, $REST, volumeMounts: [{name: v, mountPath: /v}]}]
volumes: [{name: v, hostPath: {path: /no/such/path, type: Directory}}]
END
  pod unused <<END
containers: [{name: c, image: "gcr.io/k8s-staging-cri-tools/test-image-2:latest", imagePullPolicy: Always, command: ["true"]}]
restartPolicy: Never
END
}
