//! What a plugin wants of a container that is created, field by field.

use std::collections::HashMap;

use wharf_proto::nri::{
    ContainerAdjustment, Field, Hooks, KeyValue, LinuxContainer, LinuxContainerAdjustment, LinuxDevice, LinuxNamespace,
    LinuxRdt, Mount, PosixRlimit,
};

use super::{Merge, owners::Owners, resources, unmarked};

/// Whose wish for which container is taken in.
struct Claim<'a> {
    owners: &'a mut Owners,
    id: &'a str,
    plugin: &'a str,
}

impl Claim<'_> {
    fn one(&mut self, field: Field) -> Result<(), String> {
        self.owners.claim(self.id, field, self.plugin)
    }

    fn entry(&mut self, field: Field, entry: &str) -> Result<(), String> {
        self.owners.claim_entry(self.id, field, entry, self.plugin)
    }

    fn clear(&mut self, field: Field, entry: &str) {
        self.owners.clear_entry(self.id, field, entry, self.plugin);
    }

    /// A list of things with a key each: those that are removed, then those that are added, which replace what has the same
    /// key. `there` is what the next plugin sees, `wanted` what is asked of the runtime.
    fn list<T: Clone>(
        &mut self,
        field: Field,
        new: Vec<T>,
        there: &mut Vec<T>,
        wanted: &mut Vec<T>,
        key: impl Fn(&T) -> &str,
    ) -> Result<(), String> {
        let (removals, additions): (Vec<T>, Vec<T>) = new.into_iter().partition(|one| unmarked(key(one)).is_some());
        for removal in removals {
            let name = unmarked(key(&removal)).unwrap_or_default().to_owned();
            self.clear(field, &name);
            there.retain(|one| key(one) != name);
            // What another has wanted of it, too.
            wanted.retain(|one| key(one) != name && key(one) != key(&removal));
            wanted.push(removal);
        }
        for addition in additions {
            self.entry(field, key(&addition))?;
            there.retain(|one| key(one) != key(&addition));
            there.push(addition.clone());
            wanted.push(addition);
        }
        Ok(())
    }

    /// As [`Claim::list`], for maps.
    fn map<V: Clone + Default>(
        &mut self,
        field: Field,
        new: HashMap<String, V>,
        there: &mut HashMap<String, V>,
        wanted: &mut HashMap<String, V>,
    ) -> Result<(), String> {
        let (removals, additions): (Vec<_>, Vec<_>) = new.into_iter().partition(|(key, _)| unmarked(key).is_some());
        for (removal, _) in removals {
            let name = unmarked(&removal).unwrap_or_default();
            self.clear(field, name);
            there.remove(name);
            wanted.remove(name);
            wanted.insert(removal, V::default());
        }
        for (key, value) in additions {
            self.entry(field, &key)?;
            there.insert(key.clone(), value.clone());
            wanted.insert(key, value);
        }
        Ok(())
    }
}

impl Merge {
    pub(super) fn adjust(&mut self, plugin: &str, new: ContainerAdjustment) -> Result<(), String> {
        let mut claim = Claim {
            owners: &mut self.owners,
            id: &self.id,
            plugin,
        };
        let (there, wanted) = (&mut self.container, &mut self.adjustment);
        claim.map(
            Field::Annotations,
            new.annotations,
            &mut there.annotations,
            &mut wanted.annotations,
        )?;
        claim.list(
            Field::Mounts,
            new.mounts,
            &mut there.mounts,
            &mut wanted.mounts,
            |mount: &Mount| &mount.destination,
        )?;
        env(&mut claim, new.env, &mut there.env, &mut wanted.env)?;
        if !new.args.is_empty() {
            args(&mut claim, new.args, &mut there.args, &mut wanted.args)?;
        }
        if let Some(hooks) = new.hooks {
            add_hooks(&mut claim, hooks, &mut there.hooks, &mut wanted.hooks);
        }
        if let Some(linux) = new.linux {
            adjust_linux(
                &mut claim,
                linux,
                there.linux.get_or_insert_default(),
                wanted.linux.get_or_insert_default(),
            )?;
        }
        for limit in new.rlimits {
            claim.entry(Field::Rlimits, &limit.r#type)?;
            let other = |known: &PosixRlimit| known.r#type != limit.r#type;
            there.rlimits.retain(other);
            wanted.rlimits.retain(other);
            there.rlimits.push(limit.clone());
            wanted.rlimits.push(limit);
        }
        for device in new.cdi_devices {
            claim.entry(Field::CdiDevices, &device.name)?;
            wanted.cdi_devices.push(device);
        }
        Ok(())
    }
}

/// The container has `KEY=value`, plugins speak of keys and values.
fn env(
    claim: &mut Claim,
    new: Vec<KeyValue>,
    there: &mut Vec<String>,
    wanted: &mut Vec<KeyValue>,
) -> Result<(), String> {
    let mut split: Vec<KeyValue> = there
        .iter()
        .map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            KeyValue {
                key: key.to_owned(),
                value: value.to_owned(),
            }
        })
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    claim.list(Field::Env, new, &mut split, wanted, |entry| &entry.key)?;
    *there = split
        .iter()
        .map(|entry| format!("{}={}", entry.key, entry.value))
        .collect();
    Ok(())
}

/// An empty first argument says that others' are replaced on purpose.
fn args(
    claim: &mut Claim,
    mut new: Vec<String>,
    there: &mut Vec<String>,
    wanted: &mut Vec<String>,
) -> Result<(), String> {
    if new.first().is_some_and(String::is_empty) {
        new.remove(0);
        claim.owners.clear(claim.id, Field::Args, claim.plugin);
    }
    claim.one(Field::Args)?;
    there.clone_from(&new);
    *wanted = new;
    Ok(())
}

fn add_hooks(claim: &mut Claim, new: Hooks, there: &mut Option<Hooks>, wanted: &mut Option<Hooks>) {
    let mut any = false;
    macro_rules! add {
        ($($moment:ident)*) => {
            $(if !new.$moment.is_empty() {
                any = true;
                there.get_or_insert_default().$moment.extend(new.$moment.iter().cloned());
                wanted.get_or_insert_default().$moment.extend(new.$moment);
            })*
        };
    }
    add!(prestart create_runtime create_container start_container poststart poststop);
    if any {
        claim.owners.join(claim.id, Field::OciHooks, claim.plugin);
    }
}

fn adjust_linux(
    claim: &mut Claim,
    new: LinuxContainerAdjustment,
    there: &mut LinuxContainer,
    wanted: &mut LinuxContainerAdjustment,
) -> Result<(), String> {
    claim.list(
        Field::Devices,
        new.devices,
        &mut there.devices,
        &mut wanted.devices,
        |device: &LinuxDevice| &device.path,
    )?;
    if let Some(limits) = &new.resources {
        resources::take(
            claim.owners,
            claim.id,
            claim.plugin,
            limits,
            &mut [
                there.resources.get_or_insert_default(),
                wanted.resources.get_or_insert_default(),
            ],
        )?;
    }
    if !new.cgroups_path.is_empty() {
        claim.one(Field::CgroupsPath)?;
        there.cgroups_path.clone_from(&new.cgroups_path);
        wanted.cgroups_path = new.cgroups_path;
    }
    macro_rules! whole {
        ($($name:ident => $field:ident),*) => {
            $(if let Some(value) = new.$name {
                claim.one(Field::$field)?;
                there.$name = Some(value.clone());
                wanted.$name = Some(value);
            })*
        };
    }
    whole!(oom_score_adj => OomScoreAdj, io_priority => IoPriority, seccomp_policy => SeccompPolicy, scheduler => LinuxSched);
    namespaces(claim, new.namespaces, &mut there.namespaces, &mut wanted.namespaces)?;
    claim.map(Field::Sysctl, new.sysctl, &mut there.sysctl, &mut wanted.sysctl)?;
    claim.map(
        Field::LinuxNetDevices,
        new.net_devices,
        &mut there.net_devices,
        &mut wanted.net_devices,
    )?;
    if let Some(rdt) = new.rdt {
        adjust_rdt(claim, rdt, &mut there.rdt, &mut wanted.rdt)?;
    }
    if let Some(policy) = new.memory_policy {
        claim.one(Field::MemoryPolicy)?;
        wanted.memory_policy = Some(policy);
    }
    Ok(())
}

/// Removing one is claimed as setting one is: a namespace is of one plugin or of none.
fn namespaces(
    claim: &mut Claim,
    new: Vec<LinuxNamespace>,
    there: &mut Vec<LinuxNamespace>,
    wanted: &mut Vec<LinuxNamespace>,
) -> Result<(), String> {
    for namespace in new {
        let removed = unmarked(&namespace.r#type);
        let kind = removed.unwrap_or(&namespace.r#type).to_owned();
        claim.entry(Field::Namespace, &kind)?;
        there.retain(|known| known.r#type != kind);
        if removed.is_none() {
            there.push(namespace.clone());
        }
        wanted.push(namespace);
    }
    Ok(())
}

fn adjust_rdt(
    claim: &mut Claim,
    new: LinuxRdt,
    there: &mut Option<LinuxRdt>,
    wanted: &mut Option<LinuxRdt>,
) -> Result<(), String> {
    if new.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            claim.owners.clear(claim.id, field, claim.plugin);
        }
        *there = None;
        *wanted = Some(LinuxRdt {
            remove: true,
            ..Default::default()
        });
    }
    macro_rules! set {
        ($($name:ident => $field:ident),*) => {
            $(if let Some(value) = new.$name {
                claim.one(Field::$field)?;
                there.get_or_insert_default().$name = Some(value.clone());
                let wanted = wanted.get_or_insert_default();
                wanted.$name = Some(value);
                wanted.remove = false;
            })*
        };
    }
    set!(clos_id => RdtClosId, schemata => RdtSchemata, enable_monitoring => RdtEnableMonitoring);
    Ok(())
}
