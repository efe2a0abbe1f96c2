//! Runs the container of a pod as the kubelet would have it run: its root file system, its volumes, its token, its
//! environment and its capabilities, in the network namespace of its node. There is no image: the programs of this
//! machine and the one program that the image would hold make the root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Host, Process};
use crate::program;

/// Where pods find their token.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Builds the root on a tmpfs that ends with the mount namespace, which `ip netns exec` has made, and enters it.
/// Arguments: the root, the program, the capabilities, then `--`, mounts as `source:target`, `--`, the command.
const ENTER: &str = r#"
set -eu
root=$1 program=$2 capabilities=$3
shift 4
mount -t tmpfs -o mode=755 tmpfs "$root"
for folder in /usr /etc /bin /sbin /lib /lib32 /lib64; do
  if [ -L "$folder" ]; then
    ln -s "$(readlink "$folder")" "$root$folder"
  elif [ -d "$folder" ]; then
    mkdir "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
  fi
done
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/run"
mount --rbind /proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --rbind /dev "$root/dev"
touch "$root/program"
mount --bind "$program" "$root/program"
while [ "$1" != -- ]; do
  from=${1%%:*} to=$root${1#*:}
  if [ -d "$from" ]; then mkdir -p "$to"; else mkdir -p "$(dirname "$to")"; touch "$to"; fi
  mount --bind "$from" "$to"
  shift
done
shift
mount -o remount,ro "$root"
cd /
exec chroot "$root" setpriv --no-new-privs --bounding-set="-all$capabilities" "$@"
"#;

/// What a pod needs of its node besides its own spec.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The node.
    pub host: &'a Host,
    /// The node's `InternalIP`.
    pub ip: String,
    /// A folder that stands for the node's disk.
    pub disk: &'a Path,
    /// A folder for the files of this pod.
    pub folder: &'a Path,
    /// The token bound to this pod.
    pub token: &'a str,
    /// The certificate of the API server's authority.
    pub authority: &'a Path,
    /// The API server's address and port.
    pub api: (String, u16),
    /// Arguments after the container's own.
    pub arguments: &'a [String],
}

/// Starts the one container of `pod`; its output goes to `log`.
pub fn start(pod: &Value, around: &Surroundings<'_>, log: &Path) -> Result<Process> {
    let container = &pod["spec"]["containers"][0];
    let environment = environment(pod, container, around)?;
    let mounts = mounts(pod, container, around)?;
    let program = program_of(container)?;
    let root = around.folder.join("root");
    std::fs::create_dir_all(&root).context("make the container's root")?;

    let mut command: Vec<String> = ["sh", "-c", ENTER, "enter"].map(str::to_owned).to_vec();
    command.extend([root.display().to_string(), program.display().to_string(), capabilities(container)?]);
    command.push("--".to_owned());
    command.extend(mounts.iter().map(|(from, to)| format!("{}:{to}", from.display())));
    command.extend(["--", "env", "-i"].map(str::to_owned));
    command.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    command.push("/program".to_owned());
    for argument in container["args"].as_array().into_iter().flatten() {
        command.push(expand(argument.as_str().unwrap_or_default(), &environment));
    }
    command.extend_from_slice(around.arguments);
    around.host.spawn_logging_to(&command, log)
}

/// The program that the container's image has as its entry point.
fn program_of(container: &Value) -> Result<PathBuf> {
    ensure!(container["command"].is_null(), "the container has a command; the image's own is expected");
    let image = container["image"].as_str().unwrap_or_default();
    ensure!(image.contains("node-agent"), "the image {image:?} is not the node agent's");
    program::node_agent()
}

/// What `setpriv` keeps: `,+net_admin,…`.
fn capabilities(container: &Value) -> Result<String> {
    let context = &container["securityContext"];
    if context["privileged"] == true {
        return Ok(",+all".to_owned());
    }
    let dropped = &context["capabilities"]["drop"];
    ensure!(dropped.as_array().is_some_and(|list| list.iter().any(|name| name == "ALL")), "not all are dropped");
    let added = context["capabilities"]["add"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(added.map(|name| format!(",+{}", name.to_lowercase())).collect())
}

fn environment(pod: &Value, container: &Value, around: &Surroundings<'_>) -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), around.api.0.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), around.api.1.to_string()),
    ]);
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("read the name of a variable")?;
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("status.podIP" | "status.hostIP") => around.ip.clone(),
            Some(path) => {
                let pointer = format!("/{}", path.replace('.', "/"));
                pod.pointer(&pointer).and_then(Value::as_str).with_context(|| format!("read {path}"))?.to_owned()
            }
            None => variable["value"].as_str().unwrap_or_default().to_owned(),
        };
        environment.insert(name.to_owned(), value);
    }
    Ok(environment)
}

/// Replaces `$(NAME)`.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    environment.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// What is bound where.
fn mounts(pod: &Value, container: &Value, around: &Surroundings<'_>) -> Result<Vec<(PathBuf, String)>> {
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let (name, to) = (&mount["name"], mount["mountPath"].as_str().context("read a mount path")?);
        let volume = volumes.iter().find(|volume| volume["name"] == *name).context("find a volume")?;
        let from = match volume["hostPath"]["path"].as_str() {
            Some(path) => on_node(path, volume["hostPath"]["type"].as_str().unwrap_or_default(), around)?,
            None if to == TOKEN_FOLDER => token_folder(pod, around)?,
            None if !volume["emptyDir"].is_null() => {
                let folder = around.folder.join(name.as_str().unwrap_or_default());
                std::fs::create_dir_all(&folder).context("make an empty directory")?;
                folder
            }
            None => bail!("this node knows no volume like {volume}"),
        };
        mounts.push((from, to.to_owned()));
    }
    Ok(mounts)
}

/// A path of the node: the kernel's own settings as they are, everything else on the node's disk.
fn on_node(path: &str, kind: &str, around: &Surroundings<'_>) -> Result<PathBuf> {
    if path.starts_with("/proc/") {
        return Ok(path.into());
    }
    let place = around.disk.join(path.trim_start_matches('/'));
    match kind {
        "DirectoryOrCreate" => std::fs::create_dir_all(&place),
        "FileOrCreate" => {
            let above = place.parent().context("find the folder of a file")?;
            std::fs::create_dir_all(above)
                .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(&place).map(drop))
        }
        _ => bail!("{path} of type {kind:?} is not on this node"),
    }
    .with_context(|| format!("make {}", place.display()))?;
    Ok(place)
}

fn token_folder(pod: &Value, around: &Surroundings<'_>) -> Result<PathBuf> {
    let folder = around.folder.join("token");
    std::fs::create_dir_all(&folder).context("make the token's folder")?;
    std::fs::write(folder.join("token"), around.token).context("write the token")?;
    std::fs::copy(around.authority, folder.join("ca.crt")).context("copy the authority's certificate")?;
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    std::fs::write(folder.join("namespace"), namespace).context("write the namespace")?;
    Ok(folder)
}
