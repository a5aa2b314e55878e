#!/usr/bin/env bash
# Records what real pods look like when they wait or have failed, for the tests of src/runner/kubernetes/observe. Each
# scenario makes a pod whose containers are called like those of a build, and does to it what its name says. What the
# runner never reads is left out.
#
#   scripts/cluster/shell.sh scripts/cluster/record-pods.sh [SCENARIO…]
#
# What is done to nodes happens to a node without a kubelet, which the cluster's own controllers look after: its pod is
# given the status that a kubelet would have reported before.
set -euo pipefail
OUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/src/runner/kubernetes/observe/recorded
NS=kiln-record-$$
NODE=kiln-record-$$
IMAGE=$KILN_TEST_BUSYBOX_IMAGE
REPORT='{"exit":{"code":0},"lines":7,"bytes":70,"tail":""}'
mkdir -p "$OUT"
trap 'kubectl delete ns "$NS" --wait=false >/dev/null 2>&1; kubectl delete node "$NODE" >/dev/null 2>&1; kubectl delete priorityclass "$NS" >/dev/null 2>&1; true' EXIT
kubectl create ns "$NS" >/dev/null

# pod NAME SOURCE BUILD [JQ]: a pod whose steps run these scripts, with a filter over it.
pod() {
  jq -n --arg name "$1" --arg image "$IMAGE" --arg source "$2" --arg build "$3" '
    def container($n; $script): {name: $n, image: $image, command: ["sh", "-c", $script],
      terminationMessagePath: "/dev/termination-log",
      resources: {limits: {cpu: "50m", memory: "32Mi"}}};
    {apiVersion: "v1", kind: "Pod", metadata: {name: $name}, spec: {
      restartPolicy: "Never", automountServiceAccountToken: false, terminationGracePeriodSeconds: 2,
      initContainers: [
        container("ship"; "trap \"exit 0\" TERM; while :; do sleep 0.2; done") + {restartPolicy: "Always"},
        container("source"; $source)],
      containers: [container("build"; $build)]}} | '"${4:-.}" | kubectl -n "$NS" create -f - >/dev/null
}
WELL="printf '$REPORT' >/dev/termination-log"
HANGS="trap 'exit 143' TERM; while :; do sleep 0.2; done"

# until NAME JQ [SECONDS]: waits until the pod is like that.
until_pod() {
  local i
  for ((i = 0; i < ${3:-120} * 4; i++)); do
    if kubectl -n "$NS" get pod "$1" -o json 2>/dev/null | jq -e "$2" >/dev/null; then return; fi
    sleep 0.25
  done
  kubectl -n "$NS" get pod "$1" -o yaml >&2
  echo "$1 never came to: $2" >&2
  exit 1
}

# release NAME: lets a pod go that was kept to look at it.
release() { kubectl -n "$NS" patch pod "$1" --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null; }

# save NAME: what the runner reads of the pod, with names that don't change from recording to recording.
save() {
  kubectl -n "$NS" get pod "$1" -o json | strip >"$OUT/$1.json" || exit 1
  echo "$1"
}
strip() {
  sed "s/$NODE/node-1/g; s/$NS/kiln-builds/g" | jq --sort-keys '{
    metadata: (.metadata | {name, uid: "uid", creationTimestamp, deletionTimestamp} | with_entries(select(.value))),
    spec: ({nodeName: .spec.nodeName, containers: [.spec.containers[] | {name, image}],
      initContainers: [.spec.initContainers[] | {name, image, restartPolicy} | with_entries(select(.value))]} | with_entries(select(.value))),
    status: (.status | del(.hostIP, .hostIPs, .podIP, .podIPs))
  } | walk(if type == "object" then del(.containerID, .imageID, .user, .allocatedResources, .resources, .volumeMounts)
      else . end)
  | (.status.initContainerStatuses[]?, .status.containerStatuses[]?) |= (.imageID = "")'
}
over='.status.phase == "Failed" or .status.phase == "Succeeded"'
ended='[.status.containerStatuses[]? | select(.name == "build") | .state.terminated] | any'
runs='[.status.containerStatuses[]? | select(.name == "build") | .state.running] | any'
waits() { echo "([.status.initContainerStatuses[]?, .status.containerStatuses[]? | .state.waiting.reason == \"$1\"] | any)"; }

# --- What the builder and the kernel do ---
exit-1() { pod "$FUNCNAME" "$WELL" "exit 1"; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
exit-by-sigkill() { pod "$FUNCNAME" "$WELL" 'kill -9 $$; sleep 60' '.spec.shareProcessNamespace = true | .spec.containers[0].command = ["sh", "-c", "sh -c \"kill -9 $PPID\"; sleep 60"]'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
exit-by-sigterm() { pod "$FUNCNAME" "$WELL" 'kill -TERM $PPID; sleep 60' '.spec.shareProcessNamespace = true | .spec.containers[0].command = ["sh", "-c", "sh -c \"kill -TERM $PPID\"; sleep 60"]'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
out-of-memory() { pod "$FUNCNAME" "$WELL" "tail /dev/zero"; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
out-of-memory-beside-a-sidecar() { pod "$FUNCNAME" "$WELL" "tail /dev/zero" '.spec.initContainers[0].command = ["sh", "-c", "sleep 20"] | .spec.terminationGracePeriodSeconds = 30'; until_pod "$FUNCNAME" "$ended"; save "$FUNCNAME"; }
source-out-of-memory() { pod "$FUNCNAME" "tail /dev/zero" "$HANGS"; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
source-failed() { pod "$FUNCNAME" "exit 3" "$HANGS"; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
sidecar-killed() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.initContainers[0].command = ["sh", "-c", "sleep 1; exit 137"]'; until_pod "$FUNCNAME" "($runs) and ([.status.initContainerStatuses[]? | select(.name == \"ship\") | .state.terminated] | any)"; save "$FUNCNAME"; }
start-error() { pod "$FUNCNAME" "$WELL" "" '.spec.containers[0].command = ["/no/such/program"]'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
succeeded() { pod "$FUNCNAME" "$WELL" "$WELL"; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }

# --- What the kubelet does ---
deadline-exceeded() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.activeDeadlineSeconds = 5'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
evicted-for-its-disk() { pod "$FUNCNAME" "$WELL" "head -c 30000000 /dev/zero >/big; sleep 600" '.spec.containers[0].resources.limits["ephemeral-storage"] = "10Mi"'; until_pod "$FUNCNAME" "$over" 240; save "$FUNCNAME"; }
evicted-for-its-volume() { pod "$FUNCNAME" "$WELL" "head -c 30000000 /dev/zero >/v/big; sleep 600" '.spec.volumes = [{name: "storage", emptyDir: {sizeLimit: "10Mi"}}] | .spec.containers[0].volumeMounts = [{name: "storage", mountPath: "/v"}]'; until_pod "$FUNCNAME" "$over" 240; save "$FUNCNAME"; }
refused-by-the-node() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.nodeName = "node1" | .spec.containers[0].resources.limits.cpu = "500"'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
not-the-right-node() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.nodeName = "node1" | .spec.nodeSelector = {"kiln-record": "elsewhere"}'; until_pod "$FUNCNAME" "$over"; save "$FUNCNAME"; }
image-not-found() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].image |= sub("[^/]*$"; "no-such-image:1")'; until_pod "$FUNCNAME" "$(waits ErrImagePull)"; save "$FUNCNAME"; }
image-pull-back-off() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].image |= sub("[^/]*$"; "no-such-image:1")'; until_pod "$FUNCNAME" "$(waits ImagePullBackOff)"; save "$FUNCNAME"; }
image-unauthorized() { pod "$FUNCNAME" "$WELL" "$HANGS" ".spec.initContainers[1].image = \"$KILN_TEST_AUTH_REGISTRY/kiln/private:1\""; until_pod "$FUNCNAME" "$(waits ErrImagePull)"; save "$FUNCNAME"; }
image-registry-away() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].image = "127.0.0.1:9/kiln/none:1"'; until_pod "$FUNCNAME" "$(waits ErrImagePull)"; save "$FUNCNAME"; }
image-invalid-name() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].image = "Not/An:Image:Name"'; until_pod "$FUNCNAME" "$(waits InvalidImageName)"; save "$FUNCNAME"; }
image-never-pulled() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].image |= sub("[^/]*$"; "no-such-image:2") | .spec.containers[0].imagePullPolicy = "Never"'; until_pod "$FUNCNAME" "$(waits ErrImageNeverPull)"; save "$FUNCNAME"; }
container-config-error() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].env = [{name: "A", valueFrom: {secretKeyRef: {name: "no-such-secret", key: "a"}}}]'; until_pod "$FUNCNAME" "$(waits CreateContainerConfigError)"; save "$FUNCNAME"; }
volume-missing() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.volumes = [{name: "m", configMap: {name: "no-such-map"}}] | .spec.containers[0].volumeMounts = [{name: "m", mountPath: "/m"}]'; until_pod "$FUNCNAME" '.spec.nodeName and .status.containerStatuses'; save "$FUNCNAME"; }

# --- What others do ---
running() { pod "$FUNCNAME" "$WELL" "$HANGS"; until_pod "$FUNCNAME" "$runs"; save "$FUNCNAME"; }
unschedulable() { pod "$FUNCNAME" "$WELL" "$HANGS" '.spec.containers[0].resources.limits.cpu = "500"'; until_pod "$FUNCNAME" '[.status.conditions[]? | .reason == "Unschedulable"] | any'; save "$FUNCNAME"; }
deleted() {
  pod "$FUNCNAME" "$WELL" "$HANGS" '.metadata.finalizers = ["kiln.build/record"]'
  until_pod "$FUNCNAME" "$runs"
  kubectl -n "$NS" delete pod "$FUNCNAME" --wait=false >/dev/null
  until_pod "$FUNCNAME" "$ended"
  save "$FUNCNAME"
  release "$FUNCNAME"
}
evicted-by-api() {
  pod "$FUNCNAME" "$WELL" "$HANGS" '.metadata.finalizers = ["kiln.build/record"]'
  until_pod "$FUNCNAME" "$runs"
  jq -n --arg name "$FUNCNAME" '{apiVersion: "policy/v1", kind: "Eviction", metadata: {name: $name}}' |
    kubectl create --raw "/api/v1/namespaces/$NS/pods/$FUNCNAME/eviction" -f - >/dev/null
  until_pod "$FUNCNAME" "$ended"
  save "$FUNCNAME"
  release "$FUNCNAME"
}

# node: a node that is ready as far as its last word goes.
node() {
  jq -n --arg name "$NODE" '{apiVersion: "v1", kind: "Node", metadata: {name: $name, labels: {"kubernetes.io/hostname": $name, "kiln-record": "here"}},
    spec: {taints: [{key: "kiln-record", effect: "NoSchedule"}]}}' | kubectl create -f - >/dev/null
  kubectl patch node "$NODE" --subresource=status --type=merge -p "$(jq -n --arg now "$(date -u +%FT%TZ)" '{status: {
    capacity: {cpu: "1", memory: "1Gi", pods: "10", "ephemeral-storage": "1Gi"},
    allocatable: {cpu: "1", memory: "1Gi", pods: "10", "ephemeral-storage": "1Gi"},
    conditions: [{type: "Ready", status: "True", reason: "KubeletReady", lastHeartbeatTime: $now, lastTransitionTime: $now}]}}')" >/dev/null
}
HERE='.spec.nodeSelector = {"kiln-record": "here"} | .spec.tolerations = [{key: "kiln-record", operator: "Exists"},
  {key: "node.kubernetes.io/unreachable", operator: "Exists", effect: "NoExecute", tolerationSeconds: 1},
  {key: "node.kubernetes.io/not-ready", operator: "Exists"}]'
# as-if-running NAME: what its kubelet would have said.
as-if-running() {
  until_pod "$1" '.spec.nodeName'
  kubectl -n "$NS" get pod running -o json | jq '{status: {phase, initContainerStatuses, containerStatuses, startTime} } + {status: .status}' |
    jq '{status: (.status | {phase, initContainerStatuses, containerStatuses, startTime})}' >"/tmp/$NS-status.json"
  kubectl -n "$NS" patch pod "$1" --subresource=status --type=merge --patch-file "/tmp/$NS-status.json" >/dev/null
  rm "/tmp/$NS-status.json"
}
preempted() {
  node
  pod "$FUNCNAME" "$WELL" "$HANGS" "$HERE"' | .spec.containers[0].resources.limits.cpu = "800m"'
  as-if-running "$FUNCNAME"
  kubectl create priorityclass "$NS" --value 1000 >/dev/null
  pod usurper "$WELL" "$HANGS" "$HERE"' | .spec.containers[0].resources.limits.cpu = "800m" | .spec.priorityClassName = "'"$NS"'"'
  until_pod "$FUNCNAME" '.metadata.deletionTimestamp'
  save "$FUNCNAME"
  kubectl -n "$NS" delete pod "$FUNCNAME" usurper --force --grace-period=0 >/dev/null 2>&1
}
node-unreachable() {
  kubectl get node "$NODE" >/dev/null 2>&1 || node
  pod "$FUNCNAME" "$WELL" "$HANGS" "$HERE | .spec.nodeName = \"$NODE\""
  as-if-running "$FUNCNAME"
  until_pod "$FUNCNAME" '.metadata.deletionTimestamp' 180
  save "$FUNCNAME"
}
node-deleted() {
  kubectl get node "$NODE" >/dev/null 2>&1 || node
  pod "$FUNCNAME" "$WELL" "$HANGS" "$HERE | .spec.nodeName = \"$NODE\" | .spec.tolerations[1] |= del(.tolerationSeconds) | .metadata.finalizers = [\"kiln.build/record\"]"
  as-if-running "$FUNCNAME"
  kubectl delete node "$NODE" >/dev/null
  until_pod "$FUNCNAME" '[.status.conditions[]? | .reason == "DeletionByPodGC"] | any' 240
  save "$FUNCNAME"
  release "$FUNCNAME"
}

nodes=(preempted node-unreachable node-deleted)
all=(succeeded exit-1 exit-by-sigkill exit-by-sigterm out-of-memory out-of-memory-beside-a-sidecar source-out-of-memory
  source-failed sidecar-killed start-error deadline-exceeded refused-by-the-node not-the-right-node image-not-found
  image-pull-back-off image-unauthorized image-registry-away image-invalid-name image-never-pulled container-config-error
  volume-missing unschedulable deleted evicted-by-api evicted-for-its-disk evicted-for-its-volume)

# Independent of each other: one that doesn't come about leaves the others.
record() {
  ("$1") || echo "not recorded: $1" >&2
}
if (($#)); then
  for scenario; do record "$scenario"; done
else
  # The others that need a running pod's status have it from this one.
  record running
  for scenario in "${nodes[@]}"; do record "$scenario"; done &
  for scenario in "${all[@]}"; do
    while (($(jobs -rp | wc -l) > 5)); do wait -n || true; done
    record "$scenario" &
  done
  wait
fi
